"""The election: at most one leader, whom everybody can see.

*Layout.* It is that of the store's own tools, so that ours and theirs exclude each other:

===========================  ======================================================================
where                        who leads
===========================  ======================================================================
``lock_fair`` (etcd, SQLite, whoever has the oldest key ``NAME/LEASE``. The value is what the leader
memory)                      proclaims (``client/v3/concurrency``, ``etcdctl elect``); it is never
                             that of a lock's key, whose layout is the same
elsewhere (Consul)           whoever holds the key ``NAME`` under a lease; the value is the same
                             (Consul's guide to leader election). Who may try to is decided by the
                             line in the directory
===========================  ======================================================================

All of it is kept by leases: nothing stays.

*Terms.* A campaign is a `kvi.flow.lock.LockFlow`: the guard names the very key that was created for
this term, or the lease that has the key ``NAME`` for no other, so that a leader of an earlier term,
though it does not know yet, writes nothing. A candidate whose lease ends takes part again with a
new one, at the end.

*Observers* look at the present leader after each change that they hear of, and tell what differs
from what they told last. So they may skip one who led for a moment, and always end at the truth.
"""

from __future__ import annotations

from typing import NamedTuple

from kvi.call import Call
from kvi.capabilities import Capabilities
from kvi.errors import Contention, InvalidArgument, LeaseLost, Timeout, Unavailable
from kvi.flow.contest import LOOK_AGAIN_UNFAIR
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.observing import Observing
from kvi.flow.recipes.register import settled
from kvi.flow.recipes.state import Owner, entries_of, state_of
from kvi.flow.scope import Scope
from kvi.model import Claim, Delete, Event, EventType, Get, Key, KeyValue, Put, Scan, Span, Txn
from kvi.ops import GetOp, TxnOp
from kvi.policy.lease import check_ttl
from kvi.policy.line import Contender, Mark, State, check_recipe
from kvi.policy.lock import CLAIM, place, queue_key, queue_span
from kvi.text import check_value

_TRY = 1.0  # seconds for taking the key, which a lock-delay may keep from everybody


class Leader(NamedTuple):
    """Who leads, or is a candidate.

    Attributes:
        id: the id of its lease, in hexadecimal; unique among the candidates.
        value: what it proclaims.
        fence: grows from one leader to the next.
        revision: of the last proclamation.

    """

    id: str
    value: bytes
    fence: int
    revision: int


class ElectionLine(Line):
    """A candidate.

    Attributes:
        value: what it proclaims.

    """

    kind = "election"

    def __init__(self, owner: Owner, value: bytes) -> None:
        super().__init__(owner)
        self.value = value

    # -- where the store has queues ---------------------------------------------------------------

    async def claim(self, scope: Scope, call: Call, lease: LeaseFlow) -> Claim:
        """Be a candidate, and look who leads."""
        if not scope.capabilities.lock_fair:
            return await super().claim(scope, call, lease)
        await self.owner.ensure(scope, call)
        key = queue_key(self.name, lease.id)
        put = Put(key, self.value, lease.id)
        txn = Txn((Key(key).absent,), (put,), (Get(key),), "election_claim", repeatable=True)
        done = await scope.executor.execute(TxnOp(txn), call)
        created = done.revision
        if not done.succeeded:
            found = done.results[0]
            if not isinstance(found, KeyValue):
                raise LeaseLost("the candidate's key is gone")
            created = found.create_revision
        assert created is not None  # it has written
        span = queue_span(self.name)
        revision, entries = await entries_of(scope, call, Scan(span, keys_only=True))
        return place(self.name, lease.id, created, entries, revision or 0)

    async def release(self, scope: Scope, call: Call, claim: Claim) -> bool:
        """Lead no more."""
        gone = [Delete(claim.key)]
        if claim.ahead is None and not scope.capabilities.lock_fair:
            gone.append(Delete(self.name))
        txn = Txn((claim.guard,), tuple(gone), (), "election_resign")
        return (await scope.executor.execute(TxnOp(txn), call)).succeeded

    def watched(self, claim: Claim) -> Span:
        """The candidate right before, or the leader's key."""
        assert claim.ahead is not None  # else there is nothing to wait for
        return Span(claim.ahead, claim.ahead + "\0")

    def wakes(self, event: Event) -> bool:
        """It goes, or is let go; a proclamation tells nothing."""
        return event.type is not EventType.PUT

    # -- elsewhere --------------------------------------------------------------------------------

    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """The first may try for the key."""
        return state.line[at - 1].key if at else None

    def mark_of(self, state: State, lease: LeaseFlow) -> str | None:
        """The store itself keeps the key from others for a while, so no mark is needed."""
        return None

    async def _enter(
        self, scope: Scope, call: Call, state: State, me: Contender, lease: LeaseFlow
    ) -> Claim | None:
        when = (me.guard, Key(self.name).lease == 0)
        then = Put(self.name, self.value, lease.id)
        txn = Txn(when, (then,), (Get(self.name),), "election_enter")
        tried = Call(call.port, min(call.deadline, call.port.now() + _TRY), decided=True)
        try:
            done = await scope.executor.execute(TxnOp(txn), tried)
        except (Unavailable, Timeout, Contention):
            call.left()
        else:
            found = None if done.succeeded else done.results[0]
            if done.succeeded or (isinstance(found, KeyValue) and found.lease == lease.id):
                # The key is what others go by, and may be another's though the place stands. No
                # other term has this lease.
                self.lends = False
                claim = me.claim(None, state.revision)
                return claim._replace(guard=Key(self.name).lease == lease.id)
            if found is None:
                return None
        finally:
            call.doubt = call.doubt or tried.doubt
        self.recheck = LOOK_AGAIN_UNFAIR
        return me.claim(self.name, state.revision)

    # -- for the leader, and for those who look ---------------------------------------------------

    async def proclaim(self, flow: LockFlow, call: Call, value: bytes) -> None:
        """Let everybody see another value, for as long as this term lasts.

        Each is a change of what was seen, so that one that comes late writes over nothing.
        """
        guard, lease, scope = flow.guard, flow.lease, flow.scope
        assert lease is not None  # the guard says so
        fair = scope.capabilities.lock_fair
        key = queue_key(self.name, lease.id) if fair else self.name
        put, refused = Put(key, value, lease.id), 0

        async def attempt(doubt: bool) -> bool | None:
            nonlocal refused
            seen = await scope.executor.execute(GetOp(key), call)
            if seen is None or seen.lease != lease.id or seen.revision == refused:
                raise LeaseLost("the leadership is lost")
            if doubt and seen.value == value:
                return True
            txn = Txn((guard, Key(key).revision == seen.revision), (put,), (), "proclaim")
            if (await scope.executor.execute(TxnOp(txn), call)).succeeded:
                return True
            refused = seen.revision
            return None

        await settled(call, attempt)


