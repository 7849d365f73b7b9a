"""Operations as values: what is asked of a store, from the checked arguments of a call.

Each has a name (as observers see it), a key (for messages), what doing it twice means
(`kvi.policy.retry.Effect`), and knows the primitive that does it. So whatever stands between a
handle and its store is one method, ``execute(op, call)``, and not one for each operation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import ClassVar, Generic, Protocol, TypeVar

from kvi.async_primitives import AsyncPrimitives
from kvi.call import Call
from kvi.coroutine import run
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import (
    Claim,
    Event,
    Get,
    Grant,
    KeyValue,
    LeaseInfo,
    Pass,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.policy.retry import Effect
from kvi.port import Flow
from kvi.primitives import Primitives

T = TypeVar("T")


class Op(Generic[T]):
    """One operation.

    Attributes:
        called: its name; ``""``: observers do not see it.
        effect: what doing it twice does.
        proves: whether its success proves that the store is alive.
        awaited: whether `ask` can do it.
        key: the key, or the lower bound, that it is about.

    """

    __slots__ = ()

    called: ClassVar[str] = ""
    proves: ClassVar[bool] = True
    awaited: ClassVar[bool] = True
    effect: Effect = Effect.READ
    key: str | None

    @property
    def name(self) -> str:
        """The name, as observers see it."""
        return self.called

    def run(self, primitives: Primitives, timeout: float) -> T:
        """Let a store do it."""
        raise NotImplementedError

    def ask(self, primitives: AsyncPrimitives, timeout: float) -> Awaitable[T]:
        """Let the asyncio form of a store do it: its methods have the same names and arguments."""
        return self.run(primitives, timeout)  # type: ignore[arg-type, return-value]


class _Keyless(Op[T]):
    __slots__ = ()
    key = None


class _Keyed(Op[T]):
    __slots__ = ("key",)
    key: str

    def __init__(self, key: str) -> None:
        self.key = key


class Executor(Protocol):
    """Whatever does operations: a store, or middleware over one."""

    @property
    def is_short(self) -> bool:
        """Whether a store's short way, where it succeeds, does the same."""

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do ``op`` within the call's deadline."""


class Direct:
    """The innermost executor: the store itself."""

    __slots__ = ("primitives",)
    is_short = True

    def __init__(self, primitives: Primitives) -> None:
        self.primitives = primitives

    def execute(self, op: Op[T], call: Call) -> Flow[T]:
        """Ask the store."""
        return call.port.perform(op, self.primitives, call.left())


class GetOp(_Keyed["KeyValue | None"]):
    """Read one entry, as it is or as it was at a revision."""

    __slots__ = ("revision",)
    called = "get"

    def __init__(self, key: str, revision: int | None = None) -> None:
        self.key = key
        self.revision = revision

    def run(self, primitives: Primitives, timeout: float) -> KeyValue | None:
        if self.revision is not None:
            return primitives._get_at(self.key, self.revision, timeout)
        return primitives._get(self.key, timeout)


class HistoryOp(_Keyed[list[Event]]):
    """Read the last changes of a key."""

    __slots__ = ("limit",)
    called, awaited = "history", False

    def __init__(self, key: str, limit: int | None) -> None:
        self.key = key
        self.limit = limit

    def run(self, primitives: Primitives, timeout: float) -> list[Event]:
        return primitives._get_history(self.key, self.limit, timeout)


class PutOp(_Keyed[int]):
    """Create or replace one entry."""

    __slots__ = ("lease", "value")
    called, effect = "store", Effect.WRITE

    def __init__(self, key: str, value: bytes, lease: int | None) -> None:
        self.key = key
        self.value = value
        self.lease = lease

    def run(self, primitives: Primitives, timeout: float) -> int:
        return primitives._put(self.key, self.value, self.lease, timeout)


class DeleteOp(_Keyed[bool]):
    """Delete one entry."""

    __slots__ = ()
    called, effect = "delete", Effect.WRITE

    def run(self, primitives: Primitives, timeout: float) -> bool:
        return primitives._delete(self.key, timeout)


