"""The arguments of public calls, checked: what the faces for threads and for asyncio share.

Each function raises what the call raises for bad input, before anything is sent, and else gives
the operation, or a part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from kvi.capabilities import Capabilities
from kvi.errors import InvalidArgument, NotSupported, is_whole, shown
from kvi.model import (
    MAX_NUMBER,
    Compare,
    Delete,
    EventType,
    Key,
    LeaseRef,
    Operation,
    Put,
    Scan,
    Span,
)
from kvi.ops import GetOp, HistoryOp, PutOp
from kvi.policy.txn import check_lease
from kvi.text import check_bound, check_key, check_value

Test = tuple[Compare, tuple[Operation, ...]]


def span_of(limits: Capabilities, start: str | None, end: str | None, prefix: str | None) -> Span:
    """The keys of a half-open ``[start, end)``, or of a prefix."""
    longest = limits.max_key
    if prefix is not None:
        if start is not None or end is not None:
            raise InvalidArgument("prefix= cannot stand beside start= or end=; give one")
        return Span.of_prefix(check_bound("prefix", prefix, longest))
    low = "" if start is None else check_bound("start", start, longest)
    return Span(low, None if end is None else check_bound("end", end, longest))


def deleted_span(
    limits: Capabilities, start: str | None, end: str | None, prefix: str | None
) -> Span:
    """The keys of ``delete_range``, which needs a bound."""
    span = span_of(limits, start, end, prefix)
    if start is None and end is None and prefix is None:
        raise InvalidArgument(
            'delete_range needs start=, end= or prefix=; prefix="" deletes everything'
        )
    return span


def watched_span(
    limits: Capabilities, key: str | None, prefix: str | None, start: str | None, end: str | None
) -> Span:
    """The keys of ``watch``, which needs a key or a bound."""
    if key is not None:
        if not (prefix is None and start is None and end is None):
            raise InvalidArgument("key= excludes prefix=, start= and end=; give one")
        key = check_key(key, limits.max_key)
        return Span(key, key + "\0")
    if prefix is None and start is None and end is None:
        raise InvalidArgument(
            'watch needs a key, prefix=, start= or end=; prefix="" watches everything'
        )
    return span_of(limits, start, end, prefix)


def check_limit(limit: object) -> int | None:
    """How much to read at the most; ``None`` for all. Raises `InvalidArgument`."""
    if limit is not None and (not is_whole(limit) or limit < 0):
        raise InvalidArgument(f"limit= is a whole number that is not negative, not {shown(limit)}")
    return None if limit is None or limit > sys.maxsize else limit


def check_revision(limits: Capabilities, revision: object) -> int:
    """The revision to read at. Raises `NotSupported` where the store cannot, `InvalidArgument`."""
    if not limits.read_at_revision:
        raise NotSupported(
            "this store cannot be read as it was (capabilities.read_at_revision is false); "
            "leave revision= out"
        )
    if not is_whole(revision) or revision < 0:
        raise InvalidArgument(f"revision= is an integer from 0 on, not {shown(revision)}")
    if revision > MAX_NUMBER:
        raise InvalidArgument(f"no store has come to revision {shown(revision)} yet")
    return revision


def scan_of(
    limits: Capabilities,
    span: Span,
    limit: int | None,
    reverse: bool,
    keys_only: bool,
    revision: int | None,
) -> Scan:
    """What ``range`` reads; nothing if its limit is 0 or its span is empty."""
    at = None if revision is None else check_revision(limits, revision)
    return Scan(span, check_limit(limit), bool(reverse), bool(keys_only), at)


def is_nothing(scan: Scan) -> bool:
    """Whether there is nothing to read, whatever the store has. At revision 0 it had nothing."""
    return scan.limit == 0 or scan.span.empty or scan.revision == 0


def probe_of(limits: Capabilities, scan: Scan) -> Scan | None:
    """A range that tells of the revision where ``scan`` is, which has nothing to read.

    ``None`` where that is the scan's own, or where ranges have none.
    """
    if scan.revision == 0 or (scan.revision is None and not limits.snapshot_range):
        return None
    # asked where the caller asks, for permissions may end beside it
    span = scan.span
    key = span.start or "\0"
    span = Span(key, key + "\0") if span.empty else span
    return Scan(span, limit=1, keys_only=True, revision=scan.revision)


def get_of(limits: Capabilities, key: str, revision: int | None) -> GetOp:
    """The operation of ``get``."""
    key = check_key(key, limits.max_key)
    return GetOp(key, None if revision is None else check_revision(limits, revision))


def history_of(limits: Capabilities, key: str, limit: int | None) -> HistoryOp:
    """The operation of ``history``."""
    if not limits.watch_history:
        raise NotSupported("this store keeps no history (capabilities.watch_history is false)")
    return HistoryOp(check_key(key, limits.max_key), check_limit(limit))


def put_of(
    limits: Capabilities, key: str, value: bytes | str, lease: int | LeaseRef | None
) -> PutOp:
    """The operation of ``store``."""
    key = check_key(key, limits.max_key)
    return PutOp(key, check_value(value, limits.max_value), check_lease(lease))


def tas_of(key: str, test: bytes | str | None, new: bytes | str | None) -> Test:
    """The condition of ``tas``, and what it does."""
    when = Key(key).absent if test is None else Key(key).value.compare("=", test)
    if new is not None:
        return when, (Put(key, new),)
    return when, () if test is None else (Delete(key),)


def cas_of(key: str, revision: int, value: bytes | str, lease: int | LeaseRef | None) -> Test:
    """The condition of ``cas``, and what it does."""
    return Key(key).revision.compare("=", revision), (Put(key, value, lease),)


def check_function(function: object, kind: str) -> None:
    """Raise `InvalidArgument` for what cannot be called."""
    if not callable(function):
        raise InvalidArgument(f"fn= is a function of {kind}, not {shown(function)}")


def check_watch(
    limits: Capabilities,
    from_revision: object,
    initial: object,
    events: object,
    callback: Callable[..., Any] | None,
) -> frozenset[EventType] | None:
    """Check what ``watch`` was given beside its keys; returns the kinds of events to keep."""
    if from_revision is not None:
        if not limits.watch_history:
            raise NotSupported(
                "this store keeps no history (capabilities.watch_history is false); watch with "
                "initial=True instead of from_revision="
            )
        if not is_whole(from_revision) or not 1 <= from_revision <= MAX_NUMBER:
            raise InvalidArgument(
                f"from_revision= is a revision, an integer from 1 on, not {shown(from_revision)}"
            )
        if initial:
            raise InvalidArgument(
                "initial=True begins with the present state and from_revision= in the past; "
                "give one of them"
            )
    if callback is not None and not callable(callback):
        raise InvalidArgument(
            f"callback= is a function of (event, user_data), not {shown(callback)}"
        )
    return _kinds(events)


def _kinds(events: EventType | Iterable[EventType] | object) -> frozenset[EventType] | None:
    if events is None:
        return None
    given = [events] if isinstance(events, str) else events  # an EventType is a str too
    try:
        kinds = frozenset(EventType(kind) for kind in given)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        kinds = frozenset()
    if not kinds:
        raise InvalidArgument(
            f"events= takes EventType.PUT, .DELETE or .RESYNC, one or several, not {shown(events)}"
        )
    return kinds