async def look(scope: Scope, call: Call, owner: Owner) -> tuple[Leader | None, list[Leader]]:
    """The leader, and the candidates behind it in the order of their coming."""
    name = owner.place.name
    await owner.ensure(scope, call)
    if scope.capabilities.lock_fair:
        entries = (await entries_of(scope, call, Scan(queue_span(name))))[1]
        line = [one for one in entries if one.lease and one.key == queue_key(name, one.lease)]
        found = [_leader(one) for one in sorted(line, key=lambda one: one.create_revision)]
        return (found[0], found[1:]) if found else (None, [])
    contenders = (await state_of(scope, call, owner.place)).line
    ours = [Leader(f"{one.lease:x}", b"", one.created, one.revision) for one in contenders]
    entry = await scope.executor.execute(GetOp(name), call)
    if entry is None or not entry.lease:
        return None, ours
    leader = _leader(entry)
    fence = next((one.fence for one in ours if one.id == leader.id), leader.fence)
    return leader._replace(fence=fence), [one for one in ours if one.id != leader.id]


def observed(scope: Scope, name: str) -> Span:
    """What to watch for a change of the leader."""
    return queue_span(name) if scope.capabilities.lock_fair else Span(name, name + "\0")


def _leader(entry: KeyValue) -> Leader:
    assert entry.lease is not None  # those without one do not lead
    return Leader(f"{entry.lease:x}", entry.value or b"", entry.create_revision, entry.revision)


def election(scope: Scope, name: str, value: bytes | str, ttl: float) -> LockFlow:
    """A candidate of the election ``name``; checks the arguments."""
    limits = scope.capabilities
    owner = Owner(ElectionLine.kind, check_recipe(name, limits))
    line = ElectionLine(owner, check_proclaimed(value, limits))
    return LockFlow(scope, line, check_ttl(ttl, limits))


def check_proclaimed(value: bytes | str, limits: Capabilities) -> bytes:
    """Return what a candidate says, as bytes; raises `InvalidArgument` or `ValueTooLarge`."""
    data = check_value(value, limits.max_value)
    if data == CLAIM:
        raise InvalidArgument(
            f"a candidate cannot proclaim {CLAIM!r}: by that value a lock is told from an election"
        )
    return data


def observing(scope: Scope, owner: Owner) -> Observing[Leader | None, Leader | None]:
    """An observer of who leads."""

    async def leading(scope: Scope, call: Call) -> Leader | None:
        return (await look(scope, call, owner))[0]

    span = observed(scope, owner.place.name)
    return Observing(scope, span, leading, lambda _, found: (found,))
