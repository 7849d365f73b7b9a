"""`Cache`: a live copy of the keys below a prefix; see `kvi.flow.recipes.cache`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import inf
from typing import Self

from kvi.errors import KviError
from kvi.flow.recipes.cache import CacheChange, CacheFace, CacheFlow, check_revision
from kvi.policy.lock import check_wait
from kvi.sync.face import Face

__all__ = ["Cache", "CacheChange"]


class Cache(CacheFace):
    """A read-only mapping of the keys below ``prefix``, without it, to their values; sorted.

    Read once, then kept up to date by a watch. Reading it asks nobody. With ``max_age`` (seconds)
    it looks now and then whether it is the truth, and reads raise `Unavailable` when that has not
    been so for longer. ``store`` may be a view or a `kvi.Backend`. Safe for threads. It lasts until
    `close`, the end of its ``with`` block, or the handle; one that is dropped ends, too.

    Raises what a range and a watch raise; `NotSupported` where ranges are not of one moment.
    """

    def __init__(self, store: Face, prefix: str = "", *, max_age: float | None = None) -> None:
        self._store = store
        try:
            store._ensure_open()
            flow = CacheFlow(store._scope, prefix, max_age)
            self._flow = flow
            store._drive(flow.load, undo=lambda _: flow.end(), away=True)
        except KviError as error:
            raise store._placed(error, "cache", prefix)
        weakref.finalize(self, store._runtime.post, flow.end).atexit = False

    def wait(self, revision: int, timeout: float | None = None) -> bool:
        """Wait until every change up to ``revision`` is in it; whether it is, in time.

        So ``cache.wait(store.store("k", "v"))`` reads its own write. At most ``timeout`` seconds
        (``None``: without end). Where reads do not tell the store's revision
        (``capabilities.snapshot_range``), for writes below the prefix only.
        """
        store, flow = self._store, self._flow
        try:
            store._ensure_open()
            wanted, wait = check_revision(revision), check_wait(timeout)
            seconds = inf if wait is None else wait
            return store._drive(lambda port: flow.wait(port, wanted, seconds), away=True)
        except KviError as error:
            raise store._placed(error, "wait", flow.prefix)

    def on_change(self, fn: Callable[[CacheChange], object]) -> None:
        """Call ``fn(change)`` for each change from now on, in order, on a thread of kvi.

        What it raises is logged.
        """
        self._flow.told.append(fn)

    def close(self) -> None:
        """Follow it no more; what it has can still be read. Again, it does nothing."""
        if not self._store.closed:
            self._flow.closed = True  # from here on nothing more is told
            self._store._runtime.post(self._flow.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
