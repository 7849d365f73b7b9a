"""Mistakes that one could make in barriers, each a function from the right to the wrong.

Those that others have made are named in the trackers of Curator (1290) and etcd (16223), and found
in the source of kazoo's barrier. `planted` puts them in.
"""

from __future__ import annotations

from typing import Any

from kvi.call import Call
from kvi.errors import BrokenBarrier, LockTimeout
from kvi.flow.recipes.barrier import _Gate, _Party
from kvi.flow.recipes.register import Seen
from kvi.flow.recipes.state import state_of
from kvi.model import Delete, Put
from kvi.policy.line import loads


def woken(real: Any) -> Any:
    """Who is woken takes that for the last one's coming."""
    looked: set[int] = set()

    async def look(party: _Party, call: Call) -> int | None:
        order: int | None = await real(party, call)
        if order is None and party.lease.id in looked:
            return (await party._read(call)).waiting.index(party._me)
        looked.add(party.lease.id)
        return order

    return look


def swallowed(real: Any) -> Any:
    """A barrier that is broken is reported as passed."""

    async def look(party: _Party, call: Call) -> int | None:
        try:
            order: int | None = await real(party, call)
        except BrokenBarrier:
            return 0
        return order

    return look


def waiting_on(real: Any) -> Any:
    """Who was lost itself is not told, and waits on."""

    async def look(party: _Party, call: Call) -> int | None:
        try:
            order: int | None = await real(party, call)
        except BrokenBarrier:
            if party.lease.alive:
                raise
            return None
        return order

    return look


def forgetting(real: Any) -> Any:
    """The last one of a generation writes over what the one before has not seen yet."""

    async def change(
        party: _Party,
        call: Call,
        seen: Seen,
        waiting: list[str],
        outcomes: dict[str, int],
        *also: Put | Delete,
    ) -> bool:
        mine = {*seen.said.get("waiting", ()), party._me}
        if not waiting and mine <= set(outcomes):
            outcomes = {one: order for one, order in outcomes.items() if one in mine}
        done: bool = await real(party, call, seen, waiting, outcomes, *also)
        return done

    return change


def mixed(real: Any) -> Any:
    """Who has passed, and has not left yet, counts for the next generation too."""

    async def read(party: _Party, call: Call) -> _Gate:
        gate: _Gate = await real(party, call)
        if party._me in gate.outcomes:
            return gate
        passed = [one for one, order in gate.outcomes.items() if order >= 0 and one in gate.alive]
        return gate._replace(waiting=(passed + gate.waiting)[: party._parties - 1])

    return read


def silent(real: Any) -> Any:
    """Whose time is up goes without leaving, and counts on."""

    async def give_up(party: _Party, call: Call) -> int:
        raise LockTimeout("not all parties came in time")

    return give_up


def trusting(real: Any) -> Any:
    """Nobody looks whether those that wait are there still."""

    async def read(party: _Party, call: Call) -> _Gate:
        state = await state_of(party._scope, call, party._owner.place)
        entry = state.others.get(party._at)
        said = loads(None if entry is None else entry.value)
        alive = {f"{one.lease:x}" for one in state.line}
        seen = Seen(said, 0 if entry is None else entry.revision, ())
        return _Gate([*said.get("waiting", ())], {**said.get("outcomes", {})}, alive, seen)

    return read
