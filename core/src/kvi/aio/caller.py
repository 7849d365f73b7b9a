"""Who calls, where it counts which task holds something."""

from __future__ import annotations

import asyncio
import weakref


def me() -> object:
    """The task that calls; a weak reference, so that it may end while it holds something."""
    task = asyncio.current_task()
    return None if task is None else weakref.ref(task)
