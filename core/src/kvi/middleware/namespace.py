"""The keys below ``name/``, seen as a whole store: two pure functions, and who applies them.

Every key gets the prefix on its way in and loses it on its way out, in results as in errors (which
the public methods place with the caller's own key). An open bound becomes the bound of the
namespace, so that no span can reach outside of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from kvi.call import Call
from kvi.capabilities import Capabilities
from kvi.errors import InvalidKey, InvalidOption
from kvi.feed import Batch, WatchSpec
from kvi.model import (
    Claim,
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    LeaseInfo,
    Operation,
    Put,
    RangeResult,
    Span,
    Txn,
    TxnResult,
)
from kvi.ops import (
    ClaimOp,
    CountOp,
    DeleteOp,
    DeleteRangeOp,
    Executor,
    GetOp,
    HistoryOp,
    InnerPageOp,
    LeasesOp,
    Op,
    PageOp,
    PutOp,
    RangeOp,
    ReleaseOp,
    TxnOp,
    WatchOp,
)
from kvi.text import check_bound, prefix_end

T = TypeVar("T")
MIN_MAX_KEY = 4096  # what the contract leaves for keys at the least


class Prefixed:
    """The keys below ``prefix``."""

    __slots__ = ("_inner", "_prefix")
    is_short = False

    def __init__(self, inner: Executor, prefix: str) -> None:
        self._inner = inner
        self._prefix = prefix

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it with the prefix, and take it off the result."""
        result = await self._inner.execute(inward(op, self._prefix), call)
        return outward(result, len(self._prefix))


def inward(op: Op[T], prefix: str) -> Op[T]:
    """An operation of the view as one of the store below."""
    into: Any
    match op:
        case GetOp():
            into = GetOp(prefix + op.key, op.revision)
        case HistoryOp():
            into = HistoryOp(prefix + op.key, op.limit)
        case PutOp():
            into = PutOp(prefix + op.key, op.value, op.lease)
        case DeleteOp():
            into = DeleteOp(prefix + op.key)
        case TxnOp():
            into = TxnOp(_txn_in(op.txn, prefix))
        case RangeOp():
            scan = op.scan
            into = RangeOp(replace(scan, span=_span_in(scan.span, prefix)))
        case PageOp():  # its entries were taken in and out already
            into = InnerPageOp(op, _span_in(op.span, prefix))
        case CountOp():
            into = CountOp(_span_in(op.span, prefix))
        case DeleteRangeOp():
            into = DeleteRangeOp(_span_in(op.span, prefix))
        case WatchOp():
            spec = op.spec
            into = WatchOp(
                WatchSpec(_span_in(spec.span, prefix), spec.start, spec.initial), op.wake
            )
        case ClaimOp():
            into = ClaimOp(prefix + op.key, op.lease)
        case LeasesOp():
            into = op if op.span is None else LeasesOp(op.ids, _span_in(op.span, prefix))
        case ReleaseOp():
            into = ReleaseOp(_claim(op.claim, lambda key: prefix + key))
        case _:  # without keys
            into = op
    return into  # type: ignore[no-any-return]


def outward(result: T, skip: int) -> T:
    """A result of the store below as one of the view: its keys lose ``skip`` characters."""
    out: Any = result
    match out:
        case KeyValue():
            out = _entry_out(out, skip)
        case RangeResult():
            out = out.map_pages(lambda page: (_entry_out(entry, skip) for entry in page))
        case TxnResult():
            results = tuple(
                _entry_out(one, skip) if isinstance(one, KeyValue) else one for one in out.results
            )
            out = TxnResult(out.succeeded, out.revision, results)
        case Batch():
            out = Batch([_event_out(event, skip) for event in out.events], out.revision)
        case Claim():
            out = _claim(out, lambda key: key[skip:])
        case [Event(), *_]:
            out = [_event_out(event, skip) for event in out]
        case [LeaseInfo(), *_]:
            out = [_lease_out(one, skip) for one in out]
    return out  # type: ignore[no-any-return]


def narrowed(limits: Capabilities, prefix: str) -> Capabilities:
    """The capabilities of a view. Raises `InvalidOption` if it leaves too little for keys."""
    if limits.max_key is None:
        return limits
    longest = limits.max_key - len(prefix.encode())
    if longest < MIN_MAX_KEY:
        raise InvalidOption(
            f"the namespace leaves {longest:,} bytes for keys, under {MIN_MAX_KEY:,}; shorten it"
        )
    return replace(limits, max_key=longest)


def check_name(name: str) -> str:
    """Return the name of a namespace if it is one; raises `InvalidOption`."""
    try:
        check_bound("namespace", name)
    except InvalidKey as error:
        raise InvalidOption(error.message) from None
    if not name or name.startswith("/") or name.endswith("/"):
        raise InvalidOption(
            f"a namespace is text that neither begins nor ends with a slash, not {name!r}"
        )
    return name


def _txn_in(txn: Txn, prefix: str) -> Txn:
    return replace(
        txn,
        when=tuple(Compare(prefix + c.key, c.target, c.operator, c.operand) for c in txn.when),
        then=tuple(_operation_in(op, prefix) for op in txn.then),
        otherwise=tuple(_operation_in(op, prefix) for op in txn.otherwise),
    )


def _operation_in(op: Operation, prefix: str) -> Operation:
    key = prefix + op.key
    match op:
        case Put():
            return Put(key, op.value, op.lease)
        case Get():
            return Get(key)
        case Delete():
            return Delete(key)


def _span_in(span: Span, prefix: str) -> Span:
    # ``name/`` itself, which other tools store as a mark of a folder, is no key of the view
    start = prefix + (span.start or "\0")
    end = prefix_end(prefix) if span.end is None else prefix + span.end
    everything = not span.start and span.end is None
    inner = prefix if everything else None if span.prefix is None else prefix + span.prefix
    return Span(start, end, inner)


def _claim(claim: Claim, change: Any) -> Claim:
    guard = replace(claim.guard, key=change(claim.guard.key))
    ahead = None if claim.ahead is None else change(claim.ahead)
    return Claim(change(claim.key), claim.fence, guard, ahead, claim.revision)


def _entry_out(entry: KeyValue, skip: int) -> KeyValue:
    return KeyValue(entry.key[skip:], *entry[1:])


def _lease_out(lease: LeaseInfo, skip: int) -> LeaseInfo:
    if lease.keys is None:
        return lease
    return lease._replace(keys=[key[skip:] for key in lease.keys])


def _event_out(event: Event, skip: int) -> Event:
    kind, key, value, revision, previous, initial, snapshot, created = event
    if previous is not None:
        previous = _entry_out(previous, skip)
    if snapshot is not None:
        snapshot = [_entry_out(entry, skip) for entry in snapshot]
    return Event(kind, key[skip:], value, revision, previous, initial, snapshot, created)
