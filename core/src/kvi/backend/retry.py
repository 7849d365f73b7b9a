"""The wrapper that tries again; what it decides is in `kvi.policy.retry`.

A call that works costs one look at the clock. One that fails waits, on the caller's thread, for as
long as the policy says, and then asks again with what is left of its time-out. `close` wakes those
who wait.

*Ranges.* A page that fails is read again like any other read, as long as its time-out has not
passed since it was asked for; the last try has all of it, for that is what the page is asked for
with. The pass over the pages
begins anew (at the same revision, where the store has snapshots) and skips what was handed out.

*Of several policies on the way to the store only the outermost counts*; see `kvi.backend.around`.
Renewals of leases are tried again by the keeper, which knows how much time a lease has left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TypeVar

from kvi.backend.around import Allowance, Around, Pages
from kvi.backend.forwarding import Forwarding
from kvi.errors import KviError
from kvi.interface import BaseKvi, Kvi
from kvi.model import KeyValue, RangeResult, Scan
from kvi.policy.retry import Effect, RetryPolicy

T = TypeVar("T")
_SLICE = 0.25  # seconds after which a waiting call looks whether the store was closed


class Retrying(Around):
    """A store over ``inner`` whose operations are tried again as ``policy`` says."""

    def __init__(self, inner: Kvi, policy: RetryPolicy, *, owns: bool = False) -> None:
        self._waking = threading.Event()  # first: a fork may come as soon as the handle is known
        super().__init__(inner, owns=owns)
        self._policy = policy
        self._innermost = not _may_retry(inner)

    def __repr__(self) -> str:
        return repr(self._inner)

    def stop(self) -> None:
        """Try nothing again from now on, and wake those who wait to."""
        self._waking.set()

    def _forked(self) -> None:
        self._waking = threading.Event()  # another thread of the parent may have held its lock

    def close(self) -> None:
        """End the handle; see `Kvi.close`."""
        self.stop()
        super().close()

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        # As `_around` would, without its costs: half of a read from memory or a file.
        if not self._innermost:
            return super()._get(key, timeout)
        inner, began = self._inner, monotonic()
        try:
            return inner._get(key, timeout)
        except KviError as error:
            return self._again(
                error, "get", key, Effect.READ, lambda left: inner._get(key, left), timeout, began
            )

    def _around(
        self, name: str, key: str | None, effect: Effect, act: Callable[[float], T], timeout: float
    ) -> T:
        began = monotonic()
        try:
            return act(timeout if self._innermost else Allowance(timeout, once=True))
        except KviError as error:
            return self._again(error, name, key, effect, act, timeout, began)

    def _again(
        self,
        error: KviError,
        name: str,
        key: str | None,
        effect: Effect,
        act: Callable[[float], T],
        timeout: float,
        began: float,
    ) -> T:
        """What follows the first try, which failed with ``error``."""
        allowance = timeout if type(timeout) is Allowance else None
        if allowance is not None and allowance.once:
            raise error
        attempt = 1
        while True:
            left = self._pause(error, name, key, effect, attempt, began + timeout)
            attempt += 1
            if allowance is not None:
                allowance.attempts = attempt
            try:
                return act(left if self._innermost else Allowance(left, once=True))
            except KviError as another:
                error = another

    def _pause(
        self,
        error: KviError,
        name: str,
        key: str | None,
        effect: Effect,
        attempt: int,
        deadline: float,
    ) -> float:
        """Wait before the next try and return the seconds it has, or raise ``error``."""
        if self._waking.is_set() or self.closed:
            raise error
        import random  # for those in trouble only

        chance = random.random()  # noqa: S311  (spreads load)
        pause = self._policy.decide(
            error, effect, attempt=attempt, left=deadline - monotonic(), chance=chance
        )
        if pause is None:
            raise error
        _log(error, name, key, attempt, pause, self.uri)
        end = monotonic() + pause
        while (rest := end - monotonic()) > 0:
            # In slices: that a handle further in was closed wakes nobody here.
            if self._waking.wait(min(rest, _SLICE)) or self.closed:
                raise error
        left = deadline - monotonic()
        if left <= 0:
            raise error
        return left

    # -- ranges -----------------------------------------------------------------------------------

    def _paged(self, found: RangeResult, scan: Scan, timeout: float) -> RangeResult:
        if type(timeout) is Allowance and timeout.once:
            return found
        return RangeResult(found.revision, lambda: self._resuming(found, scan, timeout))

    def _resuming(self, found: RangeResult, scan: Scan, timeout: float) -> Iterator[list[KeyValue]]:
        pages: Pages = found._pages()
        last: str | None = None
        attempt, asked = 1, monotonic()
        while True:
            try:
                for page in pages:
                    entries = list(page)
                    if not entries:  # handed out before
                        continue
                    attempt, last = 1, entries[-1].key
                    yield entries
                    asked = monotonic()  # who reads may have taken long
            except KviError as error:
                self._pause(error, "range", scan.span.start, Effect.READ, attempt, asked + timeout)
                attempt += 1
                pages = _behind(found._pages(), last, reverse=scan.reverse)
            else:
                return


def _behind(pages: Pages, last: str | None, *, reverse: bool) -> Iterator[list[KeyValue]]:
    """What comes after the key ``last``. Text sorts by code point, as UTF-8 does by byte."""
    for page in pages:
        if last is None:
            yield list(page)
        elif reverse:
            yield [entry for entry in page if entry.key < last]
        else:
            yield [entry for entry in page if entry.key > last]


def _may_retry(store: Kvi) -> bool:
    """Whether there is, or may be, a policy in ``store``."""
    while isinstance(store, Forwarding):
        if isinstance(store, Retrying):
            return True
        store = store._inner
    return not isinstance(store, BaseKvi)


def _log(error: KviError, name: str, key: str | None, attempt: int, pause: float, uri: str) -> None:
    import logging

    logging.getLogger("kvi.retry").warning(
        "%s of %r on %s failed (try %d), again in %.3f s: %s",
        name,
        key,
        uri,
        attempt,
        pause,
        error,
    )
