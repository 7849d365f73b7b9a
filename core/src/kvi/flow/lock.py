"""`LockFlow`: mutual exclusion among threads, handles, processes and hosts.

*Theory.* A lock is held by a lease. The holder puts a key under the lease; where it stands among
those of others decides (`kvi.policy.lock`, `Primitives._lock_claim`). If the holder dies, the lease
ends, the key goes, and the next is first. Whoever waits watches the one key ahead, and when that
goes, claims again: a claim that stands keeps its place, and only the answer to a claim ever says
that the lock is held. So a missed event delays, and never lets two in.

The holder counts its lease's time from before the renewal was sent, so that it knows of its end
before the next one can be in (`kvi.policy.lease`). No clock can save a write that was already on
its way: for those are the guard, which the store checks, and the fence, which anyone can.

=============  ==========================================  =====================================
state          guarantee                                   left by
=============  ==========================================  =====================================
``FREE``       nothing of this object is in the store      `acquire` → CLAIMING
``CLAIMING``   a claim stands, or may                      in the lock → HELD; time up, error or
                                                           cancellation: claim withdrawn → FREE
``HELD``       the claim was first; `held` says whether    `release` → RELEASED; after a loss also
               its lease still is alive                    `acquire` → CLAIMING
``LEAVING``    it is asked to go, and may be there still;  `release` → RELEASED;
               not held any more                           `acquire` → CLAIMING
``RELEASED``   as FREE; to release again does nothing      `acquire` → CLAIMING
=============  ==========================================  =====================================

*What may not be left behind.* A claim whose fate is unknown, in this try or in one that a retry
bridged (``Call.doubt``), may still arrive. So it is withdrawn with its lease: the lease is given
up, at once or after the lock that it came to hold, revoked as soon as the store can be reached, and
never used again. Only one whose every claim has an answer goes on to the next lock, after a release
that surely worked.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from math import inf

from kvi.call import Call
from kvi.errors import (
    AlreadyHeld,
    Compacted,
    Contention,
    KviError,
    LeaseLost,
    NotHeld,
    OutcomeUnknown,
    Unavailable,
)
from kvi.feed import Feed, WatchSpec
from kvi.flow.contest import LOOK_AGAIN, Contest
from kvi.flow.lease import LeaseFlow
from kvi.flow.loss import LossState
from kvi.flow.scope import PASSING, Scope
from kvi.log import log
from kvi.model import Claim, Compare
from kvi.mutex import Mutex
from kvi.ops import PollOp, WatchOp
from kvi.port import Cancelled, Port

_LEAST, _MOST = 0.05, 1.0  # seconds between tries while the store cannot be reached
_WITHDRAWAL = 1.0  # seconds: who waited in vain does not wait long for saying so


class LockState(enum.Enum):
    """Of one lock object; see the module's table."""

    FREE = enum.auto()
    CLAIMING = enum.auto()
    HELD = enum.auto()
    LEAVING = enum.auto()
    RELEASED = enum.auto()


