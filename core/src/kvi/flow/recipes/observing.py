"""`Notice` wakes whoever waits for changes; `Observing` looks after each, and tells what differs.

A change only says that it is time to look. So it does not matter which changes are missed: what is
seen last is what was there when it was looked at last, which is after the last change.

An answer counts as told once the face that asked says so (`Observing.told`). If an interrupt or a
cancelled task comes first, the next call tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Generic, TypeVar

from kvi.call import Call
from kvi.errors import Timeout
from kvi.feed import WatchSpec
from kvi.flow.loss import LossState
from kvi.flow.scope import PASSING, Scope
from kvi.flow.watch import WatchFlow
from kvi.log import log
from kvi.model import Event, Span
from kvi.port import Flow, Port

E = TypeVar("E")
T = TypeVar("T")
_PAUSE, _LONGEST = 0.1, 2.0  # seconds between looks while the store cannot be reached


class Notice:
    """Changes of some keys, for one flow that waits for them.

    Attributes:
        watch: where they come from.

    """

    def __init__(self, scope: Scope, span: Span) -> None:
        self.watch = WatchFlow(scope, None, None, None)
        self._scope = scope
        self._span = span

    async def begin(self, port: Port) -> None:
        """Every change after this is noticed."""
        await self.watch.begin(port, WatchSpec(self._span, None, False), self._scope.timeout)

    async def wait(self, port: Port, seconds: float, loss: LossState | None = None) -> None:
        """Return after a change, after a loss, or after ``seconds``; perhaps earlier."""
        watch, signal = self.watch, port.signal()
        asking = watch.ask(port.now(), seconds, main=False)
        if loss is not None:
            loss.add(signal.set, own=True)
        try:
            asking.begin(signal)
            found = asking.look(port.now())
            if not isinstance(found, Event):
                await signal.wait(found)
            while watch.take(main=False) is not None:  # one look is enough for all of them
                pass
            watch.ensure_going()
        except Timeout:
            return
        finally:
            watch.unwant(signal)
            if loss is not None:
                loss.remove(signal.set)

    def end(self) -> None:
        """Notice no more."""
        self.watch.end()


class Observing(Generic[E, T]):
    """One observer. Used by one flow at a time.

    Attributes:
        events: what is to be told of what was found, if this, or nothing yet, was seen before.

    """

    def __init__(
        self,
        scope: Scope,
        span: Span,
        look: Callable[[Scope, Call], Flow[T]],
        events: Callable[[list[T], T], Iterable[E]],
    ) -> None:
        """``look`` is asked after each change of a key in ``span``."""
        self._notice = Notice(scope, span)
        self._scope = scope
        self._look = look
        self.events = events
        self._begun = False
        self._changed = True
        self._last: list[T] = []  # what was told last

    @property
    def watch(self) -> WatchFlow:
        """Where the changes come from."""
        return self._notice.watch

    async def next(self, port: Port) -> T:
        """What is there, as soon as it differs from what was told last.

        A store that cannot be reached is an error for the first look only: a later one is tried
        again until it is there.
        """
        scope = self._scope
        if self.watch.ended:
            self.watch.ensure_going()
        if not self._begun:
            await self._notice.begin(port)
            self._begun = True
        pause = _PAUSE
        while True:
            if not self._changed:
                await self._notice.wait(port, inf)
                self._changed = True
            try:
                found = await self._look(scope, Call(port, port.now() + scope.timeout))
            except PASSING as error:
                if not (self._last and error.passing):
                    raise  # who begins is told
                log().debug("an observer of %s looks again: %s", scope.uri, error)
                await self._notice.wait(port, pause)  # which raises once nothing is noticed
                scope.ensure_open()
                pause = min(2 * pause, _LONGEST)
                continue
            self._changed = False
            if [found] != self._last:
                self._changed = True  # until it is told
                return found

    def told(self, found: T) -> None:
        """The one who asked has it."""
        self._last, self._changed = [found], False

    def end(self) -> None:
        """Observe no more."""
        self._notice.end()
