"""`Watch`: changes, event by event, for those who ask and for call-backs; see `kvi.flow.watch`."""

from __future__ import annotations

from threading import get_ident
from typing import Self

from kvi.clock import now
from kvi.driver.threads import ThreadSignal, is_main
from kvi.errors import Closed, KviError
from kvi.flow.watch import Asking, WatchFlow
from kvi.model import Event
from kvi.policy.lock import check_wait
from kvi.sync.face import Face

_PATIENCE = 0.9  # seconds that cancel() waits for a call-back that is running


class Watch:
    """The changes of some keys; made by `Kvi.watch`.

    Iterate it, or call `next`; one event goes to one of the threads that do. With a call-back, kvi
    does that. It survives lost connections, restarts and changes of leader, and delivers a `RESYNC`
    event if the store no longer has the history that it needs. It lasts until `cancel`, the end of
    its ``with`` block, or the end of the handle. A store that refuses it for good, because a
    permission was taken away, ends it with that error. An exception of a signal handler that comes
    while an event is asked for loses none: the next call gives it.
    """

    def __init__(self, store: Face, flow: WatchFlow) -> None:
        self._store = store
        self._flow = flow

    def next(self, timeout: float | None = None) -> Event:
        """The next event; waits for it, at most ``timeout`` seconds (``None``: without end).

        Raises `Timeout` if none came, `Closed` after `cancel` and when the handle is closed,
        `InvalidArgument` for a negative time-out and for a watch with a call-back; or the error
        that ended the watch.
        """
        store, flow, main = self._store, self._flow, is_main()
        lending = flow.lending
        try:
            if main:
                lending.asked = True
            # what is ready in a forked child is the parent's
            event = None if store.closed else flow.take(main=main)
            if event is None:
                try:
                    event = self._await(check_wait(timeout), main)
                except KviError as error:
                    raise store._placed(error, "next", None)
            if main:
                flow.got(event)
            return event
        finally:
            if main:
                lending.asked = False
                if lending.item is not None:  # who waits may have it
                    flow.wake()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """The next event; ends after `cancel`, raises `Closed` when the handle is closed."""
        try:
            return self.next()
        except Closed:
            if self._flow.ended and not self._store.closed:
                raise StopIteration from None
            raise

    @property
    def revision(self) -> int | None:
        """Every change up to this revision has been handed out.

        A new watch from the one behind it loses and repeats nothing (where
        ``capabilities.watch_history``). Moves on only with the last change of a revision; ``None``
        until the initial state has been handed out.
        """
        return self._flow.revision

    @property
    def error(self) -> KviError | None:
        """What ended the watch, if it was an error; a watch with a call-back logs it as well."""
        return self._flow.error

    @property
    def active(self) -> bool:
        """Whether events may still come."""
        return not self._flow.ended and not self._store.closed

    def cancel(self) -> None:
        """End it. No event is delivered once this has returned, within a second.

        From its own call-back it returns at once. Cancelling again does nothing.
        """
        store, flow = self._store, self._flow
        if store.closed:
            return  # `close` ended it; in a forked child its locks may be held forever
        if is_main():
            store._runtime.post(flow.end)
        else:
            flow.end()
        self._wait_for_call_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.cancel()

    def __repr__(self) -> str:
        state = "active" if self.active else "ended"
        return f"<Watch {state} at revision {self.revision} {self._store.uri}>"

    def _await(self, timeout: float | None, main: bool) -> Event:
        flow, signal = self._flow, ThreadSignal()
        asking = flow.ask(now(), timeout, main=main)
        try:
            asking.begin(signal)
            return _found(asking, signal)
        finally:
            flow.unwant(signal)

    def _wait_for_call_back(self) -> None:
        signal = ThreadSignal()
        self._flow.want(signal)
        try:
            self._is_left(signal)
        finally:
            self._flow.unwant(signal)

    def _is_left(self, signal: ThreadSignal) -> None:
        flow, deadline = self._flow, now() + _PATIENCE
        while not flow.ended or flow.runner not in (None, get_ident()):
            left = deadline - now()
            if left <= 0:
                return
            signal.wait_here(left)


def _found(asking: Asking, signal: ThreadSignal) -> Event:
    """Wait for the event. Apart: an exception at a loop's jump may miss the ``finally`` around it.

    So it is in Python 3.12 and 3.13 where the jump has a condition.
    """
    while not isinstance(found := asking.look(now()), Event):
        signal.wait_here(found)
    return found
