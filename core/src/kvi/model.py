"""The values that cross the interface: entries, key spans, compares, operations and results.

All of them are immutable and safe to share between threads.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, NoReturn, cast

from kvi.errors import InvalidArgument, is_whole, shown
from kvi.text import check_value, prefix_end

__all__ = [
    "Claim",
    "Compare",
    "Delete",
    "Event",
    "EventType",
    "Get",
    "Grant",
    "Key",
    "KeyValue",
    "LeaseInfo",
    "LeaseRef",
    "Operation",
    "Operator",
    "Put",
    "RangeResult",
    "Scan",
    "Span",
    "Target",
    "Txn",
    "TxnResult",
]


MAX_NUMBER = 2**63 - 1  # no store counts further


class KeyValue(NamedTuple):
    """One entry of a store, as it was at one revision.

    Read the fields by name; that the record is a tuple underneath makes it cheap, and new fields
    may be added at its end.

    Attributes:
        key: the key, relative to the namespace that it was read through.
        value: the bytes under it; ``None`` only where ``keys_only=True`` was asked.
        revision: the store's revision of the last change of this key.
        create_revision: the revision that created it, later than any earlier life of the key.
        version: how many writes since then, this one included; ``None`` where
            ``capabilities.key_version`` is false.
        lease: the id of the lease that the key vanishes with, or ``None``.

    """

    key: str
    value: bytes | None
    revision: int
    create_revision: int
    version: int | None = None
    lease: int | None = None

    @property
    def text(self) -> str:
        """The value decoded as UTF-8. Raises `InvalidArgument` if it is not, or was not read."""
        try:
            return self._bytes().decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"the value is not UTF-8: {error}", key=self.key) from error

    def json(self) -> Any:
        """The value parsed as JSON. Raises `InvalidArgument` if it is not, or was not read."""
        import json  # costs 2 ms, and most programs read bytes or text

        try:
            return json.loads(self._bytes())
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the value is not JSON: {error}", key=self.key) from error

    def _bytes(self) -> bytes:
        if self.value is None:
            raise InvalidArgument("the value was not read: keys_only=True", key=self.key)
        return self.value


class LeaseRef:
    """What may be given as ``lease=``, beside an id: a `kvi.Lease`.

    Attributes:
        id: the id of the lease.
        alive: whether it is surely alive at this moment.

    """

    __slots__ = ()

    @property
    def id(self) -> int:
        """The id of the lease."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether it is surely alive at this moment."""
        raise NotImplementedError


class Grant(NamedTuple):
    """A lease as a backend granted it: its id (above 0) and its time to live in seconds."""

    id: int
    ttl: float


class LeaseInfo(NamedTuple):
    """A lease as the store tells of it, for people to look at; for backends.

    Attributes:
        id: the id of the lease.
        ttl: its time to live in seconds.
        left: the seconds that it still has unless it is renewed; ``None`` where the store does not
            tell.
        keys: its keys, in key order; ``None`` where the store does not tell, or nobody asked.

    """

    id: int
    ttl: float
    left: float | None
    keys: list[str] | None


class EventType(enum.StrEnum):
    """What an event tells."""

    PUT = "PUT"
    DELETE = "DELETE"
    RESYNC = "RESYNC"


class Event(NamedTuple):
    """One change of one key, or a `RESYNC`. Read the fields by name; more may be added at the end.

    Attributes:
        type: ``PUT``, ``DELETE``, or ``RESYNC``: the store no longer has the changes that come
            next, so that the whole present state is in ``snapshot`` instead.
        key: the key, relative to the namespace that is watched through; ``""`` for ``RESYNC``.
        value: the new value; ``None`` unless ``type`` is ``PUT``.
        revision: of the change; of the snapshot for ``RESYNC``. Where
            ``capabilities.watch_history`` is false, a ``DELETE`` has the revision at which it was
            noticed.
        previous: the entry before the change, where the store knows it.
        initial: part of the state at the beginning (``initial=True``), not a change.
        snapshot: for ``RESYNC``: the entries of all watched keys, in key order; else ``None``.
        created: for ``PUT`` where ``capabilities.watch_history`` is false: the revision at which
            the key was created, if the store tells; else ``None``. If that is after the state that
            was known, the key was deleted in between.

    """

    type: EventType
    key: str
    value: bytes | None
    revision: int
    previous: KeyValue | None = None
    initial: bool = False
    snapshot: list[KeyValue] | None = None
    created: int | None = None


