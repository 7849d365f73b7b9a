"""`LiveSettings` for asyncio; see `kvi.settings.LiveSettings`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Generator
from functools import partial
from os import PathLike
from typing import Any, Self, TypeVar

from pydantic import BaseModel

from kvi.aio.kvi import AsyncKvi
from kvi.errors import InvalidArgument, KviError, Unavailable, shown
from kvi.flow.recipes.following import Seen
from kvi.flow.scope import PASSING
from kvi.settings.core import LiveCore, LiveFace, SettingsChange

__all__ = ["LiveSettings"]

M = TypeVar("M", bound=BaseModel)


class LiveSettings(LiveFace[M]):
    """The settings below ``prefix/`` as a model, which is replaced when they change.

    As `kvi.settings.LiveSettings`, on a handle of `kvi.aio`, a view of one, or a backend, which
    stay yours. Await it once, or use it as an ``async with`` block; reading it then is plain. The
    model is made in the loop at the beginning, and on a thread of kvi's when something has changed.
    """

    def __init__(
        self,
        model: type[M],
        store: AsyncKvi,
        prefix: str = "",
        *,
        snapshot: str | PathLike[str] | None = None,
        interval: float = 30.0,
    ) -> None:
        if not isinstance(store, AsyncKvi):
            raise InvalidArgument(
                f"these settings come from a handle of kvi.aio, not {shown(store)}"
            )
        core = self._core = LiveCore(model, prefix, snapshot, interval)
        self._store = store
        self._begun = False
        self._beginning = asyncio.Lock()
        try:
            core.over(store._scope)
        except KviError as error:
            raise store._placed(error, "settings", core.prefix)
        weakref.finalize(self, store._runtime.post, core.flow.end).atexit = False

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._ready().__await__()

    async def _ready(self) -> Self:
        if not self._begun:
            try:
                self._store._enter()
            except KviError as error:
                raise self._store._placed(error, "settings", self._core.prefix)
            async with self._beginning:  # by one task; if that is cancelled, by the next
                if not self._begun:
                    await self._begin()
        return self

    async def _begin(self) -> None:
        store, core, flow = self._store, self._core, self._core.flow
        seen: Seen | None = None
        failure: KviError | None = None
        try:
            store._enter()
            try:
                seen = await store._drive(flow.look)
            except PASSING as error:
                store._enter()
                failure = error
            core.begin(seen, failure)
        except KviError as error:
            raise store._placed(error, "settings", core.prefix)
        self._begun = True
        store._runtime.call_back(core.save)
        flow.go(at_once=seen is None)

    @property
    def current(self) -> M:
        """The settings in force. Read it once for what belongs together.

        Raises `Unavailable` before it was awaited.
        """
        if not self._begun:
            raise Unavailable("the settings are not read yet; await them, or use them as a block")
        return self._core.current

    def on_change(self, fn: Callable[[SettingsChange[M]], object]) -> None:
        """Call ``fn(change)`` for each change from now on, in order, in the loop.

        It may be a coroutine function. What it raises is logged.
        """
        runtime, flow = self._store._runtime, self._core.flow

        def tell(change: SettingsChange[M]) -> object:  # in the loop: it may be closed meanwhile
            return None if flow.ended else fn(change)

        self._core.observers.append(lambda change: runtime.call_in_loop(partial(tell, change)))

    async def close(self) -> None:
        """Follow the store no more; `current` stays. Again, it does nothing."""
        if not self._store.closed:
            self._core.flow.end()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        core = self._core
        state = " offline" if core.offline else ""
        return f"<LiveSettings of {core.prefix!r}{state} {self._store.uri}>"
