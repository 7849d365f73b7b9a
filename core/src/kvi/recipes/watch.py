"""`Watch`: changes, event by event, for those who ask and for call-backs.

*Theory.* A watch stands between a feed, which gives batches when it is polled (`kvi.feed`), and a
consumer, who takes events. ``_ready`` holds what is left of the last batch, so never more than one
batch. It is empty when the feed is polled; one thread polls at a time, without a lock.

``_signal`` says that a poll may find something. It is set by the feed's ``wake`` and after every
batch, and cleared *before* a poll: what comes during the poll sets it again, so nothing is missed.

*Who works.* With a call-back: a `Task` of the handle's dispatcher, which runs on one thread at a
time. Without: the thread that asks for the next event.

*How far it got.* ``_through`` is the revision told by the batch in ``_ready``, ``_before`` the one
told before it. While the batch is handed out, the revision that is complete lies between the two,
and is read off the last event out and the next one.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from kvi.capabilities import Capabilities
from kvi.errors import (
    Closed,
    InvalidArgument,
    KviError,
    NotSupported,
    Timeout,
    Unavailable,
    shown,
)
from kvi.feed import Batch, Feed, WatchSpec
from kvi.model import MAX_NUMBER, Event, EventType
from kvi.policy.lock import check_wait
from kvi.runtime.dispatcher import Task

if TYPE_CHECKING:
    from types import TracebackType

    from kvi.interface import Kvi

__all__ = ["Watch"]

Callback = Callable[[Event, Any], object]

_log = logging.getLogger("kvi")
_PORTION = 100  # events that a call-back gets before other watches have their turn
_PORTION_TIME = 0.02  # seconds, for the same
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between polls while the store is unreachable
_PATIENCE = 0.9  # seconds that cancel() waits for a call-back that is running
_LEAST_POLL = 0.05  # seconds for a poll, also of a consumer who does not want to wait


class Watch:
    """The changes of some keys; made by `Kvi.watch`.

    Iterate it, or call `next`; one event goes to one of the threads that do. With a call-back, kvi
    does that. It survives lost connections, restarts and changes of leader, and delivers a `RESYNC`
    event if the store no longer has the history that it needs. It lasts until `cancel`, the end of
    its ``with`` block, or the end of the handle. A store that refuses it for good, because a
    permission was taken away, ends it with that error.
    """

    def __init__(
        self,
        store: Kvi,
        kinds: Collection[EventType] | None,
        callback: Callback | None,
        user_data: Any,
    ) -> None:
        self._store = store
        self._runtime = store._running()
        self._kinds = kinds
        self._task = None if callback is None else _Delivery(self, callback, user_data)
        # Held as a plain lock: `with` on a condition can be interrupted between taking and holding.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._feed: Feed | None = None
        self._ready: deque[Event] = deque()
        self._signal = True
        self._polling = False
        self._not_before = 0.0  # when the feed may be polled again after it failed
        self._pause = _FIRST_PAUSE
        self._ended = False
        self._error: KviError | None = None
        self._last: Event | None = None  # handed out, of the batch in _ready
        self._before: int | None = None
        self._through: int | None = None

    @classmethod
    def _begin(
        cls,
        store: Kvi,
        spec: WatchSpec,
        kinds: Collection[EventType] | None,
        callback: Callback | None,
        user_data: Any,
        timeout: float,
    ) -> Self:
        watch = cls(store, kinds, callback, user_data)
        feed = _Nothing() if spec.span.empty else store._watch(spec, watch._wake, timeout)
        watch._before = watch._through = feed.revision
        watch._feed = feed
        if not watch._runtime.add_waiting(watch):
            feed.close()
            raise store._refusal()
        watch._wake()
        return watch

    # -- for its consumer -------------------------------------------------------------------------

    def next(self, timeout: float | None = None) -> Event:
        """The next event; waits for it, at most ``timeout`` seconds (``None``: without end).

        Raises `Timeout` if none came, `Closed` after `cancel` and when the handle is closed,
        `InvalidArgument` for a negative time-out and for a watch with a call-back; or the error
        that ended the watch.
        """
        if self._task is None:
            try:  # what is ready in a forked child is the parent's
                event = self._ready.popleft() if self._store._shut is None else None
            except IndexError:
                event = None
            if event is None:
                try:
                    event = self._await(check_wait(timeout))
                except KviError as error:
                    raise self._store._placed(error, "next", None)
            self._last = event
            return event
        raise InvalidArgument(
            "this watch gives its events to its call-back",
            operation="next",
            uri=self._store.uri,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """The next event; ends after `cancel`, raises `Closed` when the handle is closed."""
        try:
            return self.next()
        except Closed:
            if self._ended and not self._store.closed:
                raise StopIteration from None
            raise

    @property
    def revision(self) -> int | None:
        """Every change up to this revision has been handed out.

        A new watch from the one behind it loses and repeats nothing (where
        ``capabilities.watch_history``). Moves on only with the last change of a revision; ``None``
        until the initial state has been handed out.
        """
        try:
            following = self._ready[0]
        except IndexError:
            return self._through
        last = self._last
        if last is None or following.initial or following.type is EventType.RESYNC:
            return self._before
        if last.revision < following.revision:
            return last.revision
        return following.revision - 1

    @property
    def error(self) -> KviError | None:
        """What ended the watch, if it was an error; a watch with a call-back logs it as well."""
        return self._error

    @property
    def active(self) -> bool:
        """Whether more events may come: not cancelled, ended or closed."""
        return not self._ended and not self._store.closed

    def cancel(self) -> None:
        """End the watch: no event is delivered after this returns. Again, it does nothing.

        A call-back that is running is waited for, up to a second, unless it is the one that calls.
        """
        if self._store.closed:
            return  # `close` ended it; in a forked child its locks may be held forever
        self._end()
        self._runtime.discard_waiting(self)
        if self._task is not None:
            self._task.wait(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def __repr__(self) -> str:
        state = "active" if self.active else "ended"
        return f"<Watch {state} at revision {self.revision} {self._store.uri}>"

    # -- for the runtime --------------------------------------------------------------------------

    def shut(self) -> None:
        """The handle is closed."""
        self._end()

    def _wake(self) -> None:
        """The feed's ``wake``: a poll would find something."""
        if self._signal and self._task is None:
            return  # set already, and not yet seen by the one who polls
        with self._lock:
            self._signal = True
            # All: the one who is told may be about to give up, and the others would sleep on.
            self._changed.notify_all()
        if self._task is not None:
            self._runtime.threads.dispatcher.submit(self._task)

    def _await(self, timeout: float | None) -> Event:
        """The next event from the feed."""
        store = self._store
        deadline = inf if timeout is None else monotonic() + timeout
        polled = False
        while True:
            if store.closed:
                raise store._refusal()
            with self._lock:
                if self._ready:
                    return self._ready.popleft()
                self._refuse_ended()
                left = deadline - monotonic()
                delay = self._not_before - monotonic() if self._signal else inf
                if self._polling or delay > 0 or (left <= 0 and polled):
                    if left <= 0:
                        raise Timeout(f"nothing changed within {timeout:g} seconds")
                    wait = min(left, inf if self._polling else delay)
                    self._changed.wait(None if wait == inf else min(wait, threading.TIMEOUT_MAX))
                    continue
                self._signal, self._polling = False, True
            polled = True
            self._poll(max(_LEAST_POLL, min(left, store._timeout)))

    def _refuse_ended(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)  # which else grows with every raise
        if self._ended:
            raise Closed("the watch was cancelled; begin another one")

    def _poll(self, timeout: float) -> float | None:
        """Take a batch from the feed; returns when to poll again, as `Task.run`.

        Whoever calls has cleared ``_signal`` and set ``_polling``.
        """
        feed = self._feed
        batch: Batch | None = None
        again: float | None = None
        failure: KviError | None = None
        try:
            if feed is not None:  # else the watch is only beginning, and will be woken
                batch = feed.poll(timeout)
        except (Unavailable, Timeout) as error:
            again = self._pause * random.uniform(0.5, 1)  # noqa: S311
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            _log.debug("a watch on %s waits for the store: %s", self._store.uri, error)
        except KviError as error:
            failure = error
        except BaseException as error:
            # A mistake of the backend, or an interrupt: nothing was taken.
            again = 0.0
            with self._lock:
                self._polling, self._signal = False, True
                self._changed.notify_all()
            if isinstance(error, Exception):
                failure = KviError(f"the backend failed: {error!r}")
                failure.__cause__ = error
            else:
                raise
        with self._lock:
            self._polling = False
            if again is not None:
                self._signal, self._not_before = True, monotonic() + again
            if batch is not None:
                self._pause = _FIRST_PAUSE
                again, self._signal = 0.0, True
                if not self._ended:
                    self._accept(batch)
            self._changed.notify_all()
        if failure is not None:
            self._fail(failure)
            return None
        return again

    def _accept(self, batch: Batch) -> None:
        events: Iterable[Event] = batch.events
        kinds = self._kinds
        if kinds is not None:
            events = [e for e in events if e.type in kinds or e.type is EventType.RESYNC]
        self._last = None
        self._before = self._through
        if batch.revision is not None:
            self._through = batch.revision
        self._ready.extend(events)

    def _fail(self, error: KviError) -> None:
        error.located("watch", None, self._store.uri)
        with self._lock:
            if self._ended:
                return  # cancelled or closed meanwhile, which may be why
            self._error = error
        self._end()
        self._runtime.discard_waiting(self)
        if self._task is not None:
            _log.error("a watch has ended: %s", error)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            self._ready.clear()
            self._changed.notify_all()
        feed = self._feed
        if feed is not None:
            feed.close()


