"""Stores that remember wrongly what was."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import kvi
from kvi import Event, EventType, InvalidArgument, KeyValue
from kvi.model import RangeResult, Scan

from tests.conformance.broken.correct import Correct, Handle, broken


@broken("past.state")
class PresentInstead(Correct):
    """The present is given for the past."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(replace(scan, revision=None), timeout)
        return RangeResult(scan.revision or found.revision, lambda: (list(found),))


@broken("past.state")
class OneBefore(Correct):
    """The state is that before the revision's own changes."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        if scan.revision is None or scan.revision == 1:
            return super()._range(scan, timeout)
        found = super()._range(replace(scan, revision=scan.revision - 1), timeout)
        return RangeResult(scan.revision, lambda: (list(found),))


@broken("past.state")
class TellsThePresentRevision(Correct):
    """The entries are those of the past, and the revision is the present one."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        return RangeResult(self._state.revision, lambda: (list(found),))


class _Forgets(Correct):
    """Leaves out of the past what ``forgets`` says."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        if scan.revision is None:
            return found
        kept = [entry for entry in found if not self.forgets(entry)]
        return RangeResult(found.revision, lambda: (kept,))

    def forgets(self, entry: KeyValue) -> bool:
        return False


@broken("past.state")
class ForgetsTheDeleted(_Forgets):
    """What is deleted now was never there."""

    def forgets(self, entry: KeyValue) -> bool:
        return self._state.read(entry.key) is None


@broken("past.state")
class ForgetsTheChanged(_Forgets):
    """What has changed since was never there."""

    def forgets(self, entry: KeyValue) -> bool:
        return (present := self._state.read(entry.key)) is not None and present != entry


@broken("past.state")
class ForgetsTheLeased(_Forgets):
    """What a lease held was never there."""

    def forgets(self, entry: KeyValue) -> bool:
        return entry.lease is not None


@broken("past.state")
class FromTheOtherEnd(Correct):
    """Reversed and limited, it gives the first entries for the last."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        if scan.revision is None or not scan.reverse:
            return super()._range(scan, timeout)
        entries = list(super()._range(replace(scan, reverse=False), timeout))[::-1]
        return RangeResult(scan.revision, lambda: (entries,))


@broken("past.state")
class LaterPagesOfToday(Correct):
    """What is read after the first hundred entries is of the present."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        if scan.revision is None:
            return found

        def pages() -> Iterator[list[KeyValue]]:
            for number, entry in enumerate(found):
                present = entry if number < 100 else self._state.read(entry.key)
                yield [] if present is None else [present]

        return RangeResult(found.revision, pages)


@broken("past.state")
class ZeroIsTheLatest(Correct):
    """At revision 0 it gives the present, as etcd's own requests do."""

    class face(Handle):
        def get(self, key: str, **options: Any) -> KeyValue | None:
            if options.get("revision") == 0:
                del options["revision"]
            return super().get(key, **options)


@broken("past.refused")
class FutureIsThePresent(Correct):
    """A revision to come gives the present."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        if scan.revision is not None and scan.revision > self._state.revision:
            scan = replace(scan, revision=None)
        return super()._range(scan, timeout)


@broken("past.refused")
class FutureIsGone(Correct):
    """A revision to come is told to be compacted."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        try:
            return super()._range(scan, timeout)
        except InvalidArgument as error:
            raise kvi.Compacted(error.message) from error


@broken("history.changes")
class OldestFirst(Correct):
    """A history begins with the oldest change."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        return super()._get_history(key, limit, timeout)[::-1]


@broken("history.changes")
class KeepsTheOldest(Correct):
    """`limit` keeps the oldest changes."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        found = super()._get_history(key, None, timeout)
        return found if limit is None else found[-limit:]


@broken("history.changes")
class WithoutDeletions(Correct):
    """A history is what was stored, without the deletions."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        found = super()._get_history(key, None, timeout)
        return [event for event in found if event.type is EventType.PUT][:limit]


@broken("history.changes")
class ThisLifeOnly(Correct):
    """A history ends where the key was created last."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        found = super()._get_history(key, limit, timeout)
        created = next((n for n, e in enumerate(found) if n and e.type is EventType.DELETE), None)
        return found[:created]


@broken("history.changes")
class OfKeysBelow(Correct):
    """The changes of keys that begin with the key are told as well."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        found = super()._get_history(key, limit, timeout)
        below = [name for name in self._state.entries if name.startswith(key) and name != key]
        for name in below:
            found += super()._get_history(name, limit, timeout)
        return sorted(found, key=lambda event: -event.revision)[:limit]


@broken("history.changes")
class EndOfLeaseUntold(Correct):
    """What ended with a lease has not been deleted, in its history."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        found = super()._get_history(key, None, timeout)
        return [e for e in found if not (e.value is None and e.previous and e.previous.lease)][
            :limit
        ]


@broken("history.previous")
class PreviousIsTheNext(Correct):
    """The entry before is the one after."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        found = super()._get_history(key, limit, timeout)
        return [e._replace(previous=self._state.read(key) or e.previous) for e in found]


@broken("history.previous")
class PreviousOfAnEarlierLife(Correct):
    """A key that is created again has an entry before."""

    def _get_history(self, key: str, limit: int | None, timeout: float) -> list[Event]:
        found = super()._get_history(key, limit, timeout)
        previous = None
        for number in reversed(range(len(found))):
            event = found[number]
            if event.previous is None and previous is not None:
                found[number] = event._replace(previous=previous)
            previous = event.previous or previous
        return found
