"""Ranges of one revision, by undo: for stores that keep their history and read only the present.

The author gives two functions: `ReadPage` for a page of the present, and `kvi.backend.tail.Read`
for the changes behind a revision, with what each replaced. `range_by_undo` is then what ``_range``
returns, also for a `Scan.revision` of the past (``read_at_revision``).

*Theory.* A range is of one revision R. Each page is read from the present, at some revision P, and
then the log from R on, up to P or further. Of each key that has changed since R, the first change
knows what was there at R; any other key is what it was. So the page is merged out of both, over the
keys that it covers::

    page at P:            a@3   b@9   c@4               covers all keys up to c
    changes since R=5:    aa@7 (was: nothing)   b@9 (was: b@2)   bb@8 (was: bb@1, deleted)
    page at R:            a@3   b@2   bb@1   c@4

It does no harm to have read further than P: what the page already shows as it was, is undone to the
same. A pass keeps what was replaced of keys that it has not come to yet, which is never more than
the history has; of what it has passed it keeps nothing. The history may go meanwhile: then the page
raises `Compacted`, and whoever reads begins again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import chain
from operator import attrgetter
from time import monotonic
from typing import NamedTuple, Protocol

from kvi.backend.tail import LIMIT, Read
from kvi.model import KeyValue, RangeResult, Scan, Span
from kvi.policy.past import check_past

__all__ = ["ReadPage", "range_by_undo"]

PAGE = 512  # entries that are read at a time

_key = attrgetter("key")


class ReadPage(Protocol):
    """Reads the present."""

    def __call__(self, scan: Scan, timeout: float, /) -> tuple[int, list[KeyValue]]:
        """Return the store's revision and the first ``scan.limit`` entries of ``scan``, in order.

        Both in one step, as they are now: ``scan.revision`` is ``None``, and there is a limit. With
        fewer entries than that, there are no more. ``timeout`` is in seconds. Raises what
        ``_range`` may raise. Called from several threads at once.
        """


def range_by_undo(
    scan: Scan, page: ReadPage, read: Read, timeout: float, *, size: int | None = None
) -> RangeResult:
    """Read the first page of ``scan``, and promise the rest, as ``Primitives._range``.

    Each page asks for at most ``size`` entries (512) and has ``timeout`` seconds. The result is
    safe for threads, each with a pass of its own.

    Raises:
        Compacted: the changes since ``scan.revision`` are gone; pages may raise it later.
        InvalidArgument: the store has not come to ``scan.revision`` yet.

    """
    undo = _Undo(scan, page, read, timeout, size or PAGE)
    first, rest = undo.page(_Rest(scan.span, scan.limit, scan.revision, {}))

    def pages() -> Iterator[list[KeyValue]]:
        return chain([first], undo.pages(rest))

    return RangeResult(undo.revision, pages)


class _Rest(NamedTuple):
    """What a pass has not read yet.

    Attributes:
        span: these keys.
        left: so many entries of them; ``None``: all.
        at: the log was read up to here; ``None``: it need not be, before the first page.
        undone: what was there at the range's revision, of those keys that have changed since.

    """

    span: Span
    left: int | None
    at: int | None
    undone: Mapping[str, KeyValue | None]


class _Undo:
    """One range; `revision` is known after its first page."""

    def __init__(self, scan: Scan, page: ReadPage, read: Read, timeout: float, size: int) -> None:
        self.revision = scan.revision
        self._scan, self._page, self._read = scan, page, read
        self._timeout, self._size = timeout, size

    def pages(self, rest: _Rest | None) -> Iterator[list[KeyValue]]:
        """One pass over ``rest``."""
        while rest is not None:
            page, rest = self.page(rest)
            yield page

    def page(self, rest: _Rest) -> tuple[list[KeyValue], _Rest | None]:
        """The next page of ``rest``, and what then remains; ``None`` if that was the last."""
        deadline = monotonic() + self._timeout
        scan, span = self._scan, rest.span
        limit = self._size if rest.left is None else min(self._size, rest.left)
        asked = Scan(span, limit, scan.reverse, scan.keys_only)
        present, found = self._page(asked, self._timeout)
        if self.revision is None:
            self.revision = present
        check_past(self.revision, 0, present)
        at, undone = self._changes(rest, present, deadline)
        covered, behind = span, None
        if len(found) == limit:
            last = found[-1].key
            after = last + "\0"
            low, high = Span(span.start, after), Span(after, span.end)
            if scan.reverse:
                low, high = Span(last, span.end), Span(span.start, last)
            covered, behind = low, None if high.empty else high
        same = [entry for entry in found if entry.key not in undone]
        other = [old for key, old in undone.items() if old is not None and key in covered]
        if scan.keys_only:
            other = [old._replace(value=None) for old in other]
        other.sort(reverse=scan.reverse)
        entries = list(merge(same, other, key=_key, reverse=scan.reverse))[: rest.left]
        left = None if rest.left is None else rest.left - len(entries)
        if behind is None or left == 0:
            return entries, None
        ahead = {key: old for key, old in undone.items() if key in behind}
        return entries, _Rest(behind, left, at, ahead)

    def _changes(
        self, rest: _Rest, present: int, deadline: float
    ) -> tuple[int, dict[str, KeyValue | None]]:
        """What there is to undo in a page of ``present``, and how far the log was read."""
        at, undone = present if rest.at is None else rest.at, dict(rest.undone)
        while at < present:
            events = self._read(at, LIMIT, max(0.001, deadline - monotonic()))
            for event in events:
                if event.key in rest.span:
                    undone.setdefault(event.key, event.previous)
            at = events[-1].revision if events else present
        return at, undone
