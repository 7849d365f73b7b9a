"""The middleware that knows whether the store is alive; what proves it is in `kvi.policy.liveness`.

Every operation is evidence, and so is the loss of the connection that watches are served by, which
the backend reports by itself (`Primitives._report`). Beginning a watch, and its events, are none.

The state is observed where the operation runs, under a plain lock that nothing waits under. What is
to be told goes to ``post``, which never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kvi.call import Call
from kvi.clock import now
from kvi.errors import KviError
from kvi.mutex import Mutex
from kvi.ops import Executor, Op
from kvi.policy.liveness import Liveness, verdict

T = TypeVar("T")


class Monitored:
    """Knows whether ``inner`` is alive. Safe for threads.

    ``closed()``: what calls end with now says nothing of the store.
    """

    is_short = False

    def __init__(self, inner: Executor, interval: float, closed: Callable[[], bool]) -> None:
        self._inner = inner
        self._closed = closed
        self._now = now  # tests bring their own
        self._lock = Mutex()
        self._state = Liveness(interval)
        self._post: Callable[[bool], object] | None = None

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it, and learn from how it ended."""
        try:
            result = await self._inner.execute(op, call)
        except KviError as error:
            self.failed(error)
            raise
        if op.proves:
            self._observe(True)
        return result

    @property
    def alive(self) -> bool:
        """What the last operation proved; false before the first, and once closed."""
        return self._state.alive and not self._closed()

    def start(self, post: Callable[[bool], object]) -> None:
        """Post the present state, and what comes; the first one who asks gets it all."""
        with self._lock:
            if self._post is None:
                self._post = post
                post(self._state.start(self._now()))

    def failed(self, error: KviError) -> None:
        """An operation failed so, or the connection of the watches was lost."""
        alive = verdict(error)
        if alive is not None:
            self._observe(alive)

    def _observe(self, alive: bool) -> None:
        if self._closed():
            return
        state = self._state
        if alive and state.alive and state.posted is None:
            return  # nothing new, and nobody wants to know
        with self._lock:
            post = self._post
            if state.observe(alive, self._now()) and post is not None:
                post(alive)  # in the order of what was observed
