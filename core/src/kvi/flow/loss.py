"""The event that something held was lost, as flows and faces share it.

It is set by whoever notices first: the lease's renewal, or a look at the clock. All steps of the
main thread are single ones (one assignment, one ``append``), so that an exception of a signal
handler comes before or after them; the call-backs are told by the runtime. Whether it was lost or
given up first is decided by one ``setdefault``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvi.flow.scope import Scope
from kvi.port import Runtime

_PROBE = 0.2  # seconds between looks at the clock, should the keeper be late


def look(state: LossState | None, scope: Scope, left: float) -> bool | float:
    """Whether it was lost, for who waits for it; or how many seconds to wait before the next look.

    False early if what was held is given up. Raises `Closed`, or `UsedAfterFork`.
    """
    if state is not None and state.is_set():
        return True
    ended = state is not None and state.ended  # first: closing ends it, and is told so
    if scope.closed:
        raise scope.refusal()
    return False if ended or left <= 0 else min(left, _PROBE)


class LossState:
    """Whether something was lost against its holder's will. Giving it up is no loss."""

    __slots__ = ("_callbacks", "_fate", "_probe", "_runtime")

    def __init__(self, runtime: Runtime, probe: Callable[[], bool]) -> None:
        """``probe`` asks the clock."""
        self._runtime = runtime
        self._probe = probe
        self._callbacks: list[tuple[Callable[[], object], bool]] = []
        self._fate: dict[str, bool] = {}  # "lost": true; false once it was given up

    @property
    def ended(self) -> bool:
        """Whether it was given up: from now on nothing can be lost."""
        return self._fate.get("lost") is False

    @property
    def _lost(self) -> bool:
        return self._fate.get("lost", False)

    def is_set(self) -> bool:
        """Whether it was lost, computed at the call: true from the first moment after a pause."""
        if not self._fate and self._probe():
            self.set()
        return self._lost

    def set(self) -> None:
        """It is lost, unless it was given up."""
        if self._fate.setdefault("lost", True):
            self._runtime.post(self._tell)

    def add(self, callback: Callable[[], object], *, own: bool = False) -> None:
        """Call ``callback()`` once it is lost; soon, if it is already. ``own``: it is of kvi."""
        self._callbacks.append((callback, own))
        if self._lost:
            self._runtime.post(self._tell)
        elif self.ended:
            self._callbacks.clear()

    def remove(self, callback: Callable[[], object]) -> None:
        """Undo `add` of one of kvi's own."""
        try:
            self._callbacks.remove((callback, True))
        except ValueError:  # told already
            return

    def forget(self) -> None:
        """Forget the call-backs: what is held goes to another holder."""
        self._callbacks = []

    def end(self) -> None:
        """What was held is given up."""
        if not self._fate.setdefault("lost", False):
            self._callbacks = [one for one in self._callbacks if one[1]]
            self._runtime.post(self._tell)  # kvi's own wake and look

    def _tell(self) -> Any:
        while self._callbacks:
            try:
                callback, own = self._callbacks.pop(0)
            except IndexError:  # another thread is at it
                return
            if own:
                callback()
            elif self._lost:
                self._runtime.call_back(callback)
