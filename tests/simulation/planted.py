"""Bugs put into the flows on purpose, each as small as the mistake that would make it.

A planted bug is a name, the scenario that has to find it, and what it replaces for as long as it
is there. That the simulation finds each is what its silence about the real flows is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from kvi.backend.history import HistoryFeed
from kvi.call import Call
from kvi.errors import KviError
from kvi.feed import Feed
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow, LockState, _Attempt
from kvi.flow.scope import Ledger, Scope
from kvi.flow.watch import Reader, WatchFlow
from kvi.model import Claim, Delete, Event, Key, Txn
from kvi.ops import RevokeOp
from kvi.policy.failover import Decision, Failover, Happened, Step
from kvi.policy.lease import LeaseState, Term
from kvi.policy.retry import Effect, RetryPolicy
from kvi.port import Port
from kvi.primitives import Primitives

from tests.simulation import network
from tests.simulation.store import SimChanges
from tests.simulation.world import Signal


class Planted(NamedTuple):
    """One bug: which scenario finds it, and what stands in the place of what."""

    scenario: str
    owner: Any
    name: str
    wrong: Callable[[Any], Any]  # makes the wrong from the right


def _phantom(real: Any) -> Any:
    """A lease counts from the answer to its renewal, not from the sending."""

    def renewed(term: Term, ttl: float, sent: float, now: float) -> LeaseState:
        return real(term, ttl, now, now)  # type: ignore[no-any-return]

    return renewed


def _revived(real: Any) -> Any:
    """A renewal that comes too late brings the lease back."""

    def renewed(term: Term, ttl: float, sent: float, now: float) -> LeaseState:
        if term.state is LeaseState.LOST:
            term.state = LeaseState.ALIVE
        term._over = False
        return real(term, ttl, sent, sent)  # type: ignore[no-any-return]

    return renewed


def _reused(real: Any) -> Any:
    """A lease whose claim was in doubt goes to the next lock."""

    def enter(lock: LockFlow, claim: Claim, lease: LeaseFlow) -> None:
        assert lock._attempt is not None  # of this acquire
        lock._attempt.doubt = False
        real(lock, claim, lease)

    return enter


def _deaf(real: Any) -> Any:
    """What was set before the wait is forgotten at its beginning."""

    async def wait(signal: Signal, timeout: float) -> bool:
        signal._set = False
        return await real(signal, timeout)  # type: ignore[no-any-return]

    return wait


def _believing(real: Any) -> Any:
    """That the key ahead has gone is taken for the lock."""

    async def watched(attempt: _Attempt, claim: Claim, lease: LeaseFlow) -> Claim | None:
        again: Claim | None = await real(attempt, claim, lease)
        return None if again is None else again._replace(ahead=None)

    return watched


def _given_twice(real: Any) -> Any:
    """A lease becomes idle twice, so that two locks get it."""

    def give_idle(ledger: Ledger, lease: LeaseFlow, ttl: float, now: float) -> None:
        real(ledger, lease, ttl, now)
        real(ledger, lease, ttl, now)

    return give_idle


def _released_twice(real: Any) -> Any:
    """A release without a guard, of whoever has the lock by now."""

    def release(store: Primitives, claim: Claim, timeout: float) -> bool:
        return store._txn(Txn(then=(Delete(claim.key),)), timeout).succeeded

    return release


def _unguarded(real: Any) -> Any:
    """The guard of a claim is always true."""

    def place(*given: Any) -> Claim:
        claim: Claim = real(*given)
        return claim._replace(guard=Key("never").absent)

    return place


def _retried(real: Any) -> Any:
    """A write whose answer depends on what it finds is tried again although it may have applied."""

    def decide(policy: RetryPolicy, error: KviError, effect: Effect, **given: Any) -> float | None:
        if effect is Effect.DECIDING:
            effect = Effect.REPEATABLE
        return real(policy, error, effect, **given)  # type: ignore[no-any-return]

    return decide


def _left_waiting(real: Any) -> Any:
    """Who waited in vain leaves the claim where it is."""

    async def withdraw(attempt: _Attempt, claim: Claim, lease: LeaseFlow) -> None:
        attempt.lease = None
        attempt._scope.ledger.give_idle(lease, attempt._ttl, attempt._port.now())

    return withdraw


def _not_abandoned(real: Any) -> Any:
    """A lease that is given up is forgotten, and kept alive for ever."""

    def abandon(lease: LeaseFlow) -> None:
        lease.lost.end()

    return abandon


def _given_up_silently(real: Any) -> Any:
    """A lock that a caller who has gone was given stays held."""

    def give_up(lock: LockFlow) -> None:
        lock._state = LockState.RELEASED

    return give_up


def _first_failure(real: Any) -> Any:
    """After a renewal that failed there is no other."""

    def failed(term: Term, now: float) -> LeaseState:
        term.due = term.deadline
        return term.observe(now)

    return failed


def _impatient_close(real: Any) -> Any:
    """The close ends with the first lease that it cannot revoke."""

    async def settle(scope: Scope, port: Port) -> None:
        leases, watches = scope.ledger.clear(scope)
        for watch in watches:
            watch.shut()
        for lease in leases:
            if lease.shut():
                try:
                    call = Call(port, port.now() + scope.timeout, decided=True)
                    await scope.executor.execute(RevokeOp(lease.id), call)
                except KviError:
                    return

    return settle


def _sleeping_close(real: Any) -> Any:
    """The end of a handle wakes nobody: those who wait find out when their time is up."""

    def shut(scope: Scope) -> None:
        scope.shut_down = True

    return shut


def _watching_on(real: Any) -> Any:
    """The end of a handle leaves its watches to themselves."""

    def shut(watch: WatchFlow) -> None:
        """Nothing is ended."""

    return shut


def _one_too_late(real: Any) -> Any:
    """What comes after a listing is followed from one revision too late."""

    def follow(feed: HistoryFeed, start: int | None, timeout: float) -> Feed:
        return real(feed, None if start is None else start + 1, timeout)  # type: ignore[no-any-return]

    return follow


def _moved_too_early(real: Any) -> Any:
    """An event counts as taken before its consumer has it."""

    def take(watch: WatchFlow, *, main: bool) -> Event | None:
        return real(watch, main=False)  # type: ignore[no-any-return]

    return take


def _woken_too_late(real: Any) -> Any:
    """That something came during a poll is forgotten with its end."""

    def wake(watch: WatchFlow) -> None:
        if watch._reader is not Reader.POLLING:
            real(watch)

    return wake


def _starved(real: Any) -> Any:
    """The work for a RESYNC begins anew whenever its consumer looks away."""

    async def poll(watch: WatchFlow, port: Port) -> None:
        asking = list(watch._waiting)
        await port.sleep(0.12)
        if any(signal in watch._waiting for signal in asking):
            await real(watch, port)
        elif watch._reader is Reader.POLLING:
            watch._reader, watch._woken = Reader.IDLE, True

    return poll


def _running_ahead(real: Any) -> Any:
    """What a watch dropped at its end counts as handed out."""

    def end(watch: WatchFlow) -> None:
        through = watch._through
        real(watch)
        watch._through = through

    return end


def _restored_unnoticed(real: Any) -> Any:
    """A store that was restored is followed as if it were the same."""

    def poll(changes: SimChanges, timeout: float) -> Any:
        changes._epoch = changes._store.model.epoch
        return real(changes, timeout)

    return poll


def _judged_by_one(real: Any) -> Any:
    """An endpoint that does not take the credentials speaks for the store."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        if happened is Happened.LOGIN_REFUSED:
            return Decision(Step.FINAL)
        return real(way, happened, now)  # type: ignore[no-any-return]

    return decide


