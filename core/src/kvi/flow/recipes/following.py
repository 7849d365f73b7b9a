"""Following a prefix: all its entries as of one moment, again whenever something has changed.

A watch tells that something has changed, not what: then all is read anew, as of one moment. So
what is told is always a state that the store really had, also where a transaction has changed
several keys and a watch tells of them one by one. For a few hundred keys that seldom change.

==========  ==========================================  ==========================================
state       guarantee                                   left by
==========  ==========================================  ==========================================
``NEW``     nothing is told                             `go`: RESTING
``RESTING`` what was told last is the truth, as far as  a change, or the interval is over: BUSY
            the watch knows
``BUSY``    one flow reads, or one thread for           told: RESTING; something has changed
            call-backs is told what was read            meanwhile: BUSY again
``ENDED``   nothing is told any more                    final
==========  ==========================================  ==========================================

*The interval.* All is read now and then without a reason, too: that tells how old the state may be,
and makes up for a watch that was refused. A store that cannot be reached is asked again after a
pause, which grows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from kvi.call import Call
from kvi.errors import Closed, KviError, NotSupported
from kvi.feed import WatchSpec
from kvi.flow.recipes.state import entries_of
from kvi.flow.scope import Scope
from kvi.flow.watch import WatchFlow
from kvi.log import log
from kvi.model import Event, Scan, Span
from kvi.mutex import Mutex
from kvi.port import Port
from kvi.text import check_bound

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between tries while the store is unreachable


class Seen(NamedTuple):
    """All entries below a prefix at one moment.

    Attributes:
        entries: the values by key, without the prefix, in the order of the keys.
        revision: of that moment, where the store tells.
        asked: the moment before it, on the runtime's clock.

    """

    entries: dict[str, bytes]
    revision: int | None
    asked: float


Tell = Callable[[Seen | None, KviError | None], object]


class _State(enum.Enum):
    NEW = enum.auto()
    RESTING = enum.auto()
    BUSY = enum.auto()
    ENDED = enum.auto()


class FollowFlow:
    """The entries below ``prefix``, told to ``tell(seen, None)``, or ``tell(None, error)``.

    One call at a time, on a thread for call-backs. Safe for threads.

    Attributes:
        quiet: it was asked to end; nothing more is told.

    """

    quiet = False

    def __init__(self, scope: Scope, prefix: object, interval: float, tell: Tell) -> None:
        limits = scope.capabilities
        if not limits.atomic_range:
            raise NotSupported(
                "this store's ranges are not of one moment: nothing can be followed as a whole"
            )
        self.scope = scope
        self.prefix = check_bound("prefix", prefix, limits.max_key)
        self._span = Span.of_prefix(self.prefix)
        self._interval = interval
        self._tell = tell
        self._watch: WatchFlow | None = None
        self._lock = Mutex()  # guards what follows
        self._state = _State.NEW
        self._stirred = False  # something has changed since the last look began
        self._turn = 0  # of the timer that counts
        self._pause = _FIRST_PAUSE

    @property
    def ended(self) -> bool:
        """Whether nothing is told any more."""
        return self.quiet or self._state is _State.ENDED

    async def look(self, port: Port) -> Seen:
        """Read everything, and see to it that there is a watch."""
        scope = self.scope
        if self._watch is None or self._watch.ended:
            watch = WatchFlow(scope, None, self._on_event, None)
            await watch.begin(port, WatchSpec(self._span, None, False), scope.timeout)
            self._watch = watch
            if self.ended:  # meanwhile
                watch.end()
                raise Closed("it was closed")
        asked, skip = port.now(), len(self.prefix)
        call = Call(port, asked + scope.timeout)
        revision, found = await entries_of(scope, call, Scan(self._span))
        return Seen({entry.key[skip:]: entry.value or b"" for entry in found}, revision, asked)

    def go(self, *, at_once: bool) -> None:
        """Tell what changes from now on; what there is too, if ``at_once``."""
        with self._lock:
            if self._state is not _State.NEW:
                return
            self._state = _State.RESTING
            at_once = at_once or self._stirred
        if at_once:
            self.stir()
        else:
            self._rest_for(self._interval)

    def stir(self) -> None:
        """Something may have changed. Any thread; never waits."""
        with self._lock:
            self._stirred = True
            if self._state is not _State.RESTING:
                return
            self._state = _State.BUSY
        self.scope.runtime.spawn(self._read)

    def end(self) -> None:
        """Tell nothing more. Again, it does nothing."""
        with self._lock:
            self._state = _State.ENDED
        if self._watch is not None:
            self._watch.end()

    def _on_event(self, event: Event, _: object) -> None:
        self.stir()

    async def _read(self, port: Port) -> None:
        self._stirred = False  # what came before this is in what is read now
        seen, failure = None, None
        try:
            seen = await self.look(port)
        except KviError as error:
            log().debug("what is followed on %s could not be read: %s", self.scope.uri, error)
            failure = error
        except Exception as error:  # noqa: BLE001  (a mistake of the backend)
            failure = KviError(f"the backend failed: {error!r}")
            failure.__cause__ = error
        if not self.scope.closed:
            self.scope.runtime.call_back(partial(self._hand_over, seen, failure))

    def _hand_over(self, seen: Seen | None, failure: KviError | None) -> None:
        """Tell, on a thread for call-backs."""
        try:
            if not self.ended:
                self._tell(seen, failure)
        except Exception:  # noqa: BLE001  (whatever a program's function raises)
            log().exception("the call-back of what is followed failed; it goes on")
        finally:
            self._rest(failed=failure is not None)

    def _rest(self, *, failed: bool) -> None:
        with self._lock:
            if self._state is not _State.BUSY:
                return
            self._state = _State.RESTING
            stirred = self._stirred and not failed
            if failed:
                pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
            else:
                pause, self._pause = self._interval, _FIRST_PAUSE
        if stirred:
            self.stir()
        else:
            self._rest_for(pause)

    def _rest_for(self, seconds: float) -> None:
        self._turn += 1
        runtime = self.scope.runtime
        runtime.at(runtime.now() + seconds, partial(self._due, self._turn))

    def _due(self, turn: int) -> None:
        if turn == self._turn and not self.scope.closed:
            self.stir()
