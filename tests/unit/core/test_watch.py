"""Watches over a scripted feed: how far they got, what fails and passes, who is woken."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import kvi
import pytest
from kvi.call import Call
from kvi.feed import Batch, Feed, Wake
from kvi.flow import watch as module
from kvi.flow.watch import WatchFlow
from kvi.model import Event, EventType, KeyValue
from kvi.ops import Op, WatchOp
from kvi.sync import watch as face
from kvi.sync.watch import Watch

from tests.support.faulty import Faulty
from tests.support.waiting import until

T = TypeVar("T")
Item = Batch | BaseException | Callable[[], Batch | None] | None
PUT, DELETE, RESYNC = EventType.PUT, EventType.DELETE, EventType.RESYNC


class Script(Feed):
    """Plays what it is given: batches, errors to raise, functions to call, ``None`` for nothing.

    Attributes:
        polls: how often it was polled.
        most_at_once: how many polls were under way at the same time.

    """

    def __init__(self, wake: Wake, revision: int | None) -> None:
        self.revision = revision
        self.items: deque[Item] = deque()
        self.wake = wake
        self.polls = 0
        self.polling = 0
        self.most_at_once = 0
        self.closed = threading.Event()

    def play(self, *items: Item) -> None:
        """Add items, and wake the watch."""
        self.items.extend(items)
        self.wake()

    def poll(self, timeout: float) -> Batch | None:
        """Play the next item."""
        self.polls += 1
        self.polling += 1
        self.most_at_once = max(self.most_at_once, self.polling)
        try:
            item = self.items.popleft() if self.items else None
            if isinstance(item, BaseException):
                raise item
            return item() if callable(item) else item
        finally:
            self.polling -= 1

    def close(self) -> None:
        """Note it."""
        self.closed.set()


class Scripted(Faulty):
    """A store whose watches play scripts."""

    begins_at: int | None = 10

    def __init__(self, inner: kvi.Kvi) -> None:
        super().__init__(inner)
        self.feeds: list[Script] = []

    async def execute(self, op: Op[T], call: Call) -> T:
        """Begin a script, instead of a watch."""
        if not isinstance(op, WatchOp):
            return await super().execute(op, call)
        feed: Any = self.begin(op.wake)
        return feed  # type: ignore[no-any-return]

    def begin(self, wake: Wake) -> Feed:
        """A feed without anything to play yet."""
        self.feeds.append(Script(wake, self.begins_at))
        return self.feeds[-1]


@pytest.fixture
def scripted(uri: str) -> Iterator[Scripted]:
    """A store of scripts."""
    with Scripted(kvi.open(uri)) as store:
        yield store


def begin(store: Scripted, **options: Any) -> tuple[Watch, Script]:
    watch = store.watch(prefix="", **options)
    return watch, store.feeds[-1]


def put(revision: int, key: str = "k", *, initial: bool = False) -> Event:
    return Event(PUT, key, b"", revision, None, initial)


def delete(revision: int, key: str = "k") -> Event:
    return Event(DELETE, key, None, revision)


def resync(revision: int) -> Event:
    return Event(RESYNC, "", None, revision, snapshot=[KeyValue("k", b"", revision, revision)])


def drain(watch: Watch) -> list[Event]:
    events = []
    while True:
        try:
            events.append(watch.next(0))
        except kvi.Timeout:
            return events


@pytest.mark.parametrize(
    ("batches", "revisions"),
    [
        pytest.param([Batch([put(11)], 11)], [11], id="one"),
        pytest.param([Batch([put(11)], 15)], [15], id="and others' revisions behind it"),
        pytest.param(
            [Batch([put(11, "a"), put(11, "b"), put(11, "c")], 11)],
            [10, 10, 11],
            id="several changes of one revision",
        ),
        pytest.param(
            [Batch([put(11), put(13, "a"), put(13, "b"), put(17)], 20)],
            [11, 12, 13, 20],
            id="several revisions, not all of them here",
        ),
        pytest.param(
            [Batch([put(13, "a"), put(13, "b"), put(14)], 14), Batch([put(15)], 15)],
            [12, 13, 14, 15],
            id="two batches",
        ),
        pytest.param(
            [Batch([put(12, "a"), put(12, "b")], 12), Batch([], 30), Batch([put(31)], 31)],
            [11, 12, 31],
            id="nothing between",
        ),
        pytest.param([Batch([resync(40)], 40)], [40], id="resync"),
        pytest.param(
            [Batch([put(11)], 11), Batch([resync(40)], 40), Batch([put(42)], 43)],
            [11, 40, 43],
            id="changes, resync, changes",
        ),
        pytest.param(
            [Batch([put(11), resync(40), put(41)], 41)],
            [10, 40, 41],
            id="resync within a batch",
        ),
    ],
)
def test_revision(scripted: Scripted, batches: list[Batch], revisions: list[int]) -> None:
    """``revision`` is the last one that was handed out whole: from behind it nothing is lost."""
    watch, feed = begin(scripted)
    assert watch.revision == 10
    feed.play(*batches)
    assert watch.revision == 10, "what nobody has asked for was not handed out"
    seen = []
    for _ in revisions:
        watch.next(20)
        seen.append(watch.revision)
    assert seen == revisions
    assert drain(watch) == []


def test_revision_of_the_initial_state(scripted: Scripted) -> None:
    """It is None until the last page of the initial state was handed out whole."""
    scripted.begins_at = None
    watch, feed = begin(scripted, initial=True)
    pages = [
        Batch([put(3, "a", initial=True), put(9, "b", initial=True)], None),
        Batch([], None),
        Batch([put(5, "c", initial=True), put(2, "d", initial=True)], 20),
        Batch([put(25)], 26),
    ]
    feed.play(*pages)
    seen = [watch.revision]
    for _ in range(5):
        watch.next(20)
        seen.append(watch.revision)
    assert seen == [None, None, None, None, 20, 26]


def test_revision_of_an_empty_initial_state(scripted: Scripted) -> None:
    """A state without entries has a revision too."""
    scripted.begins_at = None
    watch, feed = begin(scripted, initial=True)
    feed.play(Batch([], 20))
    assert drain(watch) == []
    assert watch.revision == 20


@pytest.mark.parametrize(
    ("kinds", "keys", "revisions"),
    [
        (None, "abcde", [11, 12, 12, 13, 20]),
        (PUT, "ad", [11, 20]),  # what is left behind d is left out
        ([DELETE], "bce", [12, 13, 20]),
        ([PUT, DELETE], "abcde", [11, 12, 12, 13, 20]),
        (RESYNC, "", []),
    ],
)
def test_revision_with_some_kinds(
    scripted: Scripted, kinds: Any, keys: str, revisions: list[int]
) -> None:
    """Events that are left out count as handed out; those that are not are waited for."""
    watch, feed = begin(scripted, events=kinds)
    changes = [put(11, "a"), delete(12, "b"), delete(13, "c"), put(13, "d"), delete(14, "e")]
    feed.play(Batch(changes, 20))
    seen = []
    for key in keys:
        assert watch.next(0).key == key
        seen.append(watch.revision)
    assert seen == revisions
    assert drain(watch) == []
    assert watch.revision == 20


@pytest.mark.parametrize("kinds", [PUT, DELETE, RESYNC])
def test_resync_always_comes(scripted: Scripted, kinds: EventType) -> None:
    """Whatever kinds are wanted: without the RESYNC their reader would miss the gap."""
    watch, feed = begin(scripted, events=kinds)
    feed.play(Batch([resync(40)], 40))
    assert [event.type for event in drain(watch)] == [RESYNC]


@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.Timeout])
def test_passing_errors(scripted: Scripted, error: type[kvi.KviError]) -> None:
    """While the store cannot be reached a reader who gives a time gets Timeout; nothing is lost.

    Between the tries there are pauses that grow.
    """
    watch, feed = begin(scripted)
    times: list[float] = []

    def fail() -> Batch | None:
        times.append(time.monotonic())
        raise error("out of reach")

    feed.play(*[fail] * 5, Batch([put(11)], 11))
    for _ in range(10):
        with pytest.raises(kvi.Timeout, match="nothing changed"):
            watch.next(0)
    assert watch.next(20) == put(11)
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    for pause, least in zip(pauses, (0.025, 0.05, 0.1, 0.2), strict=True):
        assert pause >= least
    assert watch.error is None
    assert watch.active


def test_passing_errors_are_waited_out(scripted: Scripted) -> None:
    """Who waits without end gets the event once the store is back."""
    watch, feed = begin(scripted)
    feed.play(kvi.Unavailable("one"), kvi.Timeout("two"), Batch([put(11)], 11))
    assert watch.next() == put(11)


def test_call_back_through_passing_errors(scripted: Scripted) -> None:
    """With a call-back the same: it is called once the store is back."""
    seen: list[Event] = []
    watch, feed = begin(scripted, callback=lambda event, _: seen.append(event))
    feed.play(kvi.Unavailable("one"), kvi.Timeout("two"), Batch([put(11), put(12)], 12))
    until(lambda: len(seen) == 2)
    assert seen == [put(11), put(12)]
    assert watch.revision == 12


def test_wakes_in_an_outage_do_not_multiply_the_tries(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a feed that fails wakes its watch, one try is under way or waiting."""
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.02)
    done: list[Event] = []
    _, feed = begin(scripted, callback=lambda event, _: done.append(event))
    down = [True]

    def fail() -> Batch | None:
        if down[0]:
            feed.items.append(fail)
            raise kvi.Unavailable("out of reach")
        return Batch([put(11)], 11)

    feed.play(fail)
    began = time.monotonic()
    while feed.polls < 20:
        feed.wake()
    assert time.monotonic() - began >= 18 * 0.01
    assert feed.most_at_once == 1
    down[0] = False
    until(lambda: done)


