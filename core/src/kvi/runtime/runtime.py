"""What goes on behind a handle: its leases, its watches, its waiting locks, and their threads.

*Ownership.* A handle has one `Threads` (a dispatcher for call-backs, a keeper for leases), shared
by the views on it, and one `Runtime`; so has each view. A runtime knows what was begun through its
handle and has not ended. Closing a view settles its runtime and those of the views on it; closing
the handle settles all of them and stops the threads.

*Settling* wakes everybody who waits, then revokes the leases, and with them releases the locks and
deletes the temporary keys. It is done before the backend closes, as long as the time-out lasts; a
store that does not answer is told nothing, and its leases end by themselves.

*Idle leases.* A lock gives its lease back here after a release that surely worked, and the next
lock with the same ttl takes it, which saves granting one. It is never at two locks at once, is kept
alive meanwhile, and revoked after `IDLE` seconds without use.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from kvi.errors import KviError, OutcomeUnknown, Timeout, Unavailable
from kvi.runtime.clock import now
from kvi.runtime.dispatcher import Dispatcher
from kvi.runtime.keeper import Keeper

if TYPE_CHECKING:
    from kvi.recipes.lease import Lease

_log = logging.getLogger("kvi")

IDLE = 30.0  # seconds that an unused lease is kept for the next lock
MOST_IDLE = 16  # leases; what locks that were held at once leave behind is not kept forever
PATIENCE = 1.0  # seconds that the end of threads is waited for


class Wakeable(Protocol):
    """What waits for the store: a watch, or an attempt at a lock."""

    def shut(self) -> None:
        """End, because the handle is closed: whoever waits wakes up and finds it so."""


class Threads:
    """The threads of a handle and its views."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        self.keeper = Keeper()

    def stop(self) -> None:
        """End them and wait for that, except the thread that calls this."""
        self.dispatcher.stop()
        self.keeper.stop()
        deadline = monotonic() + PATIENCE
        self.keeper.join(max(0.0, deadline - monotonic()))
        self.dispatcher.join(max(0.0, deadline - monotonic()))


class Runtime:
    """What was begun through one handle or view. Safe for threads."""

    def __init__(self, threads: Threads, parent: Runtime | None) -> None:
        self.threads = threads
        self._parent = parent
        self._views: set[Runtime] = set()
        self._lock = threading.Lock()
        self._settled = False
        self._leases: set[Lease] = set()
        self._leaving: set[Lease] = set()  # given up, and the store does not know it yet
        self._waiting: set[Wakeable] = set()
        self._idle: dict[float, list[tuple[Lease, float]]] = {}  # with the time of giving back
        if parent is not None:
            parent._views.add(self)

    def add_lease(self, lease: Lease) -> bool:
        """Know a lease until it ends; false if the handle has been closed."""
        with self._lock:
            if not self._settled:
                self._leases.add(lease)
            return not self._settled

    def add_leaving(self, lease: Lease) -> bool:
        """Know a lease that was given up until it is revoked; false if the handle is closed."""
        with self._lock:
            if not self._settled:
                self._leaving.add(lease)
            return not self._settled

    def discard_lease(self, lease: Lease) -> None:
        """Forget a lease that has ended."""
        with self._lock:
            self._leases.discard(lease)
            self._leaving.discard(lease)

    def add_waiting(self, waiting: Wakeable) -> bool:
        """Know who waits, until it is discarded; false if the handle has been closed."""
        with self._lock:
            if not self._settled:
                self._waiting.add(waiting)
            return not self._settled

    def discard_waiting(self, waiting: Wakeable) -> None:
        """Forget who waits no more."""
        with self._lock:
            self._waiting.discard(waiting)

    def take_idle(self, ttl: float) -> Lease | None:
        """An idle lease that was asked for with ``ttl``, for the one who calls."""
        while True:
            with self._lock:
                idle = self._idle.get(ttl)
                if not idle:
                    return None
                lease, _ = idle.pop()
                if not idle:
                    del self._idle[ttl]
            if lease.alive:
                return lease
            lease._abandon()

    def give_idle(self, lease: Lease, ttl: float) -> None:
        """Keep a lease without keys for the next lock."""
        lease.lost._forget()  # else the call-backs of all locks that ever had it pile up
        with self._lock:
            if not self._settled and sum(map(len, self._idle.values())) < MOST_IDLE:
                self._idle.setdefault(ttl, []).append((lease, now()))
                return
        lease._abandon()

    def is_surplus(self, lease: Lease) -> bool:
        """Whether a lease has been idle for too long; then it is idle no more, but to be ended."""
        with self._lock:
            for ttl, idle in self._idle.items():
                for position, (kept, since) in enumerate(idle):
                    if kept is lease and now() - since > IDLE:
                        del idle[position]
                        if not idle:
                            del self._idle[ttl]
                        return True
        return False

    def settle(self, timeout: float) -> None:
        """Wake everybody, revoke the leases as long as ``timeout`` lasts, and begin nothing new."""
        deadline = monotonic() + timeout
        with self._lock:
            self._settled = True
            waiting, self._waiting = self._waiting, set()
            leases, self._leases = self._leases, set()
            leaving, self._leaving = self._leaving, set()
            self._idle.clear()
        for one in waiting:
            one.shut()
        for view in list(self._views):
            view.settle(max(0.0, deadline - monotonic()))
        alive = [lease for lease in leases if lease._shut()]
        for lease in (*alive, *leaving):
            left = deadline - monotonic()
            if left <= 0:
                break
            try:
                lease._revoke_now(left)
            except (Unavailable, Timeout, OutcomeUnknown):
                break  # the others would fare no better
            except KviError as error:
                _log.warning("a lease could not be revoked, it ends by itself: %s", error)

    def end(self) -> None:
        """After `settle`: let the threads go; they end with the handle that has them."""
        if self._parent is None:
            self.threads.stop()
        else:
            self._parent._views.discard(self)