class LockFlow:
    """One lock object. Safe for threads; its properties read and take no lock.

    Attributes:
        scope: the store.
        contest: what decides who holds.
        claim: what it holds the lock by; ``None`` unless it was acquired and not released.
        lease: that the claim stands on.
        lost: the loss of the present or last holding; ``None`` before the first.

    """

    def __init__(self, scope: Scope, contest: Contest, ttl: float) -> None:
        self.scope = scope
        self.contest = contest
        self.claim: Claim | None = None
        self.lost: LossState | None = None
        self._ttl = ttl
        self._lock = Mutex()  # guards the state and what goes with it
        self._state = LockState.FREE
        self.lease: LeaseFlow | None = None
        self._attempt: _Attempt | None = None  # the last one; an older one has no say

    @property
    def name(self) -> str:
        """What is contended for."""
        return self.contest.name

    @property
    def held(self) -> bool:
        """Whether it is surely held, by the clock, at this moment."""
        lease, attempt = self.lease, self._attempt
        return (
            self._state is LockState.HELD
            and lease is not None
            and lease.alive
            and not (attempt is None or attempt.given_up)
        )

    @property
    def fence(self) -> int:
        """The claim's fence. Raises `NotHeld` unless acquired and not released."""
        return self._standing().fence

    @property
    def guard(self) -> Compare:
        """What is true as long as it is held. Raises `NotHeld` if it is not."""
        guard = self._standing().guard
        if not self.held:
            raise LeaseLost("the lock is lost")
        return guard

    async def acquire(
        self, port: Port, wait: float | None, owner: Callable[[], object | None] | None = None
    ) -> bool:
        """Wait for it, at most ``wait`` seconds (``None``: without end); whether it is held.

        ``owner`` is a weak reference to what it is held for: once that is gone, it is given up.
        """
        self.scope.ensure_open()
        attempt = _Attempt(self.scope, port, self.contest, self._ttl, wait)
        with self._lock:
            before = self._attempt
            claiming = self._state is LockState.CLAIMING
            if before is not None and not before.given_up and (claiming or self.held):
                raise AlreadyHeld(
                    "this object holds the lock already, or waits for it; "
                    "make another one with lock()"
                )
            self._drop()
            self._attempt, self._state = attempt, LockState.CLAIMING
        try:
            claim = await attempt.run()
            with self._lock:
                if self._attempt is not attempt:  # its caller has left, and come back
                    raise Cancelled
                if claim is None:
                    self._state = LockState.FREE
                    return False
                assert attempt.lease is not None  # the claim stands on it
                attempt.lease.owner = owner
                self._enter(claim, attempt.lease)
        except BaseException:
            with self._lock:
                if self._attempt is attempt:
                    self._state, self.lease, self.claim = LockState.FREE, None, None
            if attempt.lease is not None:
                attempt.lease.abandon()
            raise
        return True

    async def release(self, port: Port, timeout: float, *, keep: bool = False) -> None:
        """Let go of it. ``keep``: what may be there still can be released again.

        A caller who is interrupted meanwhile calls `let_go`.
        """
        with self._lock:
            if self._state is LockState.RELEASED:
                return
            if self._state not in (LockState.HELD, LockState.LEAVING):
                raise NotHeld("this object does not hold the lock; acquire it first")
            claim, lease, attempt = self.claim, self.lease, self._attempt
            assert claim is not None  # while it is HELD
            assert lease is not None
            assert attempt is not None
            alive, again = lease.alive, self._state is LockState.LEAVING
            if keep:
                self._state, lease.proof = LockState.LEAVING, None
                if self.lost is not None:
                    self.lost.end()
            else:
                self._drop()
                self._state = LockState.RELEASED
        if self.scope.closed:
            return  # closing lets go of it, and is no loss
        try:
            if not alive:
                raise LeaseLost(
                    "the lock was lost before it was released: its lease was not renewed in time, "
                    "or its key was deleted"
                )
            call = Call(port, port.now() + timeout)
            stood = await self.contest.release(self.scope, call, claim)
            if not stood and not (again or self.scope.closed):  # closing meanwhile is no loss
                raise LeaseLost("the lock was lost before it was released: its key was changed")
        except BaseException as error:
            if not (keep and isinstance(error, PASSING)):
                self._left(attempt)
                lease.abandon()  # whatever it still holds shall go
            raise
        self._left(attempt)
        if self.contest.lends and not (attempt.doubt or call.doubt):
            self.scope.ledger.give_idle(lease, self._ttl, port.now())
        else:
            lease.abandon()

    def give_up(self) -> None:
        """Undo an `acquire` whose caller has left; never waits."""
        with self._lock:
            attempt = self._attempt
            if self._state is LockState.HELD and attempt is not None and attempt.given_up:
                self._drop()
                self._state = LockState.RELEASED

    def let_go(self) -> None:
        """Release it without waiting: the store is told as soon as it answers."""
        with self._lock:
            if self._state not in (LockState.HELD, LockState.LEAVING):
                return
            lease = self.lease
            self._drop()
            self._state = LockState.RELEASED
        if lease is not None:
            lease.abandon()

    def _left(self, attempt: _Attempt) -> None:
        """A release that keeps has come to its end."""
        with self._lock:
            if self._state is LockState.LEAVING and self._attempt is attempt:
                self._state = LockState.RELEASED
                self._drop()

    def _standing(self) -> Claim:
        claim = self.claim
        if claim is None:
            raise NotHeld("this object does not hold the lock; acquire it first")
        return claim

    def _enter(self, claim: Claim, lease: LeaseFlow) -> None:
        """It is held from now on. Hold the lock."""
        scope = self.scope
        # in this order: closing ends the lease, and is no loss
        lost = LossState(scope.runtime, lambda: not lease.alive and not scope.closed)
        lease.proof = claim.guard
        lease.lost.add(lost.is_set, own=True)  # a look: the lease may have been given up
        self.claim, self.lease, self.lost = claim, lease, lost
        self._state = LockState.HELD

    def _drop(self) -> None:
        """Forget a holding. Hold the lock."""
        if self.lost is not None:
            self.lost.is_set()  # a loss that nobody has noticed yet is told now
            self.lost.end()
        lease, self.lease, self.claim = self.lease, None, None
        attempt = self._attempt
        if lease is None or attempt is None:
            return
        lease.proof = None
        left = self._state is LockState.LEAVING
        if left or (self._state is LockState.HELD and (attempt.given_up or not lease.alive)):
            lease.abandon()


