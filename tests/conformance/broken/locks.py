"""Stores whose locks are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from types import EllipsisType
from typing import Any, Self

from kvi.clock import now
from kvi.errors import LeaseLost, LockTimeout, NotHeld
from kvi.flow.lock import LockState
from kvi.model import Claim, Key, Scan, Span
from kvi.ops import DeleteRangeOp
from kvi.policy.lock import queue_span
from kvi.sync.lock import Lock

from tests.conformance.broken.correct import Correct, Handle, Making, broken


@broken("lock.exclusive")
class EverybodyHolds(Correct):
    """Nobody ever waits."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return super()._lock_claim(name, lease, timeout)._replace(ahead=None)


@broken("lock.exclusive")
class TwoHold(Correct):
    """The second to come is let in beside the first."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = super()._lock_claim(name, lease, timeout)
        others = self._count(queue_span(name), timeout)
        return claim._replace(ahead=None) if others <= 2 else claim


@broken("lock.exclusive")
class OnePerHandle(Correct):
    """Each handle has locks of its own."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return super()._lock_claim(f"{name}/{id(self)}", lease, timeout)


@broken("lock.delay", lock_delay_factor=0.5)
class NoDelay(Correct):
    """The next comes in at once when a lease is ended early, and the holder counts on its ttl."""


@broken("lock.fair")
class LastComeFirst(Correct):
    """The lock goes to who came last."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = super()._lock_claim(name, lease, timeout)
        waiting = self._range(Scan(queue_span(name)), timeout)
        keys = [e.key for e in sorted(waiting, key=lambda e: e.create_revision) if e.lease]
        if self.notes.get(name) not in keys:
            self.notes[name] = keys[-1]
        holder = self.notes[name]
        return claim._replace(ahead=None if claim.key == holder else holder)


@broken("lock.no-ghost")
class Ghost(Correct):
    """A waiter that gave up keeps its place."""

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        return claim.ahead is not None or super()._lock_release(claim, timeout)


@broken("lock.fence")
class OneFence(Correct):
    """All holders have the same fence."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return super()._lock_claim(name, lease, timeout)._replace(fence=1)


@broken("lock.fence")
class FencePerHandle(Correct):
    """Each handle counts its own fences."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.fences = itertools.count(1)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = super()._lock_claim(name, lease, timeout)
        return claim._replace(fence=next(self.fences))


@broken("lock.guard")
class GuardAlwaysTrue(Correct):
    """The guard does not stop who was a holder."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = super()._lock_claim(name, lease, timeout)
        return claim._replace(guard=Key(claim.key).create_revision > 0)

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        guard = Key(claim.key).create_revision == claim.fence
        return super()._lock_release(claim._replace(guard=guard), timeout)


@broken("lock.guard")
class GuardStopsEverybody(Correct):
    """The guard does not let the holder write."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = super()._lock_claim(name, lease, timeout)
        return claim._replace(guard=Key(claim.key).absent)


@broken("lock.names")
class OneLock(Correct):
    """The locks of all names are one."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return super()._lock_claim("the one", lease, timeout)


@broken("lock.names")
class NamesAreFolders(Correct):
    """`a/b` is the lock `a`."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return super()._lock_claim(name.split("/b")[0] or name, lease, timeout)


@broken("lock.names")
class DataIsAHolder(Correct):
    """Whatever is below its name holds a lock."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = super()._lock_claim(name, lease, timeout)
        below = self._range(Scan(Span.of_prefix(f"{name}/")), timeout)
        others = [e.key for e in below if not e.lease and e.create_revision < claim.fence]
        return claim._replace(ahead=others[0] if others else claim.ahead)


class _Making(Making):
    makes = "lock"


@broken("lock.timeout")
class EntersUnheld(_Making):
    """A `with` block runs although the lock was not to be had."""

    class kind(Lock):
        def __enter__(self) -> Self:
            self.acquire()
            return self


@broken("lock.timeout")
class GivesUpWithAnError(_Making):
    """`acquire` raises when its time is up."""

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            if super().acquire(timeout):
                return True
            raise LockTimeout("not to be had")


