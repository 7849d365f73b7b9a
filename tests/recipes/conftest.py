"""Recipes on every store, through both faces."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import kvi
import kvi.aio.recipes
import kvi.recipes
import pytest
from kvi.conformance.on_loop import OnLoop, on_loop

from tests.support.uris import uri

__all__ = ["FaceOf", "Waited", "at_once", "face", "ttl", "uri"]

T = TypeVar("T")


@pytest.fixture
def ttl(uri: str) -> float:
    """A short ttl, as the store takes it."""
    return {"etcd": 2.0, "consul": 10.0}.get(uri.partition(":")[0], 1.0)


class Waited:
    """An object of `kvi.aio` whose calls are awaited in one loop, for threads."""

    def __init__(self, it: Any) -> None:
        self._it = it

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._it, name)
        if not callable(value):
            return value if _is_plain(value) else Waited(value)

        def call(*arguments: Any, **options: Any) -> Any:
            async def run() -> Any:
                result = value(*arguments, **options)
                return await result if inspect.isawaitable(result) else result

            result = on_loop(run)
            return result if _is_plain(result) else Waited(result)

        return call

    def __enter__(self) -> Any:
        self.__getattr__("__aenter__")()
        return self

    def __exit__(self, *raised: object) -> None:
        self.__getattr__("__aexit__")(*raised)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self.__getattr__("__anext__")()
        except StopAsyncIteration:
            raise StopIteration from None


def at_once(calls: Iterable[Callable[[], T]]) -> list[T]:
    """What calls give that are made at the same moment, on threads."""
    made = list(calls)
    gate = threading.Barrier(len(made))

    def come(call: Callable[[], T]) -> T:
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(len(made)) as pool:
        return list(pool.map(come, made))


def _is_plain(value: object) -> bool:
    return not type(value).__module__.startswith("kvi.aio")


class FaceOf:
    """One of the two faces, as a test uses it: with ``store``, and the recipes by their names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._made: list[object] = []  # what is dropped is given up
        self._opened: list[kvi.Kvi] = []

    def open(self, uri: str, **options: Any) -> kvi.Kvi:
        """Open a store; it is closed at the end of the test."""
        if self.name == "aio":
            store: kvi.Kvi = OnLoop(kvi.aio.open(uri, **options))
        else:
            store = kvi.open(uri, **options)
        self._opened.append(store)
        return store

    def close(self) -> None:
        """Close all that were opened."""
        for store in self._opened:
            store.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def make(store: Any, *arguments: Any, **options: Any) -> Any:
            if self.name == "aio":
                made = Waited(getattr(kvi.aio.recipes, name)(store._it, *arguments, **options))
            else:
                made = getattr(kvi.recipes, name)(store, *arguments, **options)
            self._made.append(made)
            return made

        return make


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest) -> Iterator[FaceOf]:
    """`kvi` or `kvi.aio`."""
    found = FaceOf(request.param)
    yield found
    found.close()
