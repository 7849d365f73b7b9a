"""A lock that an interrupted `with` never leaves taken.

With the locks of `threading`, taking one and entering the block used to be one step for signals. In
Python 3.14 a handler may run between the two; what it raises there skips the block's exit, and the
lock stays taken for good (python/cpython#148874, mended in 3.15). So on 3.14 a lock is taken inside
of a `try`, which knows by a list whether it was: ``extend`` calls ``acquire`` and notes its answer
with no step of Python's between. The return into the `with` is no point at which handlers run.
"""

from __future__ import annotations

import sys
import threading

_OPEN = sys.version_info[:2] == (3, 14)
_ONCE = (True,)


class _Mutex:
    """A lock of `threading` with an entry of its own; leaving stays one step."""

    # `with` finds the exit of the lock itself in the slot.
    __slots__ = ("__exit__", "acquire", "locked", "release")

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire, self.release, self.locked = lock.acquire, lock.release, lock.locked
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


Mutex = threading.Lock
"""Makes a lock that is safe in a `with` of the main thread."""

if _OPEN:
    Mutex = _Mutex  # type: ignore[misc, assignment]
