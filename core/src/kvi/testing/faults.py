"""`Faults`: what a store does on a bad day, on order, in a program's own tests.

*Where it stands.* Operations are values (`kvi.ops`), so that one middleware around a handle sees
all of them, on every store and for both faces. It stands outermost, around the retries of
`kvi.open`: what a fault says is what the program's call ends with, at once, on every store. A
`kvi.Backend` stands around it in turn, and tries again as its policy says::

    program ── Backend's retries ──► faults ──► retries of kvi.open ──► the store

*Which calls.* A fault names operations, as the methods of a handle are called, and may name a key
or a prefix. An operation on several keys (a transaction, a range) matches if one of them does. Of
the faults that match, every delay counts, and the first that fails. What kvi does by itself in the
background is asked in the same way: a renewal is ``renew``, a claim of a lock is ``lock``. Events
of watches are never held up.

=============  ====================================================================================
fault          what the call comes to
=============  ====================================================================================
unavailable    `Unavailable`; nothing was applied
timed_out      `Timeout`, at once; nothing was applied
unknown        `OutcomeUnknown`; the write was applied, or was not, as the test says. Reads have no
               such outcome, and are never hit
fail           the error that the test gives; nothing was applied
delay          nothing, but later; `Timeout` if that is later than its own time-out
=============  ====================================================================================

*Losses* are real: the lease is revoked in the store, behind its holder's back.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from kvi import registry
from kvi.call import Call
from kvi.errors import (
    Closed,
    InvalidArgument,
    KviError,
    LeaseLost,
    NotHeld,
    OutcomeUnknown,
    Timeout,
    Unavailable,
    is_number,
    is_whole,
    shown,
)
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow
from kvi.flow.scope import Scope
from kvi.model import Span
from kvi.mutex import Mutex
from kvi.ops import Direct, Executor, Op, ReleaseOp, RevokeOp, TxnOp
from kvi.policy.retry import Effect
from kvi.port import Port
from kvi.sync.face import Face
from kvi.sync.lease import Lease
from kvi.sync.lock import Lock
from kvi.sync.temp_key import TempKey
from kvi.text import prefix_end

if TYPE_CHECKING:
    from kvi.aio.kvi import AsyncKvi
    from kvi.aio.lease import AsyncLease, AsyncTempKey
    from kvi.aio.lock import AsyncLock
    from kvi.sync.kvi import Kvi

__all__ = ["Fault", "Faults"]

T = TypeVar("T")

# What a program calls otherwise than an observer sees it.
_CALLED = {
    "lease": "lease_grant",
    "renew": "lease_renew",
    "revoke": "lease_revoke",
    "lock": "lock_claim",
    "acquire": "lock_claim",
    "release": "lock_release",
}
_READS = frozenset(
    {"get", "range", "range_page", "count", "history", "leases", "watch", "ping"},
)
_NAMES = _READS | {
    *("store", "delete", "delete_range", "tas", "cas", "txn", "transaction", "update"),
    *("atomically", "commit", "reserve", "proclaim", *_CALLED.values()),
}
_RECIPES = (
    *("barrier", "counter", "election", "group", "once", "queue", "rwlock", "schedule"),
    *("semaphore", "sequence", "slots"),
)
_HARMLESS = frozenset({Effect.READ, Effect.ASKING})


class Fault:
    """One thing that goes wrong with some calls; made by `Faults`. Safe for threads.

    As a context manager it ends with its block.
    """

    def __init__(
        self, names: frozenset[str], span: Span | None, times: int | None, what: str
    ) -> None:
        self._names = names
        self._span = span
        self._left = inf if times is None else times
        self._what = what
        self._hits = 0
        self.error: KviError | None = None
        self.seconds = 0.0
        self.applied = False

    @property
    def hits(self) -> int:
        """How many calls it has hit."""
        return self._hits

    @property
    def active(self) -> bool:
        """Whether it may hit another one."""
        return self._left > 0

    def end(self) -> None:
        """Hit nothing more. Again, it does nothing."""
        self._left = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()

    def __repr__(self) -> str:
        of = ", ".join(sorted(self._names)) or "any operation"
        return f"<Fault {self._what} of {of}, {self._hits} hits{'' if self.active else ', ended'}>"

    def _hit(self, op: Op[Any]) -> bool:
        """Whether it hits an operation, which counts then. Hold the lock of `Faults`."""
        if self._left <= 0 or (self._names and op.name not in self._names):
            return False
        if isinstance(self.error, OutcomeUnknown) and op.effect in _HARMLESS:
            return False
        if self._span is not None and not _touches(op, self._span):
            return False
        self._left -= 1
        self._hits += 1
        return True


class Faults:
    """Faults for the stores that are opened while it is on, and for those given to `attach`.

    A context manager: it is on from its beginning until `close`, for every handle that any thread
    of the process opens meanwhile, by `kvi.open`, `kvi.aio.open` or `kvi.Backend`. Safe for
    threads. Each method takes names of operations (none: all of them), such as ``"store"``,
    ``"get"`` or ``"lock"``; ``key`` or ``prefix``, as the handle that was opened has them (with the
    name of a view as a part of it); and ``times``, how many calls it hits (``None``: all of them,
    until `Fault.end`). It raises `InvalidArgument` for a name that no operation has, and for what
    does not go together.
    """

    def __init__(self) -> None:
        self._lock = Mutex()  # guards the faults and their counts; never held in a wait
        self._faults: list[Fault] = []
        self._on = False

    def unavailable(
        self,
        *operations: str,
        key: str | None = None,
        prefix: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """The store cannot be reached: `Unavailable`, nothing was applied."""
        return self.fail(
            Unavailable("the test has made the store unavailable"),
            *operations,
            key=key,
            prefix=prefix,
            times=times,
        )

    def timed_out(
        self,
        *operations: str,
        key: str | None = None,
        prefix: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """The store gave no answer in time: `Timeout`, nothing was applied. Waits for nothing."""
        return self.fail(
            Timeout("the test has let the time be up"),
            *operations,
            key=key,
            prefix=prefix,
            times=times,
        )

    def unknown(
        self,
        *operations: str,
        applied: bool,
        key: str | None = None,
        prefix: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """The fate of a write is unknown: `OutcomeUnknown`.

        ``applied``: whether it was applied all the same. A program has to bear with either, so a
        test should try both. A write that fails by itself fails as ever.
        """
        if not isinstance(applied, bool):
            raise InvalidArgument(f"applied= is True or False, not {shown(applied)}")
        reads = [name for name in operations if name in _READS]
        if reads:
            raise InvalidArgument(
                f"{reads[0]!r} only reads, and its outcome is never unknown: use unavailable()"
            )
        fault = self._made(operations, key, prefix, times, "unknown outcome")
        fault.error = OutcomeUnknown("the test has lost the answer")
        fault.applied = applied
        return self._add(fault)

    def fail(
        self,
        error: KviError,
        *operations: str,
        key: str | None = None,
        prefix: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """Any other error, such as ``kvi.PermissionDenied("no")``; nothing is applied."""
        if not isinstance(error, KviError):
            raise InvalidArgument(
                f"a fault is an error of kvi, such as kvi.Contention('busy'), not {shown(error)}"
            )
        fault = self._made(operations, key, prefix, times, type(error).__name__)
        fault.error = error
        return self._add(fault)

    def delay(
        self,
        seconds: float,
        *operations: str,
        key: str | None = None,
        prefix: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """The store is asked ``seconds`` later; `Timeout` once the call's own time-out is up."""
        if not is_number(seconds) or not 0 < seconds < inf:
            raise InvalidArgument(f"a delay is a positive number of seconds, not {shown(seconds)}")
        fault = self._made(operations, key, prefix, times, f"delay of {seconds:g} s")
        fault.seconds = float(seconds)
        return self._add(fault)

    @overload
    def lose(self, held: Lease | Lock | TempKey) -> None: ...
    @overload
    def lose(self, held: AsyncLease | AsyncLock | AsyncTempKey) -> Awaitable[None]: ...
    def lose(self, held: Any) -> Awaitable[None] | None:
        """Let the store drop a lease, as after a holder that was silent for too long.

        ``held`` is a lease, a temporary key, a lock that is held, or one of the recipes that are
        held like a lock, of either face; what is of `kvi.aio` is awaited. Its lease is revoked in
        the store: keys and claims go, and others may come in. When this returns, its holder knows:
        ``alive`` and ``held`` are false, ``lost`` is set. (One that has to find out by itself does
        so with its next renewal, a third of its ttl later at most.)

        Raises `NotHeld` for a lock that nobody holds, `LeaseLost` for what has ended already, and
        what revoking a lease does.
        """
        lease = _lease_of(held)
        scope = lease.scope
        if not lease.alive:
            raise LeaseLost("there is nothing to lose: it has ended already", uri=scope.uri)
        inner = Direct(scope.primitives)

        async def flow(port: Port) -> None:
            call = Call(port, port.now() + scope.timeout, decided=True)
            try:
                with suppress(LeaseLost):  # it has ended in this moment
                    await inner.execute(RevokeOp(lease.id), call)
            except KviError as error:
                raise scope.placed(error, "lose", None) from error.__cause__
            lease.gone()

        store: Any = held._store if hasattr(held, "_store") else held._lease._store
        if isinstance(store, Face):
            store._drive(flow)
            return None
        awaited: Awaitable[None] = store._drive(flow)
        return awaited

    def attach(self, store: Kvi | AsyncKvi) -> None:
        """Let a handle have the faults that was opened before, until it is closed.

        Views and backends that were made of it before do not have them.
        """
        from kvi.aio.face import AsyncFace

        if not isinstance(store, Face | AsyncFace):
            raise InvalidArgument(f"attach() takes a handle, not {shown(store)}")
        scope = store._scope
        if isinstance(scope.executor, _Injected) and scope.executor.faults is self:
            return
        scope.executor = _Injected(scope, self)
        if isinstance(store, Face):
            Face.__init__(store, scope)  # it knows short ways around the middleware
        else:
            AsyncFace.__init__(store, scope)

    def clear(self) -> None:
        """End all faults so far."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.end()

    def close(self) -> None:
        """End all faults; handles that are opened from now on have none. Again, it does nothing."""
        self.clear()
        if self._on:
            self._on = False
            registry.around.remove(self._around)

    def __enter__(self) -> Self:
        if not self._on:
            self._on = True
            registry.around.append(self._around)
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _around(self, scope: Scope) -> Executor:
        return _Injected(scope, self)

    def _made(
        self,
        operations: tuple[str, ...],
        key: str | None,
        prefix: str | None,
        times: int | None,
        what: str,
    ) -> Fault:
        names = frozenset(_CALLED.get(_checked(name), name) for name in operations)
        if times is not None and not (is_whole(times) and times > 0):
            raise InvalidArgument(
                f"times= is a number of calls above 0, or None for all, not {shown(times)}"
            )
        if key is not None and prefix is not None:
            raise InvalidArgument("a fault has key= or prefix=, not both")
        for name, value in (("key", key), ("prefix", prefix)):
            if not (value is None or isinstance(value, str)):
                raise InvalidArgument(f"{name}= is text, not {shown(value)}")
        span = None
        if key is not None:
            span = Span(key, key + "\0")
        elif prefix is not None:
            span = Span(prefix, prefix_end(prefix), prefix)
        return Fault(names, span, times, what)

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults = [one for one in self._faults if one.active]
            self._faults.append(fault)
        return fault

    def _for(self, op: Op[Any]) -> tuple[float, Fault | None]:
        """How long an operation has to wait, and what it fails with."""
        seconds = 0.0
        with self._lock:
            for fault in self._faults:
                if not fault._hit(op):
                    continue
                if fault.error is not None:
                    return seconds, fault
                seconds += fault.seconds
        return seconds, None


class _Injected:
    """The middleware of a handle that has ``faults``."""

    is_short = False

    def __init__(self, scope: Scope, faults: Faults) -> None:
        self.faults = faults
        self._inner = scope.executor
        self._closed: Callable[[], bool] = lambda: scope.closed

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it, with its faults."""
        if not op.name:  # a step of another one
            return await self._inner.execute(op, call)
        seconds, fault = self.faults._for(op)
        if seconds:
            await self._wait(seconds, call)
        if fault is None:
            return await self._inner.execute(op, call)
        if fault.applied:
            await self._inner.execute(op, call)
        error = copy.copy(fault.error)
        assert error is not None  # else it is a delay
        call.doubt = call.doubt or isinstance(error, OutcomeUnknown)
        raise error

    async def _wait(self, seconds: float, call: Call) -> None:
        port = call.port
        end = min(port.now() + seconds, call.deadline)
        while (left := end - port.now()) > 0:
            await port.sleep(left)
            if self._closed():
                raise Closed("the handle was closed while the test held up a call")


