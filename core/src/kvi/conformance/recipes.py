"""The recipes as the suite sees them: those of `kvi`, or of `kvi.aio` on a loop's thread."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import kvi
from kvi.conformance.on_loop import OnLoop, on_loop, on_thread
from kvi.conformance.trace import plain

__all__ = ["Recipes", "Waiter"]

WITHIN = 20.0
"""Seconds within which a waiter is served: before it looks again without having been told."""


class Recipes:
    """The recipes by their names: ``Recipes.Semaphore(store, "s", 2)``."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def make(store: kvi.Kvi, *arguments: Any, **options: Any) -> Any:
            handle = plain(store)
            if isinstance(handle, OnLoop):
                import kvi.aio.recipes

                made = getattr(kvi.aio.recipes, name)(handle._it, *arguments, **options)
                return handle._keep(Awaited(made, handle))
            import kvi.recipes

            return getattr(kvi.recipes, name)(handle, *arguments, **options)

        return make


class Awaited:
    """An object of `kvi.aio.recipes`, whose calls are awaited in the loop."""

    def __init__(self, it: Any, handle: OnLoop) -> None:
        self._it = it
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._it, name)
        if not callable(value):
            return self._seen(value)

        def call(*arguments: Any, **options: Any) -> Any:
            # What the suite gives to be called may block, and so runs on a thread.
            arguments = tuple(partial(on_thread, a) if callable(a) else a for a in arguments)

            async def run() -> Any:
                result = value(*arguments, **options)
                return await result if inspect.isawaitable(result) else result

            return self._seen(on_loop(run))

        return call

    def __enter__(self) -> Any:
        self.__getattr__("__aenter__")()
        return self

    def __exit__(self, *raised: object) -> None:
        self.__getattr__("__aexit__")(*raised)

    def __iter__(self) -> Iterator[Any]:
        return self if hasattr(self._it, "__anext__") else iter(list(self._it))

    def __getitem__(self, key: Any) -> Any:
        return self._it[key]

    def __next__(self) -> Any:
        try:
            return self.__getattr__("__anext__")()
        except StopAsyncIteration:
            raise StopIteration from None

    def _seen(self, value: object) -> Any:
        if not type(value).__module__.startswith("kvi.aio"):
            return value
        return self._handle._keep(Awaited(value, self._handle))


class Waiter:
    """Somebody who waits, on a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name="waits", daemon=True)
        self._thread.start()

    @property
    def waits(self) -> bool:
        """Whether it has not come to its end."""
        return self._thread.is_alive()

    def ended(self) -> Any:
        """What it got; it must come to its end."""
        self._thread.join(WITHIN)
        assert not self.waits, "still waits"
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001  (raised by `ended`)
            self._error = error