@pytest.mark.parametrize(
    "error", [kvi.PermissionDenied("no"), kvi.Compacted("gone"), kvi.KviError("odd")]
)
def test_error_that_ends_it(scripted: Scripted, error: kvi.KviError) -> None:
    """What will not pass ends the watch after what came before it, and is raised at each call."""
    watch, feed = begin(scripted)
    feed.play(Batch([put(11)], 11), error, Batch([put(12)], 12))
    assert watch.next(1) == put(11)
    depths = []
    for _ in range(5):
        with pytest.raises(type(error)) as caught:
            watch.next(1)
        assert caught.value is error
        depths.append(len(caught.traceback))
    assert len(set(depths[1:])) == 1, "its traceback does not grow"
    assert depths[1] <= depths[0]
    with pytest.raises(type(error)):
        next(iter(watch))
    assert watch.error is error
    assert (error.operation, error.uri) == ("watch", scripted.uri)
    assert not watch.active
    assert watch.revision == 11
    assert feed.closed.is_set()
    assert feed.polls == 2
    assert not scripted._scope.ledger._members
    watch.cancel()


def test_mistake_of_a_backend_ends_it(scripted: Scripted) -> None:
    """An error that is none of kvi's is told as one, with the cause chained."""
    watch, feed = begin(scripted)
    feed.play(ValueError("a mistake"))
    with pytest.raises(kvi.KviError, match="a mistake") as caught:
        watch.next(1)
    assert isinstance(caught.value.__cause__, ValueError)
    assert watch.error is caught.value