class _Spanning(Op[T]):
    __slots__ = ("key", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.key = span.start


class CountOp(_Spanning[int]):
    """Count the keys of a span."""

    __slots__ = ()
    called = "count"

    def run(self, primitives: Primitives, timeout: float) -> int:
        return primitives._count(self.span, timeout)


class DeleteRangeOp(_Spanning[int]):
    """Delete the entries of a span."""

    __slots__ = ()
    called, effect = "delete_range", Effect.WRITE

    def run(self, primitives: Primitives, timeout: float) -> int:
        return primitives._delete_range(self.span, timeout)


class RangeOp(_Spanning[RangeResult]):
    """Read the first page of a range, and promise the rest."""

    __slots__ = ("scan",)
    called = "range"

    def __init__(self, scan: Scan) -> None:
        super().__init__(scan.span)
        self.scan = scan

    def run(self, primitives: Primitives, timeout: float) -> RangeResult:
        return primitives._range(self.scan, timeout)


class PageOp(_Spanning["list[KeyValue] | None"]):
    """Read the next page of a range; ``None`` after the last.

    Done again after a failure, it begins the pass over the pages anew (at the same revision, where
    the store has snapshots) and skips what was read.
    """

    __slots__ = ("_found", "_last", "_pass", "_scan", "_skip")
    called = "range_page"

    def __init__(self, found: RangeResult, scan: Scan, last: str | None = None) -> None:
        super().__init__(scan.span)
        self._found = found
        self._scan = scan
        self._pass: Pass | None = None
        self._last = last  # the last key that was read
        self._skip: str | None = None  # up to here this pass repeats an earlier one

    @property
    def name(self) -> str:
        return "" if self._last is None else self.called  # the first came with the range

    def run(self, primitives: Primitives, timeout: float) -> list[KeyValue] | None:
        return run(self._next())

    def ask(self, primitives: AsyncPrimitives, timeout: float) -> Awaitable[list[KeyValue] | None]:
        return self._next()

    async def _next(self) -> list[KeyValue] | None:
        try:
            if self._pass is None:
                self._pass, self._skip = Pass(self._found), self._last
            while (page := await self._pass.next()) is not None:
                entries = list(page)
                if self._skip is not None:
                    entries = self._behind(entries, self._skip)
                if entries:
                    self._last = entries[-1].key
                    return entries
        except BaseException:
            self._pass = None
            raise
        self._pass = None
        return None

    @property
    def open(self) -> bool:
        """Whether a pass is under way."""
        return self._pass is not None

    def close(self) -> None:
        """End the pass that is under way."""
        begun, self._pass = self._pass, None
        if begun is not None:
            begun.close()

    def _behind(self, entries: list[KeyValue], last: str) -> list[KeyValue]:
        # Text sorts by code point, as UTF-8 does by byte.
        if self._scan.reverse:
            return [entry for entry in entries if entry.key < last]
        return [entry for entry in entries if entry.key > last]


class InnerPageOp(PageOp):
    """The same page, with the span that a view's range has in the store below."""

    __slots__ = ("_of",)

    def __init__(self, of: PageOp, span: Span) -> None:
        _Spanning.__init__(self, span)
        self._of = of

    @property
    def name(self) -> str:
        return self._of.name

    async def _next(self) -> list[KeyValue] | None:
        return await self._of._next()

    @property
    def open(self) -> bool:
        """Whether a pass is under way."""
        return self._of.open

    def close(self) -> None:
        """End the pass that is under way."""
        self._of.close()


class TxnOp(Op[TxnResult]):
    """Run a transaction."""

    __slots__ = ("txn",)
    called = "txn"

    def __init__(self, txn: Txn) -> None:
        self.txn = txn

    @property
    def name(self) -> str:
        return self.txn.operation

    @property
    def effect(self) -> Effect:  # type: ignore[override]  # it depends
        txn = self.txn
        if all(isinstance(op, Get) for op in (*txn.then, *txn.otherwise)):
            return Effect.READ
        if txn.repeatable:
            return Effect.REPEATABLE
        return Effect.DECIDING if txn.when else Effect.WRITE

    @property
    def key(self) -> str | None:  # type: ignore[override]
        txn = self.txn
        return next((part.key for part in (*txn.when, *txn.then, *txn.otherwise)), None)

    def run(self, primitives: Primitives, timeout: float) -> TxnResult:
        return primitives._txn(self.txn, timeout)


class WatchOp(_Spanning[Feed]):
    """Begin to watch."""

    __slots__ = ("spec", "wake")
    called, proves, awaited = "watch", False, False

    def __init__(self, spec: WatchSpec, wake: Wake) -> None:
        super().__init__(spec.span)
        self.spec = spec
        self.wake = wake

    def run(self, primitives: Primitives, timeout: float) -> Feed:
        return primitives._watch(self.spec, self.wake, timeout)


class PollOp(_Keyless["Batch | None"]):
    """Ask a feed for what comes next. It is asked again by itself, so that nobody else tries."""

    __slots__ = ("feed",)
    effect, proves, awaited = Effect.ASKING, False, False

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def run(self, primitives: Primitives, timeout: float) -> Batch | None:
        return self.feed.poll(timeout)


class GrantOp(_Keyless[Grant]):
    """Grant a lease. Of one whose fate is unknown, a lease without keys is left."""

    __slots__ = ("lock", "ttl")
    called, effect = "lease_grant", Effect.REPEATABLE

    def __init__(self, ttl: float, *, lock: bool = False) -> None:
        self.ttl = ttl
        self.lock = lock  # it is for claims

    def run(self, primitives: Primitives, timeout: float) -> Grant:
        if self.lock:
            return primitives._lock_lease(self.ttl, timeout)
        return primitives._lease_grant(self.ttl, timeout)


class _OfLease(_Keyless[T]):
    __slots__ = ("lease",)
    effect = Effect.REPEATABLE

    def __init__(self, lease: int) -> None:
        self.lease = lease


class RenewOp(_OfLease[float]):
    """Let the time of a lease begin anew."""

    __slots__ = ()
    called = "lease_renew"

    def run(self, primitives: Primitives, timeout: float) -> float:
        return primitives._lease_renew(self.lease, timeout)


class LeasesOp(Op[list[LeaseInfo]]):
    """Look which leases there are: those of ``ids``, or all; with the keys within a span."""

    __slots__ = ("ids", "key", "span")
    called, awaited = "leases", False

    def __init__(self, ids: Collection[int] | None, span: Span | None) -> None:
        self.ids = ids
        self.span = span
        self.key = None if span is None else span.start

    def run(self, primitives: Primitives, timeout: float) -> list[LeaseInfo]:
        return primitives._leases(self.ids, self.span, timeout)


class RevokeOp(_OfLease[None]):
    """End a lease, and its keys."""

    __slots__ = ()
    called = "lease_revoke"

    def run(self, primitives: Primitives, timeout: float) -> None:
        primitives._lease_revoke(self.lease, timeout)

    def ask(self, primitives: AsyncPrimitives, timeout: float) -> Awaitable[None]:
        return primitives._lease_revoke(self.lease, timeout)


class ClaimOp(_Keyed[Claim]):
    """Claim the lock ``key``, or look where the claim stands: one that stands keeps its place."""

    __slots__ = ("lease",)
    called, effect = "lock_claim", Effect.REPEATABLE

    def __init__(self, key: str, lease: int) -> None:
        self.key = key
        self.lease = lease

    def run(self, primitives: Primitives, timeout: float) -> Claim:
        return primitives._lock_claim(self.key, self.lease, timeout)


class ReleaseOp(_Keyed[bool]):
    """Take a claim back."""

    __slots__ = ("claim",)
    called, effect = "lock_release", Effect.DECIDING

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim.key)
        self.claim = claim

    def run(self, primitives: Primitives, timeout: float) -> bool:
        return primitives._lock_release(self.claim, timeout)


class PingOp(_Keyless[None]):
    """Ask whether the store answers now."""

    __slots__ = ()
    called, effect = "ping", Effect.ASKING

    def run(self, primitives: Primitives, timeout: float) -> None:
        primitives._ping(timeout)

    def ask(self, primitives: AsyncPrimitives, timeout: float) -> Awaitable[None]:
        return primitives._ping(timeout)
