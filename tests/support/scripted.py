"""A store over another that fails as a test has written down."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

import kvi
from kvi.backend.around import Around
from kvi.policy.retry import Effect

T = TypeVar("T")


class Scripted(Around):
    """Forwards to ``inner``, except for what the script says.

    Attributes:
        before: by name of the operation: what the next calls raise, before anything is done;
            ``None`` lets one through.
        after: the same; what raises here was done, and its answer is lost.
        calls: name, key and time-out of every call so far.

    """

    def __init__(self, inner: kvi.Kvi) -> None:
        super().__init__(inner, owns=True)
        self.before: dict[str, deque[kvi.KviError | None]] = {}
        self.after: dict[str, deque[kvi.KviError | None]] = {}
        self.calls: list[tuple[str, str | None, float]] = []

    def fails(self, name: str, *errors: kvi.KviError | None) -> None:
        """Let the next calls fail so, before they do anything."""
        self.before.setdefault(name, deque()).extend(errors)

    def loses(self, name: str, *errors: kvi.KviError | None) -> None:
        """Let the answers of the next calls be lost so."""
        self.after.setdefault(name, deque()).extend(errors)

    def times(self, name: str) -> int:
        """How often an operation was called."""
        return sum(called == name for called, _, _ in self.calls)

    def _around(
        self, name: str, key: str | None, effect: Effect, act: Callable[[float], T], timeout: float
    ) -> T:
        self.calls.append((name, key, float(timeout)))
        self._follow(self.before, name)
        done = act(timeout)
        self._follow(self.after, name)
        return done

    @staticmethod
    def _follow(script: dict[str, deque[kvi.KviError | None]], name: str) -> None:
        steps = script.get(name)
        error = steps.popleft() if steps else None
        if error is not None:
            raise type(error)(error.message)
