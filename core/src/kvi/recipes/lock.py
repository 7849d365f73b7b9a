"""`Lock`: mutual exclusion among threads, handles, processes and hosts.

*Theory.* A lock is held by a lease. The holder puts a key under the lease; where it stands among
those of others decides (`kvi.policy.lock`, `Kvi._lock_claim`). If the holder dies, the lease ends,
the key goes, and the next is first. Whoever waits watches the one key ahead, and when that goes,
claims again: a claim that stands keeps its place, and only the answer to a claim ever says that the
lock is held. So a missed event delays, and never lets two in.

The holder counts its lease's time from before the renewal was sent, so that it knows of its end
before the next one can be in (`kvi.policy.lease`). No clock can save a write that was already on
its way: for those are `Lock.guard`, which the store checks, and `Lock.fence`, which anyone can.

=============  ==========================================  =====================================
state          guarantee                                   left by
=============  ==========================================  =====================================
``FREE``       nothing of this object is in the store      `acquire` → CLAIMING
``CLAIMING``   a claim stands, or may                      in the lock → HELD; time up, error or
                                                           interrupt: claim withdrawn → FREE
``HELD``       the claim was first; `held` says whether    `release` → RELEASED; after a loss also
               its lease still is alive                    `acquire` → CLAIMING
``RELEASED``   as FREE; to release again does nothing      `acquire` → CLAIMING
=============  ==========================================  =====================================

*What may not be left behind.* A claim whose fate is unknown is withdrawn with its lease: the lease
is given up, at once or after the lock that it came to hold, revoked as soon as the store can be
reached, and never used again. Only one whose every claim has an answer goes on to the next lock,
after a release that surely worked.
"""

from __future__ import annotations

import enum
import logging
import random
import threading
from collections.abc import Callable
from contextlib import closing
from math import inf
from time import monotonic
from types import EllipsisType
from typing import TYPE_CHECKING, Self

from kvi.errors import (
    AlreadyHeld,
    Compacted,
    Contention,
    KviError,
    LeaseLost,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    Timeout,
    Unavailable,
)
from kvi.feed import WatchSpec
from kvi.model import Claim, Compare, EventType, Span
from kvi.policy.lock import check_wait
from kvi.recipes.lease import Lease
from kvi.runtime.loss import Loss

if TYPE_CHECKING:
    from types import TracebackType

    from kvi.interface import Kvi

__all__ = ["Lock"]

_log = logging.getLogger("kvi")
_PASSING = (Unavailable, Timeout, OutcomeUnknown, Contention)  # a claim may be tried again
_LEAST, _MOST = 0.05, 1.0  # seconds between tries while the store cannot be reached
_WITHDRAWAL = 1.0  # seconds: who waited in vain does not wait long for saying so
# Seconds after which a waiter looks again without having been told. With a queue this mends
# nothing that is known to happen; without, a lock-delay ends in silence.
_LOOK_AGAIN, _LOOK_AGAIN_UNFAIR = 30.0, 1.0


class _State(enum.Enum):
    FREE = enum.auto()
    CLAIMING = enum.auto()
    HELD = enum.auto()
    RELEASED = enum.auto()