class _Nothing(Feed):
    """The changes of no key at all."""

    def poll(self, timeout: float) -> None:
        """There are none."""

    def close(self) -> None:
        """There is nothing to end."""


class _Delivery(Task):
    """Gives the events of a watch to its call-back."""

    __slots__ = ("_callback", "_idle", "_runner", "_user_data", "_watch")

    def __init__(self, watch: Watch, callback: Callback, user_data: Any) -> None:
        super().__init__()
        self._watch = watch
        self._callback = callback
        self._user_data = user_data
        self._runner: int | None = None  # the thread that runs it now

    def run(self) -> float | None:
        """Deliver a portion."""
        watch = self._watch
        with watch._lock:
            if watch._ended:
                return None
            self._runner = threading.get_ident()
        try:
            return self._deliver(watch)
        finally:
            with watch._lock:
                self._runner = None
                watch._changed.notify_all()

    def wait(self, timeout: float) -> None:
        """Until no call-back runs, at most ``timeout`` seconds; not for oneself."""
        watch = self._watch
        with watch._lock:
            watch._changed.wait_for(
                lambda: self._runner is None or self._runner == threading.get_ident(), timeout
            )

    def _deliver(self, watch: Watch) -> float | None:
        end = monotonic() + _PORTION_TIME
        for _ in range(_PORTION):
            with watch._lock:
                event = watch._ready.popleft() if watch._ready else None
                if event is None:
                    if watch._ended:
                        return None
                    watch._signal, watch._polling = False, True
            if event is None:
                again = watch._poll(watch._store._timeout)
                if again != 0:
                    return again
                continue
            watch._last = event
            try:
                over = self._callback(event, self._user_data) is False
            except BaseException:  # noqa: BLE001  (whatever a caller's function does)
                _log.exception("the call-back of a watch failed; the watch goes on")
                over = False
            if over:
                watch._end()
                watch._runtime.discard_waiting(watch)
                return None
            if monotonic() > end:
                break
        return 0


