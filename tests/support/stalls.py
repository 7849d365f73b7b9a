"""How long this process stood still: what a bound on time must allow for on a busy machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_EVERY = 0.01  # seconds


class Stalls:
    """What was found so far; see `watched`."""

    longest = 0.0
    """Seconds that a thread which only sleeps was late, at the most. Two may meet in one wait."""


@contextmanager
def watched() -> Iterator[Stalls]:
    """Watch over a block."""
    stalls, over = Stalls(), threading.Event()

    def sleep() -> None:
        while not over.is_set():
            due = time.monotonic() + _EVERY
            over.wait(_EVERY)
            stalls.longest = max(stalls.longest, time.monotonic() - due)

    thread = threading.Thread(target=sleep, name="stalls", daemon=True)
    thread.start()
    try:
        yield stalls
    finally:
        over.set()
        thread.join()