class Lock:
    """A lock by name; made by `Kvi.lock`.

    One object is held once at a time; make one per use, or share it among threads that check what
    `acquire` says. Not bound to a thread: any may release. As a context manager it is held for the
    block, or raises `LockTimeout`.
    """

    def __init__(self, store: Kvi, name: str, ttl: float, timeout: float | None) -> None:
        self._store = store
        self._name = name
        self._ttl = ttl
        self._wait = timeout
        self._mutex = threading.Lock()  # guards the state and what follows
        self._state = _State.FREE
        self._claim: Claim | None = None
        self._lease: Lease | None = None
        self._reusable = False  # whether the lease may go to another lock
        self._lost: Loss | None = None

    @property
    def name(self) -> str:
        """The name, relative to the namespace."""
        return self._name

    def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
        """Wait for the lock, at most ``timeout`` seconds; whether it is now held.

        0 tries once, ``None`` waits without end; left out, it is that of `Kvi.lock`. The
        store's own time-out bounds single calls, not the wait. First come, first served where
        ``capabilities.lock_fair``. An attempt that fails leaves nothing that could win later.

        Raises `AlreadyHeld` if this object holds the lock or waits for it, `InvalidArgument` for a
        negative time-out, and what a call to the store raises.
        """
        store = self._store
        try:
            wait = self._wait if isinstance(timeout, EllipsisType) else check_wait(timeout)
            store._ensure_open()
            with self._mutex:
                if self._state is _State.CLAIMING or self.held:
                    raise AlreadyHeld(
                        "this object holds the lock already, or waits for it; "
                        "make another one with lock()"
                    )
                self._drop()
                self._state = _State.CLAIMING
            attempt = None
            try:
                attempt = _Attempt(store, self._name, self._ttl, wait)
                claim = attempt.run()
                if claim is not None:
                    assert attempt.lease is not None
                    self._enter(claim, attempt.lease, reusable=not attempt.doubt)
                    return True
            except BaseException:  # an interrupt may come at any moment
                self._claim = self._lease = None
                self._state = _State.FREE
                if attempt is not None and attempt.lease is not None:
                    attempt.lease._abandon()
                raise
            self._state = _State.FREE
            return False
        except KviError as error:
            raise store._placed(error, "acquire", self._name)

    def release(self, *, timeout: float | None = None) -> None:
        """Let go of the lock. Releasing again, or after `Kvi.close`, does nothing.

        Raises `NotHeld` if this object never held it, `LeaseLost` (a `NotHeld`) if it was lost
        meanwhile; nothing is touched then. After any other error the lock is not held either, and
        free for others once its lease has ended.
        """
        store = self._store
        if store.closed:
            return  # `close` released it; in a forked child it is not ours
        try:
            seconds = store._seconds(timeout)
            lease: Lease | None = None
            try:
                with self._mutex:
                    if self._state is _State.RELEASED:
                        return
                    if self._state is not _State.HELD:
                        raise NotHeld("this object does not hold the lock; acquire it first")
                    claim, lease, reusable = self._claim, self._lease, self._reusable
                    assert claim is not None  # while it is HELD
                    assert lease is not None
                    alive = lease.alive
                    self._drop()
                    self._state = _State.RELEASED
                if not alive:
                    raise LeaseLost(
                        "the lock was lost before it was released: "
                        "its lease was not renewed in time"
                    )
                if not store._lock_release(claim, seconds):
                    raise LeaseLost("the lock was lost before it was released: its key was changed")
                if reusable:
                    store._running().give_idle(lease, self._ttl)
                else:
                    lease._abandon()
            except BaseException:  # an error, an interrupt, or somebody meddled
                if lease is not None:
                    self._state = _State.RELEASED
                    lease._abandon()  # whatever it still holds shall go
                raise
        except KviError as error:
            raise store._placed(error, "release", self._name)

    @property
    def held(self) -> bool:
        """Whether the lock is surely held, by the clock, at this moment.

        False from the first moment after a pause that was longer than the lease; what was false
        stays false until the next `acquire`.
        """
        lease = self._lease
        return self._state is _State.HELD and lease is not None and lease.alive

    @property
    def lost(self) -> Loss:
        """Set once the lock is lost while it is held; `release` and `Kvi.close` do not set it.

        Each `acquire` that succeeds has one of its own.
        """
        lost = self._lost
        return lost if lost is not None else _never(self._store)

    @property
    def fence(self) -> int:
        """A number that only grows from one holder of this name to the next.

        For systems beside the store, which refuse what comes with a smaller one (M. Kleppmann, "How
        to do distributed locking", 2016). Raises `NotHeld` unless acquired and not released.
        """
        return self._held_claim("fence").fence

    @property
    def guard(self) -> Compare:
        """A condition for ``txn(when=[lock.guard, …])``: true as long as this holder has the lock.

        The store checks it together with the write, so that a writer who lost the lock, and does
        not know yet, writes nothing. Raises `NotHeld` if the lock is not held.
        """
        claim = self._held_claim("guard")
        if not self.held:
            raise LeaseLost(
                "the lock is lost", operation="guard", key=self._name, uri=self._store.uri
            )
        return claim.guard

    def __enter__(self) -> Self:
        if not self.acquire():
            raise LockTimeout(
                f"others held the lock for {self._wait:g} seconds",
                operation="lock",
                key=self._name,
                uri=self._store.uri,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except KviError as failure:
            if error is None:
                raise
            error.add_note(f"afterwards the lock could not be released: {failure}")

    def __repr__(self) -> str:
        return f"<Lock {self._name!r} {'held' if self.held else 'not held'} {self._store.uri}>"

    def _enter(self, claim: Claim, lease: Lease, *, reusable: bool) -> None:
        store = self._store
        lost = Loss(
            store._running().threads.dispatcher.call,
            # in this order: `close` ends the lease, and is no loss
            lambda: not lease.alive and not store.closed,
            lambda: store.closed,
        )
        lease.lost.add_callback(lost._set)
        with self._mutex:
            self._claim, self._lease, self._lost = claim, lease, lost
            self._reusable = reusable
            self._state = _State.HELD

    def _drop(self) -> None:
        """Forget a holding. Hold the mutex."""
        if self._lost is not None:
            self._lost.is_set()  # a loss that nobody has noticed yet is told now
            self._lost._end()
        lease, self._lease, self._claim = self._lease, None, None
        if self._state is _State.HELD and lease is not None and not lease.alive:
            lease._abandon()

    def _held_claim(self, what: str) -> Claim:
        claim = self._claim
        if claim is None:
            raise NotHeld(
                "this object does not hold the lock; acquire it first",
                operation=what,
                key=self._name,
                uri=self._store.uri,
            )
        return claim


class _Attempt:
    """One attempt at a lock, by one thread; it waits for nothing but ``_awake``.

    Attributes:
        lease: that the claim stands on, or may.
        doubt: a claim's fate is unknown: it may come to stand later, as long as its lease lives.

    """

    def __init__(self, store: Kvi, name: str, ttl: float, wait: float | None) -> None:
        self._store = store
        self._runtime = store._running()
        self._name = name
        self._ttl = ttl
        self._once = wait == 0
        self._deadline = inf if wait is None else monotonic() + wait
        self._awake = threading.Event()
        self.doubt = False
        self.lease: Lease | None = None
        self._recheck = _LOOK_AGAIN if store.capabilities.lock_fair else _LOOK_AGAIN_UNFAIR

    def shut(self) -> None:
        """The handle is closed."""
        self._awake.set()

    def run(self) -> Claim | None:
        """The claim that holds the lock, on `lease`; ``None`` when the time was up.

        Whatever is raised: the caller abandons `lease`.
        """
        if not self._runtime.add_waiting(self):
            raise self._store._refusal()
        try:
            while True:
                idle = self.lease = self._runtime.take_idle(self._ttl)
                lease = self.lease = self._grant() if idle is None else idle
                self.doubt = False
                try:
                    claim = self._through(lease)
                    if claim is not None:
                        self._check(lease)  # the store may have been slow to answer
                except LeaseLost:
                    # It ended while it waited: the place is gone, and the wait goes on. An idle
                    # one may have been ended by somebody else, before the lock was asked for.
                    lease._abandon()
                    self._store._ensure_open()
                    if idle is None and self._left() <= 0:
                        return None
                    continue
                return claim
        except OutcomeUnknown as error:
            raise Unavailable(
                "the store did not say whether the claim stands, so it was given up; "
                "the lock is not held"
            ) from error
        finally:
            self._runtime.discard_waiting(self)

    def _grant(self) -> Lease:
        return Lease._grant(self._store, self._ttl, self._store._timeout, keep_alive=True)

    def _through(self, lease: Lease) -> Claim | None:
        """Claim, and wait until the claim is first; ``None``, and no claim, if time is up."""
        # The wait bounds the waiting; whether there is anything to wait for is asked in full time.
        claim = self._store._lock_claim(self._name, lease.id, self._store._timeout)
        if claim.ahead is None:
            return claim
        lease.lost.add_callback(self._awake.set)
        while not self._once and claim.ahead is not None and self._left() > 0:
            claim = self._next(claim, lease)
        if claim.ahead is None:
            return claim
        self._withdraw(claim, lease)
        return None

    def _next(self, claim: Claim, lease: Lease) -> Claim:
        """Wait until the key ahead goes, or for long enough; the claim as it stands then."""
        pause, stale = _LEAST, False
        while self._left() > 0:
            try:
                again = self._look(lease) if stale else self._watched(claim, lease)
                if again is not None:
                    return again
            except Compacted:
                stale = True  # only a new claim tells who is ahead by now
            except _PASSING as error:
                self.doubt = self.doubt or isinstance(error, OutcomeUnknown)
                self._awake.clear()  # before the check, so that no call of `shut` is missed
                self._check(lease)
                _log.debug("waiting for the lock %r: %s", self._name, error)
                self._awake.wait(min(pause * random.uniform(0.5, 1), max(0.0, self._left())))  # noqa: S311
                pause = min(pause * 2, _MOST)
        return claim

    def _watched(self, claim: Claim, lease: Lease) -> Claim | None:
        """Watch the key ahead until it goes, and claim again; ``None`` if time is up before."""
        store, ahead = self._store, claim.ahead
        assert ahead is not None  # else there is nothing to wait for
        history = store.capabilities.watch_history
        spec = WatchSpec(Span(ahead, ahead + "\0"), claim.revision + 1 if history else None)
        with closing(store._watch(spec, self._awake.set, self._patience())) as feed:
            # Without history, the key may have gone before the watch began.
            due = monotonic() + self._recheck if history else 0.0
            while True:
                self._awake.clear()  # before the check, so that no call of `shut` is missed
                self._check(lease)
                batch = feed.poll(self._patience())
                if batch is not None:
                    if any(e.type is not EventType.PUT or not history for e in batch.events):
                        return self._look(lease)
                    continue
                left = min(self._deadline, due) - monotonic()
                if left > 0:
                    self._awake.wait(left)
                elif self._left() <= 0:
                    return None
                else:
                    again = self._look(lease)
                    if again.ahead != ahead:
                        return again
                    due = monotonic() + self._recheck

    def _look(self, lease: Lease) -> Claim:
        return self._store._lock_claim(self._name, lease.id, self._patience())

    def _withdraw(self, claim: Claim, lease: Lease) -> None:
        try:
            self._store._lock_release(claim, min(self._store._timeout, _WITHDRAWAL))
        except KviError:
            self.doubt = True
        self.lease = None
        if self.doubt:
            lease._abandon()
        else:
            self._runtime.give_idle(lease, self._ttl)

    def _check(self, lease: Lease) -> None:
        self._store._ensure_open()
        if not lease.alive:
            raise LeaseLost("the lease of the claim has ended")

    def _left(self) -> float:
        return self._deadline - monotonic()

    def _patience(self) -> float:
        """Seconds for one call while waiting."""
        return max(_LEAST, min(self._store._timeout, self._left()))


def _never(store: Kvi) -> Loss:
    """The loss of what was never held."""

    def call(function: Callable[[], object]) -> None:
        raise AssertionError("what was never held cannot be lost")

    return Loss(call, lambda: False, lambda: store.closed)