def check_watch(
    limits: Capabilities,
    from_revision: object,
    initial: object,
    events: object,
    callback: object,
) -> frozenset[EventType] | None:
    """Check what `Kvi.watch` was given beside its keys; returns the kinds of events to keep."""
    if from_revision is not None:
        if not limits.watch_history:
            raise NotSupported(
                "this store keeps no history (capabilities.watch_history is false); watch with "
                "initial=True instead of from_revision="
            )
        if (
            not isinstance(from_revision, int)
            or isinstance(from_revision, bool)
            or not 1 <= from_revision <= MAX_NUMBER
        ):
            raise InvalidArgument(
                f"from_revision= is a revision, an integer from 1 on, not {shown(from_revision)}"
            )
        if initial:
            raise InvalidArgument(
                "initial=True begins with the present state and from_revision= in the past; "
                "give one of them"
            )
    if callback is not None and not callable(callback):
        raise InvalidArgument(
            f"callback= is a function of (event, user_data), not {shown(callback)}"
        )
    if events is None:
        return None
    given = [events] if isinstance(events, str) else events  # an EventType is a str too
    try:
        kinds = frozenset(EventType(kind) for kind in given)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        kinds = frozenset()
    if not kinds:
        raise InvalidArgument(
            f"events= takes EventType.PUT, .DELETE or .RESYNC, one or several, not {shown(events)}"
        )
    return kinds
