"""`Cache`: a live copy of the keys below a prefix; see `kvi.flow.recipes.cache`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Generator
from functools import partial
from math import inf
from typing import Any, Self

from kvi.aio.face import AsyncFace
from kvi.errors import KviError
from kvi.flow.recipes.cache import CacheChange, CacheFace, CacheFlow, check_revision
from kvi.policy.lock import check_wait

__all__ = ["Cache", "CacheChange"]


class Cache(CacheFace):
    """A read-only mapping of the keys below ``prefix``, without it, to their values; sorted.

    As `kvi.recipes.Cache`. Await it once, or use it as an ``async with`` block; reading it then is
    plain.
    """

    def __init__(self, store: AsyncFace, prefix: str = "", *, max_age: float | None = None) -> None:
        self._store = store
        self._loading = asyncio.Lock()
        try:
            flow = self._flow = CacheFlow(store._scope, prefix, max_age)
        except KviError as error:
            raise store._placed(error, "cache", prefix)
        weakref.finalize(self, store._runtime.post, flow.end).atexit = False

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._load().__await__()

    async def _load(self) -> Self:
        store, flow = self._store, self._flow
        try:
            store._enter()
            async with self._loading:  # by one task; if that is cancelled, by the next
                if not flow.loaded:
                    await store._drive(flow.load)
        except KviError as error:
            raise store._placed(error, "cache", flow.prefix)
        return self

    async def wait(self, revision: int, timeout: float | None = None) -> bool:
        """Wait until every change up to ``revision`` is in it; see `kvi.recipes.Cache.wait`."""
        store, flow = self._store, self._flow
        try:
            store._enter()
            wanted, wait = check_revision(revision), check_wait(timeout)
            seconds = inf if wait is None else wait
            return await store._drive(lambda port: flow.wait(port, wanted, seconds))
        except KviError as error:
            raise store._placed(error, "wait", flow.prefix)

    def on_change(self, fn: Callable[[CacheChange], object]) -> None:
        """Call ``fn(change)`` for each change from now on, in order, in the loop.

        It may be a coroutine function. What it raises is logged.
        """
        runtime, flow = self._store._runtime, self._flow

        def tell(change: CacheChange) -> object:  # in the loop: it may have been closed meanwhile
            return None if flow.closed else fn(change)

        flow.told.append(lambda change: runtime.call_in_loop(partial(tell, change)))

    async def close(self) -> None:
        """Follow it no more; what it has can still be read. Again, it does nothing."""
        if not self._store.closed:
            self._flow.end()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()
