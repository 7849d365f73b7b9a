"""Stores whose watches are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import sleep
from typing import Any

from kvi.errors import Compacted, Timeout
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.flow.watch import WatchFlow
from kvi.model import Event, EventType, Span, Txn, TxnResult
from kvi.policy.txn import Change
from kvi.sync.watch import Watch
from kvi_memory.state import MemoryState

from tests.conformance.broken.correct import Correct, Handle, Making, Passing, broken


class _Making(Making):
    makes = "watch"


def waiting_in(flow: WatchFlow) -> Sequence[Event]:
    """The events that wait to be taken."""
    return flow._batch[flow._position :]


class _Asked(Correct):
    def asked(self, spec: WatchSpec) -> WatchSpec:
        raise NotImplementedError

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return super()._watch(self.asked(spec), wake, timeout)


@broken("watch.selects")
class SeesEverything(_Asked):
    """A watch sees all keys."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        return replace(spec, span=Span())


@broken("watch.selects")
class SeesLongerKeys(_Asked):
    """A watch of a key sees those that begin with it."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        key = spec.span.start
        return replace(spec, span=Span.of_prefix(key)) if spec.span.end == f"{key}\0" else spec


@broken("watch.selects")
class SeesTheEnd(_Asked):
    """The end of a watch's bounds is one of its keys."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        end = None if spec.span.end is None else f"{spec.span.end}\0"
        return replace(spec, span=Span(spec.span.start, end))


@broken("watch.from-now")
class SeesThePast(_Asked):
    """A watch begins with the change before it."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        return replace(spec, start=max(1, self._state.revision)) if spec.start is None else spec


@broken("watch.from-revision")
class StartsBehind(_Asked):
    """A watch from a revision begins behind it."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        return replace(spec, start=spec.start and spec.start + 1)


@broken("watch.from-revision")
class FutureIsNow(_Asked):
    """A watch from a revision that is not there yet begins now."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        future = spec.start is not None and spec.start > self._state.revision
        return replace(spec, start=None) if future else spec


@broken("watch.from-revision", watch_history=False)
class HistoryIgnored(Correct):
    """Without history declared, `from_revision` is taken, and ignored."""

    class face(Handle):
        def watch(self, *args: Any, from_revision: int | None = None, **options: Any) -> Watch:
            return super().watch(*args, **options)


@broken("watch.compacted")
class CompactedTooSoon(Correct):
    """Of the history only the last commit is there."""

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        if spec.start is not None and spec.start <= self._state.revision:
            raise Compacted("gone")
        return super()._watch(spec, wake, timeout)


@broken("watch.from-now")
class BeginsLate(Correct):
    """A watch misses the first change after it has begun."""

    class feed(Passing):
        late = True

        def change(self, batch: Batch) -> Batch:
            if not self.late or not batch.events or batch.events[0].initial:
                return batch
            self.late = False
            return Batch(batch.events[1:], batch.revision)


class _Each(Passing):
    def one(self, event: Event) -> Event:
        raise NotImplementedError

    def change(self, batch: Batch) -> Batch:
        return Batch([*map(self.one, batch.events)], batch.revision)


@broken("watch.event")
class NoValue(Correct):
    """Events have no value."""

    class feed(_Each):
        def one(self, event: Event) -> Event:
            return event._replace(value=None)


@broken("watch.event")
class DeletedValue(Correct):
    """A deletion has the value that was deleted."""

    class feed(_Each):
        def one(self, event: Event) -> Event:
            value = event.previous and event.previous.value
            return event._replace(value=value) if event.type is EventType.DELETE else event


@broken("watch.event")
class PreviousIsNew(Correct):
    """The entry before is told with the new value."""

    class feed(_Each):
        def one(self, event: Event) -> Event:
            previous = event.previous and event.previous._replace(value=event.value)
            return event._replace(previous=previous)


@broken("watch.event")
class RevisionOfTheBatch(Correct):
    """Events have the revision up to which the history was read."""

    class feed(_Each):
        def one(self, event: Event) -> Event:
            return event._replace(revision=event.revision + 1)


@broken("watch.writes-only")
class TellsOfNothing(Correct):
    """Deleting nothing is an event."""

    def _delete(self, key: str, timeout: float) -> bool:
        found = super()._delete(key, timeout)
        if not found:
            with self._state.lock:
                self._state.commit((Change(key, None, None),))
        return found


@broken("watch.writes-only")
class TellsOfFailures(Correct):
    """A transaction whose compares failed is an event of what it would have written."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        done = super()._txn(txn, timeout)
        if not done:
            with self._state.lock:
                read = self._state.read
                self._state.commit(tuple(Change(op.key, read(op.key), None) for op in txn.then))
        return done


@broken("watch.types")
class AllTypes(Correct):
    """`events=` is ignored."""

    class face(Handle):
        def watch(self, *args: Any, events: object = None, **options: Any) -> Watch:
            return super().watch(*args, **options)


