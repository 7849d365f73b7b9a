"""The wrapper that knows whether the store is alive; what proves it is in `kvi.policy.liveness`.

Every operation is evidence, and so is the loss of the connection that watches are served by, which
the backend reports by itself (`Kvi._report`). Beginning a watch, and its events, are none.

*Threads.* The state is observed on the thread of the operation, under a lock that nothing waits
under. The channel is a ring: posting drops the oldest item when it is full, and never waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from kvi.backend.around import Around, Pages
from kvi.errors import Closed, KviError, Timeout
from kvi.feed import Batch, Feed
from kvi.interface import Kvi
from kvi.model import KeyValue, RangeResult, Scan
from kvi.policy.liveness import Liveness, verdict
from kvi.policy.lock import check_wait
from kvi.policy.retry import Effect
from kvi.runtime.clock import now as clock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvi.feed import Wake, WatchSpec

__all__ = ["LivenessChannel", "Monitored"]

T = TypeVar("T")
SIZE = 10  # items of a channel
_SLICE = 1.0  # seconds after which a waiting reader looks whether the store was closed


class LivenessChannel:
    """Whether a store is alive: its present state first, then every change, and now and then both.

    Holds the last 10 items; while it is full, the oldest goes for the newest, so that nobody who
    posts ever waits for who reads. Safe for threads; each item goes to one reader.
    """

    def __init__(self, is_closed: Callable[[], bool]) -> None:
        self._is_closed = is_closed
        # Re-entrant: a signal handler may do an operation amid `get`.
        self._changed = threading.Condition(threading.RLock())
        self._items: deque[bool] = deque(maxlen=SIZE)
        self._closed = False

    def get(self, timeout: float | None = None) -> bool:
        """Take the next item; waits for it, at most ``timeout`` seconds (``None``: without end).

        Raises `Timeout` if none came, `Closed` once the store is closed and all items are taken,
        `InvalidArgument` for a negative time-out.
        """
        wait = check_wait(timeout)
        deadline = None if wait is None else monotonic() + wait
        with self._changed:
            while not self._items:
                if self._closed or self._is_closed():
                    raise Closed("the store of this channel is closed")
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    raise Timeout("no news of the store's liveness in time")
                # In slices: that a handle further in was closed wakes nobody here.
                self._changed.wait(_SLICE if left is None else min(left, _SLICE))
            return self._items.popleft()

    def __iter__(self) -> Iterator[bool]:
        """Items as they come, until the store is closed."""
        while True:
            try:
                yield self.get()
            except Closed:
                return

    def __len__(self) -> int:
        """How many items are waiting, at most 10."""
        return len(self._items)

    def _post(self, alive: bool) -> None:
        with self._changed:
            self._items.append(alive)
            self._changed.notify()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _forked(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._closed = True


class Monitored(Around):
    """A store over ``inner`` that knows whether it is alive.

    ``now`` gives seconds that never go back; tests bring their own.
    """

    def __init__(
        self,
        inner: Kvi,
        interval: float,
        *,
        owns: bool = False,
        now: Callable[[], float] = clock,
    ) -> None:
        self._now = now
        self._lock = threading.RLock()  # re-entrant, as the channel's
        self._state = Liveness(interval)
        self._channel: LivenessChannel | None = None
        super().__init__(inner, owns=owns)
        inner._listen(self._lost)

    @property
    def alive(self) -> bool:
        """What the last operation proved; false before the first, and once closed."""
        return self._state.alive and not self.closed

    def enable_channel(self) -> LivenessChannel:
        """The channel of the state; the same one at each call."""
        with self._lock:
            if self._channel is None:
                self._channel = LivenessChannel(lambda: self.closed)
                self._channel._post(self._state.start(self._now()))
            return self._channel

    def close(self) -> None:
        """End the handle; see `Kvi.close`."""
        super().close()
        with self._lock:
            channel = self._channel
        if channel is not None:
            channel._close()

    def _forked(self) -> None:
        self._lock = threading.RLock()  # another thread of the parent may have held the other
        if self._channel is not None:
            self._channel._forked()

    def _around(
        self, name: str, key: str | None, effect: Effect, act: Callable[[float], T], timeout: float
    ) -> T:
        try:
            done = act(timeout)
        except KviError as error:
            self._failed(error)
            raise
        self._observe(True)
        return done

    def _paged(self, found: RangeResult, scan: Scan, timeout: float) -> RangeResult:
        return found.map_pages(self._watched_pages)

    def _watched_pages(self, pages: Pages) -> Iterator[Iterable[KeyValue]]:
        try:
            yield from pages
        except KviError as error:
            self._failed(error)
            raise

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        try:
            return _Feed(self._inner._watch(spec, wake, timeout), self._failed)
        except KviError as error:
            self._failed(error)
            raise

    def _lost(self, error: KviError) -> None:
        """The backend lost the connection that its watches are served by."""
        self._failed(error)

    def _failed(self, error: KviError) -> None:
        alive = verdict(error)
        if alive is not None:
            self._observe(alive)

    def _observe(self, alive: bool) -> None:
        if self.closed:
            return  # what calls end with now says nothing of the store
        state = self._state
        if alive and state.alive and state.posted is None:
            return  # nothing new, and nobody wants to know
        with self._lock:
            post = state.observe(alive, self._now())
            channel = self._channel
            if post and channel is not None:
                channel._post(alive)  # in the order of what was observed


class _Feed(Feed):
    """A feed whose failures are told."""

    def __init__(self, inner: Feed, failed: Callable[[KviError], None]) -> None:
        self._inner = inner
        self._failed = failed
        self.revision = inner.revision

    def poll(self, timeout: float) -> Batch | None:
        try:
            return self._inner.poll(timeout)
        except KviError as error:
            self._failed(error)
            raise

    def close(self) -> None:
        self._inner.close()
