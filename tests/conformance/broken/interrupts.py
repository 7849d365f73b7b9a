"""Stores that an exception of a signal handler breaks.

The primitives run in the main thread, as those of the memory store do, and a pause makes the moment
long in which they break.
"""

# What a mutant breaks is told by its class.
# ruff: noqa: D102

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import sleep

from kvi.errors import KviError, Timeout, Unavailable
from kvi.model import KeyValue, Operation, Txn, TxnResult

from tests.conformance.broken.correct import Correct, Results, broken

_PAUSE = 0.0003


@broken("handle.interrupt")
class Swallows(Correct):
    """What interrupts a read is forgotten, and the read done again."""

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        while True:
            try:
                sleep(_PAUSE)
                return super()._get(key, timeout)
            except BaseException:  # noqa: BLE001
                continue


@broken("handle.interrupt")
class TakesItForItsOwn(Correct):
    """An `OSError` of the program is taken for one of the store's connection."""

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        try:
            sleep(_PAUSE)
            return super()._get(key, timeout)
        except OSError as error:
            raise Unavailable(f"the connection was lost: {error}") from error


@broken("handle.interrupt")
class KeepsItsMutex(Correct):
    """What an interrupted transaction has taken stays taken."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        mutex: threading.Lock = self.notes.setdefault("mutex", threading.Lock())
        if not mutex.acquire(timeout=min(timeout, 1)):
            raise Timeout("other threads kept writing")
        try:
            sleep(_PAUSE)
            result = super()._txn(txn, timeout)
        except KviError:
            mutex.release()
            raise
        mutex.release()
        return result


@broken("handle.interrupt")
class AppliesHalf(Correct):
    """An interrupted transaction leaves the first of its writes behind."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        results: list[KeyValue | int | bool | None] = []
        for op in branch:
            results += super().apply([op])
            sleep(_PAUSE / 3)
        return tuple(results)


@broken("handle.interrupt")
class LosesTheEvent(Correct):
    """Watches are told after the commit, so that of an interrupted one they are not."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        state = self._state
        state.watched = False
        before = state.revision
        results = super().apply(branch)
        sleep(_PAUSE)
        state.watched = bool(state.watches)
        if state.revision > before:
            for watch in state.watches.matching(op.key for op in branch):
                if watch.first is None:
                    watch.first = state.revision
                watch.wake()
        return results
