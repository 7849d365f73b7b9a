"""`Line`: contenders who stand in line, for recipes that let in some of them.

*Theory.* Whoever contends puts a key under its lease into the recipe's directory, and looks at all
of it, as of one moment (`kvi.policy.line`). Those before it can only become fewer, so who was in
turn at some moment stays so, unless the settings change, which entering checks. What it takes to be
in turn is a recipe's own rule (`verdict`).

=============  =====================================  ============================================
state          guarantee                              left by
=============  =====================================  ============================================
``WAITS``      it has a place, and holds nothing      the rule lets it in, and a transaction that
                                                      checks its place and the settings says so:
                                                      HOLDS; it leaves, or its lease ends: gone
``HOLDS``      it was let in. Those behind count it   it leaves, or its lease ends: gone
               for as long as it stands
=============  =====================================  ============================================

*No herd.* Whoever waits watches the nearest before it that waits too: when that is let in, or goes,
it is its turn to look. The first of those that wait watches the whole directory. So what is given
back wakes one, and that one's being let in the next, for as many as there is room.

*Orphans.* See `kvi.policy.line`. Marks are made where leases may end early
(``capabilities.lock_delay_factor``), and by recipes that need them anyway.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from kvi.call import Call
from kvi.errors import LeaseLost
from kvi.flow.contest import LOOK_AGAIN, LOOK_AGAIN_UNFAIR
from kvi.flow.lease import LeaseFlow
from kvi.flow.recipes.state import Owner, state_of
from kvi.flow.scope import Scope
from kvi.model import Claim, Compare, Delete, Event, EventType, Get, Key, Put, Span, Txn
from kvi.ops import TxnOp
from kvi.policy.line import Contender, Mark, State, dumps, record

if TYPE_CHECKING:
    from kvi.flow.lock import LockFlow

WAITS, HOLDS = "waits", "holds"


class Line(ABC):
    """One contender's part in a line: a `kvi.flow.contest.Contest`. Used by one flow at a time.

    Attributes:
        name: what is contended for.
        owner: the right to the name, shared by the objects of one recipe.
        queued, recheck, lends: as `Contest` has them.

    """

    kind: ClassVar[str]

    def __init__(self, owner: Owner) -> None:
        self.name = owner.place.name
        self.owner = owner
        self.queued = self.lends = True
        self.recheck = LOOK_AGAIN
        self._mark: str | None = None  # the key of what it holds

    @classmethod
    def of(cls, flow: LockFlow) -> Self:
        """The part of one whose lock was made with a part of this kind."""
        line = flow.contest
        assert isinstance(line, cls)
        return line

    # -- the rule ---------------------------------------------------------------------------------

    def said(self) -> dict[str, Any]:
        """What its key says beside its state."""
        return {}

    @abstractmethod
    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """``None`` if it is let in, else what to wait for: a contender's key, or the directory.

        ``at`` is its index in the line; ``orphans`` stand for holders that may not have noticed.
        """

    def mark_of(self, state: State, lease: LeaseFlow) -> str | None:
        """The id of the mark that it is to make, if any."""
        early = lease.scope.capabilities.lock_delay_factor > 0
        return f"{lease.id:x}" if early else None

    def wait_behind(self, ahead: list[Contender]) -> str:
        """The key of the nearest before it that waits; the directory if none does."""
        waiting = [one for one in ahead if one.said.get("state") == WAITS]
        return waiting[-1].key if waiting else self.owner.place.root

    # -- Contest ----------------------------------------------------------------------------------

    async def claim(self, scope: Scope, call: Call, lease: LeaseFlow) -> Claim:
        """Stand in line, and look."""
        place = self.owner.place
        await self.owner.ensure(scope, call)
        key = place.contender(lease.id)
        mine = Txn(
            (Key(key).absent,),
            (Put(key, self._value(WAITS), lease.id),),
            (Get(key),),
            f"{self.kind}_claim",
            repeatable=True,
        )
        await scope.executor.execute(TxnOp(mine), call)
        while True:
            state = await state_of(scope, call, place)
            if self.owner.misses(state):  # somebody has deleted them
                await self.owner.ensure(scope, call)
                continue
            standing = [one.key for one in state.line]
            if key not in standing:
                raise LeaseLost("the place in the line is gone")
            at = standing.index(key)
            me = state.line[at]
            if me.said.get("state") == HOLDS:  # by a try whose answer was lost
                its = (mark.key for mark in state.marks.values() if mark.lease == lease.id)
                self._mark = next(its, None)
                return me.claim(None, state.revision)
            orphans = await self._noticed(scope, call, state)
            waits_for = self.verdict(state, at, orphans)
            if waits_for is not None:
                return me.claim(waits_for, state.revision)
            claim = await self._enter(scope, call, state, me, lease)
            if claim is not None:
                return claim

    async def release(self, scope: Scope, call: Call, claim: Claim) -> bool:
        """Leave the line. Who waits has no mark: one that it asked for may be another's by now."""
        gone = self.leaving(claim.key) if claim.ahead is None else (Delete(claim.key),)
        txn = Txn((claim.guard,), gone, (), f"{self.kind}_release")
        return (await scope.executor.execute(TxnOp(txn), call)).succeeded

    def leaving(self, key: str) -> tuple[Delete, ...]:
        """What takes it out of the line."""
        return tuple(Delete(one) for one in (key, self._mark) if one is not None)

    def watched(self, claim: Claim) -> Span:
        """Whom it waits for."""
        assert claim.ahead is not None  # else there is nothing to wait for
        if claim.ahead == self.owner.place.root:
            return self.owner.place.span
        return Span(claim.ahead, claim.ahead + "\0")

    def wakes(self, event: Event) -> bool:
        """Who comes after it lets nobody in; the rest may."""
        return event.type is not EventType.PUT or not self._is_new(event)

    def _is_new(self, event: Event) -> bool:
        # What a contender that has just come says; whoever is watched by its own key said that
        # before, so hearing it again tells nothing.
        return event.value == self._value(WAITS)

    # -- its own ----------------------------------------------------------------------------------

    def _value(self, state: str, **more: Any) -> bytes:
        return dumps({"recipe": self.kind, "state": state, **self.said(), **more})

    def _marked(self, lease: LeaseFlow) -> bytes:
        return dumps({"lease": lease.id, "ttl": lease.term.ttl, **self.said()})

    async def _enter(
        self, scope: Scope, call: Call, state: State, me: Contender, lease: LeaseFlow
    ) -> Claim | None:
        """Say that it holds, if its place and the settings are as they were; ``None`` if not.

        It holds once: a try that comes late, when another has let it in, finds its key changed.
        """
        when: list[Compare] = [Key(me.key).revision == me.revision]
        if state.settings is not None:
            when.append(Key(state.settings.key).revision == state.settings.revision)
        id = self.mark_of(state, lease)
        mark = None if id is None else self.owner.place.mark(id)
        more = {} if id is None else {"mark": id}
        then = [Put(me.key, self._value(HOLDS, **more), lease.id)]
        if mark is not None:
            record(state.others.get(mark.removeprefix(self.owner.place.root)), lease=int, ttl=int)
            when.append(Key(mark).absent)
            then.append(Put(mark, self._marked(lease)))
        txn = Txn(tuple(when), tuple(then), (), f"{self.kind}_enter")
        done = await scope.executor.execute(TxnOp(txn), call)
        if not done.succeeded:
            return None
        self._mark = mark
        return me.claim(None, done.revision or 0)

    async def _noticed(self, scope: Scope, call: Call, state: State) -> list[Mark]:
        """The orphans that still stand for their holders; the others are taken away."""
        self.recheck = LOOK_AGAIN
        now, left = call.port.now(), list[Mark]()
        # What one object has seen counts for all of the handle: who only tries, again and again,
        # would else begin anew each time.
        known = scope.ledger.orphans
        root = scope.prefix + self.owner.place.mark("")
        found = {(scope.prefix + mark.key, mark.revision): mark for mark in state.orphans}
        for seen in [one for one in list(known) if one[0].startswith(root) and one not in found]:
            known.pop(seen, None)
        for seen, mark in found.items():
            until = known.setdefault(seen, now) + mark.ttl
            if now < until:
                self.recheck = min(self.recheck, max(LOOK_AGAIN_UNFAIR, until - now))
                left.append(mark)
                continue
            await self._take_away(scope, call, mark)
            state.marks.pop(mark.id)
        return left

    async def _take_away(self, scope: Scope, call: Call, mark: Mark) -> None:
        same = Key(mark.key).revision == mark.revision
        txn = Txn((same,), (Delete(mark.key),), (), f"{self.kind}_clean", repeatable=True)
        await scope.executor.execute(TxnOp(txn), call)