class Claim(NamedTuple):
    """Where a lease stands in the queue for a lock; for backends, see `Kvi._lock_claim`.

    Attributes:
        key: the key that the claim stands on.
        fence: grows from one holder of the lock to the next. Meaningless while ``ahead`` is set.
        guard: true in a transaction as long as the lock is held under this claim.
        ahead: the key to wait for, until it is deleted or let go; ``None``: the lock is held.
        revision: a watch for changes of ``ahead`` starts behind this revision, where the store
            has watch history.

    """

    key: str
    fence: int
    guard: Compare
    ahead: str | None
    revision: int


@dataclass(frozen=True, slots=True)
class Span:
    """The half-open span of keys ``[start, end)``.

    Attributes:
        start: the first key; ``""`` is below every key.
        end: the first key behind the span, or ``None`` for no end.
        prefix: if the span is all keys with a prefix, that prefix; the key that equals the
            prefix may be left out, by ``start``.

    """

    start: str = ""
    end: str | None = None
    prefix: str | None = None

    @classmethod
    def of_prefix(cls, prefix: str) -> Span:
        """All keys that start with ``prefix``; the empty prefix spans every key."""
        return cls(prefix, prefix_end(prefix), prefix)

    @property
    def empty(self) -> bool:
        """Whether no key can lie in it; the smallest key is a single NUL."""
        return self.end is not None and (self.start or "\0") >= self.end

    @property
    def common_prefix(self) -> str:
        """The longest text that every key of the span surely starts with."""
        if self.prefix is not None:
            return self.prefix
        if self.end is None:
            return ""
        size = 0
        for ours, theirs in zip(self.start, self.end, strict=False):
            if ours != theirs:
                break
            size += 1
        return self.start[:size]

    def __contains__(self, key: str) -> bool:
        return self.start <= key and (self.end is None or key < self.end)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a range read is to deliver: checked arguments of `Kvi.range`, for a backend.

    Attributes:
        span: which keys.
        limit: how many entries at the most, at least 1; ``None`` for all.
        reverse: from the last key down.
        keys_only: leave the values out (``KeyValue.value`` is ``None``).
        revision: read the state as it was then, at least 1; ``None``: as it is. Given only where
            ``read_at_revision``.

    """

    span: Span
    limit: int | None = None
    reverse: bool = False
    keys_only: bool = False
    revision: int | None = None


Page = Iterable[KeyValue]


class RangeResult(Iterable[KeyValue]):
    """The entries of a range, read page by page while they are iterated.

    The first page is read by the call itself, so that an unreachable store fails there. Iterating
    again starts over, at the same revision where ``capabilities.snapshot_range`` is true. Each
    page is bounded by the call's ``timeout``; a page that fails raises at that point of the
    iteration. Safe to iterate from several threads, each with an iterator of its own.

    A snapshot may keep resources of the store (a read transaction, a temporary file) until the
    last iterator and the result itself are dropped.

    Attributes:
        revision: the revision that the entries were read at, or ``None`` where the store has no
            snapshots.

    """

    __slots__ = ("_pages", "revision")

    def __init__(
        self,
        revision: int | None,
        pages: Callable[[], Iterable[Page] | AsyncIterable[Page]],
    ) -> None:
        """For backends: ``pages`` starts one pass over the entries, in order, page by page.

        That of a `kvi.async_primitives.AsyncPrimitives` is iterated with ``async for``.
        """
        self.revision = revision
        self._pages = pages

    def __repr__(self) -> str:
        return f"<RangeResult at revision {self.revision}>"

    def __iter__(self) -> Iterator[KeyValue]:
        return chain.from_iterable(cast("Iterable[Page]", self._pages()))

    def map_pages(self, change: Callable[[Page], Page]) -> RangeResult:
        """For wrappers: the same result with each of its pages sent through ``change``."""

        def changed() -> Iterable[Page] | AsyncIterable[Page]:
            found = pages()
            if isinstance(found, AsyncIterable):
                return _Changed(aiter(found), change)
            return map(change, found)

        pages = self._pages
        return RangeResult(self.revision, changed)


class _Changed(AsyncIterator[Page]):
    """As ``map``; no generator, so that one that is dropped ends what is below it at once."""

    __slots__ = ("_change", "_pages")

    def __init__(self, pages: AsyncIterator[Page], change: Callable[[Page], Page]) -> None:
        self._pages = pages
        self._change = change

    async def __anext__(self) -> Page:
        return self._change(await anext(self._pages))


class Pass:
    """One pass over the pages of a range, of a store of either kind. For one reader at a time."""

    __slots__ = ("_pages",)

    def __init__(self, found: RangeResult) -> None:
        pages = found._pages()
        self._pages = aiter(pages) if isinstance(pages, AsyncIterable) else iter(pages)

    async def next(self) -> Page | None:
        """The next page, ``None`` after the last. Suspends only where the store is asked so."""
        pages = self._pages
        if isinstance(pages, AsyncIterator):
            return await anext(pages, None)
        return next(pages, None)

    def close(self) -> None:
        """End it. What an event loop iterates ends there, once it is dropped."""
        close = getattr(self._pages, "close", None)
        if close is not None:
            close()


class Operator(enum.StrEnum):
    """How a compare relates what is stored to what was given."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    GREATER = ">"


