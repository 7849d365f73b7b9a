"""`AsyncKvi`: the program's handle on a store, for asyncio.

A public method checks the arguments with the functions that `kvi.Kvi` uses (`kvi.arguments`), lets
the driver run an operation or a flow, and gives every error its place on the way out.
"""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from time import monotonic
from typing import Any, Self, TypeVar, overload

from kvi.aio.awaited import Beginning
from kvi.aio.face import AsyncFace
from kvi.aio.lease import AsyncLease, AsyncTempKey
from kvi.aio.lock import AsyncLock
from kvi.aio.ranges import AsyncRange, AsyncRangeResult
from kvi.aio.update import AsyncTx, TaskCaller
from kvi.aio.watch import AsyncWatch, Callback
from kvi.arguments import (
    cas_of,
    check_function,
    check_watch,
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
from kvi.errors import Closed, KviError
from kvi.feed import WatchSpec
from kvi.flow import update as updating
from kvi.flow.contest import StoreLock
from kvi.flow.lease import LeaseFlow, store_for
from kvi.flow.lock import LockFlow
from kvi.flow.scope import Scope
from kvi.flow.update import given
from kvi.flow.watch import WatchFlow
from kvi.log import log
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
    TxnResult,
)
from kvi.ops import CountOp, DeleteOp, DeleteRangeOp, PingOp, RangeOp, TxnOp
from kvi.policy.lease import check_key_ttl, check_ttl
from kvi.policy.lock import check_lock, check_wait
from kvi.policy.txn import check_txn
from kvi.port import Port
from kvi.text import check_key, check_value

T = TypeVar("T")


