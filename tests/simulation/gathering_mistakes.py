"""Mistakes that one could make in barriers, groups and caches; each makes the wrong from the right.

Those that others have made are named in the trackers of Curator (685, 702, 911, 1134, 1290) and
etcd (16223), and found in the source of kazoo's barrier. `planted` puts them in.
"""

from __future__ import annotations

from typing import Any

from kvi.call import Call
from kvi.errors import AlreadyHeld, BrokenBarrier, KviError, LockTimeout, OutcomeUnknown
from kvi.flow.lease import LeaseFlow
from kvi.flow.loss import LossState
from kvi.flow.recipes.barrier import _Gate, _Party
from kvi.flow.recipes.cache import CacheChange, CacheFlow
from kvi.flow.recipes.following import FollowFlow
from kvi.flow.recipes.following import Seen as Followed
from kvi.flow.recipes.group import MemberFlow
from kvi.flow.recipes.observing import Notice
from kvi.flow.recipes.register import Seen
from kvi.flow.recipes.state import entries_of, state_of
from kvi.model import Delete, Event, EventType, Get, Key, KeyValue, Put, Scan, Txn
from kvi.ops import TxnOp
from kvi.policy.line import loads
from kvi.port import Port


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
            await call.port.sleep(1.0)  # else it asks without end, and no schedule gets far
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


def outdated(real: Any) -> Any:
    """Whoever joins again says what it said when it joined first."""
    first: dict[MemberFlow, bytes] = {}

    async def enter(flow: MemberFlow, call: Call) -> None:
        present, flow._value = flow._value, first.setdefault(flow, flow._value)
        try:
            await real(flow, call)
        finally:
            flow._value = present

    return enter


def left_behind(real: Any) -> Any:
    """Leaving ends what the member stands on, and does not look at a joining under way."""

    async def leave(flow: MemberFlow, port: Port, timeout: float) -> None:
        flow._standing = {flow.lease.id: flow.lease}
        await real(flow, port, timeout)

    return leave


def left_later(real: Any) -> Any:
    """Who leaves counts as left only once the store has answered, and joins again before."""

    async def leave(flow: MemberFlow, port: Port, timeout: float) -> None:
        await flow.lease.revoke(port, timeout, anyway=True)
        flow._left = True

    return leave


def left_once(real: Any) -> Any:
    """Leaving again does nothing, though the first answer was lost."""

    async def leave(flow: MemberFlow, port: Port, timeout: float) -> None:
        if not flow._left:
            await real(flow, port, timeout)

    return leave


def believed_lost(real: Any) -> Any:
    """A lease that is lost by the clock is taken to be gone at the store."""

    async def end(flow: MemberFlow, lease: LeaseFlow, call: Call) -> None:
        await lease.revoke(call.port, call.left())

    return end


def overtaken(real: Any) -> Any:
    """Whoever has the lease puts the key, whatever was put before."""

    async def put(flow: MemberFlow, call: Call, lease: LeaseFlow, operation: str) -> bool:
        if operation == "group_join":
            done: bool = await real(flow, call, lease, operation)
            return done
        entry, guard = Put(flow._key, flow._said(), lease.id), Key(flow._key).lease == lease.id
        found = await flow.scope.executor.execute(TxnOp(Txn((guard,), (entry,))), call)
        return found.succeeded

    return put


def taken_over(real: Any) -> Any:
    """Whoever joins again takes its id back, whoever has it by now."""

    async def put(flow: MemberFlow, call: Call, lease: LeaseFlow, operation: str) -> bool:
        try:
            done: bool = await real(flow, call, lease, operation)
        except AlreadyHeld:
            if not flow.joined:
                raise
            txn = Txn((), (Put(flow._key, flow._said(), lease.id), Get(flow._key)))
            found = (await flow.scope.executor.execute(TxnOp(txn), call)).results[1]
            assert isinstance(found, KeyValue)  # it was put
            flow._seen, flow._created, done = found.revision, found.create_revision, True
        return done

    return put


def kept_in_mind(real: Any) -> Any:
    """What an update that failed was to say is said later."""

    async def update(flow: MemberFlow, port: Port, value: bytes) -> None:
        try:
            await real(flow, port, value)
        except OutcomeUnknown:
            raise
        except KviError:
            flow._value = value
            raise

    return update


