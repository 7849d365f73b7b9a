"""Operations as values: what is asked of a store, from the checked arguments of a call.

Each has a name (as observers see it), a key (for messages), what doing it twice means
(`kvi.policy.retry.Effect`), and knows the primitive that does it. So whatever stands between a
handle and its store is one method, ``execute(op, call)``, and not one for each operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from kvi.call import Call
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import Claim, Get, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult
from kvi.policy.retry import Effect
from kvi.primitives import Primitives

T = TypeVar("T")


class Op(Generic[T]):
    """One operation.

    Attributes:
        called: its name; ``""``: observers do not see it.
        proves: whether its success proves that the store is alive.

    """

    __slots__ = ()

    called: ClassVar[str] = ""
    proves: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name, as observers see it."""
        return self.called

    @property
    def effect(self) -> Effect:
        """What doing it twice does."""
        return Effect.READ

    @property
    def key(self) -> str | None:
        """The key, or the lower bound, that it is about."""
        return None

    def run(self, primitives: Primitives, timeout: float) -> T:
        """Let a store do it."""
        raise NotImplementedError


class Executor(Protocol):
    """Whatever does operations: a store, or middleware over one."""

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do ``op`` within the call's deadline."""


class Direct:
    """The innermost executor: the store itself."""

    __slots__ = ("primitives",)

    def __init__(self, primitives: Primitives) -> None:
        self.primitives = primitives

    async def execute(self, op: Op[T], call: Call) -> T:
        """Ask the store."""
        return await call.port.perform(op, self.primitives, call.left())


class _Keyed(Op[T]):
    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key

    @property
    def key(self) -> str:
        return self._key


class GetOp(_Keyed["KeyValue | None"]):
    """Read one entry."""

    __slots__ = ()
    called = "get"

    def run(self, primitives: Primitives, timeout: float) -> KeyValue | None:
        return primitives._get(self._key, timeout)


class DeleteOp(_Keyed[bool]):
    """Delete one entry."""

    __slots__ = ()
    called = "delete"

    @property
    def effect(self) -> Effect:
        return Effect.WRITE

    def run(self, primitives: Primitives, timeout: float) -> bool:
        return primitives._delete(self._key, timeout)


class PutOp(_Keyed[int]):
    """Create or replace one entry."""

    __slots__ = ("lease", "value")
    called = "store"

    def __init__(self, key: str, value: bytes, lease: int | None) -> None:
        self._key = key
        self.value = value
        self.lease = lease

    @property
    def effect(self) -> Effect:
        return Effect.WRITE

    def run(self, primitives: Primitives, timeout: float) -> int:
        return primitives._put(self._key, self.value, self.lease, timeout)


@dataclass(frozen=True, slots=True)
class _Spanning(Op[T]):
    span: Span

    @property
    def key(self) -> str:
        return self.span.start


class CountOp(_Spanning[int]):
    """Count the keys of a span."""

    __slots__ = ()
    called = "count"

    def run(self, primitives: Primitives, timeout: float) -> int:
        return primitives._count(self.span, timeout)


class DeleteRangeOp(_Spanning[int]):
    """Delete the entries of a span."""

    __slots__ = ()
    called = "delete_range"

    @property
    def effect(self) -> Effect:
        return Effect.WRITE

    def run(self, primitives: Primitives, timeout: float) -> int:
        return primitives._delete_range(self.span, timeout)


@dataclass(frozen=True, slots=True)
class RangeOp(Op[RangeResult]):
    """Read the first page of a range, and promise the rest."""

    scan: Scan
    called = "range"

    @property
    def key(self) -> str:
        return self.scan.span.start

    def run(self, primitives: Primitives, timeout: float) -> RangeResult:
        return primitives._range(self.scan, timeout)


class PageOp(Op["list[KeyValue] | None"]):
    """Read the next page of a range; ``None`` after the last.

    Done again after a failure, it begins the pass over the pages anew (at the same revision, where
    the store has snapshots) and skips what was read.
    """

    __slots__ = ("_found", "_last", "_pages", "_scan", "_skip")
    called = "range_page"

    def __init__(self, found: RangeResult, scan: Scan) -> None:
        self._found = found
        self._scan = scan
        self._pages: Iterator[Iterable[KeyValue]] | None = None
        self._last: str | None = None  # the last key that was read
        self._skip: str | None = None  # up to here this pass repeats an earlier one

    @property
    def name(self) -> str:
        return "" if self._last is None else self.called  # the first came with the range

    @property
    def key(self) -> str:
        return self._scan.span.start

    def run(self, primitives: Primitives, timeout: float) -> list[KeyValue] | None:
        try:
            if self._pages is None:
                self._pages, self._skip = iter(self._found._pages()), self._last
            for page in self._pages:
                entries = list(page)
                if self._skip is not None:
                    entries = self._behind(entries, self._skip)
                if entries:
                    self._last = entries[-1].key
                    return entries
        except BaseException:
            self._pages = None
            raise
        self._pages = None
        return None

    @property
    def open(self) -> bool:
        """Whether a pass is under way."""
        return self._pages is not None

    def close(self) -> None:
        """End the pass that is under way."""
        close = getattr(self._pages, "close", None)
        self._pages = None
        if close is not None:
            close()

    def _behind(self, entries: list[KeyValue], last: str) -> list[KeyValue]:
        # Text sorts by code point, as UTF-8 does by byte.
        if self._scan.reverse:
            return [entry for entry in entries if entry.key < last]
        return [entry for entry in entries if entry.key > last]


