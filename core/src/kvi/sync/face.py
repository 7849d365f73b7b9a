"""`Face`: what every handle for threads shares: its scope, and the way to the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kvi.driver.threads import Errand, Threads, is_main
from kvi.flow.scope import Scope, StoreFace
from kvi.ops import Direct, Op
from kvi.options import check_timeout
from kvi.port import Flow, Port
from kvi.primitives import Primitives

T = TypeVar("T")


class Face(StoreFace):
    """A handle, as what is made through it sees it."""

    def __init__(self, scope: Scope) -> None:
        """Not for programs: use `kvi.open`."""
        super().__init__(scope)
        self._runtime: Threads = scope.runtime  # type: ignore[assignment]  # of this driver
        primitives = scope.primitives
        self._in_place = primitives.in_place
        # Closing ends what a flow waits for, on whatever thread that is.
        ends = type(primitives)._cancel is not Primitives._cancel
        self._stays = ends or "lock_claim" in primitives.in_place
        # Without middleware the store is asked straight away. It may have short ways of its own.
        self._plain = primitives if isinstance(scope.executor, Direct) else None
        short = scope.executor.is_short
        self._short_get = primitives._short_get if short else None
        self._short_range = primitives._short_range if short else None
        self._short_put = primitives._short_put if short and not scope.read_only else None

    def _do(self, op: Op[T], timeout: float | None) -> T:
        """Do one operation, where it may be done."""
        seconds = self._scope.timeout if timeout is None else check_timeout(timeout)
        here = op.called in self._in_place or not is_main()
        if here and self._plain is not None:
            return op.run(self._plain, seconds)
        scope = self._scope
        return self._drive(lambda port: scope.execute(port, op, seconds), here=here)

    def _drive(
        self,
        flow: Callable[[Port], Flow[T]],
        *,
        undo: Callable[[T], object] | None = None,
        here: bool = False,
        away: bool = False,
        lasting: bool = False,
    ) -> T:
        """Run a flow; see `Threads.drive`.

        ``away``: it may last, and its caller is to be free of it once the handle is closed.
        """
        scope = self._scope
        if here or not (is_main() or (away and not self._stays)):
            return self._runtime.drive_here(flow, None if lasting else scope)
        scope.primitives._check_here()
        errand = Errand(flow, undo, scope, lasting=lasting)
        return self._runtime.drive(errand)

    def _ensure_open(self) -> None:
        self._scope.ensure_open()
