"""The group: who is there, and what each of them says.

A member is a key ``.kvi/member/ID``, kept by a lease of its own: a line of JSON, then its value as
it is. Others read all members as of one moment, or follow them: each look is compared with what was
told before (`changes`), so that whoever misses something ends at the truth.

===========  =========================================  ============================================
a member is  guarantee                                  left by
===========  =========================================  ============================================
``IN``       its key is there, kept by its lease        the lease, or the key, is lost: LOST;
                                                        `leave`: OUT
``LOST``     the key is gone, or goes with its lease    with ``rejoin``: it joins again, with its
                                                        present value, until it works: IN;
                                                        another has the id, or `leave`: OUT
``OUT``      nothing of it comes back                   final
===========  =========================================  ============================================

*Never an old value.* The present value is set before it is sent, and taken back only if it surely
did not apply. Whoever joins again sends the present one. One at a time puts the key, and only from
the revision that it has seen: what comes late writes over nothing.

*Never a phantom.* Leaving ends every lease that the store may have still, also those that are lost,
and the one that joining again has just been granted: a put that is under way finds none to stand
on. If that is not sure, leaving again sees to it. A key with the id that bears a lease of its own
is its own; one that bears another's is not touched.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvi.call import Call
from kvi.errors import AlreadyHeld, KviError, LeaseLost, NotHeld, OutcomeUnknown
from kvi.flow.lease import LeaseFlow
from kvi.flow.loss import LossState
from kvi.flow.recipes.observing import Observing
from kvi.flow.recipes.register import settled
from kvi.flow.recipes.state import Owner, state_of
from kvi.flow.scope import PASSING, Scope
from kvi.flow.turns import Turns
from kvi.log import log
from kvi.model import Get, Key, KeyValue, Put, Txn
from kvi.mutex import Mutex
from kvi.ops import TxnOp
from kvi.policy.lease import check_ttl
from kvi.policy.line import MEMBER, check_recipe, dumps, loads, same
from kvi.port import Port
from kvi.text import check_key, check_value

_PAUSE, _LONGEST = 0.1, 2.0  # seconds between tries to join again


class MemberInfo(NamedTuple):
    """A member, as others see it.

    Attributes:
        id: unique in the group.
        value: what it says.
        joined: the revision at which it joined; the same after it has joined again.
        rejoined: how often it has joined again.

    """

    id: str
    value: bytes
    joined: int
    rejoined: int


class MemberEventType(enum.StrEnum):
    """What an event of a group tells."""

    JOINED = "JOINED"
    UPDATED = "UPDATED"
    LEFT = "LEFT"


class MemberEvent(NamedTuple):
    """A change of a group; ``member`` is as it was before for ``LEFT``, else as it is now."""

    type: MemberEventType
    member: MemberInfo


def group(scope: Scope, name: str) -> Owner:
    """The right to the name; checks the argument."""
    return Owner("group", check_recipe(name, scope.capabilities))


async def members_of(scope: Scope, call: Call, owner: Owner) -> list[MemberInfo]:
    """All members, as of one moment, in the order of their joining."""
    await owner.ensure(scope, call)
    found = (await state_of(scope, call, owner.place)).others
    infos = [
        _info(key.removeprefix(MEMBER), entry)
        for key, entry in found.items()
        if key.startswith(MEMBER) and entry.lease is not None
    ]
    return sorted(infos, key=lambda one: (one.joined, one.id))


def observing(scope: Scope, owner: Owner) -> Observing[MemberEvent, list[MemberInfo]]:
    """An observer of the members."""

    async def look(scope: Scope, call: Call) -> list[MemberInfo]:
        return await members_of(scope, call, owner)

    def events(known: list[list[MemberInfo]], found: list[MemberInfo]) -> list[MemberEvent]:
        return changes(known[0] if known else [], found)

    return Observing(scope, owner.place.span, look, events)


def changes(before: Sequence[MemberInfo], now: Sequence[MemberInfo]) -> list[MemberEvent]:
    """What makes the one the other."""
    old, new = {one.id: one for one in before}, {one.id: one for one in now}
    events = [
        MemberEvent(MemberEventType.LEFT, one)
        for one in before
        if one.id not in new or new[one.id].joined != one.joined
    ]
    for one in now:
        known = old.get(one.id)
        if known is None or known.joined != one.joined:
            events.append(MemberEvent(MemberEventType.JOINED, one))
        elif known != one:
            events.append(MemberEvent(MemberEventType.UPDATED, one))
    return events


class MemberFlow:
    """One membership of this process. Safe for threads.

    Attributes:
        id: in the group.
        rejoined: how often it has joined again.
        joined: it was there once.
        lease: what keeps it there now, or did last.
        scope: the store.

    """

    lease: LeaseFlow
    joined = False

    def __init__(
        self, scope: Scope, owner: Owner, id: object, value: object, ttl: float, *, rejoin: bool
    ) -> None:
        limits = scope.capabilities
        longest = (
            None if limits.max_key is None else limits.max_key - len(owner.place.root.encode()) - 16
        )
        self.id = secrets.token_hex(8) if id is None else check_key(id, longest)
        self.rejoined = 0
        self.scope = scope
        self._owner = owner
        self._key = f"{owner.place.root}{MEMBER}{self.id}"
        self._largest = None if limits.max_value is None else limits.max_value - 100
        self._value = check_value(value, self._largest)
        self._ttl = check_ttl(ttl, limits)
        self._rejoins = rejoin
        self._turns = Turns()  # of those who put the key
        self._seen = 0  # the revision of the key, as far as they know; 0: it is not there
        self._created = 0  # the same of its creation
        self._joined = 0
        self._leases: set[int] = set()  # all that it ever had
        self._lock = Mutex()  # guards what follows, and `lease`
        self._left = False
        self._standing: dict[int, LeaseFlow] = {}  # those that the store may have still
        self._weak: Callable[[], object | None] | None = None

    @property
    def there(self) -> bool:
        """Whether it has joined, and has not left."""
        return self.joined and not self._left

    @property
    def alive(self) -> bool:
        """Whether it surely is a member at this moment."""
        return self.there and self.lease.alive

    @property
    def lost(self) -> LossState:
        """The loss of the present membership."""
        return self.lease.lost

    def check(self, value: object) -> bytes:
        """A value that it can have. Raises `InvalidArgument` or `ValueTooLarge`."""
        return check_value(value, self._largest)

    async def join(self, port: Port, owner: Callable[[], object | None]) -> None:
        """Join. Raises `AlreadyHeld` if another has the id."""
        self._weak = owner
        call = self._call(port)
        await self._owner.ensure(self.scope, call)
        await self._enter(call)

    async def update(self, port: Port, value: bytes, timeout: float | None = None) -> None:
        """Say something else."""
        call = self._call(port, timeout)
        turn = await self._turns.take(self.scope, call)
        try:
            self._ensure_in()
            before, self._value = self._value, value
            try:
                await self._say(call)
            except OutcomeUnknown:
                raise
            except Exception:
                self._value = before
                raise
        finally:
            self._turns.give(turn)

    async def leave(self, port: Port, timeout: float) -> None:
        """Leave for good. Again, it does nothing, unless it is not sure yet that it has left."""
        with self._lock:
            self._left = True
            standing = list(self._standing.values())
        call = Call(port, port.now() + timeout)
        failed: KviError | None = None
        for lease in reversed(standing):  # the last one has the key, as far as is known
            try:
                await self._end(lease, call)
            except PASSING as error:
                failed = failed or error
        try:
            if failed is not None:
                raise failed
        finally:
            del failed  # it holds this frame

    def hold_for(self, owner: Callable[[], object | None]) -> None:
        """From now on it is there for as long as this other one lives."""
        with self._lock:
            self._weak = self.lease.owner = owner

    def let_go(self) -> None:
        """Leave without waiting."""
        with self._lock:
            self._left = True
            standing = list(self._standing.values())
        for lease in standing:
            lease.abandon()

    # -- its key, which is put by one at a time ---------------------------------------------------

    async def _say(self, call: Call) -> None:
        """Put the key with another value; join again if it is gone."""
        try:
            if await self._put(call, self.lease, "group_update"):
                return
        except LeaseLost:
            pass
        self._ensure_in()
        if not self._rejoins:
            raise LeaseLost("the member was lost; join again")
        await self._again(call)

    async def _enter(self, call: Call) -> None:
        """Put the key, under a new lease."""
        self._ensure_in()
        scope = self.scope
        lease = await LeaseFlow.grant(call.port, scope, self._ttl, call.left(), keep_alive=True)
        try:
            with self._lock:
                self._ensure_in()
                self._leases.add(lease.id)
                self._standing[lease.id] = lease  # who leaves ends it, wherever this has come to
            await self._put(call, lease, "group_join")
            with self._lock:
                self._ensure_in()
                lease.owner = self._weak
                lease.proof = Key(self._key).create_revision == self._created
                self.lease, self.joined = lease, True
                if self._rejoins:
                    lease.lost.add(self._on_loss, own=True)
        except BaseException:
            lease.abandon()
            raise

    async def _again(self, call: Call) -> None:
        """Join again, with the present value."""
        self.rejoined += 1
        try:
            await self._enter(call)
        except BaseException as error:
            self.rejoined -= 1
            if isinstance(error, LeaseLost):
                self._ensure_in()  # leaving may be what has ended it
            raise
        try:
            for lease in list(self._standing.values()):  # which `leave` may change meanwhile
                if lease is not self.lease:
                    await self._end(lease, call)
        except PASSING as error:
            log().debug("an earlier lease of the member %r may go on: %s", self.id, error)

    async def _put(self, call: Call, lease: LeaseFlow, operation: str) -> bool:
        """Put the key as it is to be; false if it is not there, or not its own, and was to be.

        Each is a change of what was seen, so that one that comes late writes over nothing.
        """
        joins = operation == "group_join"

        async def attempt(doubt: bool) -> bool | None:
            seen, said = self._seen, self._said()
            put = Put(self._key, said, lease.id)
            txn = Txn((same(self._key, seen),), (put,), (Get(self._key),), operation)
            done = await self.scope.executor.execute(TxnOp(txn), call)
            if done.succeeded:
                assert done.revision is not None  # it has written
                self._seen, self._created = done.revision, self._created if seen else done.revision
                self._joined = self._joined or self._created
                return True
            found = done.results[0]
            if not isinstance(found, KeyValue):
                self._seen = 0
                return None if joins else False
            if found.lease not in self._leases:
                if joins:
                    raise AlreadyHeld(f"the group has a member {self.id!r} already; use another id")
                return False
            self._seen, self._created = found.revision, found.create_revision
            self._joined = self._joined or self._created
            return True if (found.lease, found.value) == (lease.id, said) else None

        return await settled(call, attempt)

    async def _end(self, lease: LeaseFlow, call: Call) -> None:
        """See to it that the store does not have a lease any more."""
        await lease.revoke(call.port, call.left(), anyway=True)
        self._standing.pop(lease.id, None)

    def _on_loss(self) -> None:
        """The lease is lost: join again, on a thread of kvi's."""
        if self.lost.is_set() and not self._left:
            self.scope.runtime.spawn(self._rejoin)

    async def _rejoin(self, port: Port) -> None:
        pause = _PAUSE
        while not (self._left or self.scope.closed or self.alive):
            if self._weak is not None and self._weak() is None:
                return  # nobody has it any more
            try:
                await self._rejoin_once(self._call(port))
            except (*PASSING, LeaseLost) as error:
                log().debug("the member %r will join again: %s", self.id, error)
                await port.sleep(pause * (0.5 + port.chance() / 2))
                pause = min(pause * 2, _LONGEST)
            except KviError as error:
                if not self._left and not self.scope.closed:
                    log().warning("the member %r cannot join again: %s", self.id, error)
                return

    async def _rejoin_once(self, call: Call) -> None:
        turn = await self._turns.take(self.scope, call)
        try:
            if not self.alive:  # else who said something else has joined again
                await self._again(call)
        finally:
            self._turns.give(turn)

    def _ensure_in(self) -> None:
        if self._left:
            raise NotHeld("this member has left; join again")

    def _said(self) -> bytes:
        return dumps({"joined": self._joined, "rejoined": self.rejoined}) + b"\n" + self._value

    def _call(self, port: Port, timeout: float | None = None) -> Call:
        return Call(port, port.now() + (self.scope.timeout if timeout is None else timeout))


class MemberFace:
    """What a membership of either face tells of itself; no store is asked."""

    def __init__(self, flow: MemberFlow, group: str) -> None:
        self._flow = flow
        self._name = group

    @property
    def id(self) -> str:
        """Unique in the group."""
        return self._flow.id

    @property
    def alive(self) -> bool:
        """Whether it surely is a member, by the clock, at this moment."""
        return self._flow.alive

    @property
    def rejoined(self) -> int:
        """How often it has joined again after a loss."""
        return self._flow.rejoined

    def __repr__(self) -> str:
        state = "in" if self.alive else "not in"
        return f"<Member {self.id!r} {state} {self._name!r} {self._flow.scope.uri}>"


def _info(id: str, entry: KeyValue) -> MemberInfo:
    head, _, value = (entry.value or b"").partition(b"\n")
    said = loads(head)
    joined, rejoined = said.get("joined"), said.get("rejoined")
    return MemberInfo(
        id,
        value,
        joined if isinstance(joined, int) and joined else entry.create_revision,
        rejoined if isinstance(rejoined, int) else 0,
    )
