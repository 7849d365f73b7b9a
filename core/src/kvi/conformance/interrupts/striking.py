"""One interrupt: a signal comes in the middle of a call, and its handler raises."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import FrameType

PROMPT = 5.0
"""Seconds within which the exception must come out of the call."""

_HERE = str(Path(__file__).parent)


class Broken(Exception):
    """What an interrupt has broken."""


class Plain(Exception):
    """An exception of the program."""


class Stop(KeyboardInterrupt):
    """As Ctrl-C raises."""


class Late(TimeoutError):
    """As a time limit raises."""


class Reset(ConnectionResetError):
    """As something raises that has to do with another connection."""


KINDS: tuple[type[BaseException], ...] = (Plain, Stop, Late, Reset)


class Striker:
    """Interrupts calls of the main thread, one at a time, and judges what comes out.

    Attributes:
        where: where the last exception was raised.

    """

    def __init__(self) -> None:
        self.where = "no call"
        self._given: BaseException | None = None
        self._armed = self._fired = self._ignored = False
        signal.signal(signal.SIGALRM, self._handle)
        sys.unraisablehook = self._note

    def strike(self, call: Callable[[], object], delay: float, kind: type[BaseException]) -> bool:
        """Call until the exception comes; whether it came inside of a call, not between two.

        Raises `Broken` if it did not come out as it is and at once.
        """
        kept: list[object] = []  # what is dropped meanwhile would be ended where it may be ignored
        self._given = kind("raised by a signal handler")
        self._fired = self._ignored = False
        due = monotonic() + delay
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, delay)
            self._repeat(call, kept)
        except BaseException as error:  # noqa: BLE001  (all that can come out is judged)
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            came: BaseException | None = error
        else:
            came = None
        given, self._given = self._given, None
        inside = self._look(given)
        if came is given:
            late = monotonic() - due
            came.__traceback__ = came.__context__ = None  # they hold the frames that it left
            if late > PROMPT:
                raise Broken(f"the exception came out {late:.1f} s late")
            return inside
        if came is None:
            if self._ignored:  # raised in a finalizer, where Python itself lets nothing out
                return False
            raise Broken(f"the {kind.__name__} that the handler raised was swallowed")
        if not self._fired:
            raise Broken(f"it raised {type(came).__name__} without being interrupted: {came}")
        raise Broken(
            f"{type(came).__name__} came out in place of the {kind.__name__} of the handler: {came}"
        )

    def _repeat(self, call: Callable[[], object], kept: list[object]) -> None:
        # Apart from `strike`: of a loop with a condition, Python 3.12 and 3.13 forget the block
        # that it stands in when an exception comes at its jump backward.
        while not self._fired:
            kept.append(call())

    def _look(self, given: BaseException) -> bool:
        """Note where the exception was raised; whether inside of a call."""
        frames = traceback.extract_tb(given.__traceback__)
        inside = [frame for frame in frames if not frame.filename.startswith(_HERE)]
        self.where = " < ".join(
            f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in inside[:-6:-1]
        )
        self.where = self.where or "no call"
        return bool(inside)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._armed and self._given is not None:
            self._armed, self._fired = False, True
            raise self._given

    def _note(self, unraisable: sys.UnraisableHookArgs) -> None:
        if self._given is not None and unraisable.exc_value is self._given:
            self._ignored = True
        else:
            sys.__unraisablehook__(unraisable)
