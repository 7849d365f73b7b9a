"""Calls that wait for what others do, for the tests of what ends such a wait.

The names are those of both faces, so one table does for both: a call blocks, or gives something to
await. What they wait for is held by ``peer``, a handle of its own on the same store.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from threading import Event, Thread
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import kvi
from kvi import recipes

from tests.support.waiting import until


class World(NamedTuple):
    """What a call needs.

    Attributes:
        store: the handle, or view, that is closed.
        peer: another handle on the same keys.
        recipes: those of the face.
        kept: what the peer holds; it would be given up if it was dropped.

    """

    store: Any
    peer: kvi.Kvi
    recipes: ModuleType
    kept: list[object]


def _hold(world: World, lock: kvi.Lock) -> None:
    assert lock.acquire()
    world.kept.append(lock)


def _lock(world: World) -> Any:
    _hold(world, world.peer.lock("jobs"))
    return world.store.lock("jobs").acquire()


def _queued(world: World) -> Any:
    """Behind another one that waits."""
    _hold(world, world.peer.lock("jobs"))
    waiter = Thread(target=_quietly, args=(world.peer.lock("jobs").acquire,), daemon=True)
    waiter.start()
    until(lambda: is_waiting(waiter.ident))
    return world.store.lock("jobs").acquire()


def _lost(world: World) -> Any:
    return world.store.lock("jobs").lost.wait()


def _elected(world: World) -> Any:
    _hold(world, recipes.Election(world.peer, "e", b""))
    return world.recipes.Election(world.store, "e", b"").campaign()


def _semaphore(world: World) -> Any:
    _hold(world, recipes.Semaphore(world.peer, "s", 1))
    return world.recipes.Semaphore(world.store, "s", 1).acquire()


def _reader(world: World) -> Any:
    _hold(world, recipes.RWLock(world.peer, "rw").write())
    return world.recipes.RWLock(world.store, "rw").read().acquire()


def _writer(world: World) -> Any:
    _hold(world, recipes.RWLock(world.peer, "rw").read())
    return world.recipes.RWLock(world.store, "rw").write().acquire()


def _slot(world: World) -> Any:
    world.kept.append(recipes.Slots(world.peer, "w", 1).claim())
    return world.recipes.Slots(world.store, "w", 1).claim()


def _once(world: World) -> Any:
    inside = Event()

    def stuck(held: kvi.Lock) -> bytes:
        inside.set()
        held.lost.wait()
        return b""

    once = recipes.Once(world.peer, "o")
    Thread(target=_quietly, args=(lambda: once.run(stuck),), daemon=True).start()
    assert inside.wait(20)
    return world.recipes.Once(world.store, "o").run(lambda held: b"")


def _schedule(world: World) -> Any:
    return world.recipes.Schedule(world.store, "daily", 86_400).run(lambda time: None)


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except kvi.Closed:
        return


WAITS: dict[str, Callable[[World], Any]] = {
    "lock": _lock,
    "lock behind another": _queued,
    "loss of what is not held": _lost,
    "campaign": _elected,
    "permit": _semaphore,
    "read lock": _reader,
    "write lock": _writer,
    "slot": _slot,
    "once": _once,
    "barrier": lambda w: w.recipes.Barrier(w.store, "b", 2).wait(),
    "schedule": _schedule,
    "job": lambda w: w.recipes.Queue(w.store, "q").get(),
}
"""How to begin each; the call then waits without end, and closing its handle is `Closed`."""


def is_waiting(thread: int | None) -> bool:
    """Whether a thread waits in the driver of kvi."""
    frame = None if thread is None else _frame_of(thread)
    return (
        frame is not None
        and frame.f_code.co_filename.endswith("driver/threads.py")
        and frame.f_code.co_name in ("wait_here", "wait")
    )


def _frame_of(thread: int) -> FrameType | None:
    """What it runs; the collector of garbage, if it begins meanwhile, stops older Pythons for good.

    See gh-106883 of CPython, mended in 3.11.8 and 3.12.2.
    """
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        gc.enable()
