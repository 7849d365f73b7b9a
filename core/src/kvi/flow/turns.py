"""`Turns`: one flow at a time, for what must not be done by two at once and asks the store.

A lock of `threading` would hold a thread, and the loop of asyncio with it. Here whoever comes
stands in line with a signal of its own, and looks whether it is the first.
"""

from __future__ import annotations

from kvi.call import Call
from kvi.flow.scope import Scope
from kvi.mutex import Mutex
from kvi.port import Signal


class Turns:
    """First come, first served. Safe for threads."""

    def __init__(self) -> None:
        self._lock = Mutex()
        self._line: list[Signal] = []  # the first has its turn

    async def take(self, scope: Scope, call: Call) -> Signal:
        """Wait for a turn, which `give` ends. Raises `Timeout`, and `Closed`."""
        mine = call.port.signal()
        with self._lock:
            self._line.append(mine)
        try:
            while self._line[0] is not mine:
                scope.ensure_open()
                await mine.wait(call.left())
        except BaseException:
            self.give(mine)
            raise
        return mine

    def give(self, turn: Signal) -> None:
        """Let the next one have it."""
        with self._lock:
            self._line.remove(turn)
            if self._line:
                self._line[0].set()
