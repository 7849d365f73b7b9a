"""`AsyncFace`: what every handle for asyncio shares: its scope, and the way to the driver."""

from __future__ import annotations

from asyncio.events import _get_running_loop
from collections.abc import Callable
from typing import TypeVar

from kvi.call import Call
from kvi.driver.loop import Loop, LoopPort
from kvi.flow.scope import Scope, StoreFace
from kvi.ops import Direct, Op
from kvi.options import check_timeout
from kvi.port import Flow

T = TypeVar("T")


class AsyncFace(StoreFace):
    """A handle, as what is made through it sees it."""

    def __init__(self, scope: Scope) -> None:
        """Not for programs: use `kvi.aio.open`."""
        super().__init__(scope)
        self._runtime: Loop = scope.runtime  # type: ignore[assignment]  # of this driver
        primitives = scope.primitives
        in_place = primitives.in_place
        # Without middleware the store is asked straight away. It may have short ways of its own.
        self._in_place = in_place if isinstance(scope.executor, Direct) else frozenset[str]()
        short = scope.executor.is_short
        self._short_get = primitives._short_get if short and "get" in in_place else None
        writes = short and "store" in in_place and not scope.read_only
        self._short_put = primitives._short_put if writes else None

    async def _do(self, op: Op[T], timeout: float | None) -> T:
        """Do one operation, in place or on a thread."""
        scope, runtime = self._scope, self._runtime
        seconds = scope.timeout if timeout is None else check_timeout(timeout)
        if op.called in self._in_place:
            await runtime.breathe()
            return op.run(scope.primitives, seconds)
        with LoopPort(runtime, scope, op.name, op.key) as port:
            return await scope.executor.execute(op, Call(port, port.now() + seconds))

    async def _drive(self, flow: Callable[[LoopPort], Flow[T]], *, lasting: bool = False) -> T:
        """Run a flow in the task that calls."""
        with LoopPort(self._runtime, self._scope, lasting=lasting) as port:
            return await flow(port)

    async def _drive_write(
        self, flow: Callable[[LoopPort], Flow[T]], name: str, key: str | None
    ) -> T:
        """Run a flow that writes, of that name."""
        with LoopPort(self._runtime, self._scope, name, key) as port:
            return await flow(port)

    def _enter(self) -> None:
        """Every call begins here. Raises `Closed`, `UsedAfterFork` or `WrongLoop`."""
        self._scope.ensure_open()
        if _get_running_loop() is not self._runtime.loop or self._runtime.loop is None:
            self._runtime.bind()
