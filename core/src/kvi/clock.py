"""The clock of leases: it never jumps, and counts on while the machine sleeps.

Python's ``time.monotonic`` stands still during sleep on Linux (``CLOCK_MONOTONIC``, see
clock_gettime(2)) and on macOS (``mach_absolute_time``); a holder that slept past its ttl would
believe in its lock. ``CLOCK_BOOTTIME`` counts on; so does macOS's own ``CLOCK_MONOTONIC``.
"""

from __future__ import annotations

import sys
import time


def _id_of_clock() -> int | None:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.CLOCK_BOOTTIME
    if sys.platform == "darwin":
        return time.CLOCK_MONOTONIC
    return None


_ID = _id_of_clock()


def now() -> float:
    """Seconds since some moment that stays the same until the machine boots anew."""
    return time.monotonic() if _ID is None else time.clock_gettime(_ID)
