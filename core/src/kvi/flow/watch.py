"""`WatchFlow`: changes, event by event, from a feed to whoever takes them.

*Theory.* A watch stands between a feed, which gives batches when it is polled (`kvi.feed`), and a
consumer, who takes events. Only kvi's own threads poll, one at a time, so that no interrupt and no
cancellation ever comes between a batch and its place here. What the last batch left is in
``_batch``, from ``_position`` on; the next is polled only once it is used up and somebody wants
more. So never more than one batch is kept.

``_woken`` says that a poll may find something. It is set by the feed's ``wake`` and after every
batch, and cleared *before* a poll: what comes during the poll sets it again, so nothing is missed.

===========  ==========================================  =======================================
reader       meaning                                     left by
===========  ==========================================  =======================================
``IDLE``     nobody polls                                somebody wants more, and it is woken:
                                                         POLLING
``POLLING``  a thread of kvi's asks the feed             an answer: IDLE; a fault that passes:
                                                         PAUSING; one that does not: ENDED
``PAUSING``  the store cannot be reached                 the pause is over: IDLE
``ENDED``    cancelled, closed, or ``error`` says why    final
===========  ==========================================  =======================================

*Call-backs.* A watch with a call-back wants more whenever it has none. Its events are handed over
in portions by the runtime's threads for call-backs, one portion at a time.

*How far it got.* ``_through`` is the revision told by the present batch, ``_before`` the one told
before it. While the batch is handed out, the revision that is complete lies between the two, and is
read off the last event out and the next one. An event taken for the main thread is lent until it
has got there (`kvi.flow.lending`).
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import Any

from kvi.errors import Closed, InvalidArgument, KviError, Timeout, Unavailable
from kvi.feed import Batch, Feed, WatchSpec
from kvi.flow.lending import Lending
from kvi.flow.scope import Scope
from kvi.log import log
from kvi.model import Event, EventType
from kvi.mutex import Mutex
from kvi.ops import PollOp, WatchOp
from kvi.port import Port, Signal

Callback = Callable[[Event, Any], object]

_LEAST = 0.05  # seconds for a poll, also of a consumer who does not want to wait
_PORTION = 100  # events that a call-back gets before other watches have their turn
_PORTION_TIME = 0.02  # seconds, for the same
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between polls while the store is unreachable


class Reader(enum.Enum):
    """Who polls the feed; see the module's table."""

    IDLE = enum.auto()
    POLLING = enum.auto()
    PAUSING = enum.auto()
    ENDED = enum.auto()


class Asking:
    """Somebody who waits for the next event.

    The main thread waits on its own, where no coroutine can be left unawaited; so this is the part
    of the loop that does not wait.
    """

    def __init__(self, flow: WatchFlow, moment: float, timeout: float | None, main: bool) -> None:
        self._flow = flow
        self._main = main
        self._timeout = timeout
        self._deadline = inf if timeout is None else moment + timeout
        self._patience = max(self._deadline, moment + _LEAST)
        self._polls = 0

    def begin(self, signal: Signal) -> None:
        """Have ``signal`` set when it is time to look; `WatchFlow.unwant` undoes it."""
        self._polls = self._flow.want(signal)

    def look(self, moment: float) -> Event | float:
        """The event, or how many seconds to wait; raises `Timeout`, or what ended the watch."""
        flow = self._flow
        event = flow.take(main=self._main)
        if event is not None:
            return event
        flow.ensure_going()
        left = self._deadline - moment
        if left > 0:
            return left
        if moment >= self._patience or flow.has_polled(self._polls):
            raise Timeout(f"nothing changed within {self._timeout:g} seconds")
        return self._patience - moment


