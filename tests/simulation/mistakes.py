"""Mistakes that one could make in the flows, each a function from the right to the wrong.

`planted` puts them in.
"""

from __future__ import annotations

from typing import Any

from kvi.backend.history import HistoryFeed
from kvi.call import Call
from kvi.errors import KviError
from kvi.feed import Feed
from kvi.flow.lease import LeaseFlow
from kvi.flow.lending import Lending
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

from tests.simulation.store import SimChanges
from tests.simulation.world import Signal


def phantom(real: Any) -> Any:
    """A lease counts from the answer to its renewal, not from the sending."""

    def renewed(term: Term, ttl: float, sent: float, now: float) -> LeaseState:
        return real(term, ttl, now, now)  # type: ignore[no-any-return]

    return renewed


def revived(real: Any) -> Any:
    """A renewal that comes too late brings the lease back."""

    def renewed(term: Term, ttl: float, sent: float, now: float) -> LeaseState:
        if term.state is LeaseState.LOST:
            term.state = LeaseState.ALIVE
        term._over = False
        return real(term, ttl, sent, sent)  # type: ignore[no-any-return]

    return renewed


def reused(real: Any) -> Any:
    """A lease whose claim was in doubt goes to the next lock."""

    def enter(lock: LockFlow, claim: Claim, lease: LeaseFlow) -> None:
        assert lock._attempt is not None  # of this acquire
        lock._attempt.doubt = False
        real(lock, claim, lease)

    return enter


def deaf(real: Any) -> Any:
    """What was set before the wait is forgotten at its beginning."""

    async def wait(signal: Signal, timeout: float) -> bool:
        signal._set = False
        return await real(signal, timeout)  # type: ignore[no-any-return]

    return wait


def believing(real: Any) -> Any:
    """That the key ahead has gone is taken for the lock."""

    async def watched(attempt: _Attempt, claim: Claim, lease: LeaseFlow) -> Claim | None:
        again: Claim | None = await real(attempt, claim, lease)
        return None if again is None else again._replace(ahead=None)

    return watched


def given_twice(real: Any) -> Any:
    """A lease becomes idle twice, so that two locks get it."""

    def give_idle(ledger: Ledger, lease: LeaseFlow, ttl: float, now: float) -> None:
        real(ledger, lease, ttl, now)
        real(ledger, lease, ttl, now)

    return give_idle


def released_twice(real: Any) -> Any:
    """A release without a guard, of whoever has the lock by now."""

    def release(store: Primitives, claim: Claim, timeout: float) -> bool:
        return store._txn(Txn(then=(Delete(claim.key),)), timeout).succeeded

    return release


def unguarded(real: Any) -> Any:
    """The guard of a claim is always true."""

    def place(*given: Any) -> Claim:
        claim: Claim = real(*given)
        return claim._replace(guard=Key("never").absent)

    return place


def retried(real: Any) -> Any:
    """A write whose answer depends on what it finds is tried again although it may have applied."""

    def decide(policy: RetryPolicy, error: KviError, effect: Effect, **given: Any) -> float | None:
        if effect is Effect.DECIDING:
            effect = Effect.REPEATABLE
        return real(policy, error, effect, **given)  # type: ignore[no-any-return]

    return decide


def left_waiting(real: Any) -> Any:
    """Who waited in vain leaves the claim where it is."""

    async def withdraw(attempt: _Attempt, claim: Claim, lease: LeaseFlow) -> None:
        attempt.lease = None
        attempt._scope.ledger.give_idle(lease, attempt._ttl, attempt._port.now())

    return withdraw


def not_abandoned(real: Any) -> Any:
    """A lease that is given up is forgotten, and kept alive for ever."""

    def abandon(lease: LeaseFlow) -> None:
        lease.lost.end()

    return abandon


def given_up_silently(real: Any) -> Any:
    """A lock that a caller who has gone was given stays held."""

    def give_up(lock: LockFlow) -> None:
        lock._state = LockState.RELEASED

    return give_up


def first_failure(real: Any) -> Any:
    """After a renewal that failed there is no other."""

    def failed(term: Term, now: float) -> LeaseState:
        term.due = term.deadline
        return term.observe(now)

    return failed


def impatient_close(real: Any) -> Any:
    """The close ends with the first lease that it cannot revoke."""

    async def settle(scope: Scope, port: Port) -> None:
        for lease in [member.shut() for member in scope.ledger.clear(scope)]:
            if lease is not None:
                try:
                    call = Call(port, port.now() + scope.timeout, decided=True)
                    await scope.executor.execute(RevokeOp(lease.id), call)
                except KviError:
                    return

    return settle


