"""The task that calls: who it is, and whether it is to end."""

from __future__ import annotations

import asyncio
import weakref


def me() -> object:
    """The task that calls; a weak reference, so that it may end while it holds something."""
    task = asyncio.current_task()
    return None if task is None else weakref.ref(task)


def is_cancelled() -> bool:
    """Whether somebody wants the task that calls to end; else a ``CancelledError`` is another's."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