@broken("lock.timeout")
class ForgetsItsTimeout(_Making):
    """`acquire` without a time-out says that it has the lock at once, whatever was set."""

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            held = super().acquire(timeout)
            return held or isinstance(timeout, EllipsisType)


@broken("lock.waits")
class NeverFree(Correct):
    """A lock that was released is not free."""

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        return True


@broken("lock.ttl")
class LivesByItsTimeout(Correct):
    """A lock is held by a lease whose ttl is its time-out."""

    class face(Handle):
        def lock(
            self, name: str = "default", *, ttl: float = 10, timeout: float | None = None
        ) -> Lock:
            return super().lock(name, ttl=timeout or ttl, timeout=timeout)


@broken("lock.ttl")
class NotRenewed(_Making):
    """What holds a lock is not renewed."""

    class kind(Lock):
        def _acquire(self, *args: Any) -> bool:
            got = super()._acquire(*args)
            if self._flow.lease is not None:
                self._flow.lease._kept = False
            return got


@broken("lock.ttl")
class EndsWithItsTimeout(_Making):
    """A lock is lost once its time-out has passed."""

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            return super().acquire(timeout) and self.begin()

        def __enter__(self) -> Self:
            super().__enter__()
            self.begin()
            return self

        def begin(self) -> bool:
            self.end = now() + (self._wait or math.inf)
            return True

        @property
        def held(self) -> bool:
            return self._flow.held and now() < self.end


@broken("lock.waits")
class HandleBoundsTheWait(_Making):
    """A wait ends with the handle's time-out."""

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            return super().acquire(self._store._scope.timeout if timeout is None else timeout)


@broken("lock.lost")
class HeldAfterItsLoss(_Making):
    """A lock that was lost is held still."""

    class kind(Lock):
        @property
        def held(self) -> bool:
            return self._flow._state is LockState.HELD


@broken("lock.lost")
class ReleasesWhatWasLost(_Making):
    """The release of a lock that was lost says nothing of it."""

    class kind(Lock):
        def release(self, *, timeout: float | None = None) -> None:
            with suppress(LeaseLost):
                super().release(timeout=timeout)


@broken("lock.lost")
class MasksTheError(_Making):
    """The loss of a lock hides the error that its block ended with."""

    class kind(Lock):
        def _leave(self, *error: object) -> None:
            self.release()


@broken("lock.owner")
class AnyoneReleases(_Making):
    """Who does not hold a lock can release it."""

    class kind(Lock):
        def release(self, *, timeout: float | None = None) -> None:
            try:
                super().release(timeout=timeout)
            except NotHeld:
                self._store._do(DeleteRangeOp(queue_span(self.name)), 5)
                raise


@broken("lock.owner")
class ReleasesNothing(_Making):
    """Releasing what is not held is no error."""

    class kind(Lock):
        def release(self, *, timeout: float | None = None) -> None:
            try:
                super().release(timeout=timeout)
            except NotHeld as error:
                if isinstance(error, LeaseLost):
                    raise


@broken("lock.owner")
class ReleaseAgainRaises(_Making):
    """A second release is an error."""

    class kind(Lock):
        def release(self, *, timeout: float | None = None) -> None:
            if self._flow._state is LockState.RELEASED:
                raise NotHeld("released already")
            super().release(timeout=timeout)


@broken("lock.not-reentrant")
class Reentrant(_Making):
    """Who holds a lock gets it again."""

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            return self.held or super().acquire(timeout)


@broken("lock.not-reentrant")
class RefusesItself(_Making):
    """Who holds a lock is told that it is not to be had."""

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            return not self.held and super().acquire(timeout)


@broken("lock.invalid")
class NoNameIsDefault(Correct):
    """The empty name is the default one."""

    class face(Handle):
        def lock(self, name: str = "default", **options: Any) -> Lock:
            return super().lock("default" if name == "" else name, **options)


@broken("lock.invalid")
class NegativeTriesOnce(_Making):
    """A negative time-out is 0."""

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            if isinstance(timeout, float) and not math.isnan(timeout):
                timeout = max(0.0, timeout)
            return super().acquire(timeout)
