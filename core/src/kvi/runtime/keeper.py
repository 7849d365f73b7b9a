"""The threads that keep leases alive.

One thread serves all leases of a handle and its views: it sleeps until the next one is due, renews
it, and asks it when it is due again. Renewals take a round trip each, so that one after the other
may be too slow for hundreds of leases, or while some of them hang: whoever takes one that is late,
with more due behind it, starts another thread, up to `MOST_THREADS`, and these end once nothing is
late any more. A renewal that hangs ends after `kvi.policy.lease.MOST_PATIENCE`.

Whether a lease is alive never depends on these threads: that is computed from the clock. They only
make the loss known to those who wait for it.

They are daemons. The first starts with the first lease and ends soon after the last, or by `stop`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from contextlib import suppress
from time import monotonic
from typing import Protocol

from kvi.errors import Unavailable
from kvi.runtime.clock import now

_log = logging.getLogger("kvi")
MOST_THREADS = 8
LATE = 0.1  # seconds behind its time
LINGER = 1.0  # seconds that the thread outlives the last lease: often the next one comes soon
_LONGEST = 3600.0  # seconds of one sleep, which no platform finds too long


class Kept(Protocol):
    """What the keeper serves."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to do."""

    def step(self) -> float | None:
        """Do what is due; returns when to be called next (by the clock), or ``None`` for never."""


class Keeper:
    """Calls the steps of leases in time. Safe for threads."""

    def __init__(self) -> None:
        # Held as a plain lock: `with` on a condition can be interrupted between taking and holding.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._due: list[tuple[float, int, Kept]] = []
        self._numbers = itertools.count()
        self._threads: set[threading.Thread] = set()
        self._ended = 0  # of those in the heap, about
        self._stopped = False

    def keep(self, kept: Kept, due: float) -> None:
        """Call ``kept.step`` at ``due``; after `stop`, never.

        Raises `Unavailable` if there is no thread for it, and none can be started.
        """
        with self._lock:
            if self._stopped:
                return
            if not self._threads:
                try:
                    self._start()
                except RuntimeError as error:
                    raise Unavailable(
                        f"no thread can be started to keep leases alive: {error}"
                    ) from error
            heapq.heappush(self._due, (due, next(self._numbers), kept))
            if self._due[0][2] is kept:
                self._changed.notify()

    def forget(self) -> None:
        """One of those kept has ended. The heap is cleaned once half of it is waste."""
        with self._lock:
            self._ended += 1
            if self._ended * 2 > len(self._due):
                self._due = [entry for entry in self._due if not entry[2].ended]
                heapq.heapify(self._due)
                self._ended = 0
                if not self._due:
                    self._changed.notify()

    def stop(self) -> None:
        """Do nothing more; a renewal that runs now is not waited for."""
        with self._lock:
            self._stopped = True
            self._due.clear()
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """After `stop`: wait for the threads, except the one that calls this."""
        deadline = monotonic() + timeout
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="kvi-keeper", daemon=True)
        thread.start()
        self._threads.add(thread)

    def _run(self) -> None:
        while (kept := self._next()) is not None:
            try:
                due = kept.step()
            except Exception:  # noqa: BLE001  (the other leases must be kept)
                _log.exception("a lease could not be kept")
                due = None
            if due is not None:
                with self._lock:
                    if not self._stopped:
                        heapq.heappush(self._due, (due, next(self._numbers), kept))
                        if len(self._threads) > 1 and self._due[0][2] is kept:
                            self._changed.notify()

    def _next(self) -> Kept | None:
        with self._lock:
            while not self._stopped:
                if self._due:
                    left = self._due[0][0] - now()
                    if left <= 0:
                        kept = heapq.heappop(self._due)[2]
                        if left < -LATE:
                            self._get_help()
                        return kept
                    if len(self._threads) > 1:
                        break  # nothing is due: one thread is enough
                    self._changed.wait(min(left, _LONGEST))
                elif len(self._threads) > 1 or (not self._changed.wait(LINGER) and not self._due):
                    break
            self._threads.discard(threading.current_thread())
            return None

    def _get_help(self) -> None:
        """What is due comes late: start another thread if more is due."""
        if self._due and self._due[0][0] <= now() and len(self._threads) < MOST_THREADS:
            with suppress(RuntimeError):  # then as fast as it goes
                self._start()
