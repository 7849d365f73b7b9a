"""For backends whose clients wait outside of Python: have "threads" been replaced by greenlets?"""

from __future__ import annotations

import sys

__all__ = ["replaced_threads"]

_LIBRARIES = (
    ("gevent", "gevent.monkey", "is_module_patched", "threading"),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", "thread"),
)


def replaced_threads() -> str | None:
    """The library that has replaced the threads of this process, ``None`` if they are real.

    Where they take turns in one thread, a call that waits outside of Python stops them all.
    """
    for library, module, name, asked in _LIBRARIES:
        patcher = sys.modules.get(module)
        if patcher is not None and getattr(patcher, name)(asked):
            return library
    return None
