"""`Primitives`: what a backend implements. A program never sees it; it sees `kvi.Kvi`.

::

    program ── Kvi.tas(key, test, set) ──► TxnOp ──► middleware ──► Primitives._txn(txn, timeout)

A backend implements nine primitives (``_get``, ``_range``, ``_txn``, ``_watch``, ``_lease_grant``,
``_lease_renew``, ``_lease_revoke``, ``_ping``, ``_close``) and gets everything else; it overrides
the derived ones for speed or atomicity, and ``_forked`` to close in a child process what it must
not share with its parent. What `kvi_open` of its plugin returns is an object of this class.

What a primitive may rely on, and must do:

* Keys, bounds, values, transactions and time-outs have been checked against ``capabilities``:
  those of the object, which may differ from the ones that its plugin declares (a server may have
  other limits). They are read when the store is opened, and must not change after that.
* The number that a `Compare` names is never negative: up to 2**63 - 1 for revisions and versions,
  of any size for a lease. One that the store cannot hold compares as a number all the same.
* ``timeout`` is in seconds, above 0, and bounds the whole primitive (for ``_range``: each page).
* It may be called from any number of threads at once.
* It raises errors of `kvi.errors` only, without operation, key or URI; it does not check whether
  the handle is closed. If ``_close`` ends it early, whatever it raises is reported as `Closed`.
* **No exception of a signal handler ever comes inside of it.** Python runs signal handlers in the
  main thread only, and a call of the main thread runs its primitives on a thread of kvi's. The
  exception are the operations that a backend names in `in_place`.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from kvi import derived
from kvi.capabilities import Capabilities
from kvi.coroutine import run
from kvi.errors import KviError, NotSupported
from kvi.late import imported
from kvi.living import Living
from kvi.model import (
    Claim,
    Event,
    Grant,
    KeyValue,
    LeaseInfo,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)

if TYPE_CHECKING:
    from kvi.async_primitives import AsyncPrimitives
    from kvi.feed import Feed, Wake, WatchSpec

__all__ = ["Primitives"]

Listener = Callable[[KviError], None]

_live: Living[Primitives] = Living()


class Primitives(ABC):
    """A store as its backend gives it; see the module for what each method promises.

    Attributes:
        uri: the store's URI with secrets replaced by ``***``.
        capabilities: what the store can do.
        timeout: seconds for calls that do not give their own.
        in_place: the names of operations (``"get"``) that may run in the main thread and in an
            event loop: they never wait, and an exception that a signal handler raises there, at
            any bytecode, leaves them whole.
        forked: whether this is a parent's store, seen by a child process.

    """

    in_place: ClassVar[frozenset[str]] = frozenset()
    forked = False

    # Short ways of a store that costs less than the checks: the result, or None for the long way,
    # which says what is wrong. A put may raise `OutcomeUnknown`.
    _short_get: Callable[[str], KeyValue | None] | None = None
    _short_range: Callable[[Scan], tuple[int, list[KeyValue]] | None] | None = None
    _short_put: Callable[[str, bytes | str], int | None] | None = None

    def __init__(self, uri: str, capabilities: Capabilities, *, timeout: float) -> None:
        self.uri = uri
        self.capabilities = capabilities
        self.timeout = timeout
        self._listeners: tuple[weakref.WeakMethod[Listener], ...] = ()
        _live.add(self)

    # -- the nine ---------------------------------------------------------------------------------

    @abstractmethod
    def _get(self, key: str, timeout: float) -> KeyValue | None:
        """Read one entry, linearizably."""

    @abstractmethod
    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        """Read the first page of ``scan`` (its span is never empty) and promise the rest.

        At ``scan.revision``, if there is one: raises `Compacted` if that state is gone, and
        `InvalidArgument` if it has not been yet.
        """

    @abstractmethod
    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        """Run a transaction.

        One neither of whose branches writes is a read: it raises `Unavailable` or `Timeout`, and
        never `OutcomeUnknown`.
        """

    @abstractmethod
    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        """Begin to watch; see `kvi.feed`. Raises `Compacted` if ``spec.start`` is gone already."""

    @abstractmethod
    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        """Grant a lease that ends at the earliest ``ttl`` seconds after the call, unless renewed.

        ``ttl`` is not above ``capabilities.lease_max_ttl``; the store may grant a longer one. Once
        the lease ends, by itself or revoked, the keys stored with it vanish in one revision.

        Raises `Unavailable` or `Timeout` if surely nothing was granted. If the answer is lost,
        raises `OutcomeUnknown`, and is called again while there is time: a lease without keys may
        be left, and ends by itself.
        """

    @abstractmethod
    def _lease_renew(self, lease: int, timeout: float) -> float:
        """Let the time of a lease begin anew; returns its ttl in seconds.

        Return the ttl as it was granted, never more: the holder counts it from the sending of the
        renewal.

        Raises `LeaseLost` if it has ended. A renewal whose answer is lost is no `OutcomeUnknown`
        but `Unavailable` or `Timeout`: a lease that lives longer than known harms nobody.
        """

    @abstractmethod
    def _lease_revoke(self, lease: int, timeout: float) -> None:
        """End a lease now, and with it its keys; one that has ended, or never was, is no error.

        Raises `Unavailable` or `Timeout` if it surely goes on. If the answer is lost, raises
        `OutcomeUnknown`. It is called again after each of them, so twice must do what once does.
        """

    @abstractmethod
    def _ping(self, timeout: float) -> None:
        """Return if the store can serve a linearizable read, else raise."""

    @abstractmethod
    def _close(self) -> None:
        """Free what the store holds and wake its blocked calls; called once, never in a child."""

    # -- derived from those; override for speed or atomicity --------------------------------------

    def _get_at(self, key: str, revision: int, timeout: float) -> KeyValue | None:
        """Read one entry as it was at ``revision``; called only where ``read_at_revision``."""
        return run(derived.get_at(_Blocking(self), key, revision, timeout))

    def _count(self, span: Span, timeout: float) -> int:
        """Count the keys of ``span``."""
        return run(derived.count(_Blocking(self), span, timeout))

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        """Write one entry; the new revision."""
        return run(derived.put(_Blocking(self), key, value, lease, timeout))

    def _delete(self, key: str, timeout: float) -> bool:
        """Delete one entry; whether it was there."""
        return run(derived.delete(_Blocking(self), key, timeout))

    def _delete_range(self, span: Span, timeout: float) -> int:
        """Delete the entries of ``span``, in as few transactions as the store's limit allows."""
        return run(derived.delete_range(_Blocking(self), span, timeout))

    def _lock_lease(self, ttl: float, timeout: float) -> Grant:
        """Grant a lease for claims, as `_lease_grant`.

        A store that may end a lease early (``capabilities.lock_delay_factor``) grants one whose
        locks it keeps from others for a while when that happens. It then gives, here and for each
        renewal, not the time that the lease lives but that delay: the holder counts on no more.
        """
        return self._lease_grant(ttl, timeout)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        """Claim the lock ``name`` for ``lease``, or look where an earlier claim stands.

        A claim that stands keeps its place. Raises `LeaseLost` if the lease has ended. After any
        other error the claim may or may not stand.

        In a queue, two calls claim a place: the first creates the key, the second looks who else is
        there. They need not be atomic. Whoever comes later has a larger create revision, and those
        before can only vanish meanwhile: a claim that the list shows to be first is first.
        """
        return run(derived.claim(_Blocking(self), name, lease, timeout))

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        """Take back a claim that is held or waits; whether it still stood."""
        return run(derived.release(_Blocking(self), claim, timeout))

    # -- the object -------------------------------------------------------------------------------

    def _async_form(self) -> AsyncPrimitives | None:
        """The same store for the tasks of the running event loop, or ``None``: threads serve them.

        Called at most once, at the first call of a `kvi.aio` handle; see `kvi.async_primitives`.
        """
        return None

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        """For people to look at: the leases that are alive, granted by whomever, in any order.

        Only those of ``ids``, or with ``None`` all of the store. Each with its keys that lie in
        ``span``; with ``None`` nobody wants the keys. What was granted before the call is there,
        and what has ended before it is not.
        """
        raise NotSupported("the store does not tell which leases there are")

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        """The changes of a key, newest first: the last ``limit`` of all that the store still has.

        Called only where ``watch_history``. ``limit`` is at least 1. Derived from ``_watch``: the
        first poll that finds nothing is taken for the end. Override it where a poll may find
        nothing although there is something, and where it can be had faster.
        """
        changes: list[Event] = imported("kvi.backend.history").changes_of(self, key, limit, timeout)
        return changes

    def _check_here(self) -> None:  # noqa: B027  (most backends have nothing to do)
        """Raise `NotSupported` if this thread is amid a call that the others would wait for.

        Asked in the main thread, before another one does what it calls: a signal's handler may
        call, and what it interrupts goes on only after it. It concerns what is done `in_place`.
        """

    def _native(self) -> Any:
        """The native client, or ``None``."""
        return None

    def _cancel(self, thread: int) -> None:  # noqa: B027  (most backends have nothing to do)
        """End what the primitive under way on this thread still does; nobody waits for it.

        It may raise what it likes, and nothing is tried again; what this raises is dropped. Until
        it ends, this is called again every now and then: once may come between two of its
        requests, or before the first.

        It may also come when the primitive has just returned, or raised. It never overlaps with the
        next one on that thread, which begins only once this has returned. So what is done before it
        returns cannot hit the next; what it leaves behind, such as a mark on the thread, or a
        request to the store to cancel what runs on a connection, may. Let such a mark name the
        primitive, and let no connection go to another use while such a request is under way. It is
        called by another thread, under a lock for which the primitive's thread waits when it ends,
        and by ``kvi.aio`` in the event loop: it must not block.
        """

    def _forked(self) -> None:  # noqa: B027  (most backends have nothing to do)
        """In a child after a fork: let go of threads' state, without touching what is shared."""

    def _report(self, error: KviError) -> None:
        """For backends: the connection that watches are served by was lost, or not to be had.

        Whoever watches is not told, for feeds bridge it; those who supervise the store are. May be
        called by any thread, outside of all locks, and as often as it happens.
        """
        for reference in self._listeners:
            listener = reference()
            if listener is not None:
                listener(error)

    def _reporter(self) -> Listener:
        """For backends: `_report`, for threads that must not keep the store from being freed."""
        method = weakref.WeakMethod(self._report)

        def report(error: KviError) -> None:
            if (alive := method()) is not None:
                alive(error)

        return report

    def _listen(self, listener: Listener) -> None:
        """For core: let `_report` call this bound method, as long as its object lives."""
        alive = (one for one in self._listeners if one() is not None)
        self._listeners = (*alive, weakref.WeakMethod(listener))


class _Blocking:
    """A store as the flows of `kvi.derived` ask it; nothing suspends."""

    __slots__ = ("_primitives", "capabilities")

    def __init__(self, primitives: Primitives) -> None:
        self._primitives = primitives
        self.capabilities = primitives.capabilities

    async def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return self._primitives._range(scan, timeout)

    async def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        return self._primitives._txn(txn, timeout)


def _after_fork_in_child() -> None:
    for primitives in _live:
        primitives.forked = True
        # One that another thread was still making has no state yet, and no one to use it.
        with suppress(AttributeError):
            primitives._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
