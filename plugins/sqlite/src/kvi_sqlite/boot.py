"""Which boot of the machine this is."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

_LINUX = Path("/proc/sys/kernel/random/boot_id")


@cache
def boot_id() -> str | None:
    """An id that all processes see from one boot to the next; ``None`` if the system has none."""
    if sys.platform == "darwin":
        return _sysctl(b"kern.bootsessionuuid")
    try:
        return _LINUX.read_text().strip() or None
    except OSError:
        return None


def _sysctl(name: bytes) -> str | None:
    """A text that the kernel of macOS keeps under ``name``; see sysctlbyname(3)."""
    import ctypes

    ask = ctypes.CDLL(None).sysctlbyname
    size, no_new = ctypes.c_size_t(0), ctypes.c_size_t(0)
    if ask(name, None, ctypes.byref(size), None, no_new) != 0:
        return None
    text = ctypes.create_string_buffer(size.value)
    if ask(name, text, ctypes.byref(size), None, no_new) != 0:
        return None
    return text.value.decode() or None
