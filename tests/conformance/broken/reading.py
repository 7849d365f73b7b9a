"""Stores that read wrongly."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvi.errors import InvalidArgument
from kvi.model import KeyValue, Put, RangeResult, Scan, Span, Txn, TxnResult
from kvi.ops import RangeOp

from tests.conformance.broken.correct import Correct, Handle, broken


@broken("get.absent")
class MissingIsAnError(Correct):
    """Reading a key that is not there is an error."""

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        entry = super()._get(key, timeout)
        if entry is None:
            raise InvalidArgument("there is no such key")
        return entry


@broken("get.absent")
class MissingIsEmpty(Correct):
    """Reading a key that is not there gives an empty entry."""

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        return super()._get(key, timeout) or KeyValue(key, b"", 0, 0, 0)


@broken("get.absent")
class FindsFolders(Correct):
    """Reading the key above one that is there gives that one."""

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        below = self._range(Scan(Span.of_prefix(f"{key}/"), limit=1), timeout)
        return super()._get(key, timeout) or next(iter(below), None)


@broken("get.linearizable")
class Stale(Correct):
    """Each handle keeps what it has read, until it writes itself."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.cache: dict[str, KeyValue | None] = {}

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        if key not in self.cache:
            self.cache[key] = super()._get(key, timeout)
        return self.cache[key]

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        self.cache.clear()
        return super()._txn(txn, timeout)


@broken("get.linearizable")
class ReadsWhatWasRefused(Correct):
    """What a transaction would have written is read once, although it was not."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        done = super()._txn(txn, timeout)
        if not done:
            self.notes.update({op.key: op.value for op in txn.then if isinstance(op, Put)})
        return done

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        entry = super()._get(key, timeout)
        return entry and entry._replace(value=self.notes.pop(key, entry.value))


@broken("range.bounds")
class EndInclusive(Correct):
    """The end of a range is one of its keys."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        end = scan.span.end
        span = Span(scan.span.start, None if end is None else end + "\0")
        return super()._range(replace(scan, span=span), timeout)


@broken("range.bounds")
class StartExclusive(Correct):
    """The start of a range is none of its keys."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        span = Span(scan.span.start and scan.span.start + "\0", scan.span.end)
        return super()._range(replace(scan, span=span), timeout)


@broken("range.bounds")
class InOrderOfWriting(Correct):
    """A range is sorted by revision."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        entries = sorted(found, key=lambda entry: entry.revision, reverse=scan.reverse)
        return RangeResult(found.revision, lambda: (entries,))


@broken("range.bounds")
class PrefixIsAFolder(Correct):
    """A prefix finds only what is below it with a slash."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        prefix = scan.span.prefix
        if prefix and not prefix.endswith("/"):
            scan = replace(scan, span=Span.of_prefix(f"{prefix}/"))
        return super()._range(scan, timeout)


@broken("range.bounds")
class NeverBackwards(Correct):
    """`reverse` is ignored."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return super()._range(replace(scan, reverse=False), timeout)


@broken("range.bounds")
class CountsOneMore(Correct):
    """`count` includes the end."""

    def _count(self, span: Span, timeout: float) -> int:
        end = span.end
        return super()._count(Span(span.start, None if end is None else end + "\0"), timeout)


@broken("range.limit")
class OneMore(Correct):
    """A limit gives one entry more."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        limit = None if scan.limit is None else scan.limit + 1
        return super()._range(replace(scan, limit=limit), timeout)


@broken("range.limit")
class LimitsBeforeReversing(Correct):
    """A limited range backwards gives the first entries, the last of them first."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(replace(scan, reverse=False), timeout)
        entries = list(found)[:: -1 if scan.reverse else 1]
        return RangeResult(found.revision, lambda: (entries,))


@broken("range.limit")
class NoneIsAll(Correct):
    """A limit of 0 is none."""

    class face(Handle):
        def _nothing(self, scan: Scan, timeout: float | None) -> RangeResult:
            return (
                super()._nothing(scan, timeout)
                if scan.span.empty
                else self._do(RangeOp(replace(scan, limit=None)), timeout)
            )


