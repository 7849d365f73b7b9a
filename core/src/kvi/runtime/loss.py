"""`Loss`: the event that something held was lost, for leases, temporary keys and locks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from time import monotonic

from kvi.errors import Closed

_PROBE = 0.2  # seconds between looks at the clock, should the keeper be late


class Loss:
    """Whether something was lost against its holder's will. Giving it up is no loss.

    Safe for threads. Made by kvi: ``lease.lost``, ``temp_key.lost``, ``lock.lost``.
    """

    __slots__ = (
        "_call",
        "_callbacks",
        "_changed",
        "_closed",
        "_ended",
        "_lock",
        "_lost",
        "_probe",
    )

    def __init__(
        self,
        call: Callable[[Callable[[], object]], None],
        probe: Callable[[], bool],
        closed: Callable[[], bool],
    ) -> None:
        """``call`` runs a call-back soon; ``probe`` asks the clock; ``closed`` asks the handle."""
        self._call = call
        self._probe = probe
        self._closed = closed
        # Held as a plain lock: `with` on a condition can be interrupted between taking and holding.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._callbacks: list[Callable[[], object]] = []
        self._lost = False
        self._ended = False

    def __repr__(self) -> str:
        return f"<Loss {'lost' if self.is_set() else 'not lost'}>"

    def is_set(self) -> bool:
        """Whether it was lost, computed at the call: true from the first moment after a pause."""
        if not self._lost and not self._ended and self._probe():
            self._set()
        return self._lost

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the loss, at most ``timeout`` seconds; whether it happened.

        Returns false early if the holder gives up what it held. Raises `Closed` if the handle
        is closed meanwhile.
        """
        deadline = inf if timeout is None else monotonic() + timeout
        while not self.is_set():
            ended = self._ended  # before the next question: closing ends it, and is told as such
            if self._closed():
                raise Closed("the handle is closed; open a new one")
            with self._lock:
                left = deadline - monotonic()
                if self._lost or ended or left <= 0:
                    return self._lost
                if not self._ended:
                    self._changed.wait(min(left, _PROBE))
        return True

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once it is lost, on a thread of kvi; soon, if it is already.

        It may call any method of the store. What it raises is logged.
        """
        if self._closed():
            return  # nothing can be lost any more; in a forked child the lock may be held forever
        with self._lock:
            if not self._lost:
                if not self._ended:
                    self._callbacks.append(callback)
                return
        self._call(callback)

    def _set(self) -> None:
        with self._lock:
            if self._lost or self._ended:
                return
            self._lost = True
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for callback in callbacks:
            self._call(callback)

    def _forget(self) -> None:
        """Forget the call-backs: what is held goes to another holder."""
        with self._lock:
            self._callbacks = []

    def _end(self) -> None:
        """What was held is given up: from now on nothing can be lost."""
        with self._lock:
            if not self._lost:
                self._ended = True
            self._callbacks = []
            self._changed.notify_all()