@broken("watch.types")
class PutsInstead(Correct):
    """Of several types only the first is delivered."""

    class face(Handle):
        def watch(self, *args: Any, events: Any = None, **options: Any) -> Watch:
            first = events[0] if isinstance(events, tuple) else events
            return super().watch(*args, events=first, **options)


@broken("watch.last-state")
class LosesTheLast(Correct):
    """Of the changes that come together the last is lost."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            events = batch.events
            return Batch(events[:-1] if len(events) > 1 else events, batch.revision)


@broken("watch.last-state")
class GoesBack(Correct):
    """After the last state of a key an older one is told again."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            return Batch([*batch.events, *batch.events[:1]], batch.revision)


@broken("watch.history", "watch.revision")
class OnlyTheLast(Correct):
    """Of several changes of a key only the last is told."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            if batch.events and batch.events[0].initial:
                return batch
            last = {event.key: event for event in batch.events}
            return Batch(sorted(last.values(), key=lambda e: e.revision), batch.revision)


@broken("watch.history")
class TwiceEach(Correct):
    """Each change is told twice."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            return Batch([event for one in batch.events for event in (one, one)], batch.revision)


@broken("watch.history")
class SomeAreDropped(Correct):
    """Every seventh change is lost."""

    class feed(Passing):
        seen = 0

        def change(self, batch: Batch) -> Batch:
            events = []
            for event in batch.events:
                self.seen += 1
                if self.seen % 7:
                    events.append(event)
            return Batch(events, batch.revision)


@broken("watch.history")
class DropsWhenBehind(Correct):
    """What a watch is hundreds of revisions behind with is lost."""

    class feed(Passing):
        state: MemoryState

        def change(self, batch: Batch) -> Batch:
            first = self.state.revision - 300
            kept = [event for event in batch.events if event.initial or event.revision >= first]
            return Batch(kept, batch.revision)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        feed = super()._watch(spec, wake, timeout)
        assert isinstance(feed, DropsWhenBehind.feed)
        feed.state = self._state
        return feed


@broken("watch.history")
class LastFirst(Correct):
    """Changes that come together are told in the wrong order."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            return Batch(batch.events[::-1], batch.revision)


@broken("watch.history", "watch.revision")
class SplitsTransactions(Correct):
    """A revision counts as told once its first change is."""

    class feed(Passing):
        def __init__(self, inner: Feed) -> None:
            super().__init__(inner)
            self.rest: list[Event] = []
            self.reached: int | None = None

        def poll(self, timeout: float) -> Batch | None:
            if not self.rest:
                batch = self.inner.poll(timeout)
                if batch is None or not batch.events:
                    return batch
                self.rest = list(batch.events)
            event = self.rest.pop(0)
            return Batch([event], event.revision)


@broken("watch.revision")
class RevisionAhead(_Making):
    """`revision` tells what the watch has read, not what it has handed out."""

    class kind(Watch):
        @property
        def revision(self) -> int | None:
            return self._flow._through


@broken("watch.revision")
class RevisionStays(Correct):
    """`revision` stays where the watch began."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            return Batch(batch.events, None)


@broken("watch.initial")
class Gap(Correct):
    """The first change after the initial state is lost."""

    class feed(Passing):
        gap = False

        def change(self, batch: Batch) -> Batch:
            gap, self.gap = self.gap, bool(batch.events) and batch.events[0].initial
            return Batch(batch.events[1:], batch.revision) if gap else batch


@broken("watch.initial")
class Overlap(Correct):
    """The last change before the initial state is told behind it."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            if not batch.events or not batch.events[0].initial or batch.revision is None:
                return batch
            last = max(batch.events, key=lambda event: event.revision)
            return Batch([*batch.events, last._replace(initial=False)], batch.revision)


@broken("watch.initial")
class InitialByRevision(Correct):
    """The initial state comes in the order in which it was written."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            return Batch(sorted(batch.events, key=lambda event: event.revision), batch.revision)


@broken("watch.initial")
class InitialUnmarked(Correct):
    """The initial state looks like changes."""

    class feed(_Each):
        def one(self, event: Event) -> Event:
            return event._replace(initial=False)