class LockFace:
    """What a lock of either face tells of itself; no store is asked."""

    _flow: LockFlow

    @property
    def name(self) -> str:
        """The name, relative to the namespace."""
        return self._flow.name

    @property
    def held(self) -> bool:
        """Whether the lock is surely held, by the clock, at this moment.

        False from the first moment after a pause that was longer than the lease; what was false
        stays false until the next `acquire`.
        """
        return self._flow.held

    @property
    def fence(self) -> int:
        """A number that only grows from one holder of this name to the next.

        For systems beside the store, which refuse what comes with a smaller one (M. Kleppmann, "How
        to do distributed locking", 2016). Raises `NotHeld` unless acquired and not released.
        """
        try:
            return self._flow.fence
        except KviError as error:
            raise self._flow.scope.placed(error, "fence", self._flow.name)

    @property
    def guard(self) -> Compare:
        """A condition for ``txn(when=[lock.guard, …])``: true as long as this holder has the lock.

        The store checks it together with the write, so that a writer who lost the lock, and does
        not know yet, writes nothing. Raises `NotHeld` if the lock is not held.
        """
        try:
            return self._flow.guard
        except KviError as error:
            raise self._flow.scope.placed(error, "guard", self._flow.name)

    def __repr__(self) -> str:
        held = "held" if self.held else "not held"
        return f"<{type(self).__name__} {self.name!r} {held} {self._flow.scope.uri}>"


