"""A store over another that fails as a test has written down, and middleware of a test's choice."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import kvi
from kvi.call import Call
from kvi.flow.scope import Scope
from kvi.ops import Executor, Op

T = TypeVar("T")
Fault = Callable[[], object]

NAMES = (
    *("store", "watch", "lease_grant", "lease_renew", "lease_revoke"),
    *("lock_claim", "lock_release"),
)


class Faulty(kvi.Kvi):
    """A handle that takes the place of ``inner``, with faults before and after each operation.

    ``inner`` goes on to be a way to the same store, without the faults.

    Attributes:
        before: by name of the operation; what raises here was not applied.
        after: the same; what raises here was applied, and its answer is lost.
        calls: name, key and the time left of every call so far.

    """

    is_short = False

    def __init__(self, inner: kvi.Kvi) -> None:
        scope = inner._scope
        self._below = scope.executor
        scope.executor = self
        super().__init__(scope)
        self.before: dict[str, Fault] = {}
        self.after: dict[str, Fault] = {}
        self.calls: list[tuple[str, str | None, float]] = []

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it, with its faults."""
        name = op.name or type(op).__name__
        self.calls.append((name, op.key, call.deadline - call.port.now()))
        if name in self.before:
            self.before[name]()
        result = await self._below.execute(op, call)
        if name in self.after:
            self.after[name]()
        return result

    def times(self, name: str) -> int:
        """How often an operation was called."""
        return sum(called == name for called, _, _ in self.calls)

    def fails(self, name: str, *errors: BaseException | None) -> None:
        """Let the next calls fail so, before they do anything; ``None`` lets one through."""
        _extend(self.before, name, errors)

    def loses(self, name: str, *errors: BaseException | None) -> None:
        """Let the answers of the next calls be lost so."""
        _extend(self.after, name, errors)

    @contextmanager
    def out_of_reach(self, *names: str) -> Iterator[None]:
        """For the block, nothing reaches the store."""
        failing = names or NAMES
        self.before |= dict.fromkeys(failing, fails(kvi.Unavailable))
        try:
            yield
        finally:
            for name in failing:
                del self.before[name]


class _Script(deque[BaseException | None]):
    """Raises what was written down, one by one."""

    def __call__(self) -> None:
        error = self.popleft() if self else None
        if error is not None:
            raise copy.copy(error)


def _extend(faults: dict[str, Fault], name: str, errors: tuple[BaseException | None, ...]) -> None:
    script = faults.get(name)
    if not isinstance(script, _Script):
        script = faults[name] = _Script()
    script.extend(errors)


def fails(error: type[BaseException], *, times: int | None = None) -> Fault:
    """A fault that raises ``error``, always or only the first ``times`` times."""
    left = [times]

    def fault() -> None:
        if left[0] != 0:
            left[0] = None if left[0] is None else left[0] - 1
            raise error("as the test wants it")

    return fault


def kvi_over(store: kvi.Kvi, *wraps: Callable[[Executor, Scope], Executor]) -> kvi.Kvi:
    """A view of the whole ``store`` with middleware, from the innermost to the outermost."""
    outer = store._scope
    view = Scope(
        outer.runtime, outer.primitives, outer.uri, outer.capabilities, outer.timeout, outer
    )
    for wrap in wraps:
        view.executor = wrap(view.executor, view)
    return kvi.Kvi(view)
