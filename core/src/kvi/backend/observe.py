"""The wrapper that lets observers know of every operation; see `kvi.observers`.

Without an observer a call costs one look at an empty tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter, time_ns
from typing import TypeVar

from kvi import observers
from kvi.backend.around import Allowance, Around, Pages
from kvi.errors import KviError
from kvi.hookspecs import ObservedOperation
from kvi.interface import Kvi
from kvi.model import KeyValue, RangeResult, Scan
from kvi.policy.retry import Effect

T = TypeVar("T")


class Observed(Around):
    """A store over ``inner`` whose operations are observed."""

    def __init__(self, inner: Kvi, *, owns: bool = False) -> None:
        super().__init__(inner, owns=owns)
        observers.load_installed()

    def _around(
        self, name: str, key: str | None, effect: Effect, act: Callable[[float], T], timeout: float
    ) -> T:
        if not observers.active:
            return act(timeout)
        allowance = Allowance(timeout)
        began, start = time_ns(), perf_counter()
        try:
            done = act(allowance)
        except KviError as error:
            self._tell(name, key, began, perf_counter() - start, allowance.attempts, error)
            raise
        self._tell(name, key, began, perf_counter() - start, allowance.attempts, None)
        return done

    def _paged(self, found: RangeResult, scan: Scan, timeout: float) -> RangeResult:
        return found.map_pages(lambda pages: self._timed(pages, scan.span.start))

    def _timed(self, pages: Pages, key: str) -> Iterator[Iterable[KeyValue]]:
        """Tell of each page but the first, which came with the call."""
        iterator = iter(pages)
        page = next(iterator, None)
        while page is not None:
            yield page
            if not observers.active:
                page = next(iterator, None)
                continue
            began, start = time_ns(), perf_counter()
            try:
                page = next(iterator, None)
            except KviError as error:
                self._tell("range_page", key, began, perf_counter() - start, 1, error)
                raise
            if page is not None:
                self._tell("range_page", key, began, perf_counter() - start, 1, None)

    def _tell(
        self,
        name: str,
        key: str | None,
        began: int,
        duration: float,
        attempts: int,
        error: KviError | None,
    ) -> None:
        operation = ObservedOperation(
            name=name,
            key=key,
            uri=self.uri,
            began=began,
            duration=duration,
            attempts=attempts,
            error=error,
        )
        observers.tell(observers.active, operation)
