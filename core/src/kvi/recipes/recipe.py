"""What all recipes share: a store, a name, and the way to the driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar, TypeVarTuple

from kvi.call import Call
from kvi.errors import Closed, KviError
from kvi.flow.recipes.observing import Observing
from kvi.flow.scope import Scope
from kvi.port import Flow
from kvi.sync.face import Face
from kvi.sync.lock import Lock

E = TypeVar("E")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def ask(
    store: Face,
    name: str,
    operation: str,
    timeout: float | None,
    flow: Callable[[Scope, Call, *Ts], Flow[T]],
    *given: *Ts,
) -> T:
    """Run a flow of the recipe ``name`` that is over within the time-out."""
    try:
        store._ensure_open()
        scope, seconds = store._scope, store._seconds(timeout)
        return store._drive(lambda port: flow(scope, Call(port, port.now() + seconds), *given))
    except KviError as error:
        raise store._placed(error, operation, name)


class Acquired(Lock):
    """What was acquired before its block begins."""

    def __enter__(self) -> Self:
        return self


class Observation(Generic[E, T]):
    """What somebody observes, each time that it has changed: iterate it, without end.

    It ends with `close`, the end of its ``with`` block, or the handle, which raises `Closed`. For
    one thread at a time; any may close it.
    """

    def __init__(self, store: Face, name: str, flow: Observing[E, T]) -> None:
        self._store = store
        self._name = name
        self._flow = flow
        self._known: list[T] = []  # what was seen last
        self._pending: deque[E] = deque()
        self._given = False  # the first of them: it counts as had once the next is asked for

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        store, flow = self._store, self._flow
        if self._given:
            self._given = False
            self._pending.popleft()
        while not self._pending:
            try:
                store._ensure_open()
                found = store._drive(flow.next, away=True)
            except KviError as error:
                if isinstance(error, Closed) and flow.watch.ended and not store.closed:
                    raise StopIteration from None
                raise store._placed(error, "observe", self._name)
            events = deque(flow.events(self._known, found))
            self._pending, self._known = events, [found]  # nothing can come between the two
            flow.told(found)
        event = self._pending[0]
        self._given = True  # nothing can come between this and the return
        return event

    def close(self) -> None:
        """End it. Again, it does nothing."""
        if not self._store.closed:
            self._store._runtime.post(self._flow.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