def test_call_back_and_an_error_that_ends_it(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """With a call-back the error is logged and can be asked for; nothing is called any more."""
    seen: list[Event] = []
    watch, feed = begin(scripted, callback=lambda event, _: seen.append(event))
    with caplog.at_level(logging.ERROR, "kvi"):
        feed.play(Batch([put(11)], 11), kvi.PermissionDenied("taken away"), Batch([put(12)], 12))
        until(lambda: watch.error)
        until(lambda: caplog.records)
    assert "taken away" in caplog.text
    assert isinstance(watch.error, kvi.PermissionDenied)
    assert not watch.active
    feed.wake()
    watch.cancel()
    assert seen == [put(11)]
    assert feed.closed.is_set()


def test_error_after_cancel_is_none(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """What a poll raises because its feed was closed under it is not an error of the watch."""
    seen: list[Event] = []
    watch, feed = begin(scripted, callback=lambda event, _: seen.append(event))

    def block() -> Batch | None:
        assert feed.closed.wait(20)
        raise kvi.KviError("the feed is closed")

    with caplog.at_level(logging.ERROR, "kvi"):
        feed.play(block)
        until(lambda: feed.polling)
        watch.cancel()
        until(lambda: not feed.polling)
    assert watch.error is None
    assert not caplog.records


def test_wake_during_a_poll(scripted: Scripted) -> None:
    """What is there only after a poll began, and woke the watch during it, is not missed."""
    watch, feed = begin(scripted)

    def late() -> Batch | None:
        feed.items.append(Batch([put(11)], 11))
        feed.wake()
        return None

    feed.play(late)
    assert watch.next(20) == put(11)
    seen: list[Event] = []
    _, feed = begin(scripted, callback=lambda event, _: seen.append(event))
    feed.play(late)
    until(lambda: seen)


def test_woken_before_it_has_begun(uri: str) -> None:
    """A feed may wake its watch before it was even returned."""

    class Eager(Scripted):
        def begin(self, wake: Wake) -> Feed:
            feed = Script(wake, 10)
            feed.play(Batch([put(11)], 11))
            return feed

    seen: list[Event] = []
    with Eager(kvi.open(uri)) as store:
        assert store.watch("k").next(20) == put(11)
        store.watch("k", callback=lambda event, _: seen.append(event))
        until(lambda: seen)


def test_not_polled_without_reason(scripted: Scripted) -> None:
    """A feed that found nothing is polled again once it has woken the watch, and not before."""
    watch, feed = begin(scripted)
    for _ in range(10):
        with pytest.raises(kvi.Timeout):
            watch.next(0)
    assert feed.polls == 1
    feed.wake()
    for _ in range(10):
        with pytest.raises(kvi.Timeout):
            watch.next(0)
    assert feed.polls == 2


def test_time_out_loses_nothing(scripted: Scripted) -> None:
    """What a poll brings when the time is up is handed out, or kept for the next call."""
    watch, feed = begin(scripted)
    feed.play(Batch([put(11), put(12)], 12))
    assert watch.next(0) == put(11)
    assert watch.next(0) == put(12)
    with pytest.raises(kvi.Timeout):
        watch.next(0)
    with pytest.raises(kvi.Timeout):
        watch.next(0.01)
    feed.play(Batch([put(13)], 13))
    assert watch.next(0) == put(13)


@pytest.mark.parametrize("timeout", [1e9, 1e300, float("inf")])
def test_very_long_time_out(scripted: Scripted, timeout: float) -> None:
    """However many seconds a reader is ready to wait, it waits, and gets the event."""
    watch, feed = begin(scripted)
    got: list[Event] = []
    thread = threading.Thread(target=lambda: got.append(watch.next(timeout)), daemon=True)
    thread.start()
    until(lambda: feed.polls)
    feed.play(Batch([put(11)], 11))
    thread.join(20)
    assert got == [put(11)]


class Reader(threading.Thread):
    """Reads a watch to its end."""

    def __init__(self, watch: Watch, timeout: float | None = None) -> None:
        super().__init__(daemon=True)
        self.watch = watch
        self.timeout = timeout
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Read."""
        while self.error is None:
            try:
                self.events.append(self.watch.next(self.timeout))
            except kvi.Timeout:
                pass
            except BaseException as error:  # noqa: BLE001  (looked at by the test)
                self.error = error


def test_several_readers(scripted: Scripted) -> None:
    """Each event goes to one of the threads that read, none is lost, and one polls at a time."""
    watch, feed = begin(scripted)
    readers = [Reader(watch, timeout) for timeout in (None, None, 0.001, 0)]
    for revision in range(11, 1011, 2):
        feed.play(Batch([put(revision), put(revision + 1)], revision + 1))
    until(lambda: sum(len(reader.events) for reader in readers) == 1000)
    watch.cancel()
    for reader in readers:
        reader.join(20)
        assert isinstance(reader.error, kvi.Closed)
        own = [event.revision for event in reader.events]
        assert own == sorted(own)
    revisions = sorted(event.revision for reader in readers for event in reader.events)
    assert revisions == list(range(11, 1011))
    assert feed.most_at_once == 1


def test_reader_who_gives_up_takes_no_wake_along(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wake that meets a reader whose time is up wakes the other one."""
    now = [100.0]
    monkeypatch.setattr(face, "now", lambda: now[0])
    got: list[Event] = []

    def read_once() -> None:
        with suppress(kvi.Timeout, kvi.Closed):
            got.append(watch.next(10))

    for _ in range(20):
        got.clear()
        watch, feed = begin(scripted)
        hasty = threading.Thread(target=read_once)
        hasty.start()
        until(lambda: feed.polls)  # noqa: B023  (it returns before the next)
        patient = Reader(watch)
        now[0] += 20
        feed.play(Batch([put(11)], 11))
        until(lambda: got or patient.events)  # noqa: B023  (as above)
        watch.cancel()
        hasty.join(20)
        patient.join(20)
        assert isinstance(patient.error, kvi.Closed)


def test_slow_polls_and_a_reader_in_a_hurry(scripted: Scripted) -> None:
    """Who asks without waiting, in a loop, gets what needs longer than he waits at once."""
    watch, feed = begin(scripted)
    slow = threading.Event()

    def read() -> Batch | None:
        slow.wait(0.12)
        return Batch([resync(40)], 40)

    feed.play(read)
    events: list[Event] = []

    def look() -> bool:
        with suppress(kvi.Timeout):
            events.append(watch.next(timeout=0))
        return bool(events)

    until(look)
    assert events == [resync(40)]
    assert feed.polls == 1


def test_cancel_during_a_poll(scripted: Scripted) -> None:
    """Cancel does not wait for a poll that blocks; its reader ends with it, and gets nothing."""
    watch, feed = begin(scripted)

    def block() -> Batch | None:
        assert feed.closed.wait(20)
        return Batch([put(11)], 11)

    feed.play(block)
    reader, second = Reader(watch), Reader(watch)
    until(lambda: feed.polling)
    watch.cancel()
    for one in (reader, second):
        one.join(20)
        assert isinstance(one.error, kvi.Closed)
        assert not one.events
    assert not watch.active
    assert watch.error is None
    assert list(watch) == []
    watch.cancel()


def test_cancel_takes_what_is_ready(scripted: Scripted) -> None:
    """After cancel not even what was there already is handed out."""
    watch, feed = begin(scripted)
    feed.play(Batch([put(11), put(12)], 12))
    assert watch.next(0) == put(11)
    watch.cancel()
    with pytest.raises(kvi.Closed):
        watch.next(0)
    assert list(watch) == []


def test_cancel_waits_for_the_call_back(scripted: Scripted) -> None:
    """When cancel has returned no call-back runs, and what was ready is not delivered."""
    entered, go = threading.Event(), threading.Event()
    seen: list[Event] = []

    def callback(event: Event, _: Any) -> None:
        entered.set()
        assert go.wait(20)
        seen.append(event)

    watch, feed = begin(scripted, callback=callback)
    feed.play(Batch([put(11), put(12)], 12))
    assert entered.wait(20)
    canceller = threading.Thread(target=watch.cancel)
    canceller.start()
    until(lambda: watch._flow.ended)
    go.set()
    canceller.join(20)
    assert seen == [put(11)]


def test_cancel_from_the_call_back(scripted: Scripted) -> None:
    """A call-back may cancel its own watch, without waiting for itself."""
    watches: list[Watch] = []
    seen: list[Event] = []
    begun = threading.Event()

    def callback(event: Event, _: Any) -> None:
        assert begun.wait(20)
        watches[0].cancel()
        seen.append(event)

    watch, feed = begin(scripted, callback=callback)
    watches.append(watch)
    begun.set()
    feed.play(Batch([put(11), put(12)], 12))
    until(lambda: seen)
    assert feed.closed.is_set()
    assert seen == [put(11)]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_call_back_that_raises(
    scripted: Scripted, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a call-back raises is logged, and the next event comes, without another wake."""
    seen: list[Event] = []

    def callback(event: Event, _: Any) -> None:
        seen.append(event)
        if event.revision < 13:
            raise error("of the call-back")

    _, feed = begin(scripted, callback=callback)
    with caplog.at_level(logging.ERROR, "kvi"):
        feed.play(Batch([put(11), put(12), put(13)], 13))
        until(lambda: len(seen) == 3)
    assert caplog.text.count("the call-back of a watch failed") == 2


def test_call_backs_of_a_busy_watch_take_turns(scripted: Scripted) -> None:
    """A watch with endless events does not keep another's from coming, however few threads."""
    stop = threading.Event()
    seen: list[Event] = []
    for _ in range(4):
        _, feed = begin(scripted, callback=lambda *_: None)

        def more(feed: Script = feed) -> Batch | None:
            if not stop.is_set():
                feed.items.append(more)
            return Batch([put(11)] * 1000, 11)

        feed.play(more)
    _, feed = begin(scripted, callback=lambda event, _: seen.append(event))
    feed.play(Batch([put(12)], 12))
    until(lambda: seen)
    stop.set()


@pytest.mark.parametrize("callback", [True, False])
def test_close(scripted: Scripted, callback: bool) -> None:
    """Closing the handle closes the feed; a reader gets Closed, iterating too."""
    seen: list[Event] = []
    watch, feed = begin(
        scripted, callback=(lambda event, _: seen.append(event)) if callback else None
    )
    if callback:
        scripted.close()
    else:
        reader = Reader(watch)
        until(lambda: feed.polls)
        scripted.close()
        reader.join(20)
        assert isinstance(reader.error, kvi.Closed)
        with pytest.raises(kvi.Closed):
            next(watch)
    assert feed.closed.is_set()
    assert not watch.active
    feed.play(Batch([put(11)], 11))
    watch.cancel()
    assert not seen


def test_closed_while_it_begins(uri: str) -> None:
    """If the handle is closed while a watch begins, its feed is closed, and the caller told."""

    class Slow(Scripted):
        def begin(self, wake: Wake) -> Feed:
            feed = super().begin(wake)
            self.close()
            return feed

    store = Slow(kvi.open(uri))
    with pytest.raises(kvi.Closed):
        store.watch("k")
    assert store.feeds[0].closed.is_set()


def test_nothing_after_a_call_back_said_no(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is ready when a call-back ends its watch is not handed over, whatever wakes it."""
    handed: list[object] = []
    runtime, end = scripted._scope.runtime, WatchFlow.end
    call_back = runtime.call_back

    def woken_end(flow: WatchFlow) -> None:
        flow.wake()
        end(flow)

    def hand_over(function: Callable[[], object]) -> None:
        handed.append(function)
        call_back(function)

    monkeypatch.setattr(WatchFlow, "end", woken_end)
    monkeypatch.setattr(runtime, "call_back", hand_over)
    watch, feed = begin(scripted, callback=lambda *_: False)
    feed.play(Batch([put(11), put(12)], 12))
    until(lambda: not watch.active)
    assert len(handed) == 1


def test_dropped_when_it_ends(scripted: Scripted) -> None:
    """Nothing of a watch that was cancelled, or ended by its call-back, stays behind."""
    watch, feed = begin(scripted, callback=lambda *_: False)
    feed.play(Batch([put(11), put(12)], 12))
    until(lambda: not watch.active)
    with scripted.watch("k"):
        pass
    until(lambda: not scripted._scope.ledger._members)
    assert all(feed.closed.is_set() for feed in scripted.feeds)


def test_batch_is_bounded_by_the_feed(scripted: Scripted) -> None:
    """A watch asks for the next batch only when the last one was handed out."""
    watch, feed = begin(scripted)
    feed.play(Batch([put(11), put(12)], 12), Batch([put(13)], 13))
    watch.next(0)
    watch.next(0)
    assert feed.polls == 1
    watch.next(0)
    assert feed.polls == 2


def test_empty_span_asks_nobody(scripted: Scripted) -> None:
    """A watch of bounds that hold no key is none for the store; it waits and ends as others do."""
    watch = scripted.watch(start="b", end="a")
    assert not scripted.feeds
    with pytest.raises(kvi.Timeout):
        watch.next(0.01)
    watch.cancel()
    assert list(watch) == []