@broken("watch.initial")
class NoInitial(_Asked):
    """The initial state is not told."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        return replace(spec, initial=False)


@broken("watch.next")
class NothingIsNone(_Making):
    """`next` returns without an event when its time is up."""

    class kind(Watch):
        def next(self, timeout: float | None = None) -> Event:
            try:
                return super().next(timeout)
            except Timeout:
                return None  # type: ignore[return-value]


@broken("watch.next")
class WaitsInVain(_Making):
    """An event that comes while `next` waits is lost."""

    class kind(Watch):
        def next(self, timeout: float | None = None) -> Event:
            waits = not waiting_in(self._flow) and timeout is None
            event = super().next(timeout)
            return super().next(timeout) if waits else event


@broken("watch.cancel")
class CannotBeCancelled(_Making):
    """`cancel` does nothing."""

    class kind(Watch):
        def cancel(self) -> None:
            """End the watch."""


@broken("watch.cancel")
class DeliversWhatIsThere(_Making):
    """After `cancel` the events that are there already are still delivered."""

    class kind(Watch):
        rest: Sequence[Event] = ()

        def cancel(self) -> None:
            feed = self._flow._feed
            batch = feed and feed.poll(1)
            self.rest = [*waiting_in(self._flow), *(batch.events if batch else ())]
            super().cancel()

        def next(self, timeout: float | None = None) -> Event:
            if not self.rest:
                return super().next(timeout)
            event, *self.rest = self.rest
            return event


@broken("watch.cancel")
class CallsAfterCancel(_Making):
    """`cancel` returns while a call-back is running."""

    class kind(Watch):
        def _wait_for_call_back(self) -> None:
            pass


class _Called(Correct):
    def called(self, callback: Callable[..., object], event: Event, data: object) -> object:
        raise NotImplementedError

    class face(Handle):
        def watch(self, *args: Any, callback: Any = None, **options: Any) -> Watch:
            if callable(callback):
                given = callback
                callback = lambda event, data: self.mutant.called(given, event, data)  # noqa: E731
            return super().watch(*args, callback=callback, **options)


@broken("watch.callback")
class FalseGoesOn(_Called):
    """A call-back that returns `False` is called again."""

    def called(self, callback: Callable[..., object], event: Event, data: object) -> object:
        callback(event, data)
        return None


@broken("watch.callback")
class FalsyEnds(_Called):
    """A call-back that returns `0` ends its watch."""

    def called(self, callback: Callable[..., object], event: Event, data: object) -> object:
        answer = callback(event, data)
        return answer is None or bool(answer)


@broken("watch.callback")
class ErrorEnds(_Called):
    """A call-back that raises ends its watch."""

    def called(self, callback: Callable[..., object], event: Event, data: object) -> object:
        try:
            return callback(event, data)
        except Exception:  # noqa: BLE001
            return False


@broken("watch.callback")
class DataIsLost(_Called):
    """A call-back does not get the user's data."""

    def called(self, callback: Callable[..., object], event: Event, data: object) -> object:
        return callback(event, None)


_one_at_a_time = threading.Lock()


@broken("watch.slow")
class OneCallAtATime(_Called):
    """A call-back that does not return holds up all others."""

    def called(self, callback: Callable[..., object], event: Event, data: object) -> object:
        with _one_at_a_time:
            return callback(event, data)


@broken("watch.slow")
class FullBuffer(Correct):
    """Writers wait for whoever watches and does not read."""

    class feed(Passing):
        open = True

        def change(self, batch: Batch) -> Batch:
            self.revision = batch.revision or self.revision
            return batch

        def close(self) -> None:
            self.open = False
            super().close()

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        feed = super()._watch(spec, wake, timeout)
        self.notes.setdefault("feeds", []).append(feed)
        return feed

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        for feed in self.notes.get("feeds", ()):
            while feed.open and self._state.revision - (feed.revision or 0) > 100:
                sleep(0.01)
        return super()._put(key, value, lease, timeout)


@broken("watch.many")
class OneWatchPerKey(Correct):
    """Only the last of several watches of a key gets its events."""

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        former = self.notes.get(spec.span)
        if former is not None:
            former.close()
        feed = self.notes[spec.span] = super()._watch(spec, wake, timeout)
        return feed


@broken("watch.selects")
class SeesToTheLastUnit(_Asked):
    """A watch of a prefix does not see the keys whose rest begins beyond U+FFFF."""

    def asked(self, spec: WatchSpec) -> WatchSpec:
        prefix = spec.span.prefix
        end = spec.span.end if prefix is None else f"{prefix}\uffff"
        return replace(spec, span=Span(spec.span.start, end))


@broken("watch.many")
class ThreadForEach(Correct):
    """Each watch has a thread of its own."""

    class feed(Passing):
        def __init__(self, inner: Feed) -> None:
            super().__init__(inner)
            self.over = threading.Event()
            threading.Thread(target=self.over.wait, daemon=True).start()

        def close(self) -> None:
            super().close()
            self.over.set()


@broken("watch.event")
class PreviousOfThisRevision(Correct):
    """The entry before has the revision of the change."""

    class feed(Passing):
        def change(self, batch: Batch) -> Batch:
            return Batch([told_by(event) for event in batch.events], batch.revision)


def told_by(event: Event) -> Event:
    """The event, with the entry before as that mutant tells it."""
    before = event.previous
    return event._replace(previous=before and before._replace(revision=event.revision))
