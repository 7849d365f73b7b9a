"""`Observing`: looks at something whenever its keys change, and tells what differs.

A change only says that it is time to look. So it does not matter which changes are missed: what is
told last is what was there when it was looked at last, which is after the last change.

An answer counts as told once the face that asked says so (`told`). If an interrupt or a cancelled
task comes first, the next call tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from kvi.call import Call
from kvi.feed import WatchSpec
from kvi.flow.scope import Scope
from kvi.flow.watch import WatchFlow
from kvi.model import Event, Span
from kvi.port import Flow, Port

T = TypeVar("T")


class Observing(Generic[T]):
    """One observer. Used by one flow at a time."""

    def __init__(self, scope: Scope, span: Span, look: Callable[[Scope, Call], Flow[T]]) -> None:
        """``look`` is asked after each change of a key in ``span``."""
        self.watch = WatchFlow(scope, None, None, None)
        self._scope = scope
        self._span = span
        self._look = look
        self._begun = False
        self._changed = True
        self._last: list[T] = []  # what was told last

    async def next(self, port: Port) -> T:
        """What is there, as soon as it differs from what was told last."""
        scope = self._scope
        if self.watch.ended:
            self.watch.ensure_going()
        if not self._begun:
            await self.watch.begin(port, WatchSpec(self._span, None, False), scope.timeout)
            self._begun = True
        while True:
            if not self._changed:
                await self._event(port)
                self._changed = True
            found = await self._look(scope, Call(port, port.now() + scope.timeout))
            self._changed = False
            if [found] != self._last:
                self._changed = True  # until it is told
                return found

    def told(self, found: T) -> None:
        """The one who asked has it."""
        self._last, self._changed = [found], False

    def end(self) -> None:
        """Observe no more."""
        self.watch.end()

    async def _event(self, port: Port) -> None:
        watch, signal = self.watch, port.signal()
        asking = watch.ask(port.now(), None, main=False)
        try:
            asking.begin(signal)
            while not isinstance(found := asking.look(port.now()), Event):
                await signal.wait(found)
        finally:
            watch.unwant(signal)
