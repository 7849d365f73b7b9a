"""`update` and `atomically` for threads: `kvi.flow.update`, run on the thread that calls."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kvi.coroutine import run
from kvi.errors import InvalidArgument
from kvi.flow.update import Caller, Raised, Writes
from kvi.model import KeyValue
from kvi.ops import Op
from kvi.sync.face import Face

T = TypeVar("T")


class Tx(Writes):
    """What a function that runs `Kvi.atomically` reads and writes; for that run and thread alone.

    It raises `InvalidArgument` once the run is over.
    """

    __slots__ = ()

    def get(self, key: str) -> KeyValue | None:
        """Read one entry, or what this run has written (its revision is 0); raises as `Kvi.get`.

        Reads of one run need not be of one moment; what a run has written is committed only if
        they are.
        """
        return run(self._draft.get(key))


class ThreadCaller(Caller):
    """A handle, as the flows of `kvi.flow.update` see it; nothing of it suspends."""

    __slots__ = ("_store",)

    def __init__(self, store: Face, operation: str, key: str | None) -> None:
        super().__init__(store._scope, operation, key)
        self._store = store

    async def ask(self, op: Op[T], timeout: float) -> T:
        """Do it; blocks."""
        self._store._ensure_open()
        return self._store._do(op, timeout)

    async def pause(self, seconds: float) -> None:
        """Wait; blocks."""
        self._store._drive(lambda port: port.sleep(seconds))

    async def call(self, function: Callable[[Any], T], argument: object) -> T | Raised:
        """Call it here."""
        try:
            result = function(argument)
        except BaseException as error:  # noqa: BLE001  (raised by `given`)
            return Raised(error)
        if isinstance(result, Coroutine):
            result.close()
            refused = InvalidArgument("fn= is a coroutine function; only kvi.aio awaits one")
            return Raised(self.placed(refused))
        return result
