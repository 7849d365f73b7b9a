"""Imports that come late, and locks that forks take: what is left to a child.

Python locks a module while it is imported, and a child that is forked then finds it locked for
ever. So what is imported in the middle of a program is imported under a `ForkLock`.

*A fork lock* is taken by every fork before it happens, for at most its patience; the parent gets it
back, and the child has a new one. The exception of a signal's handler may come at the first step
of any function that is called around a fork, and goes no further than there. So taking the lock and
noting what is to be done afterwards is one step of C, and so is doing it. A signal that comes
during the fork itself is handled by the first function behind it, which therefore does nothing
(`_absorb`): so the others of kvi and its backends are not left at their first step.

*Order.* A fork takes first what was made last. It takes `logging`'s lock, too, which many modules
want as they are imported: so an `ImportLock` is made at its first use, behind `logging`.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from operator import call
from types import ModuleType

from kvi.mutex import Mutex


def _absorb() -> None:
    """Let the exception of a signal that came during the fork end here."""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_absorb)

PATIENCE = 5.0  # seconds that a fork waits for an import


class ForkLock:
    """A lock that every fork takes; ``lock`` is the present one. Safe for threads.

    A fork takes those that were made last first.
    """

    __slots__ = ("_afterwards", "_patience", "lock")

    def __init__(self, patience: float) -> None:
        """``patience``: seconds that a fork waits for it."""
        self._patience = patience
        self._afterwards: deque[Callable[[], object]] = deque()  # what the parent has to call
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self.take,
                after_in_parent=partial(next, map(call, iter(self._afterwards.pop, None))),
                after_in_child=self.renew,
            )

    def take(self) -> None:
        """Before a fork."""
        lock = self.lock
        steps: dict[bool, Callable[[], object]] = {True: lock.release, False: int}  # nothing to do
        taken = map(lock.acquire, (True,), (self._patience,))
        self._afterwards.extend(map(steps.__getitem__, taken))

    def renew(self) -> None:
        """In a child: nobody has it."""
        self._afterwards.clear()
        self.lock = Mutex()


_making = ForkLock(PATIENCE)


class ImportLock:
    """Held while something is imported late. It is made at its first use; see the theory."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: ForkLock | None = None

    def get(self, before: str | None = None) -> AbstractContextManager[bool]:
        """The lock; the module ``before`` is imported before it is made."""
        if self._made is None:
            with _making.lock:
                if self._made is None:
                    if before is not None:
                        __import__(before)
                    self._made = ForkLock(PATIENCE)
        return self._made.lock


_importing = ImportLock()
_imported: dict[str, ModuleType] = {}


def imported(name: str) -> ModuleType:
    """A module that is imported at its first use, whole. Not for the main thread."""
    module = _imported.get(name)
    if module is None:
        with _importing.get("logging"):
            __import__(name)
        module = _imported[name] = sys.modules[name]
    return module
