"""A flag to wait for that also a signal handler may raise.

`threading.Event` has a plain lock inside. A handler that interrupts a thread in the middle of
``wait`` or ``set`` and sets the same event waits for that lock forever, as its own thread has it.
Here is no lock: who waits enters a list before it looks at the flag, and who sets the flag does so
before it looks at the list. So one of the two always sees the other, wherever it is interrupted.
"""

from __future__ import annotations

import threading
from contextlib import suppress


class Flag:
    """Down at first. Anyone may `set` it and `wait` for it; `clear` is for one that alone waits."""

    __slots__ = ("_up", "_waiters")

    def __init__(self) -> None:
        self._up = False
        self._waiters: list[threading.Lock] = []  # each held; a release wakes its thread

    def is_set(self) -> bool:
        """Whether it is up."""
        return self._up

    def set(self) -> None:
        """Raise it, and wake who waits; again, it does nothing."""
        self._up = True
        for waiter in tuple(self._waiters):
            with suppress(RuntimeError):  # released already, by another call or an interrupted one
                waiter.release()

    def clear(self) -> None:
        """Take it down."""
        self._up = False

    def wait(self, timeout: float) -> bool:
        """Wait until it is up, for at most ``timeout`` seconds; whether it is."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            if not self._up:
                waiter.acquire(timeout=timeout)
            return self._up
        finally:
            self._waiters.remove(waiter)
