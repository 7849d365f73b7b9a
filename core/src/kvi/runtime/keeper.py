"""The thread that keeps leases alive.

One thread serves all leases of a handle and its views: it sleeps until the next one is due, renews
it, and asks it when it is due again. A renewal that hangs holds up the others for at most
`kvi.policy.lease.MOST_PATIENCE`. Whether a lease is alive never depends on this thread: that is
computed from the clock. It only makes the loss known to those who wait for it.

The thread is a daemon. It starts with the first lease and ends soon after the last, or by `stop`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from typing import Protocol

from kvi.runtime.clock import now

_log = logging.getLogger("kvi")
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
        self._changed = threading.Condition(threading.Lock())
        self._due: list[tuple[float, int, Kept]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._ended = 0  # of those in the heap, about
        self._stopped = False

    def keep(self, kept: Kept, due: float) -> None:
        """Call ``kept.step`` at ``due``; after `stop`, never."""
        with self._changed:
            if self._stopped:
                return
            heapq.heappush(self._due, (due, next(self._numbers), kept))
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="kvi-keeper", daemon=True)
                thread.start()
                self._thread = thread
            elif self._due[0][2] is kept:
                self._changed.notify()

    def forget(self) -> None:
        """One of those kept has ended. The heap is cleaned once half of it is waste."""
        with self._changed:
            self._ended += 1
            if self._ended * 2 > len(self._due):
                self._due = [entry for entry in self._due if not entry[2].ended]
                heapq.heapify(self._due)
                self._ended = 0
                if not self._due:
                    self._changed.notify()

    def stop(self) -> None:
        """Do nothing more; a renewal that runs now is not waited for."""
        with self._changed:
            self._stopped = True
            self._due.clear()
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """After `stop`: wait for the thread, unless it is the one that calls this."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        while (kept := self._next()) is not None:
            try:
                due = kept.step()
            except Exception:  # noqa: BLE001  (the other leases must be kept)
                _log.exception("a lease could not be kept")
                due = None
            if due is not None:
                with self._changed:
                    if not self._stopped:
                        heapq.heappush(self._due, (due, next(self._numbers), kept))

    def _next(self) -> Kept | None:
        with self._changed:
            while not self._stopped:
                if self._due:
                    left = self._due[0][0] - now()
                    if left <= 0:
                        return heapq.heappop(self._due)[2]
                    self._changed.wait(min(left, _LONGEST))
                elif not self._changed.wait(LINGER) and not self._due:
                    break
            self._thread = None
            return None