def sleeping_close(real: Any) -> Any:
    """The end of a handle wakes nobody: those who wait find out when their time is up."""

    def shut(scope: Scope) -> None:
        scope.shut_down = True

    return shut


def watching_on(real: Any) -> Any:
    """The end of a handle leaves its watches to themselves."""

    def shut(watch: WatchFlow) -> None:
        """Nothing is ended."""

    return shut


def one_too_late(real: Any) -> Any:
    """What comes after a listing is followed from one revision too late."""

    def follow(feed: HistoryFeed, start: int | None, timeout: float) -> Feed:
        return real(feed, None if start is None else start + 1, timeout)  # type: ignore[no-any-return]

    return follow


def moved_too_early(real: Any) -> Any:
    """An event counts as taken before its consumer has it."""

    def take(watch: WatchFlow, *, main: bool) -> Event | None:
        return real(watch, main=False)  # type: ignore[no-any-return]

    return take


def kept_for_main(real: Any) -> Any:
    """What an interrupted call of the main thread left is not given to other threads."""

    def left(lending: Lending[Event], *, main: bool) -> Event | None:
        return lending.item if main else None

    return left


def woken_too_late(real: Any) -> Any:
    """That something came during a poll is forgotten with its end."""

    def wake(watch: WatchFlow) -> None:
        if watch._reader is not Reader.POLLING:
            real(watch)

    return wake


def starved(real: Any) -> Any:
    """The work for a RESYNC begins anew whenever its consumer looks away."""

    async def poll(watch: WatchFlow, port: Port) -> None:
        asking = list(watch._waiting)
        await port.sleep(0.12)
        if any(signal in watch._waiting for signal in asking):
            await real(watch, port)
        elif watch._reader is Reader.POLLING:
            watch._reader, watch._woken = Reader.IDLE, True

    return poll


def running_ahead(real: Any) -> Any:
    """What a watch dropped at its end counts as handed out."""

    def end(watch: WatchFlow) -> None:
        through = watch._through
        real(watch)
        watch._through = through

    return end


def delivered_once(real: Any) -> Any:
    """After its first portion a call-back counts as busy for ever."""

    def deliver(watch: WatchFlow) -> None:
        real(watch)
        watch._delivers = True

    return deliver


def restored_unnoticed(real: Any) -> Any:
    """A store that was restored is followed as if it were the same."""

    def poll(changes: SimChanges, timeout: float) -> Any:
        changes._epoch = changes._store.model.epoch
        return real(changes, timeout)

    return poll


def judged_by_one(real: Any) -> Any:
    """An endpoint that does not take the credentials speaks for the store."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        if happened is Happened.LOGIN_REFUSED:
            return Decision(Step.FINAL)
        return real(way, happened, now)  # type: ignore[no-any-return]

    return decide


def sent_again(real: Any) -> Any:
    """A write that an endpoint did not answer is sent to the next one."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        if happened is Happened.SILENT:
            way.sent = False
        return real(way, happened, now)  # type: ignore[no-any-return]

    return decide


def loyal(real: Any) -> Any:
    """Calls go on to an endpoint that says nothing."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        decision: Decision = real(way, happened, now)
        silent = happened is Happened.SILENT and decision.step is Step.UNKNOWN
        return Decision(Step.UNKNOWN) if silent else decision

    return decide


def learner_believed(real: Any) -> Any:
    """That one endpoint cannot serve is told as the store's answer."""

    def decide(way: Failover, happened: Happened, now: float) -> Decision:
        if happened is Happened.REFUSED:
            return Decision(Step.UNSENT)
        return real(way, happened, now)  # type: ignore[no-any-return]

    return decide


def left_in_silence(real: Any) -> Any:
    """Who leaves the line of a handle does not tell the next."""

    def leave_line(ledger: Ledger, signal: Signal) -> None:
        lock = ledger._stands.pop(signal, None)
        if lock is not None:
            ledger._lines[lock].remove(signal)
            if not ledger._lines[lock]:
                del ledger._lines[lock]

    return leave_line


def trusting(real: Any) -> Any:
    """Who does not know what became of a claim stands in line as the others do."""

    async def stand_in_line(attempt: _Attempt, lease: LeaseFlow) -> None:
        doubt, attempt.doubt = attempt.doubt, False
        try:
            await real(attempt, lease)
        finally:
            attempt.doubt = doubt

    return stand_in_line