class AsyncKvi(AsyncFace):
    """A handle on a store, for asyncio. Open one with `kvi.aio.open`; close it, or use a block.

    It belongs to the event loop of its first use, and serves any number of tasks there at once.
    Methods, arguments, results and errors are those of `kvi.Kvi`; those that talk to the store are
    awaited. Besides, they raise `WrongLoop` in another loop, and at any ``await`` a task may be
    cancelled: ``CancelledError`` always comes out, and nothing is left taken. A write that was
    cancelled after it was sent may have applied; the exception has a note that says so.
    """

    # -- reading ----------------------------------------------------------------------------------

    async def get(
        self, key: str, *, revision: int | None = None, timeout: float | None = None
    ) -> KeyValue | None:
        """Read one entry; ``None`` if the key is not there. Linearizable. See `kvi.Kvi.get`."""
        short, runtime = self._short_get, self._runtime
        if (
            short is not None
            and timeout is None
            and revision is None
            and monotonic() < runtime.turn
            and _get_running_loop() is runtime.loop
            and not self._scope.shut_down
        ):
            found = short(key)
            if found is not None:
                return found
        try:
            self._enter()
            op = get_of(self.capabilities, key, revision)
            return None if op.revision == 0 else await self._do(op, timeout)
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
    ) -> AsyncRange:
        """Read the entries of ``[start, end)``, or of a prefix, in key order; see `kvi.Kvi.range`.

        Iterate what this gives with ``async for``; or await it for an `AsyncRangeResult`, which has
        a ``revision``. Errors come from there.
        """

        async def ask() -> AsyncRangeResult:
            try:
                self._enter()
                self._seconds(timeout)
                span = span_of(self.capabilities, start, end, prefix)
                scan = scan_of(self.capabilities, span, limit, reverse, keys_only, revision)
                if not is_nothing(scan):
                    found = await self._do(RangeOp(scan), timeout)
                    return AsyncRangeResult(self, found, scan, timeout)
                at, probe = scan.revision, probe_of(self.capabilities, scan)
                if probe is not None:
                    at = (await self._do(RangeOp(probe), timeout)).revision
                return AsyncRangeResult(self, RangeResult(at, lambda: ()), scan, timeout)
            except KviError as error:
                raise self._placed(error, "range", prefix if start is None else start)

        return AsyncRange(ask)

    async def count(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Count the keys of ``[start, end)``, or of a prefix; bounds as in `range`."""
        try:
            self._enter()
            self._seconds(timeout)
            span = span_of(self.capabilities, start, end, prefix)
            return 0 if span.empty else await self._do(CountOp(span), timeout)
        except KviError as error:
            raise self._placed(error, "count", prefix if start is None else start)

    async def history(
        self, key: str, *, limit: int | None = None, timeout: float | None = None
    ) -> list[Event]:
        """The changes of a key, newest first; see `kvi.Kvi.history`."""
        try:
            self._enter()
            op = history_of(self.capabilities, key, limit)
            return [] if op.limit == 0 else await self._do(op, timeout)
        except KviError as error:
            raise self._placed(error, "history", key)

    # -- writing ----------------------------------------------------------------------------------

    async def store(
        self,
        key: str,
        value: bytes | str,
        *,
        lease: int | LeaseRef | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Create or replace an entry; returns the new revision. See `kvi.Kvi.store`."""
        short, runtime = self._short_put, self._runtime
        if (
            short is not None
            and lease is None
            and ttl is None
            and timeout is None
            and monotonic() < runtime.turn
            and _get_running_loop() is runtime.loop
            and not self._scope.shut_down
        ):
            revision = short(key, value)
            if revision is not None:
                return revision
        try:
            self._enter()
            op = put_of(self.capabilities, key, value, lease)
            if ttl is None:
                return await self._do(op, timeout)
            scope, seconds = self._scope, self._seconds(timeout)
            asked = check_key_ttl(ttl, lease, self.capabilities)
            return await self._drive_write(
                lambda port: store_for(port, scope, op, asked, seconds), op.name, op.key
            )
        except KviError as error:
            raise self._placed(error, "store", key)

    async def delete(self, key: str, *, timeout: float | None = None) -> bool:
        """Delete an entry; true only if it was there. Deleting nothing makes no revision."""
        try:
            self._enter()
            key = check_key(key, self.capabilities.max_key)
            return await self._do(DeleteOp(key), timeout)
        except KviError as error:
            raise self._placed(error, "delete", key)

    async def delete_range(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Delete all entries of ``[start, end)``, or of a prefix; returns how many.

        Without any bound it is refused; ``prefix=""`` says "everything". See
        `kvi.Kvi.delete_range`.
        """
        try:
            self._enter()
            self._seconds(timeout)
            span = deleted_span(self.capabilities, start, end, prefix)
            if span.empty and not self._scope.read_only:
                return 0
            return await self._do(DeleteRangeOp(span), timeout)
        except KviError as error:
            raise self._placed(error, "delete_range", prefix if start is None else start)

    async def tas(
        self,
        key: str,
        test: bytes | str | None,
        set: bytes | str | None,  # noqa: A002  (the field's name of the argument: test-and-set)
        *,
        timeout: float | None = None,
    ) -> bool:
        """Test and set, atomically: if the value is ``test``, make it ``set``; returns whether.

        ``test=None`` means "the key is absent", ``set=None`` deletes. See `kvi.Kvi.tas`.
        """
        try:
            when, then = tas_of(key, test, set)
            return (await self._run((when,), then, (), timeout, "tas")).succeeded
        except KviError as error:
            raise self._placed(error, "tas", key)

    async def cas(
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
            result = await self._run((when,), then, (), timeout, "cas")
            return result.revision if result.succeeded else None
        except KviError as error:
            raise self._placed(error, "cas", key)

    async def txn(
        self,
        when: Iterable[Compare] = (),
        then: Iterable[Operation] = (),
        otherwise: Iterable[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """Run ``then`` if every compare of ``when`` holds, else ``otherwise``; whole or not at all.

        See `kvi.Kvi.txn`.
        """
        try:
            return await self._run(when, then, otherwise, timeout, "txn")
        except KviError as error:
            raise self._placed(error, "txn", None)

    async def transaction(
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

        ``op`` is one of ``= != < >``. Returns whether the first was stored.
        """
        try:
            done = await self._run(
                (Key(key).value.compare(op, value),),
                (Put(then_key, then_value),),
                (Put(else_key, else_value),),
                timeout,
                "transaction",
            )
            return done.succeeded
        except KviError as error:
            raise self._placed(error, "transaction", key)

    async def update(
        self,
        key: str,
        fn: Callable[[Any], bytes | str | Awaitable[bytes | str | None] | None],
        *,
        default: bytes | str | None = None,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Change a value atomically: ``fn`` gets the present one, and returns the new one.

        ``fn`` runs in the calling task, and may be a coroutine function. See `kvi.Kvi.update`.
        """
        try:
            self._enter()
            self._scope.ensure_writable()
            seconds = self._seconds(timeout)
            checked = check_key(key, self.capabilities.max_key)
            check_function(fn, "a value")
            absent = None if default is None else check_value(default, None, "default=")
        except KviError as error:
            raise self._placed(error, "update", key)
        caller = TaskCaller(self, "update", checked)
        return given(await updating.update(caller, checked, fn, absent, seconds))

    @overload
    async def atomically(
        self, fn: Callable[[AsyncTx], Coroutine[Any, Any, T]], *, timeout: float | None = None
    ) -> T: ...

    @overload
    async def atomically(
        self, fn: Callable[[AsyncTx], T], *, timeout: float | None = None
    ) -> T: ...

    async def atomically(
        self, fn: Callable[[AsyncTx], Any], *, timeout: float | None = None
    ) -> Any:
        """Run ``fn(tx)``, and commit what it writes in one step; returns what ``fn`` returns.

        ``fn`` runs in the calling task, and is a coroutine function if it reads: ``tx.get`` is
        awaited, ``tx.put`` and ``tx.delete`` are not. See `kvi.Kvi.atomically`.
        """
        try:
            self._enter()
            self._scope.ensure_writable()
            seconds = self._seconds(timeout)
            check_function(fn, "tx")
        except KviError as error:
            raise self._placed(error, "atomically", None)
        caller = TaskCaller(self, "atomically", None)
        return given(await updating.atomically(caller, fn, AsyncTx, seconds))

    # -- leases, locks, watches -------------------------------------------------------------------

    def lease(
        self, ttl: float, *, keep_alive: bool = True, timeout: float | None = None
    ) -> Beginning[AsyncLease]:
        """Grant a lease: keys that are stored with it vanish once it ends. See `kvi.Kvi.lease`.

        Await it, or hold it for an ``async with`` block.
        """

        async def begin() -> AsyncLease:
            try:
                self._enter()
                scope, seconds = self._scope, self._seconds(timeout)
                asked = check_ttl(ttl, self.capabilities)
                return AsyncLease(
                    self,
                    await self._drive(
                        lambda port: LeaseFlow.grant(
                            port, scope, asked, seconds, keep_alive=keep_alive
                        )
                    ),
                )
            except KviError as error:
                raise self._placed(error, "lease", None)

        return Beginning(begin)

    def temp_key(
        self,
        key: str,
        value: bytes | str | None = None,
        *,
        ttl: float = 10,
        timeout: float | None = None,
    ) -> Beginning[AsyncTempKey]:
        """Store a key that lives as long as this process does. See `kvi.Kvi.temp_key`.

        Await it, or hold it for an ``async with`` block.
        """

        async def begin() -> AsyncTempKey:
            try:
                self._enter()
                limits, scope = self.capabilities, self._scope
                name = check_key(key, limits.max_key)
                data = None if value is None else check_value(value, limits.max_value)
                seconds = self._seconds(timeout)
                asked = check_ttl(ttl, limits)
                flow = await self._drive(
                    lambda port: LeaseFlow.with_key(port, scope, name, data, asked, seconds)
                )
                return AsyncTempKey(name, AsyncLease(self, flow))
            except KviError as error:
                raise self._placed(error, "temp_key", key)

        return Beginning(begin)

    def lock(
        self,
        name: str = "default",
        *,
        ttl: float = 10,
        timeout: float | None = None,
        cancel_on_loss: bool = False,
    ) -> AsyncLock:
        """Make a lock among tasks, handles, processes and hosts; nothing is asked yet.

        ``async with store.lock("jobs", timeout=5) as held:`` runs its block holding the lock, or
        raises `LockTimeout`. See `kvi.Kvi.lock`. ``cancel_on_loss`` cancels the block once the lock
        is lost; the block then ends with `LeaseLost`, unless somebody else has cancelled it too.

        Raises `InvalidKey` for a bad name, `InvalidArgument` for a bad ``ttl`` or ``timeout``.
        """
        try:
            self._scope.ensure_open()
            limits = self.capabilities
            contest = StoreLock(check_lock(name, limits), limits)
            flow = LockFlow(self._scope, contest, check_ttl(ttl, limits))
            return AsyncLock(self, flow, check_wait(timeout), cancel_on_loss=cancel_on_loss)
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
        callback: Callback | None = None,
        user_data: Any = None,
        timeout: float | None = None,
    ) -> Beginning[AsyncWatch]:
        """Watch a key, a prefix, or ``[start, end)``: every change from now on will be seen.

        See `kvi.Kvi.watch`. Await it, or hold it for an ``async with`` block. With a ``callback``,
        which may be a coroutine function and runs in the loop, it begins at once, awaited or not,
        and lasts until it is cancelled, or the handle is closed.
        """

        async def begin() -> AsyncWatch:
            try:
                self._enter()
                limits = self.capabilities
                span = watched_span(limits, key, prefix, start, end)
                seconds = self._seconds(timeout)
                kinds = check_watch(limits, from_revision, initial, events, callback)
                spec = WatchSpec(span, from_revision, bool(initial))
                flow = WatchFlow(self._scope, kinds, None, None)
                await self._drive(lambda port: flow.begin(port, spec, seconds))
                watch = AsyncWatch(self, flow)
                if callback is not None:
                    watch._deliver(callback, user_data)
                return watch
            except KviError as error:
                raise self._placed(error, "watch", key or prefix or start)

        return Beginning(begin if callback is None else self._begun(begin()))

    # -- the handle -------------------------------------------------------------------------------

    def namespace(self, name: str) -> AsyncKvi:
        """A view of the keys below ``name/``, as if they were the whole store.

        See `kvi.Kvi.namespace`. Closing it leaves this handle open.
        """
        try:
            self._scope.ensure_open()
            view = self._scope.view()
            view.narrow(name)
            return AsyncKvi(view)
        except KviError as error:
            raise self._placed(error, "namespace", None)

    async def ping(self, *, timeout: float | None = None) -> None:
        """Ask the store now whether it answers, read-only; returns or raises."""
        try:
            self._enter()
            await self._do(PingOp(), timeout)
        except KviError as error:
            raise self._placed(error, "ping", None)

    async def close(self) -> None:
        """End the handle: every call from now on, or blocked now, raises `Closed`.

        See `kvi.Kvi.close`. One that is cancelled counts as closed, and goes on in the background.
        A handle whose loop is closed may be closed from another one.
        """
        scope, runtime = self._scope, self._runtime
        if scope.closed:
            return
        try:
            runtime.bind(ending=True)
        except KviError as error:
            raise self._placed(error, "close", None)
        scopes = self._scopes()
        for mine in scopes:
            mine.shut()  # now: the thread comes later, and a cancellation before it

        async def end(port: Port) -> None:
            for mine in scopes:
                await mine.end(port)
                if mine.outer is None:
                    runtime.join()

        await runtime.drive_apart(end)
        await runtime.form_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    # -- helpers ----------------------------------------------------------------------------------

    def _scopes(self) -> tuple[Scope, ...]:
        """What ends with this handle, in order."""
        return (self._scope,)

    async def _run(
        self,
        when: Iterable[Compare],
        then: Iterable[Operation],
        otherwise: Iterable[Operation],
        timeout: float | None,
        operation: str,
    ) -> TxnResult:
        self._enter()
        txn = check_txn(when, then, otherwise, self.capabilities, operation)
        return await self._do(TxnOp(txn), timeout)

    def _begun(self, coroutine: Any) -> Any:
        """Begin a watch now; returns how to wait for that."""
        task: asyncio.Task[AsyncWatch] = asyncio.ensure_future(coroutine)
        awaited = False
        self._runtime.hold(task)

        def tell(task: asyncio.Task[AsyncWatch]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None and not awaited and not isinstance(error, Closed):
                log().error("a watch could not begin: %s", error)

        async def wait() -> AsyncWatch:
            nonlocal awaited
            awaited = True
            try:
                return await task
            except asyncio.CancelledError:
                if task.done() and not task.cancelled() and task.exception() is None:
                    task.result()._flow.end()  # nobody has got it
                raise

        task.add_done_callback(tell)
        return wait
