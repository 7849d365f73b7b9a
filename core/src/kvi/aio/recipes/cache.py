"""`Cache`: a live copy of the keys below a prefix; see `kvi.flow.recipes.cache`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Generator, ItemsView, Iterator, Mapping, ValuesView
from functools import partial
from math import inf
from typing import Any, Self

from kvi.aio.face import AsyncFace
from kvi.errors import KviError
from kvi.flow.recipes.cache import CacheChange, CacheFlow, check_revision
from kvi.policy.lock import check_wait

__all__ = ["Cache", "CacheChange"]


class Cache(Mapping[str, bytes]):
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

    def __getitem__(self, key: str) -> bytes:
        self._look()
        return self._flow.values[key]

    def __iter__(self) -> Iterator[str]:
        self._look()
        return iter(self._flow.keys())

    def __len__(self) -> int:
        self._look()
        return len(self._flow.values)

    def __contains__(self, key: object) -> bool:
        self._look()
        return key in self._flow.values

    def items(self) -> ItemsView[str, bytes]:
        """All as of one moment, sorted; what changes later is not in it."""
        self._look()
        return self._flow.copy().items()

    def values(self) -> ValuesView[bytes]:
        """The values of all as of one moment, in the order of their keys."""
        self._look()
        return self._flow.copy().values()

    @property
    def revision(self) -> int:
        """Every change up to this revision is in it. Where ``watch_history`` is false: about."""
        return self._flow.revision

    @property
    def age(self) -> float:
        """Seconds since it was surely the truth: at its beginning, by `wait`, by ``max_age``."""
        return self._flow.age

    @property
    def error(self) -> KviError | None:
        """What ended it, if it was an error."""
        return self._flow.error

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

    def __repr__(self) -> str:
        return f"<Cache {self._flow.prefix!r} at revision {self.revision} {self._store.uri}>"

    def _look(self) -> None:
        try:
            self._flow.ensure_fresh()
        except KviError as error:
            raise self._store._placed(error, "cache", self._flow.prefix)
