"""Mistakes that one could make in what stands in line, each a function from the right to the wrong.

Those that others have made are named in the trackers of kazoo (213, 649), Curator (796, 1138)
and etcd (19597, 21128, 22123). `planted` puts them in.
"""

from __future__ import annotations

from typing import Any

from kvi.call import Call
from kvi.errors import KviError, LeaseLost
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow, LockState, _Attempt
from kvi.flow.recipes.election import ElectionLine
from kvi.flow.recipes.line import HOLDS, Line
from kvi.flow.recipes.rwlock import READ, WRITE, ReadWriteLine
from kvi.flow.recipes.semaphore import SemaphoreLine
from kvi.flow.recipes.slots import SlotLine
from kvi.flow.scope import PASSING, Scope
from kvi.model import Claim, Delete, Put, Txn
from kvi.ops import TxnOp
from kvi.policy.lease import LeaseState
from kvi.policy.line import Contender, Mark, State, loads
from kvi.port import Port


def counted(real: Any) -> Any:
    """Whoever finds fewer than the limit that hold enters; several may find the same."""

    def verdict(line: SemaphoreLine, state: State, at: int, orphans: list[Mark]) -> str | None:
        assert state.settings is not None
        limit = loads(state.settings.value)[line.setting]
        held = sum(one.said.get("state") == HOLDS for one in state.line) + len(orphans)
        return None if held < limit else line.owner.place.root

    return verdict


def stale_limit(real: Any) -> Any:
    """Entering does not check that the limit is the one that was read."""

    async def enter(
        line: Line, scope: Scope, call: Call, state: State, me: Contender, lease: LeaseFlow
    ) -> Claim | None:
        found: Claim | None = await real(
            line, scope, call, state._replace(settings=None), me, lease
        )
        return found

    return enter


def careless(real: Any) -> Any:
    """Who is gone from the line is taken to know it."""

    async def noticed(line: Line, scope: Scope, call: Call, state: State) -> list[Mark]:
        for mark in state.orphans:
            await line._take_away(scope, call, mark)
            state.marks.pop(mark.id)
        return []

    return noticed


def by_place(real: Any) -> Any:
    """The index is the place in the line, whoever has it."""

    async def enter(
        line: SlotLine, scope: Scope, call: Call, state: State, me: Contender, lease: LeaseFlow
    ) -> Claim | None:
        line._mark = line.owner.place.mark(str(state.line.index(me)))
        then = (Put(me.key, line._value(HOLDS), lease.id), Put(line._mark, line._marked(lease)))
        done = await scope.executor.execute(TxnOp(Txn((me.guard,), then)), call)
        return me.claim(None, done.revision or 0) if done.succeeded else None

    return enter


def polite(real: Any) -> Any:
    """A reader waits for every writer, those that came later as well."""

    def verdict(line: ReadWriteLine, state: State, at: int, orphans: list[Mark]) -> str | None:
        if line.mode == READ:
            writers = [one for one in state.line if one.said.get("mode") == WRITE]
            if writers:
                return writers[-1].key
        found: str | None = real(line, state, at, orphans)
        return found

    return verdict


def rude(real: Any) -> Any:
    """A writer waits for writers alone."""

    def verdict(line: ReadWriteLine, state: State, at: int, orphans: list[Mark]) -> str | None:
        before = [one for one in state.line[:at] if one.said.get("mode") == WRITE]
        return before[-1].key if before else None

    return verdict


def in_two_steps(real: Any) -> Any:
    """A writer lets go, then reads."""

    async def downgrade(line: ReadWriteLine, flow: LockFlow, call: Call) -> None:
        claim, lease, execute = flow.claim, flow.lease, flow.scope.executor.execute
        assert claim is not None
        assert lease is not None
        line.mode = READ
        await execute(TxnOp(Txn((claim.guard,), (Delete(claim.key),))), call)
        said = line._value(HOLDS)
        await execute(TxnOp(Txn((), (Put(claim.key, said, lease.id),))), call)

    return downgrade


def stays(real: Any) -> Any:
    """Who campaigned in vain stays a candidate."""

    async def release(line: ElectionLine, scope: Scope, call: Call, claim: Claim) -> bool:
        if claim.ahead is not None:
            return True
        done: bool = await real(line, scope, call, claim)
        return done

    return release


def forgets(real: Any) -> Any:
    """A resignation whose answer is lost counts as done, and nobody takes the key away."""

    async def release(flow: LockFlow, port: Port, timeout: float, *, keep: bool = False) -> None:
        try:
            await real(flow, port, timeout, keep=keep)
        except PASSING:
            flow._state = LockState.RELEASED

    return release


def undead(real: Any) -> Any:
    """A candidate whose lease ends while it waits takes that for its turn."""

    async def following(attempt: _Attempt, claim: Claim, lease: LeaseFlow) -> Claim:
        try:
            found: Claim = await real(attempt, claim, lease)
        except LeaseLost:
            lease.term.state, lease.term._over = LeaseState.ALIVE, False
            lease.term._count_from(lease.term.ttl, attempt._port.now())
            return claim._replace(ahead=None)
        except KviError:
            raise
        return found

    return following
