"""Handles that are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from mmap import mmap
from time import sleep
from types import EllipsisType
from typing import TypeVar

from kvi.errors import Closed, KviError, Unavailable, UsedAfterFork
from kvi.flow.lease import LeaseFlow
from kvi.flow.watch import WatchFlow
from kvi.model import KeyValue, Operation, RangeResult, Scan
from kvi.ops import Op
from kvi.sync.lock import Lock

from tests.conformance.broken.correct import Correct, Handle, Making, Results, broken

T = TypeVar("T")

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

    class face(Handle):
        def _seconds(self, timeout: float | None) -> float:
            return self._scope.timeout if timeout is None else timeout

        def _do(self, op: Op[T], timeout: float | None) -> T:
            scope, seconds = self._scope, self._seconds(timeout)
            return self._drive(lambda port: scope.execute(port, op, seconds))


@broken("handle.timeout")
class PingWithoutTimeout(Correct):
    """One of the calls takes no time-out."""

    class face(Handle):
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

    class face(Handle):
        def _ensure_open(self) -> None:
            pass


@broken("handle.closed")
class ClosedReadsNothing(Correct):
    """A closed handle finds no key, instead of saying that it is closed."""

    class face(Handle):
        def get(
            self, key: str, *, revision: int | None = None, timeout: float | None = None
        ) -> KeyValue | None:
            try:
                return super().get(key, revision=revision, timeout=timeout)
            except Closed:
                return None


@broken("handle.closed")
class ClosedRangeEnds(Correct):
    """A range whose handle is closed ends early, as if that were all."""

    class face(Handle):
        def _pages(
            self, found: RangeResult, scan: Scan, timeout: float | None
        ) -> Iterator[list[KeyValue]]:
            for page in super()._pages(found, scan, timeout):
                for entry in page:
                    if self.closed:
                        return
                    yield [entry]


@broken("handle.closed")
class ClosedTwiceRaises(Correct):
    """Closing again is an error."""

    class face(Handle):
        def close(self) -> None:
            self._ensure_open()
            super().close()


@broken("handle.close-wakes")
class SleepsOn(Correct):
    """Who waits is not woken by the end of the handle."""

    class face(Handle):
        def close(self) -> None:
            if not self.closed:
                self._scope.shut_down = True  # and nobody is told, for now
                timer = threading.Timer(8, lambda: self._drive(self._scope.end, lasting=True))
                timer.daemon = True
                timer.start()


@broken("handle.close-wakes")
class EndsQuietly(Correct):
    """Who iterates over a watch sees it end, as if it had been cancelled."""

    class face(Handle):
        def close(self) -> None:
            for member in list(self._scope.ledger._members):
                if isinstance(member, WatchFlow):
                    member.shut()
            sleep(0.05)
            super().close()


@broken("handle.close-frees")
class KeepsLeases(Correct):
    """Closing leaves the handle's leases, and so its locks, as they are."""

    class face(Handle):
        def close(self) -> None:
            members = self._scope.ledger._members
            for lease in [one for one in members if isinstance(one, LeaseFlow)]:
                del members[lease]
            super().close()


@broken("handle.fork")
class ChildMayUse(Correct):
    """A forked child goes on with its parent's handle."""

    def _forked(self) -> None:
        self.forked = False


@broken("handle.fork")
class ChildFindsItClosed(Correct):
    """A forked child is told that the handle was closed, and not why."""

    class face(Handle):
        def _placed(self, error: KviError, operation: str, key: object) -> KviError:
            if isinstance(error, UsedAfterFork):
                error = Closed(error.message)
            return super()._placed(error, operation, key)


@broken("handle.fork")
class ChildMayRead(Correct):
    """A forked child goes on silently with what it reads by its parent's handle."""

    class face(Handle):
        def get(
            self, key: str, *, revision: int | None = None, timeout: float | None = None
        ) -> KeyValue | None:
            if self.mutant.forked:
                return self.mutant._get(key, 1.0)  # type: ignore[no-any-return]
            return super().get(key, revision=revision, timeout=timeout)


@broken("handle.fork")
class ChildMayLock(Making):
    """A forked child is told that it does not get the lock of its parent's handle."""

    makes = "lock"

    class kind(Lock):
        def acquire(self, timeout: float | EllipsisType | None = ...) -> bool:
            return not self._store._scope.primitives.forked and super().acquire(timeout)


@broken("handle.fork")
class ChildSpeaksOnIt(Correct):
    """A forked child sends something on its parent's connection, which breaks."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.connection = mmap(-1, 1)  # shared with children: whether one has spoken

    def _forked(self) -> None:
        super()._forked()
        self.connection[0] = 1

    def apply(self, branch: Sequence[Operation]) -> Results:
        # The main thread looks at its connection, and connects anew before it sends anything.
        broken, self.connection[0] = self.connection[0], 0
        if broken and threading.current_thread() is not threading.main_thread():
            raise Unavailable("the connection was lost, before the write was sent")
        return super().apply(branch)


@broken("handle.uri")
class Nameless(Correct):
    """The handle does not show which store it is on."""

    class face(Handle):
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

    class face(Handle):
        def _placed(self, error: KviError, operation: str, key: object) -> KviError:
            return error


@broken("error.place")
class NoKey(Correct):
    """Errors do not tell the key."""

    class face(Handle):
        def _placed(self, error: KviError, operation: str, key: object) -> KviError:
            return super()._placed(error, operation, None)


@broken("error.place")
class NotForAnotherProcess(Correct):
    """Errors are of a class that cannot be imported, and so do not pickle."""

    class face(Handle):
        def _placed(self, error: KviError, operation: str, key: object) -> KviError:
            error.__class__ = type("Local", (type(error),), {})
            return super()._placed(error, operation, key)


@broken("handle.closed")
class LeavesItsThread(Correct):
    """The thread of a handle goes on when it is closed."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        threading.Thread(target=threading.Event().wait, name="looks on", daemon=True).start()


@broken("handle.closed")
class LeavesItsConnection(Correct):
    """The connection of a handle stays open when it is closed."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.notes.setdefault("connections", []).append(_Connection())


class _Connection:
    def __init__(self) -> None:
        self._sides = socket.socketpair()

    def __del__(self) -> None:  # the mutant is forgotten
        for side in self._sides:
            side.close()
