"""What all recipes share: a store, a name, and the way to the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from kvi.call import Call
from kvi.errors import Closed, KviError
from kvi.flow.recipes.observing import Observing
from kvi.flow.scope import Scope
from kvi.port import Flow
from kvi.sync.face import Face
from kvi.sync.lock import Lock

T = TypeVar("T")
Asked = Callable[[Scope, Call], Flow[T]]


def ask(store: Face, name: str, operation: str, flow: Asked[T], timeout: float | None = None) -> T:
    """Run a flow of the recipe ``name`` that is over within the time-out."""
    try:
        store._ensure_open()
        scope, seconds = store._scope, store._seconds(timeout)
        return store._drive(lambda port: flow(scope, Call(port, port.now() + seconds)))
    except KviError as error:
        raise store._placed(error, operation, name)


class Acquired(Lock):
    """What was acquired before its block begins."""

    def __enter__(self) -> Self:
        return self


class Observation(Generic[T]):
    """What somebody observes, each time that it has changed: iterate it, without end.

    It ends with `close`, the end of its ``with`` block, or the handle, which raises `Closed`.
    """

    def __init__(self, store: Face, name: str, flow: Observing[T]) -> None:
        self._store = store
        self._name = name
        self._flow = flow

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        store, flow = self._store, self._flow
        try:
            store._ensure_open()
            found = store._drive(flow.next, away=True)
        except KviError as error:
            if isinstance(error, Closed) and flow.watch.ended and not store.closed:
                raise StopIteration from None
            raise store._placed(error, "observe", self._name)
        flow.told(found)
        return found

    def close(self) -> None:
        """End it. Again, it does nothing."""
        if not self._store.closed:
            self._store._runtime.post(self._flow.end)

    def __enter__(self) -> Observation[T]:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