class Target(enum.StrEnum):
    """Which property of a key a compare looks at."""

    VALUE = "value"
    REVISION = "revision"
    CREATE_REVISION = "create_revision"
    VERSION = "version"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction; made by `Key`, for example ``Key("k").value == b"v"``."""

    key: str
    target: Target
    operator: Operator
    operand: bytes | int

    def __bool__(self) -> NoReturn:
        raise InvalidArgument(
            "a compare is a condition for txn(when=[...]), it is not true or false by itself",
            key=self.key,
        )


class _Property:
    """One property of a key, waiting to be compared. Made by `Key`."""

    __slots__ = ("_key", "_target")
    __hash__ = None  # type: ignore[assignment]  # == makes a Compare, so there is no equality to hash

    def __init__(self, key: str, target: Target) -> None:
        self._key = key
        self._target = target

    def compare(self, operator: str, operand: bytes | str | int | LeaseRef) -> Compare:
        """Return the compare with ``operator``, one of ``= != < >`` (``==`` is taken for ``=``)."""
        try:
            op = Operator("=" if operator == "==" else operator)
        except ValueError:
            raise InvalidArgument(
                f"unknown operator {shown(operator)}; the operators are = != < >", key=self._key
            ) from None
        if isinstance(operand, LeaseRef) and self._target is Target.LEASE:
            operand = operand.id
        if self._target is Target.VALUE:
            if isinstance(operand, int) or operand is None:
                raise InvalidArgument(
                    f"a value compares with bytes or str, not {type(operand).__name__}"
                    + ("; use Key(...).absent" if operand is None else ""),
                    key=self._key,
                )
            return Compare(
                self._key, self._target, op, check_value(operand, None, "a value to compare with")
            )
        if not is_whole(operand) or operand < 0:
            raise InvalidArgument(
                f"{self._target} compares with an integer that is not negative, "
                f"not {shown(operand)}",
                key=self._key,
            )
        if operand > MAX_NUMBER and self._target is not Target.LEASE:
            raise InvalidArgument(f"{self._target} is at most {MAX_NUMBER}", key=self._key)
        return Compare(self._key, self._target, op, operand)

    def __eq__(self, operand: bytes | str | int | LeaseRef) -> Compare:  # type: ignore[override]
        return self.compare("=", operand)

    def __ne__(self, operand: bytes | str | int | LeaseRef) -> Compare:  # type: ignore[override]
        return self.compare("!=", operand)

    def __lt__(self, operand: bytes | str | int) -> Compare:
        return self.compare("<", operand)

    def __gt__(self, operand: bytes | str | int) -> Compare:
        return self.compare(">", operand)

    def __le__(self, operand: object) -> NoReturn:
        raise InvalidArgument("a compare takes == != < >, not <=", key=self._key)

    def __ge__(self, operand: object) -> NoReturn:
        raise InvalidArgument("a compare takes == != < >, not >=", key=self._key)

    def __bool__(self) -> NoReturn:
        raise InvalidArgument("compare this property with something: == != < >", key=self._key)


@dataclass(frozen=True, slots=True)
class Key:
    """Names a key in a transaction's conditions.

    ``Key("k").value == b"v"``, ``Key("k").revision > 7``, ``Key("k").exists``. A missing key
    compares as revision, create revision, version and lease 0; a compare of its value is false,
    whatever the operator.
    """

    key: str

    @property
    def value(self) -> _Property:
        """The stored bytes, ordered as bytes."""
        return _Property(self.key, Target.VALUE)

    @property
    def revision(self) -> _Property:
        """The revision of the key's last change."""
        return _Property(self.key, Target.REVISION)

    @property
    def create_revision(self) -> _Property:
        """The revision that created the key."""
        return _Property(self.key, Target.CREATE_REVISION)

    @property
    def version(self) -> _Property:
        """The writes since creation; `NotSupported` where ``capabilities.key_version`` is false."""
        return _Property(self.key, Target.VERSION)

    @property
    def lease(self) -> _Property:
        """The id of the key's lease, 0 for none; compares with a lease or its id."""
        return _Property(self.key, Target.LEASE)

    @property
    def exists(self) -> Compare:
        """True if the key is there."""
        return Compare(self.key, Target.CREATE_REVISION, Operator.GREATER, 0)

    @property
    def absent(self) -> Compare:
        """True if the key is not there."""
        return Compare(self.key, Target.CREATE_REVISION, Operator.EQUAL, 0)


