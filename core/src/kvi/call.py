"""`Call`: what everybody on an operation's way to the store knows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvi.errors import Timeout

if TYPE_CHECKING:
    from kvi.port import Port


class Call:
    """One operation on its way: its one deadline, and what has become of it so far.

    Not safe for threads: it belongs to one flow.

    Attributes:
        port: the world of the flow.
        deadline: when it is to be over, on the port's clock.
        decided: somebody further out decides what follows a failure; a policy further in tries
            once. So of several policies on the way only the outermost counts.
        attempts: how often the store was asked.
        doubt: an attempt ended with its outcome unknown, whatever became of the later ones. What
            it sent may still arrive.

    """

    __slots__ = ("attempts", "deadline", "decided", "doubt", "port")

    def __init__(self, port: Port, deadline: float, *, decided: bool = False) -> None:
        self.port = port
        self.deadline = deadline
        self.decided = decided
        self.attempts = 1
        self.doubt = False

    def left(self) -> float:
        """Seconds until the deadline. Raises `Timeout` if it has passed: nothing is sent then."""
        left = self.deadline - self.port.now()
        if left <= 0:
            raise Timeout("the time was up before the store was asked")
        return left