def deaf(real: Any) -> Any:
    """That changes were missed is not taken for a change."""

    async def wait(
        notice: Notice, port: Port, seconds: float, loss: LossState | None = None
    ) -> None:
        take, heard = notice.watch.take, list[EventType]()

        def listen(*, main: bool) -> Event | None:
            event = take(main=main)
            heard.extend([] if event is None else [event.type])
            return event

        notice.watch.take = listen  # type: ignore[method-assign]
        try:
            await real(notice, port, seconds, loss)
            while set(heard) <= {EventType.RESYNC}:
                await real(notice, port, seconds, loss)
        finally:
            notice.watch.take = take  # type: ignore[method-assign]

    return wait


def newest_only(real: Any) -> Any:
    """A key that was deleted and created anew is told as one that has changed."""

    def apply(flow: CacheFlow, event: Event) -> list[CacheChange]:
        changes: list[CacheChange] = real(flow, event)
        if len(changes) == 2 and changes[0].key == changes[1].key:
            changes = [changes[1]._replace(before=changes[0].before)]
        return changes

    return apply


def undeleted(real: Any) -> Any:
    """After missed changes what is there is told, and not what is gone."""

    def resync(flow: CacheFlow, event: Event) -> list[CacheChange]:
        changes: list[CacheChange] = real(flow, event)
        return [change for change in changes if change.value is not None]

    return resync


def unapplied(real: Any) -> Any:
    """After missed changes what is gone stays in the copy."""

    def resync(flow: CacheFlow, event: Event) -> list[CacheChange]:
        snapshot = list(event.snapshot or ())
        there = {entry.key for entry in snapshot}
        for key, value in flow.values.items():
            if flow.prefix + key not in there:
                revision = flow._revisions[key]
                snapshot.append(KeyValue(flow.prefix + key, value, revision, revision))
        found: list[CacheChange] = real(flow, event._replace(snapshot=snapshot))
        return found

    return resync


def believed(real: Any) -> Any:
    """The store's present revision is taken for that of the copy."""

    async def confirm(flow: CacheFlow, call: Call) -> bool:
        asked = call.port.now()
        revision = (await entries_of(flow.scope, call, Scan(flow._span, limit=1)))[0]
        flow._seen, flow.confirmed = max(flow._seen, revision or 0), asked
        return True

    return confirm


def hasty(real: Any) -> Any:
    """What changes while all keys are read is forgotten."""

    def load(flow: CacheFlow, asked: float, revision: int | None, entries: list[KeyValue]) -> None:
        flow._early.clear()
        real(flow, asked, revision, entries)

    return load


def backwards(real: Any) -> Any:
    """A change is applied though the copy has a newer one."""

    def apply(flow: CacheFlow, event: Event) -> list[CacheChange]:
        key = event.key.removeprefix(flow.prefix)
        flow._seen = 0
        if event.type is EventType.PUT and key in flow._revisions:
            flow._revisions[key] = 0
        changes: list[CacheChange] = real(flow, event)
        return changes

    return apply


def unnoticed(real: Any) -> Any:
    """What changes while all is read, or is being told, is forgotten."""

    async def read(flow: FollowFlow, port: Port) -> None:
        await real(flow, port)
        flow._stirred = False

    return read


def unwatched(real: Any) -> Any:
    """All is read first, and watched only then."""

    async def look(flow: FollowFlow, port: Port) -> Followed:
        asked, skip, scope = port.now(), len(flow.prefix), flow.scope
        call = Call(port, asked + scope.timeout)
        revision, found = await entries_of(scope, call, Scan(flow._span))
        await real(flow, port)
        values = {entry.key[skip:]: entry.value or b"" for entry in found}
        return Followed(values, revision, asked)

    return look


def unended(real: Any) -> Any:
    """What was read before the end is told after it."""

    def hand_over(flow: FollowFlow, seen: Any, failure: KviError | None) -> None:
        flow._tell(seen, failure)
        flow._rest(failed=failure is not None)

    return hand_over


def content(real: Any) -> Any:
    """Where reading failed, the next change or the interval is waited for."""

    def rest(flow: FollowFlow, *, failed: bool) -> None:
        real(flow, failed=False)

    return rest