def _touches(op: Op[Any], span: Span) -> bool:
    """Whether an operation is about a key of the span."""
    if isinstance(op, TxnOp):
        txn = op.txn
        return any(part.key in span for part in (*txn.when, *txn.then, *txn.otherwise))
    other = getattr(op, "span", None)
    if isinstance(other, Span):
        start = max(other.start, span.start)
        ends = [end for end in (other.end, span.end) if end is not None]
        return not ends or start < min(ends)
    if op.key is None:
        return False
    # a release names the key that the claim stands on, below the lock's name
    return op.key in span or (isinstance(op, ReleaseOp) and op.key.rpartition("/")[0] in span)


def _checked(name: object) -> str:
    if isinstance(name, str) and (
        name in _NAMES or name in _CALLED or name.partition("_")[0] in _RECIPES
    ):
        return name
    raise InvalidArgument(
        f"no operation is called {shown(name)}; some are {', '.join(sorted(_NAMES - _READS))}, "
        f"{', '.join(sorted(_READS))}"
    )


def _lease_of(held: object) -> LeaseFlow:
    lease = getattr(held, "_lease", held)  # a temporary key has one
    flow = getattr(lease, "_flow", None)
    if isinstance(flow, LeaseFlow):
        return flow
    if isinstance(flow, LockFlow):
        if flow.lease is None or flow.claim is None:
            raise NotHeld("nobody holds it; acquire it first", key=flow.name)
        return flow.lease
    raise InvalidArgument(
        f"what can be lost is a lease, a temporary key or a lock, not {shown(held)}"
    )