def checked(compare: Compare) -> Compare:
    """A compare that was made by hand, as `Key` would have made it; raises `InvalidArgument`."""
    numeric = compare.target is not Target.VALUE
    if (
        type(compare.target) is Target
        and type(compare.operator) is Operator
        and type(compare.operand) is (int if numeric else bytes)
        and (not isinstance(compare.operand, int) or 0 <= compare.operand <= MAX_NUMBER)
    ):
        return compare
    try:
        target = Target(compare.target)
    except ValueError:
        raise InvalidArgument(
            f"unknown property {shown(compare.target)}", key=compare.key
        ) from None
    return _Property(compare.key, target).compare(compare.operator, compare.operand)


@dataclass(frozen=True, slots=True)
class Put:
    """Create or replace a key. ``lease`` is a lease or its id; without, the key is permanent."""

    key: str
    value: bytes | str
    lease: int | LeaseRef | None = None


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key; sees the writes that stand before it in the branch."""

    key: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; deleting nothing is no error."""

    key: str


Operation = Put | Get | Delete


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction with checked arguments, for a backend.

    Every `Put.value` is ``bytes``, and every `Put.lease` an id or ``None``.

    Attributes:
        when: the compares that decide.
        then: runs if all of them hold.
        otherwise: runs if one does not.
        operation: the method of `Kvi` that it comes from, for those who observe.
        repeatable: done twice it does what it does once, and its answer is as true.

    """

    when: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()
    operation: str = field(default="txn", compare=False)
    repeatable: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What a transaction did. As a condition it is true if the ``then`` branch ran.

    Attributes:
        succeeded: whether every compare held, so that ``then`` ran and not ``otherwise``.
        revision: of the commit; the store's present one if nothing was written; ``None`` where
            the store does not tell.
        results: one per operation of the branch that ran: for `Get` the entry or ``None``, for
            `Put` the revision (or ``None``, as ``revision``), for `Delete` whether the key was
            there.

    """

    succeeded: bool
    revision: int | None
    results: tuple[KeyValue | int | bool | None, ...] = field(default=())

    def __bool__(self) -> bool:
        return self.succeeded
