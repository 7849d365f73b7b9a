"""What this process has in use: threads and, where the system tells (Linux), sockets."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_FILES = Path("/proc/self/fd")

Used = Mapping[str, frozenset[str]]


def in_use() -> Used:
    """The threads and sockets that there are, by name.

    Not those of the loops' own executors, which grow with their use up to a bound.
    """
    threads = {
        f"{thread.name} ({thread.ident})"
        for thread in threading.enumerate()
        if not thread.name.startswith("asyncio_")
    }
    return {"threads": frozenset(threads), "sockets": frozenset(_sockets())}


def grown(before: Used) -> Used:
    """What there is of each kind that there was not then."""
    return {kind: now - before[kind] for kind, now in in_use().items()}


def _sockets() -> set[str]:
    found: set[str] = set()
    with suppress(OSError):  # another system
        for file in _FILES.iterdir():
            with suppress(OSError):  # it is closed by now
                found.add(str(file.readlink()))
    return {name for name in found if name.startswith("socket:")}