class _Attempt:
    """One attempt at a lock.

    Attributes:
        lease: that the claim stands on, or may.
        doubt: a claim's fate is unknown: it may come to stand later, as long as its lease lives.

    """

    def __init__(
        self, scope: Scope, port: Port, contest: Contest, ttl: float, wait: float | None
    ) -> None:
        self.lease: LeaseFlow | None = None
        self.doubt = False
        self._scope = scope
        self._port = port
        self._contest = contest
        self._ttl = ttl
        self._once = wait == 0
        self._deadline = inf if wait is None else port.now() + wait
        self._awake = port.signal()

    @property
    def given_up(self) -> bool:
        """Whether its caller has left without the result."""
        return self._port.cancelled

    async def run(self) -> Claim | None:
        """The claim that holds the lock, on `lease`; ``None`` when the time was up.

        Whatever is raised: the caller abandons `lease`.
        """
        ledger = self._scope.ledger
        try:
            while True:
                idle = ledger.take_idle(self._ttl, self._scope)
                assert idle is None or isinstance(idle, LeaseFlow)  # what was given
                self.lease = idle
                lease = self.lease = await self._grant() if idle is None else idle
                self.doubt = False
                try:
                    claim = await self._through(lease)
                    if claim is not None:
                        self._check(lease)  # the store may have been slow to answer
                except LeaseLost:
                    # It ended while it waited: the place is gone, and the wait goes on. An idle
                    # one may have been ended by somebody else, before the lock was asked for.
                    lease.abandon()
                    self._scope.ensure_open()
                    if idle is None and self._left() <= 0:
                        return None
                    continue
                return claim
        except OutcomeUnknown as error:
            raise Unavailable(
                "the store did not say whether the claim stands, so it was given up; "
                "the lock is not held"
            ) from error

    async def _grant(self) -> LeaseFlow:
        scope = self._scope
        return await LeaseFlow.grant(
            self._port, scope, self._ttl, scope.timeout, keep_alive=True, lock=True
        )

    async def _through(self, lease: LeaseFlow) -> Claim | None:
        """Claim, and wait until the claim is first; ``None``, and no claim, if time is up."""
        # The wait bounds the waiting; whether there is anything to wait for is asked in full time.
        claim = await self._claim(lease, self._scope.timeout)
        if claim.ahead is None:
            return claim
        lease.lost.add(self._awake.set, own=True)
        try:
            if not (self._once or self._contest.queued):
                await self._stand_in_line(lease)
            while not self._once and claim.ahead is not None and self._left() > 0:
                claim = await self._next(claim, lease)
        finally:
            lease.lost.remove(self._awake.set)
            self._scope.ledger.leave_line(self._awake)
        if claim.ahead is None:
            return claim
        await self._withdraw(claim, lease)
        return None

    async def _stand_in_line(self, lease: LeaseFlow) -> None:
        """Wait until nobody of this handle is before it, or for long enough."""
        if self.doubt:  # a claim that comes to stand late would be what those before it wait for
            return
        ledger = self._scope.ledger
        ledger.stand_in_line(self._scope.prefix + self._contest.name, self._awake)
        while not ledger.is_first(self._awake) and (left := self._left()) > 0:
            self._check(lease)
            await self._awake.wait(min(left, LOOK_AGAIN))

    async def _next(self, claim: Claim, lease: LeaseFlow) -> Claim:
        """Wait until the key ahead goes, or for long enough; the claim as it stands then."""
        port, pause, stale = self._port, _LEAST, False
        while self._left() > 0:
            try:
                again = await (self._look(lease) if stale else self._watched(claim, lease))
                if again is not None:
                    return again
            except Compacted:
                stale = True  # only a new claim tells who is ahead by now
            except (*PASSING, Contention) as error:
                self.doubt = self.doubt or isinstance(error, OutcomeUnknown)
                self._check(lease)
                log().debug("waiting for the lock %r: %s", self._contest.name, error)
                spread = pause * (0.5 + port.chance() / 2)
                await self._awake.wait(min(spread, max(0.0, self._left())))
                pause = min(pause * 2, _MOST)
        return claim

    async def _watched(self, claim: Claim, lease: LeaseFlow) -> Claim | None:
        """Watch the key ahead until it goes, and claim again; ``None`` if time is up before."""
        scope, port, contest = self._scope, self._port, self._contest
        history = scope.capabilities.watch_history
        spec = WatchSpec(contest.watched(claim), claim.revision + 1 if history else None)
        feed: Feed | None = None
        try:
            feed = await scope.execute(port, WatchOp(spec, self._awake.set), self._patience())
            # Without history, the key may have gone before the watch began.
            due = port.now() + contest.recheck if history else 0.0
            while True:
                self._check(lease)
                batch = await scope.execute(port, PollOp(feed), self._patience())
                if batch is not None:
                    if not history or any(map(contest.wakes, batch.events)):
                        return await self._look(lease)
                    continue
                left = min(self._deadline, due) - port.now()
                if left > 0:
                    await self._awake.wait(min(left, feed.interval or inf))
                elif self._left() <= 0:
                    return None
                else:
                    again = await self._look(lease)
                    if again.ahead != claim.ahead:
                        return again
                    due = port.now() + contest.recheck
        finally:
            if feed is not None:
                feed.close()

    async def _look(self, lease: LeaseFlow) -> Claim:
        return await self._claim(lease, self._patience())

    async def _claim(self, lease: LeaseFlow, timeout: float) -> Claim:
        call = Call(self._port, self._port.now() + timeout)
        try:
            return await self._contest.claim(self._scope, call, lease)
        finally:
            self.doubt = self.doubt or call.doubt

    async def _withdraw(self, claim: Claim, lease: LeaseFlow) -> None:
        scope = self._scope
        try:
            call = Call(self._port, self._port.now() + min(scope.timeout, _WITHDRAWAL))
            await self._contest.release(scope, call, claim)
        except KviError:
            self.doubt = True
        self.lease = None
        if self.doubt:
            lease.abandon()
        else:
            scope.ledger.give_idle(lease, self._ttl, self._port.now())

    def _check(self, lease: LeaseFlow) -> None:
        self._scope.ensure_open()
        if not lease.alive:
            raise LeaseLost("the lease of the claim has ended")

    def _left(self) -> float:
        return self._deadline - self._port.now()

    def _patience(self) -> float:
        """Seconds for one call while waiting."""
        return max(_LEAST, min(self._scope.timeout, self._left()))
