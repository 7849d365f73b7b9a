"""The interface: `Kvi`, which programs use, and `BaseKvi`, which backends extend.

Data flow of a call: a public method of `Kvi` checks the arguments and the state of the handle,
then calls a *primitive* (a method with a leading underscore) with checked arguments, and gives
every error its place (operation, key, URI) on the way out.

::

    program ── Kvi.tas(key, test, set) ──► _txn(Txn, timeout) ──► the store

A backend implements nine primitives on `BaseKvi` (``_get``, ``_range``, ``_txn``, ``_watch``,
``_lease_grant``, ``_lease_renew``, ``_lease_revoke``, ``_ping``, ``_close``) and gets everything
else; it overrides the others for speed or atomicity, and ``_forked`` to close in a child process
what it must not share with its parent. A wrapper extends `Kvi` itself, where every
primitive is abstract, so that one it forgets is a type error.

What a primitive may rely on, and must do:

* Keys, bounds, values, transactions and time-outs have been checked against ``capabilities``.
* ``timeout`` is in seconds, above 0, and bounds the whole primitive (for ``_range``: each page).
* It may be called from any number of threads at once.
* It raises errors of `kvi.errors` only, without operation, key or URI; it does not check whether
  the handle is closed. If `close` ends it early, whatever it raises is reported as `Closed`.

States of a handle: *open* → *closed* (by `close`, final), or *open* → *forked* (in a child
process, final; the parent's handle stays open). Both are noticed at the next call.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from kvi.capabilities import Capabilities
from kvi.errors import (
    Closed,
    InvalidArgument,
    KviError,
    OutcomeUnknown,
    Timeout,
    Unavailable,
    UsedAfterFork,
    shown,
)
from kvi.model import (
    Claim,
    Compare,
    Delete,
    Event,
    EventType,
    Grant,
    Key,
    KeyValue,
    LeaseRef,
    Operation,
    Put,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.options import check_timeout
from kvi.policy.text import check_bound, check_key, check_value
from kvi.policy.txn import check_lease, check_txn

if TYPE_CHECKING:
    from types import TracebackType

    from kvi.feed import Feed, Wake, WatchSpec
    from kvi.recipes.lease import Lease
    from kvi.recipes.lock import Lock
    from kvi.recipes.temp_key import TempKey
    from kvi.recipes.watch import Watch
    from kvi.runtime.runtime import Runtime

__all__ = ["BaseKvi", "Kvi"]

_live: weakref.WeakSet[Kvi] = weakref.WeakSet()
_runtimes = threading.Lock()  # held while a handle's runtime is made
_listening = threading.Lock()  # held while a handle's listeners change


class Kvi(ABC):
    """A handle on a store. Open one with `kvi.open`; close it, or use it in a ``with`` block.

    Safe to use from any number of threads. Every method that talks to the store takes
    ``timeout=`` in seconds (default: the option ``timeout`` of `kvi.open`) and raises, besides
    what it names itself:

    * `InvalidKey`, `InvalidArgument`, `ValueTooLarge`: the call is wrong; nothing was sent.
    * `Unavailable`, `Timeout`: surely not applied.
    * `OutcomeUnknown`: a write that may have applied, or may still apply.
    * `AuthenticationFailed`, `PermissionDenied`.
    * `Closed`: after `close`, also when it happens during the call; `UsedAfterFork` in a child.

    Attributes:
        uri: the store's URI with secrets replaced by ``***``.
        capabilities: what the store can do.

    """

    uri: str
    capabilities: Capabilities
    _listeners: tuple[weakref.WeakMethod[Callable[[KviError], None]], ...] = ()

    def __init__(self, uri: str, capabilities: Capabilities, *, timeout: float) -> None:
        self.uri = uri
        self.capabilities = capabilities
        self._timeout = timeout
        self._latch = threading.Lock()  # taken once, by the first close()
        self._shut: type[Closed] | None = None
        self._runtime: Runtime | None = None
        _live.add(self)

    # -- reading ----------------------------------------------------------------------------------

    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        """Read one entry; ``None`` if the key is not there. Linearizable."""
        try:
            self._ensure_open()
            key = check_key(key, self.capabilities.max_key)
            return self._get(key, self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "get", key)

    def range(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read the entries of the half-open ``[start, end)``, or of a prefix, in key order.

        Either bound may be left out; without any, all entries. ``start >= end`` and ``limit=0``
        are empty. The result reads page by page while it is iterated, so that memory stays
        bounded for any size, and all pages are of one revision (``.revision``) where
        ``capabilities.snapshot_range``; ``timeout`` bounds each page.

        Raises `InvalidArgument` for a negative limit, or a prefix together with bounds.
        """
        try:
            self._ensure_open()
            seconds = self._seconds(timeout)
            span = self._span_of(start, end, prefix)
            if limit is not None and (
                not isinstance(limit, int) or isinstance(limit, bool) or limit < 0
            ):
                raise InvalidArgument(
                    f"limit= is a whole number that is not negative, not {shown(limit)}"
                )
            if limit == 0 or span.empty:
                return self._nothing(span, seconds)
            if limit is not None and limit > sys.maxsize:
                limit = None
            found = self._range(Scan(span, limit, bool(reverse), bool(keys_only)), seconds)
            return found.map_pages(self._guarded)
        except KviError as error:
            raise self._placed(error, "range", prefix if start is None else start)

    def count(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Count the keys of ``[start, end)``, or of a prefix; bounds as in `range`."""
        try:
            self._ensure_open()
            seconds = self._seconds(timeout)
            span = self._span_of(start, end, prefix)
            return 0 if span.empty else self._count(span, seconds)
        except KviError as error:
            raise self._placed(error, "count", prefix if start is None else start)

    # -- writing ----------------------------------------------------------------------------------

    def store(
        self,
        key: str,
        value: bytes | str,
        *,
        lease: int | LeaseRef | None = None,
        timeout: float | None = None,
    ) -> int:
        """Create or replace an entry; returns the new revision.

        Always makes a new revision, also when the value is the same. ``lease`` is the lease (or
        its id) that the key shall vanish with; without one the key is permanent, also if it had a
        lease before. Raises `LeaseLost` if the lease is gone; then nothing was written.
        """
        try:
            self._ensure_open()
            capabilities = self.capabilities
            key = check_key(key, capabilities.max_key)
            data = check_value(value, capabilities.max_value)
            return self._put(key, data, check_lease(lease), self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "store", key)

    def delete(self, key: str, *, timeout: float | None = None) -> bool:
        """Delete an entry; true only if it was there. Deleting nothing makes no revision."""
        try:
            self._ensure_open()
            key = check_key(key, self.capabilities.max_key)
            return self._delete(key, self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "delete", key)

    def delete_range(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Delete all entries of ``[start, end)``, or of a prefix; returns how many.

        One atomic step as far as ``capabilities.atomic_range_delete`` says. Without any bound it
        is refused; ``prefix=""`` says "everything".
        """
        try:
            self._ensure_open()
            seconds = self._seconds(timeout)
            span = self._span_of(start, end, prefix)
            if start is None and end is None and prefix is None:
                raise InvalidArgument(
                    'delete_range needs start=, end= or prefix=; prefix="" deletes everything'
                )
            return 0 if span.empty else self._delete_range(span, seconds)
        except KviError as error:
            raise self._placed(error, "delete_range", prefix if start is None else start)

    def tas(
        self,
        key: str,
        test: bytes | str | None,
        set: bytes | str | None,  # noqa: A002  (the field's name of the argument: test-and-set)
        *,
        timeout: float | None = None,
    ) -> bool:
        """Test and set, atomically: if the value is ``test``, make it ``set``; returns whether.

        ``test=None`` means "the key is absent", ``set=None`` deletes. A missing key matches
        nothing but ``None``. ``tas(key, None, None)`` asks whether the key is absent.
        """
        try:
            when = Key(key).absent if test is None else Key(key).value.compare("=", test)
            then: tuple[Operation, ...]
            if set is not None:
                then = (Put(key, set),)
            elif test is not None:
                then = (Delete(key),)
            else:
                then = ()
            return self._run((when,), then, (), timeout, "tas").succeeded
        except KviError as error:
            raise self._placed(error, "tas", key)

    def cas(
        self,
        key: str,
        revision: int,
        value: bytes | str,
        *,
        lease: int | LeaseRef | None = None,
        timeout: float | None = None,
    ) -> int | None:
        """Store only if the key's revision is ``revision`` (``0``: only if it is absent).

        Returns the new revision, or ``None`` if the key has another one.
        """
        try:
            when = Key(key).revision.compare("=", revision)
            result = self._run((when,), (Put(key, value, lease),), (), timeout, "cas")
            return result.revision if result.succeeded else None
        except KviError as error:
            raise self._placed(error, "cas", key)

    def txn(
        self,
        when: Iterable[Compare] = (),
        then: Iterable[Operation] = (),
        otherwise: Iterable[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """Run ``then`` if every compare of ``when`` holds, else ``otherwise``; whole or not at all.

        Atomic and linearizable, all writes at one revision. Operations run in order, a `Get` sees
        the writes before it. Compares are made with `Key`.

        Raises `InvalidArgument` for a key written twice in a branch or too many operations
        (``capabilities.max_txn_ops``), `Contention` where the store cannot compare by itself and
        others kept changing what was read.
        """
        try:
            return self._run(when, then, otherwise, timeout, "txn")
        except KviError as error:
            raise self._placed(error, "txn", None)

    def transaction(
        self,
        key: str,
        op: str,
        value: bytes | str,
        then_key: str,
        then_value: bytes | str,
        else_key: str,
        else_value: bytes | str,
        *,
        timeout: float | None = None,
    ) -> bool:
        """If the value of ``key`` is ``op`` ``value``, store the first pair, else the second.

        ``op`` is one of ``= != < >``. Returns whether the first was stored. On a missing key
        every operator is false.
        """
        try:
            return self._run(
                (Key(key).value.compare(op, value),),
                (Put(then_key, then_value),),
                (Put(else_key, else_value),),
                timeout,
                "transaction",
            ).succeeded
        except KviError as error:
            raise self._placed(error, "transaction", key)

    # -- leases, locks, watches -------------------------------------------------------------------

    def lease(self, ttl: float, *, keep_alive: bool = True, timeout: float | None = None) -> Lease:
        """Grant a lease: keys that are stored with it vanish once it ends.

        It is kept alive in the background until `close`, `Lease.revoke` or the end of its ``with``
        block; ``keep_alive=False`` leaves that to the caller. ``ttl`` is in seconds; the store may
        grant a longer one (``Lease.ttl``), never a shorter one.

        Raises `InvalidArgument` for a ttl that is not positive or above
        ``capabilities.lease_max_ttl``.
        """
        from kvi.policy.lease import check_ttl
        from kvi.recipes.lease import Lease

        try:
            self._ensure_open()
            seconds = self._seconds(timeout)
            return Lease._grant(self, check_ttl(ttl, self.capabilities), seconds, keep_alive)
        except KviError as error:
            raise self._placed(error, "lease", None)

    def temp_key(
        self,
        key: str,
        value: bytes | str | None = None,
        *,
        ttl: float = 10,
        timeout: float | None = None,
    ) -> TempKey:
        """Store a key that lives as long as this process does, also through reconnects.

        After a crash it is gone within ``capabilities.lease_expiry_factor`` times ``ttl`` seconds,
        plus one. It replaces what was under the key; what others do to it later is not watched.
        Without a value the host's name and the process id are stored. Raises as `lease` does.
        """
        from kvi.policy.lease import check_ttl
        from kvi.recipes.temp_key import TempKey

        try:
            self._ensure_open()
            capabilities = self.capabilities
            key = check_key(key, capabilities.max_key)
            data = None if value is None else check_value(value, capabilities.max_value)
            seconds = self._seconds(timeout)
            return TempKey._create(self, key, data, check_ttl(ttl, capabilities), seconds)
        except KviError as error:
            raise self._placed(error, "temp_key", key)

    def lock(self, name: str = "default", *, ttl: float = 10, timeout: float | None = None) -> Lock:
        """Make a lock among threads, handles, processes and hosts; nothing is asked yet.

        ``with store.lock("jobs", timeout=5) as held:`` runs its block holding the lock, or raises
        `LockTimeout`. A holder that crashes frees it within ``capabilities.lease_expiry_factor``
        times ``ttl`` seconds, plus one. ``timeout`` is how long to wait for it: 0 tries once,
        ``None`` waits without end.

        Raises `InvalidKey` for a bad name, `InvalidArgument` for a bad ``ttl`` or ``timeout``.
        """
        from kvi.policy.lease import check_ttl
        from kvi.policy.lock import check_lock, check_wait
        from kvi.recipes.lock import Lock

        try:
            self._ensure_open()
            ttl = check_ttl(ttl, self.capabilities)
            return Lock(self, check_lock(name, self.capabilities), ttl, check_wait(timeout))
        except KviError as error:
            raise self._placed(error, "lock", name)

    def watch(
        self,
        key: str | None = None,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        from_revision: int | None = None,
        initial: bool = False,
        events: EventType | Iterable[EventType] | None = None,
        callback: Callable[[Event, Any], object] | None = None,
        user_data: Any = None,
        timeout: float | None = None,
    ) -> Watch:
        """Watch a key, a prefix, or ``[start, end)``: every change from now on will be seen.

        Iterate the `Watch`, call its ``next``, or give a ``callback(event, user_data)``, which runs
        on a thread of kvi, one event at a time, and ends the watch by returning ``False``.

        ``from_revision`` starts at that revision, inclusive, in the past or the future, where
        ``capabilities.watch_history``. ``initial=True`` delivers the present state first, as PUT
        events in key order. ``events`` keeps only these kinds (`RESYNC` always comes). ``timeout``
        bounds this call.

        Raises `InvalidArgument` without anything to watch, and for what does not go together,
        `Compacted` if ``from_revision`` is gone from the history, `NotSupported` for
        ``from_revision`` where there is none.
        """
        from kvi.feed import WatchSpec
        from kvi.recipes.watch import Watch, check_watch

        try:
            self._ensure_open()
            if key is not None:
                if not (prefix is None and start is None and end is None):
                    raise InvalidArgument("key= excludes prefix=, start= and end=; give one")
                key = check_key(key, self.capabilities.max_key)
                span = Span(key, key + "\0")
            elif prefix is None and start is None and end is None:
                raise InvalidArgument(
                    'watch needs a key, prefix=, start= or end=; prefix="" watches everything'
                )
            else:
                span = self._span_of(start, end, prefix)
            seconds = self._seconds(timeout)
            kinds = check_watch(self.capabilities, from_revision, initial, events, callback)
            spec = WatchSpec(span, from_revision, bool(initial))
            return Watch._begin(self, spec, kinds, callback, user_data, seconds)
        except KviError as error:
            raise self._placed(error, "watch", key or prefix or start)

    # -- the handle -------------------------------------------------------------------------------

    def namespace(self, name: str) -> Kvi:
        """A view of the keys below ``name/``, as if they were the whole store.

        The view uses this handle's connection. Closing it leaves this handle open; closing this
        handle closes it too. ``a`` never sees the keys of ``ab``.

        Raises `InvalidOption` if the name is empty, begins or ends with a slash, is not UTF-8,
        or leaves less than 4,096 bytes for keys.
        """
        from kvi.backend.namespace import Namespace

        try:
            self._ensure_open()
            return Namespace(self, name)
        except KviError as error:
            raise self._placed(error, "namespace", None)

    def ping(self, *, timeout: float | None = None) -> None:
        """Ask the store now whether it answers, read-only; returns or raises."""
        try:
            self._ensure_open()
            self._ping(self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "ping", None)

    def close(self) -> None:
        """End the handle: every call from now on, or blocked now, raises `Closed`.

        Releases its locks and revokes its leases, as far as the store answers within the time-out,
        and ends its watches, threads and connections. Closing again does nothing. In a forked child
        it does nothing to the parent's handle. From a signal handler, raise an exception instead
        (``sys.exit()`` does) and close where it ends: the handler may have interrupted a call of
        the same thread that holds what closing needs.
        """
        if self._shut is not None or not self._latch.acquire(blocking=False):
            return
        self._shut = Closed
        runtime = self._runtime
        try:
            if runtime is not None:
                runtime.settle(self._timeout)
        finally:  # also after an interrupt: there is no second close
            try:
                self._close()
            finally:
                if runtime is not None:
                    runtime.end()

    @property
    def closed(self) -> bool:
        """Whether the handle can no longer be used: closed, or inherited through a fork."""
        return self._shut is not None

    @property
    def client(self) -> Any:
        """The native client, as an escape hatch; ``None`` where there is none.

        It sees whole keys, without namespace. What is done through it is outside of the contract.
        """
        try:
            self._ensure_open()
            return self._native()
        except KviError as error:
            raise self._placed(error, "client", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if not self.closed else " closed"
        return f"<{type(self).__name__} {self.uri}{state}>"

    # -- primitives -------------------------------------------------------------------------------

    @abstractmethod
    def _get(self, key: str, timeout: float) -> KeyValue | None:
        """Read one entry, linearizably."""

    @abstractmethod
    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        """Read the first page of ``scan`` (its span is never empty) and promise the rest."""

    @abstractmethod
    def _count(self, span: Span, timeout: float) -> int:
        """Count the keys of ``span``."""

    @abstractmethod
    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        """Write one entry; the new revision."""

    @abstractmethod
    def _delete(self, key: str, timeout: float) -> bool:
        """Delete one entry; whether it was there."""

    @abstractmethod
    def _delete_range(self, span: Span, timeout: float) -> int:
        """Delete the entries of ``span``; how many."""

    @abstractmethod
    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        """Run a transaction."""

    @abstractmethod
    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        """Begin to watch; see `kvi.feed`. Raises `Compacted` if ``spec.start`` is gone already."""

    @abstractmethod
    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        """Grant a lease that ends at the earliest ``ttl`` seconds after the call, unless renewed.

        ``ttl`` is not above ``capabilities.lease_max_ttl``; the store may grant a longer one. Once
        the lease ends, by itself or revoked, the keys stored with it vanish in one revision.
        """

    @abstractmethod
    def _lease_renew(self, lease: int, timeout: float) -> float:
        """Let the time of a lease begin anew; returns its ttl in seconds.

        Raises `LeaseLost` if it has ended. A renewal whose answer is lost is no `OutcomeUnknown`
        but `Unavailable` or `Timeout`: a lease that lives longer than known harms nobody.
        """

    @abstractmethod
    def _lease_revoke(self, lease: int, timeout: float) -> None:
        """End a lease now, and with it its keys; one that has ended is no error."""

    @abstractmethod
    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        """Claim the lock ``name`` for ``lease``, or look where an earlier claim stands.

        A claim that stands keeps its place. Raises `LeaseLost` if the lease has ended. After any
        other error the claim may or may not stand.
        """

    @abstractmethod
    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        """Take back a claim that is held or waits; whether it still stood."""

    @abstractmethod
    def _ping(self, timeout: float) -> None:
        """Return if the store can serve a linearizable read, else raise."""

    @abstractmethod
    def _native(self) -> Any:
        """The native client, or ``None``."""

    @abstractmethod
    def _close(self) -> None:
        """Free what the handle holds and wake its blocked calls; called once, never in a child."""

    def _running(self) -> Runtime:
        """What keeps this handle's leases, locks and watches going; made at the first use."""
        runtime = self._runtime
        if runtime is None:
            from kvi.runtime.runtime import Runtime, Threads

            parent = self._parent_runtime()
            threads = Threads() if parent is None else parent.threads
            with _runtimes:
                runtime = self._runtime
                if runtime is None:
                    runtime = self._runtime = Runtime(threads, parent)
            if self.closed:  # meanwhile, perhaps without seeing the runtime
                runtime.settle(0)
                runtime.end()
        return runtime

    def _listen(self, listener: Callable[[KviError], None]) -> None:
        """For wrappers: let `_report` call this bound method, as long as its object lives."""
        with _listening:
            alive = (one for one in self._listeners if one() is not None)
            self._listeners = (*alive, weakref.WeakMethod(listener))

    def _report(self, error: KviError) -> None:
        """For backends: the connection that watches are served by was lost, or not to be had.

        Whoever watches is not told, for feeds bridge it; those who supervise the store are. May be
        called by any thread, outside of all locks, and as often as it happens.
        """
        for reference in self._listeners:
            listener = reference()
            if listener is not None:
                listener(error)

    def _reporter(self) -> Callable[[KviError], None]:
        """For backends: `_report`, for threads that must not keep the handle from being freed."""
        method = weakref.WeakMethod(self._report)

        def report(error: KviError) -> None:
            if (alive := method()) is not None:
                alive(error)

        return report

    def _parent_runtime(self) -> Runtime | None:
        """For a view: the runtime of the handle below, whose threads it uses."""
        return None

    def _forked(self) -> None:  # noqa: B027  (most backends have nothing to do)
        """In a child after a fork: let go of threads' state, without touching what is shared."""

    # -- helpers ----------------------------------------------------------------------------------

    def _ensure_open(self) -> None:
        if self._shut is not None:
            raise self._refusal()

    def _refusal(self) -> Closed:
        if self._shut is UsedAfterFork:
            return UsedAfterFork(
                "this handle belongs to the parent process; open the store again after the fork"
            )
        return Closed("the handle is closed; open the store again")

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_timeout(timeout)

    def _span_of(self, start: str | None, end: str | None, prefix: str | None) -> Span:
        longest = self.capabilities.max_key
        if prefix is not None:
            if start is not None or end is not None:
                raise InvalidArgument("prefix= cannot stand beside start= or end=; give one")
            return Span.of_prefix(check_bound("prefix", prefix, longest))
        low = "" if start is None else check_bound("start", start, longest)
        return Span(low, None if end is None else check_bound("end", end, longest))

    def _run(
        self,
        when: Iterable[Compare],
        then: Iterable[Operation],
        otherwise: Iterable[Operation],
        timeout: float | None,
        operation: str,
    ) -> TxnResult:
        self._ensure_open()
        txn = check_txn(when, then, otherwise, self.capabilities, operation)
        return self._txn(txn, self._seconds(timeout))

    def _nothing(self, span: Span, timeout: float) -> RangeResult:
        """An empty range, at the store's present revision where ranges have one."""
        revision = None
        if self.capabilities.snapshot_range:
            # asked where the caller asks, for permissions may end beside it
            key = span.start or "\0"
            where = Span(key, key + "\0") if span.empty else span
            revision = self._range(Scan(where, limit=1, keys_only=True), timeout).revision
        return RangeResult(revision, lambda: ())

    def _guarded(self, pages: Iterable[Iterable[KeyValue]]) -> Iterator[Iterable[KeyValue]]:
        """Pass pages on while the handle is open; errors get their place."""
        try:
            self._ensure_open()
            for page in pages:
                yield page
                self._ensure_open()  # before the backend is asked for the next one
        except KviError as error:
            raise self._placed(error, "range", None)

    def _placed(self, error: KviError, operation: str, key: object) -> KviError:
        """``error`` with its place; `Closed` instead if that is why the call failed."""
        if self.closed and isinstance(error, (Unavailable, Timeout, OutcomeUnknown)):
            closed = self._refusal()
            closed.__cause__ = error
            error = closed
        return error.located(operation, key, self.uri)


class BaseKvi(Kvi):
    """What backends extend: all but nine primitives derived from those nine.

    The derived forms are correct on any store; a backend overrides them where its store has a
    cheaper or an atomic way (and then says so in its capabilities).
    """

    def _native(self) -> Any:
        return None

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        from kvi.backend.claims import claim_in_queue, claim_single

        claim = claim_in_queue if self.capabilities.lock_fair else claim_single
        return claim(self, name, lease, timeout)

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        from kvi.backend.claims import release

        if claim.ahead is not None and not self.capabilities.lock_fair:
            return True  # who waits for a single key leaves nothing behind
        return release(self, claim, timeout)

    def _count(self, span: Span, timeout: float) -> int:
        return sum(1 for _ in self._range(Scan(span, keys_only=True), timeout))

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        revision = self._txn(Txn(then=(Put(key, value, lease),)), timeout).revision
        assert revision is not None  # a transaction that puts has one
        return revision

    def _delete(self, key: str, timeout: float) -> bool:
        return bool(self._txn(Txn(then=(Delete(key),)), timeout).results[0])

    def _delete_range(self, span: Span, timeout: float) -> int:
        """Delete in as few transactions as the store's limit allows; not atomic."""
        deadline = time.monotonic() + timeout
        size = (self.capabilities.max_txn_ops or 1000) // self.capabilities.txn_delete_ops
        entries = iter(self._range(Scan(span, keys_only=True), timeout))
        deleted = 0
        try:
            while batch := tuple(Delete(entry.key) for entry in islice(entries, size)):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Timeout("the time was up before all of the range was deleted")
                deleted += sum(map(bool, self._txn(Txn(then=batch), left).results))
        except OutcomeUnknown:
            raise
        except KviError as error:
            if not deleted:
                raise
            raise OutcomeUnknown(
                f"{deleted} keys of the range were deleted before this: {error.message}"
            ) from error
        return deleted


def _after_fork_in_child() -> None:
    global _listening, _runtimes
    # threads that are not here may have held the others
    _listening, _runtimes = threading.Lock(), threading.Lock()
    for handle in list(_live):
        if handle._shut is None:
            handle._shut = UsedAfterFork
        # A handle that another thread was still making has no state yet, and no one to use it.
        with suppress(AttributeError):
            handle._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
