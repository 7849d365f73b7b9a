"""`Kvi`: the program's handle on a store, for threads.

A public method checks the arguments, makes an operation or a flow of them, lets the driver run it,
and gives every error its place (operation, key, URI) on the way out::

    program ── Kvi.tas(key, test, set) ──► TxnOp ──► middleware ──► Primitives ──► the store

*In place.* An operation that its backend names in `Primitives.in_place` runs where it is called,
without a flow where no middleware stands between; all others run on a thread of kvi's if the main
thread calls (`kvi.driver.threads` says why).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvi.arguments import (
    cas_of,
    check_function,
    deleted_span,
    get_of,
    history_of,
    is_nothing,
    probe_of,
    put_of,
    scan_of,
    span_of,
    tas_of,
    watched_span,
)
from kvi.errors import KviError
from kvi.late import imported
from kvi.model import (
    Compare,
    Event,
    EventType,
    Key,
    KeyValue,
    LeaseRef,
    Operation,
    Put,
    RangeResult,
    Scan,
    TxnResult,
)
from kvi.ops import (
    CountOp,
    DeleteOp,
    DeleteRangeOp,
    PageOp,
    PingOp,
    RangeOp,
    TxnOp,
)
from kvi.policy.txn import check_txn
from kvi.sync.face import Face
from kvi.text import check_key, check_value

if TYPE_CHECKING:
    from kvi.sync.beginning import Beginning
    from kvi.sync.lease import Lease
    from kvi.sync.lock import Lock
    from kvi.sync.temp_key import TempKey
    from kvi.sync.update import Tx
    from kvi.sync.watch import Watch

T = TypeVar("T")

_beginning: type[Beginning] | None = None


class Kvi(Face):
    """A handle on a store. Open one with `kvi.open`; close it, or use it in a ``with`` block.

    Safe to use from any number of threads. Every method that talks to the store takes
    ``timeout=`` in seconds (default: the option ``timeout`` of `kvi.open`) and raises, besides
    what it names itself:

    * `InvalidKey`, `InvalidArgument`, `ValueTooLarge`: the call is wrong; nothing was sent.
    * `Unavailable`, `Timeout`: surely not applied.
    * `OutcomeUnknown`: a write that may have applied, or may still apply.
    * `AuthenticationFailed`, `PermissionDenied`.
    * `Closed`: after `close`, also when it happens during the call; `UsedAfterFork` in a child.

    """

    # -- reading ----------------------------------------------------------------------------------

    def get(
        self, key: str, *, revision: int | None = None, timeout: float | None = None
    ) -> KeyValue | None:
        """Read one entry; ``None`` if the key is not there. Linearizable.

        With ``revision``, as it was when the store was at that revision (0: when it was empty),
        where ``capabilities.read_at_revision``; else raises `NotSupported`. Raises `Compacted` if
        that state is gone, `InvalidArgument` if it has not been yet.
        """
        short = self._short_get
        if short is not None and timeout is None and revision is None and not self._scope.shut_down:
            found = short(key)
            if found is not None:
                return found
        try:
            self._ensure_open()
            op = get_of(self.capabilities, key, revision)
            return None if op.revision == 0 else self._do(op, timeout)
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
        revision: int | None = None,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read the entries of the half-open ``[start, end)``, or of a prefix, in key order.

        Either bound may be left out; without any, all entries. ``start >= end`` and ``limit=0``
        are empty. The result reads page by page while it is iterated, so that memory stays
        bounded for any size, and all pages are of one revision (``.revision``) where
        ``capabilities.snapshot_range``; ``timeout`` bounds each page. With ``revision``, all
        entries as they were then, as of `get`.

        Raises `InvalidArgument` for a negative limit, or a prefix together with bounds; and as
        `get` does.
        """
        try:
            self._ensure_open()
            self._seconds(timeout)
            span = span_of(self.capabilities, start, end, prefix)
            scan = scan_of(self.capabilities, span, limit, reverse, keys_only, revision)
            if is_nothing(scan):
                return self._nothing(scan, timeout)
            short = self._short_range if revision is None else None
            if short is not None and (few := short(scan)) is not None:
                return RangeResult(few[0], lambda: self._at_hand(few[1]))
            found = self._do(RangeOp(scan), timeout)
            return RangeResult(found.revision, lambda: self._pages(found, scan, timeout))
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
            self._seconds(timeout)
            span = span_of(self.capabilities, start, end, prefix)
            return 0 if span.empty else self._do(CountOp(span), timeout)
        except KviError as error:
            raise self._placed(error, "count", prefix if start is None else start)

    def history(
        self, key: str, *, limit: int | None = None, timeout: float | None = None
    ) -> list[Event]:
        """The changes of a key, newest first: all that the store still has, or the last ``limit``.

        Without a gap; where older ones are gone it ends, and that is no error. An event's
        ``previous`` is the entry before it, as far as that is known. What a key has never had
        is an empty list. Where ``capabilities.watch_history``; else raises `NotSupported`.

        Raises `InvalidArgument` for a negative limit.
        """
        try:
            self._ensure_open()
            op = history_of(self.capabilities, key, limit)
            return [] if op.limit == 0 else self._do(op, timeout)
        except KviError as error:
            raise self._placed(error, "history", key)

    # -- writing ----------------------------------------------------------------------------------

    def store(
        self,
        key: str,
        value: bytes | str,
        *,
        lease: int | LeaseRef | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Create or replace an entry; returns the new revision.

        Always makes a new revision, also when the value is the same. ``lease`` is the lease (or
        its id) that the key shall vanish with. With ``ttl`` it vanishes so many seconds after this
        write, within ``capabilities.lease_expiry_factor`` times as long plus one, whatever becomes
        of the handle, unless it is written again. Without either the key is permanent, also if it
        was not before.

        Raises `LeaseLost` if the lease is gone, `InvalidArgument` for both, or for a ttl that is
        not positive or above ``capabilities.lease_max_ttl``; then nothing was written.
        """
        try:
            short = self._short_put
            if (
                short is not None
                and lease is None
                and ttl is None
                and timeout is None
                and not self._scope.shut_down
            ):
                revision = short(key, value)
                if revision is not None:
                    return revision
            self._ensure_open()
            op = put_of(self.capabilities, key, value, lease)
            if ttl is None:
                return self._do(op, timeout)
            return self._begin().store_for(self, op, ttl, lease, self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "store", key)

    def delete(self, key: str, *, timeout: float | None = None) -> bool:
        """Delete an entry; true only if it was there. Deleting nothing makes no revision."""
        try:
            self._ensure_open()
            key = check_key(key, self.capabilities.max_key)
            return self._do(DeleteOp(key), timeout)
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
            self._seconds(timeout)
            span = deleted_span(self.capabilities, start, end, prefix)
            if span.empty and not self._scope.read_only:
                return 0
            return self._do(DeleteRangeOp(span), timeout)
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
            when, then = tas_of(key, test, set)
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
            when, then = cas_of(key, revision, value, lease)
            result = self._run((when,), then, (), timeout, "cas")
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

    def update(
        self,
        key: str,
        fn: Callable[[Any], bytes | str | None],
        *,
        default: bytes | str | None = None,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Change a value atomically: ``fn`` gets the present one, and returns the new one.

        ``fn`` gets bytes, or ``default`` where the key is absent, and returns bytes or text, or
        ``None`` to delete the key. It runs on the calling thread, and again whenever others have
        changed the key meanwhile. The key is permanent then. What ``fn`` raises comes out as it
        is, and nothing is written. Returns the entry, or ``None`` if there is none.

        ``timeout`` bounds what the store takes, without the time of ``fn``. Raises `Contention`
        if others kept changing the key until then. After `OutcomeUnknown` it is not tried again.

        >>> store.update("hits", lambda old: str(int(old) + 1), default="0")
        """
        try:
            self._ensure_open()
            self._scope.ensure_writable()
            seconds = self._seconds(timeout)
            checked = check_key(key, self.capabilities.max_key)
            absent = None if default is None else check_value(default, None, "default=")
            check_function(fn, "a value")
        except KviError as error:
            raise self._placed(error, "update", key)
        return self._begin().update(self, checked, fn, absent, seconds)

    def atomically(self, fn: Callable[[Tx], T], *, timeout: float | None = None) -> T:
        """Run ``fn(tx)``, and commit what it writes in one step; returns what ``fn`` returns.

        ``tx.get`` reads, ``tx.put`` and ``tx.delete`` note what is to be written (see `Tx`). All is
        written in one transaction, on the condition that nothing that was read has changed since;
        otherwise ``fn`` runs again, on the calling thread, with a new ``tx``. So it should do
        nothing else that counts. What it raises comes out as it is, and nothing is written.

        ``timeout`` bounds what the store takes, without the time of ``fn``. Raises `Contention`
        if others kept interfering until then, `InvalidArgument` and `ValueTooLarge` for more
        than the store takes in one transaction. After `OutcomeUnknown` it is not tried again.

        >>> def move(tx):
        ...     job = tx.get("todo/1")
        ...     if job is not None:
        ...         tx.delete("todo/1")
        ...         tx.put("done/1", job.value)
        >>> store.atomically(move)
        """
        try:
            self._ensure_open()
            self._scope.ensure_writable()
            seconds = self._seconds(timeout)
            check_function(fn, "tx")
        except KviError as error:
            raise self._placed(error, "atomically", None)
        return self._begin().atomically(self, fn, seconds)

    # -- leases, locks, watches -------------------------------------------------------------------

    def lease(self, ttl: float, *, keep_alive: bool = True, timeout: float | None = None) -> Lease:
        """Grant a lease: keys that are stored with it vanish once it ends.

        It is kept alive in the background until `close`, `Lease.revoke` or the end of its ``with``
        block; ``keep_alive=False`` leaves that to the caller. ``ttl`` is in seconds; the store may
        grant a longer one (``Lease.ttl``), never a shorter one.

        Raises `InvalidArgument` for a ttl that is not positive or above
        ``capabilities.lease_max_ttl``.
        """
        try:
            self._ensure_open()
            seconds = self._seconds(timeout)
            return self._begin().lease(self, ttl, keep_alive=keep_alive, timeout=seconds)
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
        try:
            self._ensure_open()
            limits = self.capabilities
            key = check_key(key, limits.max_key)
            data = None if value is None else check_value(value, limits.max_value)
            return self._begin().temp_key(self, key, data, ttl, self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "temp_key", key)

    def lock(self, name: str = "default", *, ttl: float = 10, timeout: float | None = None) -> Lock:
        """Make a lock among threads, handles, processes and hosts; nothing is asked yet.

        ``with store.lock("jobs", timeout=5) as held:`` runs its block holding the lock, or raises
        `LockTimeout`. A holder that crashes frees it within ``lease_expiry_factor`` plus
        ``lock_delay_factor`` (of ``capabilities``) times ``ttl`` seconds, plus one. ``timeout`` is
        how long to wait for it: 0 tries once, ``None`` waits without end.

        Raises `InvalidKey` for a bad name, `InvalidArgument` for a bad ``ttl`` or ``timeout``.
        """
        try:
            self._ensure_open()
            return self._begin().lock(self, name, ttl, timeout)
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
        try:
            self._ensure_open()
            span = watched_span(self.capabilities, key, prefix, start, end)
            return self._begin().watch(
                self,
                span,
                self._seconds(timeout),
                from_revision=from_revision,
                initial=initial,
                events=events,
                callback=callback,
                user_data=user_data,
            )
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
        try:
            self._ensure_open()
            view = self._scope.view()
            view.narrow(name)
            return Kvi(view)
        except KviError as error:
            raise self._placed(error, "namespace", None)

    def ping(self, *, timeout: float | None = None) -> None:
        """Ask the store now whether it answers, read-only; returns or raises."""
        try:
            self._ensure_open()
            self._do(PingOp(), timeout)
        except KviError as error:
            raise self._placed(error, "ping", None)

    def close(self) -> None:
        """End the handle: every call from now on, or blocked now, raises `Closed`.

        Releases its locks and revokes its leases, as far as the store answers within the time-out,
        and ends its watches, threads and connections. Closing again does nothing. In a forked child
        it does nothing to the parent's handle. A close that is interrupted counts as closed, and
        goes on in the background. From a signal handler, raise an exception instead
        (``sys.exit()`` does) and close where it ends.
        """
        if self._scope.closed:
            return
        self._drive(self._scope.end, lasting=True)
        if self._scope.outer is None:
            self._runtime.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # -- helpers ----------------------------------------------------------------------------------

    def _begin(self) -> type[Beginning]:
        """What begins leases, locks and watches; imported at the first use, and never in place."""
        global _beginning
        if _beginning is None:
            _beginning = self._runtime.apart(_import_beginning, id)
        return _beginning

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
        return self._do(TxnOp(txn), timeout)

    def _nothing(self, scan: Scan, timeout: float | None) -> RangeResult:
        """An empty range, at the store's present revision where ranges have one."""
        probe = probe_of(self.capabilities, scan)
        revision = scan.revision if probe is None else self._do(RangeOp(probe), timeout).revision
        return RangeResult(revision, lambda: ())

    def _at_hand(self, page: list[KeyValue]) -> Iterator[list[KeyValue]]:
        """One pass over a range that has been read."""
        try:
            self._ensure_open()
        except KviError as error:
            raise self._placed(error, "range", None)
        yield page

    def _pages(
        self, found: RangeResult, scan: Scan, timeout: float | None
    ) -> Iterator[list[KeyValue]]:
        """One pass over the pages of a range; errors get their place."""
        op = PageOp(found, scan)
        try:
            self._ensure_open()
            # Not `while`: see `kvi.sync.watch._found`.
            for page in iter(lambda: self._do(op, timeout), None):
                yield page
                self._ensure_open()  # before the store is asked for the next one
        except KviError as error:
            raise self._placed(error, "range", None)
        finally:
            if op.open:
                self._runtime.post(op.close)  # left early: what it holds is freed elsewhere


def _import_beginning() -> type[Beginning]:
    beginning: type[Beginning] = imported("kvi.sync.beginning").Beginning
    return beginning
