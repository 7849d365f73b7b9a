"""A lock that an interrupted `with` never leaves taken.

With the locks of `threading`, taking one and entering the block used to be one step for signals. In
Python 3.14 a handler may run between the two; what it raises there skips the block's exit, and the
lock stays taken for good (python/cpython#148874, mended in 3.15). So on 3.14 a lock is taken inside
of a `try`, which knows by a list whether it was: ``extend`` calls ``acquire`` and notes its answer
with no step of Python's between. The return into the `with` is no point at which handlers run.

`OwnedMutex` is for a store whose calls run in the main thread. A handler that interrupts one there,
and calls the store itself, would wait for ever for what its own thread has. So the lock tells its
owner, and the call is refused. It is taken twice only where nothing has been read or changed yet.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

_OPEN = sys.version_info[:2] == (3, 14)
_ONCE = (True,)


class _Entry:
    """A lock of `threading` with an entry of its own; leaving stays one step."""

    # `with` finds the exit of the lock itself in the slot.
    __slots__ = ("__exit__", "acquire", "release")

    def __init__(self, lock: Any) -> None:
        self.acquire, self.release = lock.acquire, lock.release
        self.__exit__ = lock.__exit__

    def __enter__(self) -> bool:
        taken: list[bool] = []
        try:
            taken.extend(map(self.acquire, _ONCE))
        except BaseException:
            if taken:
                self.release()
            raise
        return True


class _Mutex(_Entry):
    __slots__ = ("locked",)

    def __init__(self) -> None:
        lock = threading.Lock()
        super().__init__(lock)
        self.locked = lock.locked


class _OwnedMutex(_Entry):
    __slots__ = ("_is_owned",)

    def __init__(self) -> None:
        lock = threading.RLock()
        super().__init__(lock)
        self._is_owned = lock._is_owned  # type: ignore[attr-defined]


Mutex = threading.Lock
"""Makes a lock that is safe in a `with` of the main thread."""

OwnedMutex: Callable[[], Any] = threading.RLock
"""Makes one that its owner may take again, and that tells who asks whether it is his."""

if _OPEN:
    Mutex = _Mutex  # type: ignore[misc, assignment]
    OwnedMutex = _OwnedMutex
