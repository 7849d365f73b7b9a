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
did not apply. Whoever joins again sends the present one.

*Never a phantom.* Joining again looks, once it has worked, whether the member has left meanwhile,
and then gives its new lease up. A key with the id that bears a lease of its own is its own; one
that bears another's is not touched.
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
from kvi.flow.recipes.state import Owner, state_of
from kvi.flow.scope import PASSING, Scope
from kvi.log import log
from kvi.model import Compare, Get, Key, KeyValue, Put, Txn
from kvi.mutex import Mutex
from kvi.ops import TxnOp
from kvi.policy.lease import check_ttl
from kvi.policy.line import MEMBER, check_recipe, dumps, loads
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


def observing(scope: Scope, owner: Owner) -> Observing[list[MemberInfo]]:
    """An observer of the members."""

    async def look(scope: Scope, call: Call) -> list[MemberInfo]:
        return await members_of(scope, call, owner)

    return Observing(scope, owner.place.span, look)


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

    """

    lease: LeaseFlow
    joined = False

    def __init__(
        self, scope: Scope, owner: Owner, id: object, value: object, ttl: float, *, rejoin: bool
    ) -> None:
        limits = scope.capabilities
        longest = None if limits.max_key is None else limits.max_key - len(owner.place.root) - 16
        self.id = secrets.token_hex(8) if id is None else check_key(id, longest)
        self.rejoined = 0
        self._scope = scope
        self._owner = owner
        self._key = f"{owner.place.root}{MEMBER}{self.id}"
        self._largest = None if limits.max_value is None else limits.max_value - 100
        self._value = check_value(value, self._largest)
        self._ttl = check_ttl(ttl, limits)
        self._rejoins = rejoin
        self._lock = Mutex()  # guards what follows, and `lease`
        self._left = False
        self._leases: set[int] = set()  # all that it ever had
        self._joined = 0
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
        await self._owner.ensure(self._scope, call)
        await self._enter(port, call)

    async def update(self, port: Port, value: bytes) -> None:
        """Say something else."""
        with self._lock:
            if self._left:
                raise NotHeld("this member has left; join again")
            before, self._value, lease = self._value, value, self.lease
        guard = Key(self._key).lease == lease.id
        txn = Txn((guard,), (Put(self._key, self._said(), lease.id),), (), "group_update")
        try:
            done = await self._scope.executor.execute(TxnOp(txn), self._call(port))
        except (OutcomeUnknown, LeaseLost):
            raise
        except Exception:
            with self._lock:
                if self._value is value:
                    self._value = before
            raise
        if not done.succeeded:
            if not self._rejoins:
                raise LeaseLost("the member was lost; join again")
            await self._again(port)

    async def leave(self, port: Port, timeout: float) -> None:
        """Leave for good. Again, it does nothing."""
        with self._lock:
            self._left = True
            lease = self.lease
        await lease.revoke(port, timeout)

    def let_go(self) -> None:
        """Leave without waiting."""
        with self._lock:
            self._left = True
            lease = self.lease
        lease.abandon()

    # -- joining ----------------------------------------------------------------------------------

    async def _enter(self, port: Port, call: Call) -> None:
        scope = self._scope
        lease = await LeaseFlow.grant(port, scope, self._ttl, scope.timeout, keep_alive=True)
        try:
            self._leases.add(lease.id)
            joined = await self._put(call, lease)
            with self._lock:
                if self._left:
                    raise NotHeld("this member has left; join again")
                self._joined = self._joined or joined
                lease.owner = self._weak
                lease.proof = Key(self._key).lease == lease.id
                self.lease, self.joined = lease, True
                if self._rejoins:
                    lease.lost.add(self._on_loss, own=True)
        except BaseException:
            lease.abandon()
            raise

    async def _put(self, call: Call, lease: LeaseFlow) -> int:
        """Put the key; the revision at which it was created."""
        mine: Compare = Key(self._key).absent
        while True:
            txn = Txn(
                (mine,), (Put(self._key, self._said(), lease.id),), (Get(self._key),), "group_join"
            )
            try:
                done = await self._scope.executor.execute(TxnOp(txn), call)
            except OutcomeUnknown:
                if call.port.now() >= call.deadline:
                    raise
                continue
            if done.succeeded:
                assert done.revision is not None  # it has written
                return done.revision
            found = done.results[0]
            if not isinstance(found, KeyValue):
                mine = Key(self._key).absent
            elif found.lease == lease.id:
                return found.create_revision
            elif found.lease in self._leases:  # its own, of a lease that is lost
                mine = Key(self._key).lease == found.lease
            else:
                raise AlreadyHeld(f"the group has a member {self.id!r} already; use another id")

    def _on_loss(self) -> None:
        """The lease is lost: join again, on a thread of kvi's."""
        if self.lost.is_set() and not self._left:
            self._scope.runtime.spawn(self._rejoin)

    async def _rejoin(self, port: Port) -> None:
        pause = _PAUSE
        while not (self._left or self._scope.closed or self.alive):
            if self._weak is not None and self._weak() is None:
                return  # nobody has it any more
            try:
                await self._again(port)
            except (*PASSING, LeaseLost) as error:
                log().debug("the member %r will join again: %s", self.id, error)
                await port.sleep(pause * (0.5 + port.chance() / 2))
                pause = min(pause * 2, _LONGEST)
            except KviError as error:
                if not self._left and not self._scope.closed:
                    log().warning("the member %r cannot join again: %s", self.id, error)
                return

    async def _again(self, port: Port) -> None:
        with self._lock:
            self.rejoined += 1
        try:
            await self._enter(port, self._call(port))
        except BaseException:
            with self._lock:
                self.rejoined -= 1
            raise

    def _said(self) -> bytes:
        return dumps({"joined": self._joined, "rejoined": self.rejoined}) + b"\n" + self._value

    def _call(self, port: Port) -> Call:
        return Call(port, port.now() + self._scope.timeout)


def _info(id: str, entry: KeyValue) -> MemberInfo:
    head, _, value = (entry.value or b"").partition(b"\n")
    said = loads(head)
    joined = said.get("joined") or entry.create_revision
    return MemberInfo(id, value, joined, said.get("rejoined", 0))