def _sent_again(real: Any) -> Any:
    """A write that an endpoint did not answer is sent to the next one."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        if happened is Happened.SILENT:
            way.sent = False
        return real(way, happened, now)  # type: ignore[no-any-return]

    return decide


def _loyal(real: Any) -> Any:
    """Calls go on to an endpoint that says nothing."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        decision: Decision = real(way, happened, now)
        silent = happened is Happened.SILENT and decision.step is Step.UNKNOWN
        return Decision(Step.UNKNOWN) if silent else decision

    return decide


def _learner_believed(real: Any) -> Any:
    """That one endpoint cannot serve is told as the store's answer."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        if happened is Happened.REFUSED:
            return Decision(Step.UNSENT)
        return real(way, happened, now)  # type: ignore[no-any-return]

    return decide


PLANTED: dict[str, Planted] = {
    "phantom leader": Planted("lock", Term, "renewed", _phantom),
    "renewal after a loss revives": Planted("lock", Term, "renewed", _revived),
    "lease reused in doubt": Planted("reuse", LockFlow, "_enter", _reused),
    "lost wake-up": Planted("lock", Signal, "wait", _deaf),
    "over-admission": Planted("lock", _Attempt, "_watched", _believing),
    "lease given twice": Planted("lock", Ledger, "give_idle", _given_twice),
    "release without guard": Planted("single", Primitives, "_lock_release", _released_twice),
    "guard that is always true": Planted("lock", network, "place", _unguarded),
    "retry of a deciding write": Planted("lock", RetryPolicy, "decide", _retried),
    "waiter leaves its claim": Planted("lock", _Attempt, "_withdraw", _left_waiting),
    "lease forgotten": Planted("lock", LeaseFlow, "abandon", _not_abandoned),
    "lock of a caller who left": Planted("lock", LockFlow, "give_up", _given_up_silently),
    "keep-alive stops at first failure": Planted("keep", Term, "failed", _first_failure),
    "close stops at first failure": Planted("close", Scope, "settle", _impatient_close),
    "close wakes nobody": Planted("close", Scope, "shut", _sleeping_close),
    "close leaves watches": Planted("close", WatchFlow, "shut", _watching_on),
    "watch resumes too late": Planted("watch", HistoryFeed, "_follow", _one_too_late),
    "position moves too early": Planted("watch", WatchFlow, "take", _moved_too_early),
    "wake-up during a poll is lost": Planted("watch", WatchFlow, "wake", _woken_too_late),
    "RESYNC starves": Planted("watch", WatchFlow, "_poll", _starved),
    "revision runs ahead": Planted("watch", WatchFlow, "end", _running_ahead),
    "restore unnoticed": Planted("watch", SimChanges, "poll", _restored_unnoticed),
    "endpoint speaks for the store": Planted("failover", Failover, "decide", _judged_by_one),
    "unanswered write is sent again": Planted("failover", Failover, "decide", _sent_again),
    "silent endpoint is kept": Planted("failover", Failover, "decide", _loyal),
    "learner speaks for the store": Planted("failover", Failover, "decide", _learner_believed),
}


@contextmanager
def planted(name: str) -> Iterator[str]:
    """Put the bug in; gives the scenario that has to find it."""
    bug = PLANTED[name]
    real = getattr(bug.owner, bug.name)
    setattr(bug.owner, bug.name, bug.wrong(real))
    try:
        yield bug.scenario
    finally:
        setattr(bug.owner, bug.name, real)