@dataclass(frozen=True, slots=True)
class TxnOp(Op[TxnResult]):
    """Run a transaction."""

    txn: Txn
    called = "txn"

    @property
    def name(self) -> str:
        return self.txn.operation

    @property
    def effect(self) -> Effect:
        txn = self.txn
        if all(isinstance(op, Get) for op in (*txn.then, *txn.otherwise)):
            return Effect.READ
        return Effect.DECIDING if txn.when else Effect.WRITE

    @property
    def key(self) -> str | None:
        txn = self.txn
        for part in (*txn.when, *txn.then, *txn.otherwise):
            return part.key
        return None

    def run(self, primitives: Primitives, timeout: float) -> TxnResult:
        return primitives._txn(self.txn, timeout)


@dataclass(frozen=True, slots=True)
class WatchOp(Op[Feed]):
    """Begin to watch."""

    spec: WatchSpec
    wake: Wake
    called = "watch"
    proves = False

    @property
    def key(self) -> str:
        return self.spec.span.start

    def run(self, primitives: Primitives, timeout: float) -> Feed:
        return primitives._watch(self.spec, self.wake, timeout)


@dataclass(frozen=True, slots=True)
class PollOp(Op["Batch | None"]):
    """Ask a feed for what comes next. It is asked again by itself, so that nobody else tries."""

    feed: Feed
    proves = False

    @property
    def effect(self) -> Effect:
        return Effect.ASKING

    def run(self, primitives: Primitives, timeout: float) -> Batch | None:
        return self.feed.poll(timeout)


@dataclass(frozen=True, slots=True)
class _Repeatable(Op[T]):
    @property
    def effect(self) -> Effect:
        return Effect.REPEATABLE


@dataclass(frozen=True, slots=True)
class GrantOp(_Repeatable[Grant]):
    """Grant a lease. Of one whose fate is unknown, a lease without keys is left."""

    ttl: float
    called = "lease_grant"

    def run(self, primitives: Primitives, timeout: float) -> Grant:
        return primitives._lease_grant(self.ttl, timeout)


@dataclass(frozen=True, slots=True)
class RenewOp(_Repeatable[float]):
    """Let the time of a lease begin anew."""

    lease: int
    called = "lease_renew"

    def run(self, primitives: Primitives, timeout: float) -> float:
        return primitives._lease_renew(self.lease, timeout)


@dataclass(frozen=True, slots=True)
class RevokeOp(_Repeatable[None]):
    """End a lease, and its keys."""

    lease: int
    called = "lease_revoke"

    def run(self, primitives: Primitives, timeout: float) -> None:
        primitives._lease_revoke(self.lease, timeout)


@dataclass(frozen=True, slots=True)
class ClaimOp(_Repeatable[Claim]):
    """Claim a lock, or look where the claim stands: one that stands keeps its place."""

    lock: str
    lease: int
    called = "lock_claim"

    @property
    def key(self) -> str:
        return self.lock

    def run(self, primitives: Primitives, timeout: float) -> Claim:
        return primitives._lock_claim(self.lock, self.lease, timeout)


@dataclass(frozen=True, slots=True)
class ReleaseOp(Op[bool]):
    """Take a claim back."""

    claim: Claim
    called = "lock_release"

    @property
    def effect(self) -> Effect:
        return Effect.DECIDING

    @property
    def key(self) -> str:
        return self.claim.key

    def run(self, primitives: Primitives, timeout: float) -> bool:
        return primitives._lock_release(self.claim, timeout)


class PingOp(Op[None]):
    """Ask whether the store answers now."""

    __slots__ = ()
    called = "ping"

    @property
    def effect(self) -> Effect:
        return Effect.ASKING

    def run(self, primitives: Primitives, timeout: float) -> None:
        primitives._ping(timeout)
