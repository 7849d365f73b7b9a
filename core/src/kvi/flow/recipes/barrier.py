"""The barrier: so many parties meet, and all or none go on.

One register (`kvi.flow.recipes.register`) for each of the two gates, ``.kvi/wait`` and
``.kvi/leave``: who waits there, in the order of arrival, and what has become of those who do not
know yet. Each party also has a key in the directory, kept by its lease, which shows that it lives.
Both are read in one answer, as of one moment. Every step is one change of the register, together
with the party's key: what decides is the state, and never an event.

===========  =================================================  ===================================
a party is   guarantee                                          left by
===========  =================================================  ===================================
``waiting``  the gate waits for it; its key is there            the last one comes: all that wait
                                                                *have passed*, in one change; one
                                                                of them is gone: all *are broken*;
                                                                its time is up: it leaves
*passed*     its outcome is in the register, also if its key    it has seen it, and takes it away;
             is gone                                            or its key is gone, and the next
                                                                pass
*broken*     its outcome is in the register, or nothing of it   it has seen it, and takes it away;
             and its key is gone                                or its key is gone
===========  =================================================  ===================================

So the register is never larger than the parties that are there, and those that passed last. Who is
lost once all have passed is told so when it wakes up: the others have gone on, and so does it. Who
is lost by its own clock while it waits breaks the gate itself.

A change whose answer is lost is settled by looking: a party finds itself among those that wait, or
its outcome, or neither. Then it has not come, and comes again; or it has left. Whose time is up
while the store cannot be reached does not know whether it counts, and says so: `OutcomeUnknown`.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from kvi.call import Call
from kvi.errors import BrokenBarrier, Contention, LeaseLost, LockTimeout, OutcomeUnknown
from kvi.flow.lease import LeaseFlow
from kvi.flow.recipes.observing import Notice
from kvi.flow.recipes.register import Register, Seen, settled
from kvi.flow.recipes.state import Owner, state_of
from kvi.flow.scope import PASSING, Scope, is_final
from kvi.log import log
from kvi.model import Delete, Put
from kvi.policy.lease import check_ttl
from kvi.policy.line import check_count, check_recipe, dumps
from kvi.port import Port

WAIT, LEAVE = "wait", "leave"
_BROKEN = -1
_WITHDRAWAL = 1.0  # seconds: who waited in vain does not wait long for saying so
_LEAST = 0.05  # seconds for a look, also of one who does not want to wait
_PAUSE = 0.1  # seconds between tries to reach the store


class BarrierFlow:
    """One barrier. Safe for threads: each call is a party of its own."""

    def __init__(self, scope: Scope, name: str, parties: int, ttl: float) -> None:
        limits = scope.capabilities
        self._scope = scope
        self._parties = check_count("parties", parties)
        self._ttl = check_ttl(ttl, limits)
        self.owner = Owner("barrier", check_recipe(name, limits), {"parties": self._parties})

    async def meet(self, port: Port, gate: str, wait: float | None) -> int:
        """Wait for the others at a gate; the order of arrival, from 0."""
        scope = self._scope
        party = _Party(scope, self.owner, gate, self._parties)
        deadline = inf if wait is None else port.now() + wait
        await self.owner.ensure(scope, self._call(port))
        party.lease = await LeaseFlow.grant(port, scope, self._ttl, scope.timeout, keep_alive=True)
        try:
            order = await self._through(port, party, deadline)
        except BaseException as error:
            party.lease.abandon()  # the others will see that it is gone
            if isinstance(error, BrokenBarrier):
                scope.ensure_open()  # closing ends the lease, and is no loss
            raise
        party.lease.abandon()
        return order

    async def _through(self, port: Port, party: _Party, deadline: float) -> int:
        scope, notice = self._scope, Notice(self._scope, self.owner.place.span)
        try:
            await notice.begin(port)
            await party.come(self._call(port))
            left = deadline - port.now()
            while True:
                try:
                    order = await party.look(self._call(port, max(left, _LEAST)))
                    unanswered = False
                except (*PASSING, Contention) as error:
                    scope.ensure_open()
                    if is_final(error):
                        raise OutcomeUnknown(
                            f"the store did not say whether all had come: {error.message}"
                        ) from error
                    log().debug("a party of the barrier %r looks again: %s", party.name, error)
                    unanswered, order = True, None
                if order is not None:
                    return order
                left = deadline - port.now()
                if left <= 0:
                    return await party.give_up(self._call(port, _WITHDRAWAL))
                if unanswered:
                    await port.sleep(min(_PAUSE, left))
                else:
                    await notice.wait(port, left, party.lease.lost)
                left = deadline - port.now()
        finally:
            notice.end()

    def _call(self, port: Port, seconds: float | None = None) -> Call:
        timeout = self._scope.timeout
        return Call(port, port.now() + (timeout if seconds is None else min(seconds, timeout)))


class _Gate(NamedTuple):
    """A gate at one moment; nobody who waits there is lost."""

    waiting: list[str]  # in the order of arrival
    outcomes: dict[str, int]  # with which order it has passed, or `_BROKEN`
    alive: set[str]  # who is there, at either gate
    seen: Seen


class _Party:
    """One party at a gate."""

    lease: LeaseFlow

    def __init__(self, scope: Scope, owner: Owner, gate: str, parties: int) -> None:
        self._scope = scope
        self._owner = owner
        self._parties = parties
        self._at = gate
        self.name = owner.place.name
        self._gate = Register(
            f"{owner.place.root}{gate}", f"barrier_{gate}", waiting=list, outcomes=dict
        )

    @property
    def _me(self) -> str:
        return f"{self.lease.id:x}"

    @property
    def _key(self) -> str:
        return self._owner.place.contender(self.lease.id)

    async def come(self, call: Call) -> None:
        """Arrive; the last one lets all pass. Raises `BrokenBarrier` if it is lost before that."""
        put = Put(self._key, dumps({"recipe": "barrier", "gate": self._at}), self.lease.id)

        async def attempt(doubt: bool) -> bool | None:
            gate = await self._read(call)
            if self._me in gate.waiting or self._me in gate.outcomes:
                return True
            waiting, outcomes = [*gate.waiting, self._me], gate.outcomes
            if len(waiting) == self._parties:
                known = {one: what for one, what in outcomes.items() if one in gate.alive}
                outcomes = known | {one: number for number, one in enumerate(waiting)}
                waiting = []
            return await self._change(call, gate.seen, waiting, outcomes, put) or None

        try:
            await settled(call, attempt)
        except LeaseLost as error:
            raise BrokenBarrier("this party was lost before all had come") from error

    async def look(self, call: Call) -> int | None:
        """Its order, once all have come. Raises `BrokenBarrier`."""
        while True:
            gate = await self._read(call)
            waiting, outcomes, counts = gate.waiting, gate.outcomes, self._me in gate.waiting
            if counts and self.lease.alive:
                return None
            if counts:  # by its own clock it is lost, and nobody may count on it
                waiting.remove(self._me)
                outcomes, waiting = outcomes | dict.fromkeys(waiting, _BROKEN), []
            outcome = outcomes.pop(self._me, _BROKEN)
            try:
                if await self._change(call, gate.seen, waiting, outcomes, Delete(self._key)):
                    break
            except OutcomeUnknown:
                if counts:
                    raise
                break  # what it has seen counts; the rest goes with its lease
        if outcome == _BROKEN:
            raise BrokenBarrier("a party was lost before all had come")
        return outcome

    async def give_up(self, call: Call) -> int:
        """Its time is up: leave, unless all have come. Raises `LockTimeout`.

        Raises `OutcomeUnknown` if the store does not say whether it still counts.
        """
        port, left = call.port, False  # it may have left already
        while True:
            try:
                gate = await self._read(call)
                if self._me not in gate.waiting:
                    if left and self._me not in gate.outcomes:
                        break
                    order = await self.look(call)
                    assert order is not None  # it does not wait
                    return order
                gate.waiting.remove(self._me)
                if await self._change(
                    call, gate.seen, gate.waiting, gate.outcomes, Delete(self._key)
                ):
                    break
            except (*PASSING, Contention) as error:
                self._scope.ensure_open()
                left = left or isinstance(error, OutcomeUnknown)
                if port.now() + _PAUSE >= call.deadline:
                    raise OutcomeUnknown(
                        "the time was up, and the store did not say whether all had come"
                    ) from error
                await port.sleep(_PAUSE)
        raise LockTimeout("not all parties came in time")

    async def _read(self, call: Call) -> _Gate:
        """Who waits, and what has become of whom; after breaking what a lost party breaks."""
        while True:
            state = await state_of(self._scope, call, self._owner.place)
            seen = self._gate.seen(state.others.get(self._at))
            alive = {f"{one.lease:x}" for one in state.line}
            waiting: list[str] = list(seen.said.get("waiting", ()))
            outcomes: dict[str, int] = {
                one: what
                for one, what in seen.said.get("outcomes", {}).items()
                if what != _BROKEN or one in alive
            }
            if alive.issuperset(waiting):
                return _Gate(waiting, outcomes, alive, seen)
            outcomes |= dict.fromkeys(alive.intersection(waiting), _BROKEN)
            try:
                await self._change(call, seen, [], outcomes)
            except OutcomeUnknown:
                continue

    async def _change(
        self,
        call: Call,
        seen: Seen,
        waiting: list[str],
        outcomes: dict[str, int],
        *also: Put | Delete,
    ) -> bool:
        said = {"waiting": waiting, "outcomes": outcomes}
        return await self._gate.change(self._scope, call, seen, said, also=also)