class WatchFlow:
    """One watch. Safe for threads.

    Attributes:
        scope: what it hangs on.
        error: what ended it, if it was an error.
        runner: the thread that runs the call-back now, or ``None``.
        lending: the event on its way to the main thread.

    """

    def __init__(
        self,
        scope: Scope,
        kinds: Collection[EventType] | None,
        callback: Callback | None,
        user_data: Any,
    ) -> None:
        self.scope = scope
        self.error: KviError | None = None
        self.runner: int | None = None
        self.lending: Lending[Event] = Lending()
        self._kinds = kinds
        self._callback = callback
        self._user_data = user_data
        self._lock = Mutex()  # guards what follows
        self._feed: Feed | None = None
        self._batch: Sequence[Event] = ()
        self._position = 0
        self._reader = Reader.IDLE
        self._woken = True
        self._pause = _FIRST_PAUSE
        self._waiting: list[Signal] = []  # of those who want more
        self._delivers = False  # a portion is handed over, or about to be
        self._polls = 0  # that have ended, ever
        self._last: Event | None = None  # handed out, of the batch
        self._before: int | None = None
        self._through: int | None = None

    async def begin(self, port: Port, spec: WatchSpec, timeout: float) -> None:
        """Begin to watch; leaves nothing behind if it fails."""
        scope = self.scope
        scope.ensure_open()
        if not spec.span.empty:
            self._feed = await scope.execute(port, WatchOp(spec, self.wake), timeout)
            self._before = self._through = self._feed.revision
        try:
            scope.ledger.add(self)
        except BaseException:
            self.end()
            raise
        self.wake()

    # -- for its consumer -------------------------------------------------------------------------

    def take(self, *, main: bool) -> Event | None:
        """The next event of the batch, ``None`` if it is used up; lent to the main thread."""
        with self._lock:
            event = self.lending.left(main=main)
            if event is None:
                position = self._position
                if position >= len(self._batch):
                    return None
                event = self._batch[position]
                self._position = position + 1
            if main:
                self.lending.item = event
            else:
                self._last = event
            return event

    def got(self, event: Event) -> None:
        """The main thread has what was lent: nothing can come between this and its return."""
        self._last = event
        self.lending.item = None

    def ask(self, moment: float, timeout: float | None, *, main: bool) -> Asking:
        """Begin to wait for an event, at this moment."""
        if self.calls_back:
            raise InvalidArgument("this watch gives its events to its call-back")
        self.ensure_going()
        return Asking(self, moment, timeout, main)

    def want(self, signal: Signal) -> int:
        """Set ``signal`` when there is something to take; how many polls have ended until now."""
        self._waiting.append(signal)
        polls = self._polls
        self.scope.runtime.prompt(self._kick)
        return polls

    def unwant(self, signal: Signal) -> None:
        """Undo `want`."""
        with self._lock:
            if signal in self._waiting:
                self._waiting.remove(signal)

    def has_polled(self, polls: int) -> bool:
        """Whether a poll has found nothing since `want` said ``polls``, and none is under way."""
        with self._lock:
            return self._polls > polls or not (self._woken or self._reader is Reader.POLLING)

    def ensure_going(self) -> None:
        """Raise what ended it."""
        self.scope.ensure_open()
        if self.error is not None:
            raise self.error.with_traceback(None)  # which else grows with every raise
        if self._reader is Reader.ENDED:
            raise Closed("the watch was cancelled; begin another one")

    @property
    def ended(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._reader is Reader.ENDED

    @property
    def calls_back(self) -> bool:
        """Whether its events go to a call-back."""
        return self._callback is not None

    @property
    def revision(self) -> int | None:
        """Every change up to this revision has been handed out; ``None`` before that is known."""
        if self.scope.primitives.forked:
            return self._before  # surely; a thread of the parent may have the lock for ever
        with self._lock:
            return self._complete()

    @property
    def delivered(self) -> int | None:
        """As `revision`, of what the call-back has come back from; ``None`` while it runs."""
        if self.scope.primitives.forked:
            return self._before
        with self._lock:
            return None if self._delivers else self._complete()

    def _complete(self) -> int | None:
        """`revision`. Hold the lock."""
        following, last = self.lending.item, self._last
        if following is None:
            if self._position >= len(self._batch):
                return self._through
            following = self._batch[self._position]
        if last is None or following.initial or following.type is EventType.RESYNC:
            return self._before
        if last.revision < following.revision:
            return last.revision
        return following.revision - 1

    def end(self) -> None:
        """End it; whoever waits wakes up. Again, it does nothing."""
        with self._lock:
            self._reader = Reader.ENDED
            self._through = self._complete()  # what is dropped now has not been handed out
            self._batch, self._position, self.lending.item = (), 0, None
            self._rouse()
        feed = self._feed
        if feed is not None:
            feed.close()
        self.scope.ledger.discard(self)

    def shut(self) -> None:
        """The handle is closed: whoever waits wakes up and finds it so."""
        self.end()

    def wake(self) -> None:
        """The feed's ``wake``: a poll would find something."""
        self._woken = True
        if self._waiting or self._callback is not None:
            self.scope.runtime.prompt(self._kick)

    # -- the reader -------------------------------------------------------------------------------

    def _kick(self) -> None:
        with self._lock:
            self._look()

    def _look(self) -> None:
        """Have the feed polled, or events handed over, if that is wanted. Hold the lock."""
        if self._position < len(self._batch):
            self._rouse()
            return
        if (
            self._woken
            and self._reader is Reader.IDLE
            and (self._waiting or (self._callback is not None and not self._delivers))
        ):
            self._woken = False
            if self._feed is None:  # the changes of no key at all
                self._polls += 1
                return
            self._reader = Reader.POLLING
            self.scope.runtime.read(self._poll)

    def _rouse(self) -> None:
        """Tell those who want more to look. Hold the lock."""
        for signal in self._waiting:
            signal.set()
        if self._callback is not None and not self._delivers and self._position < len(self._batch):
            self._delivers = True
            self.scope.runtime.call_back(self._deliver)

    async def _poll(self, port: Port) -> None:
        scope, feed = self.scope, self._feed
        assert feed is not None  # else nothing is polled
        batch: Batch | None = None
        failure: KviError | None = None
        passing = False
        try:
            batch = await scope.execute(port, PollOp(feed), scope.timeout)
        except (Unavailable, Timeout) as error:
            passing = True
            log().debug("a watch on %s waits for the store: %s", scope.uri, error)
        except KviError as error:
            failure = error
        except BaseException as error:  # noqa: BLE001  (a mistake of the backend)
            failure = KviError(f"the backend failed: {error!r}")
            failure.__cause__ = error
        if failure is not None:
            self._fail(failure)
            return
        with self._lock:
            if self._reader is Reader.ENDED:
                return
            self._polls += 1
            if passing:
                self._reader = Reader.PAUSING
                pause = self._pause * (0.5 + port.chance() / 2)
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
                scope.runtime.at(port.now() + pause, self._resume)
            else:
                self._reader = Reader.IDLE
                self._pause = _FIRST_PAUSE
                if batch is not None:
                    self._woken = True
                    self._accept(batch)
                elif feed.interval is not None:
                    scope.runtime.at(port.now() + feed.interval, self.wake)
            self._rouse()
            self._look()

    def _resume(self) -> None:
        with self._lock:
            if self._reader is Reader.PAUSING:
                self._reader = Reader.IDLE
                self._woken = True
                self._look()

    def _accept(self, batch: Batch) -> None:
        events = batch.events
        kinds = self._kinds
        if kinds is not None:
            events = [e for e in events if e.type in kinds or e.type is EventType.RESYNC]
        self._last = None
        if self.lending.item is None:  # else that is told before
            self._before = self._through
        if batch.revision is not None:
            self._through = batch.revision
        self._batch, self._position = events, 0

    def _fail(self, error: KviError) -> None:
        error.located("watch", None, self.scope.uri)
        if self._reader is Reader.ENDED:
            return  # cancelled or closed meanwhile, which may be why
        self.error = error
        self.end()
        if self._callback is not None:
            log().error("a watch has ended: %s", error)

    # -- call-backs -------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand a portion over, on a thread for call-backs."""
        callback, runtime = self._callback, self.scope.runtime
        assert callback is not None
        self.runner = threading.get_ident()
        over = False
        try:
            end = runtime.now() + _PORTION_TIME
            for _ in range(_PORTION):
                event = self.take(main=False)
                if event is None:
                    break
                try:
                    over = callback(event, self._user_data) is False
                except BaseException:  # noqa: BLE001  (whatever a caller's function does)
                    log().exception("the call-back of a watch failed; the watch goes on")
                if over or runtime.now() > end:
                    break
        finally:
            with self._lock:
                self.runner = None
                self._delivers = over  # then nothing is handed over any more
                self._rouse()
                self._look()
        if over:
            self.end()