@broken("range.keys-only")
class KeysWithValues(Correct):
    """`keys_only` gives values as well."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return super()._range(replace(scan, keys_only=False), timeout)


@broken("range.keys-only")
class ValuesOfWhatChanged(Correct):
    """`keys_only` gives the values of keys that are changed before their page is read."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        old = {entry.key: entry for entry in super()._range(Scan(scan.span), timeout)}

        def pages() -> Iterator[list[KeyValue]]:
            for entry in found:
                before = old[entry.key]
                yield [
                    before if scan.keys_only and self._state.read(entry.key) != before else entry
                ]

        return RangeResult(found.revision, pages)


@broken("range.keys-only")
class KeysAndNothingElse(Correct):
    """`keys_only` leaves the version out too."""

    def show(self, entry: KeyValue) -> KeyValue:
        return entry._replace(version=None) if entry.value is None else entry


@broken("range.invalid")
class NegativeIsAll(Correct):
    """A negative limit is none."""

    class face(Handle):
        def range(self, *bounds: Any, limit: int | None = None, **options: Any) -> RangeResult:
            limit = None if isinstance(limit, int) and limit < 0 else limit
            return super().range(*bounds, limit=limit, **options)


@broken("range.invalid")
class PrefixWins(Correct):
    """Bounds beside a prefix are ignored."""

    class face(Handle):
        def range(self, *bounds: Any, prefix: str | None = None, **options: Any) -> RangeResult:
            if prefix is not None:
                bounds, options = (), {**options, "start": None, "end": None}
            return super().range(*bounds, prefix=prefix, **options)


@broken("range.long")
class CutAtAThousand(Correct):
    """A range ends after a thousand entries."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        limit = 1000 if scan.limit is None else min(1000, scan.limit)
        return super()._range(replace(scan, limit=limit), timeout)


@broken("range.long")
class PagesOverlap(Correct):
    """Each page begins with the last entry of the one before."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        entries = list(super()._range(scan, timeout))
        pages = [entries[max(0, i - 1) : i + 100] for i in range(0, len(entries), 100)]
        return RangeResult(self._state.revision, lambda: pages)


@broken("range.long")
class IteratedOnce(Correct):
    """A range that is iterated again is empty."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        pages = iter([list(found)])
        return RangeResult(found.revision, lambda: pages)


@broken("range.snapshot")
class PagesOfTheMoment(Correct):
    """Each page of a range is of the moment when it is read."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        keys = [entry.key for entry in found]

        def pages() -> Iterator[list[KeyValue]]:
            for key in keys:
                now = self._get(key, timeout)
                yield [] if now is None else [now._replace(value=None) if scan.keys_only else now]

        return RangeResult(found.revision, pages)


@broken("range.snapshot")
class NoRevision(Correct):
    """Snapshots are declared, and ranges do not tell of which revision they are."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return RangeResult(None, super()._range(scan, timeout)._pages)


@broken("range.snapshot")
class RevisionOfItsEntries(Correct):
    """A range tells the last revision of its entries, not that of the store."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        return RangeResult(max((entry.revision for entry in found), default=0), found._pages)


@broken("range.snapshot", snapshot_range=False)
class SnapshotsUndeclared(Correct):
    """Ranges have a revision, and are declared not to."""


@broken("range.bounds")
class CountsToTheLastUnit(Correct):
    """`count` of a prefix leaves out the keys whose rest begins beyond U+FFFF."""

    def _count(self, span: Span, timeout: float) -> int:
        end = span.end if span.prefix is None else f"{span.prefix}\uffff"
        return super()._count(Span(span.start, end), timeout)


@broken("range.bounds")
class BoundsInUtf16(Correct):
    """Bounds compare by their UTF-16 units, and what lies between them is sorted well."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        start, end = scan.span.start, scan.span.end

        def within(key: str) -> bool:
            units = key.encode("utf-16-be")
            above = start.encode("utf-16-be") <= units
            return above and (end is None or units < end.encode("utf-16-be"))

        if scan.span.prefix is not None:
            return super()._range(scan, timeout)
        found = super()._range(replace(scan, span=Span(), limit=None), timeout)
        return found.map_pages(lambda page: [e for e in page if within(e.key)][: scan.limit])
