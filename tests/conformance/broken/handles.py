"""Handles that are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from time import sleep

from kvi.errors import Closed, KviError
from kvi.model import KeyValue

from tests.conformance.broken.correct import Correct, broken

_numbers = itertools.count()


@broken("handle.store")
class Apart(Correct):
    """Every open gives a store of its own."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, f"{name} {next(_numbers)}", timeout=timeout)


@broken("handle.store")
class Forgetful(Correct):
    """Closing a handle empties the store."""

    def _close(self) -> None:
        with self._state.lock:
            self._state.entries.clear()
            self._state._keys = None


@broken("handle.options")
class AnyOption(Correct):
    """Options that mean nothing are taken."""

    scheme = "lenient"


@broken("handle.timeout")
class AnyTimeout(Correct):
    """A time-out is taken as it is, whatever it is."""

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


@broken("handle.timeout")
class PingWithoutTimeout(Correct):
    """One of the calls takes no time-out."""

    def ping(self, *, timeout: float | None = None) -> None:
        if timeout is not None:
            raise TypeError("ping() takes no timeout=")
        super().ping()


@broken("handle.ping")
class PingWrites(Correct):
    """A ping leaves a key behind."""

    def _ping(self, timeout: float) -> None:
        self._put("ping", b"", None, timeout)


@broken("handle.ping")
class PingWritesAndDeletes(Correct):
    """A ping writes a key and deletes it again."""

    def _ping(self, timeout: float) -> None:
        self._put("ping", b"", None, timeout)
        self._delete("ping", timeout)


@broken("handle.threads")
class SharedScratch(Correct):
    """Threads overwrite each other's arguments."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        self.arguments = key, value
        sleep(0.0001)
        return super()._put(*self.arguments, lease, timeout)


@broken("handle.closed")
class StaysOpen(Correct):
    """A closed handle goes on working."""

    def _ensure_open(self) -> None:
        pass


@broken("handle.closed")
class ClosedReadsNothing(Correct):
    """A closed handle finds no key, instead of saying that it is closed."""

    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        try:
            return super().get(key, timeout=timeout)
        except Closed:
            return None


@broken("handle.closed")
class ClosedRangeEnds(Correct):
    """A range whose handle is closed ends early, as if that were all."""

    def _guarded(self, pages: Iterable[Iterable[KeyValue]]) -> Iterator[Iterable[KeyValue]]:
        for page in pages:
            for entry in page:
                if self.closed:
                    return
                yield [entry]


@broken("handle.closed")
class ClosedTwiceRaises(Correct):
    """Closing again is an error."""

    def close(self) -> None:
        self._ensure_open()
        super().close()


@broken("handle.close-wakes")
class SleepsOn(Correct):
    """Who waits is not woken by the end of the handle."""

    def close(self) -> None:
        runtime, self._runtime = self._runtime, None
        super().close()
        if runtime is not None:
            for delay, end in ((8, lambda: runtime.settle(0)), (9, runtime.end)):
                timer = threading.Timer(delay, end)
                timer.daemon = True
                timer.start()


@broken("handle.close-wakes")
class EndsQuietly(Correct):
    """Who iterates over a watch sees it end, as if it had been cancelled."""

    def close(self) -> None:
        if self._runtime is not None:
            for waiting in list(self._runtime._waiting):
                waiting.shut()
            sleep(0.05)
        super().close()


@broken("handle.close-frees")
class KeepsLeases(Correct):
    """Closing leaves the handle's leases, and so its locks, as they are."""

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        if not self.closed:
            super()._lease_revoke(lease, timeout)


@broken("handle.fork")
class ChildMayUse(Correct):
    """A forked child goes on with its parent's handle."""

    def _forked(self) -> None:
        self._shut = None


@broken("handle.fork")
class ChildFindsItClosed(Correct):
    """A forked child is told that the handle was closed, and not why."""

    def _forked(self) -> None:
        self._shut = Closed


@broken("handle.uri")
class Nameless(Correct):
    """The handle does not show which store it is on."""

    __repr__ = object.__repr__


@broken("handle.capabilities", max_key=255)
class ShortKeys(Correct):
    """The longest key is shorter than every store's must be."""


@broken("handle.capabilities", max_txn_ops=4)
class TinyTransactions(Correct):
    """A transaction may have less operations than every store's must."""


@broken("error.place")
class NoPlace(Correct):
    """Errors do not tell where they happened."""

    def _placed(self, error: KviError, operation: str, key: object) -> KviError:
        return error


@broken("error.place")
class NoKey(Correct):
    """Errors do not tell the key."""

    def _placed(self, error: KviError, operation: str, key: object) -> KviError:
        return super()._placed(error, operation, None)


@broken("error.place")
class NotForAnotherProcess(Correct):
    """Errors are of a class that cannot be imported, and so do not pickle."""

    def _placed(self, error: KviError, operation: str, key: object) -> KviError:
        error.__class__ = type("Local", (type(error),), {})
        return super()._placed(error, operation, key)
