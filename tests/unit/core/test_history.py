"""Initial state and resync over a history that is read as one likes, and lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import kvi
import pytest
from kvi.backend import history as module
from kvi.backend.history import HistoryFeed
from kvi.feed import Batch, Feed, WatchSpec
from kvi.model import Event, EventType, KeyValue, RangeResult, Scan, Span

PAGE = 5
SPAN = Span("a", "b")


class Changes(Feed):
    """Plays batches and errors; ``None`` when there are no more."""

    def __init__(self, start: int, items: deque[Batch | kvi.KviError]) -> None:
        self.start = start
        self.revision = start - 1
        self.items = items
        self.closes = 0

    def poll(self, timeout: float) -> Batch | None:
        """Play the next item."""
        item = self.items.popleft() if self.items else None
        if isinstance(item, kvi.KviError):
            raise item
        return item

    def close(self) -> None:
        """Count."""
        self.closes += 1


class Store:
    """What a `HistoryFeed` asks: a state, which is listed in pages that may fail.

    Attributes:
        failures: raised one after another: by opening the changes, or by a page, or (``None``) not.
        opened: the changes that were opened.

    """

    def __init__(self, keys: int, revision: int = 100) -> None:
        self.revision = revision
        self.entries = [KeyValue(f"a{n:03}", b"", n + 1, n + 1) for n in range(keys)]
        self.opening: deque[BaseException | None] = deque()
        self.paging: deque[BaseException | None] = deque()
        self.ranging: deque[BaseException | None] = deque()
        self.listings = 0
        self.opened: list[Changes] = []
        self.items: deque[Batch | kvi.KviError] = deque()
        self.meanwhile: Callable[[], object] = lambda: None

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        assert scan == Scan(SPAN)
        self._may_fail(self.ranging)
        self.listings += 1
        entries = list(self.entries)

        def pages() -> Iterator[list[KeyValue]]:
            for first in range(0, len(entries), 3):  # pages of another size than the batches
                self._may_fail(self.paging)
                yield entries[first : first + 3]

        return RangeResult(self.revision, pages)

    def open(self, span: Span, start: int | None, timeout: float) -> Feed:
        """Open the changes."""
        assert span == SPAN
        self._may_fail(self.opening)
        changes = Changes(self.revision + 1 if start is None else start, self.items)
        self.opened.append(changes)
        self.meanwhile()
        return changes

    def feed(self, *, start: int | None = None, initial: bool = False) -> HistoryFeed:
        """Begin."""
        return HistoryFeed(self, WatchSpec(SPAN, start, initial), self.open, 5)  # type: ignore[arg-type]

    @staticmethod
    def _may_fail(failures: deque[BaseException | None]) -> None:
        failure = failures.popleft() if failures else None
        if failure is not None:
            raise failure


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few events."""
    monkeypatch.setattr(module, "PAGE", PAGE)


def put(revision: int) -> Event:
    return Event(EventType.PUT, "a", b"", revision)


def resync(store: Store) -> Batch:
    event = Event(EventType.RESYNC, "", None, store.revision, snapshot=store.entries)
    return Batch((event,), store.revision)


def read(feed: Feed) -> list[Batch]:
    """All batches that there are, through errors that pass."""
    batches: list[Batch] = []
    while True:
        try:
            batch = feed.poll(5)
        except (kvi.Unavailable, KeyboardInterrupt):
            continue
        if batch is None:
            return batches
        batches.append(batch)


@pytest.mark.parametrize(("start", "revision"), [(None, 100), (50, 49), (200, 199)])
def test_following(start: int | None, revision: int) -> None:
    """Without the state the changes are passed on as they are, from the revision asked for."""
    store = Store(3)
    feed = store.feed(start=start)
    assert feed.revision == revision
    batches = [Batch([put(201), put(202)], 202), Batch([put(203)], 210)]
    store.items += batches
    assert read(feed) == batches
    assert store.listings == 0


def test_start_that_is_gone() -> None:
    """Changes that are gone when they are asked for are the caller's error, not a resync."""
    store = Store(3)
    store.opening.append(kvi.Compacted("gone"))
    with pytest.raises(kvi.Compacted):
        store.feed(start=1)


@pytest.mark.parametrize("keys", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 2])
def test_initial_state(keys: int) -> None:
    """The state comes page by page, each entry once; only its last page has its revision.

    Changes follow from behind it.
    """
    store = Store(keys)
    feed = store.feed(initial=True)
    assert feed.revision is None
    assert [changes.start for changes in store.opened] == [101]
    store.items.append(Batch([put(101)], 101))
    *pages, last = read(feed)
    assert last == Batch([put(101)], 101)
    events = [event for page in pages for event in page.events]
    assert [event.key for event in events] == [entry.key for entry in store.entries]
    assert [event.revision for event in events] == [entry.revision for entry in store.entries]
    assert {event.initial for event in events} <= {True}
    assert all(len(page.events) <= PAGE for page in pages)
    assert [page.revision for page in pages] == [*[None] * (len(pages) - 1), 100]


@pytest.mark.parametrize("failing", range(8))
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("fault", [kvi.Unavailable("out of reach"), KeyboardInterrupt()])
def test_page_that_fails(failing: int, times: int, fault: BaseException) -> None:
    """A page that fails is raised, and read again at the next poll: no gap, no duplicate."""
    store = Store(3 * PAGE + 2)
    feed = store.feed(initial=True)
    store.paging += [None] * failing + [fault] * times
    store.items.append(Batch([put(101)], 101))
    pages = read(feed)
    keys = [event.key for page in pages[:-1] for event in page.events]
    assert keys == [entry.key for entry in store.entries]
    assert [page.revision for page in pages[:-1]] == [*[None] * (len(pages) - 2), 100]
    assert store.listings == 1, "the same snapshot"


def test_initial_state_that_moves_on() -> None:
    """If the history goes away between listing and following, the state is listed again."""
    store = Store(3)
    store.opening += [kvi.Compacted("gone"), kvi.Compacted("gone")]
    feed = store.feed(initial=True)
    assert store.listings == 3
    assert [page.revision for page in read(feed)] == [100]


@pytest.mark.parametrize("pages", range(4))
def test_snapshot_lost_while_listing(pages: int) -> None:
    """If the snapshot is gone before its last page, the whole state comes as a RESYNC.

    What follows comes from behind that, and the old changes are closed.
    """
    store = Store(3 * PAGE)
    feed = store.feed(initial=True)
    told = [feed.poll(5) for _ in range(pages)]
    assert all(page is not None and page.revision is None for page in told)
    store.paging.append(kvi.Compacted("gone"))
    if feed._entries is not None:
        feed._entries = None  # as after a page that failed: the next one is read anew
    store.revision = 150
    store.items.append(Batch([put(151)], 151))
    assert read(feed) == [resync(store), Batch([put(151)], 151)]
    first, second = store.opened
    assert (first.closes, second.closes) == (1, 0)
    assert second.start == 151


def test_history_lost_while_following() -> None:
    """If the next changes are gone, the whole state comes as a RESYNC, then what is behind it."""
    store = Store(3)
    feed = store.feed()
    store.items += [Batch([put(101)], 101), kvi.Compacted("gone"), Batch([put(151)], 151)]
    assert feed.poll(5) == Batch([put(101)], 101)
    store.revision = 150
    assert read(feed) == [resync(store), Batch([put(151)], 151)]
    first, second = store.opened
    assert (first.closes, second.closes) == (1, 0)
    assert second.start == 151


def test_history_lost_again_and_again() -> None:
    """Each time the history is lost, a RESYNC brings all up to date."""
    store = Store(3)
    feed = store.feed()
    for revision in (150, 200, 250):
        store.items.append(kvi.Compacted("gone"))
        store.revision = revision
        assert read(feed) == [resync(store)]
        assert store.opened[-1].start == revision + 1
    assert [changes.closes for changes in store.opened] == [1, 1, 1, 0]


@pytest.mark.parametrize("where", ["ranging", "paging", "opening"])
@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.Timeout, kvi.Compacted])
def test_resync_that_fails(where: str, error: type[kvi.KviError]) -> None:
    """A resync that fails half-way is begun anew at the next poll; one comes, and it is whole."""
    if where == "ranging" and error is kvi.Compacted:
        error = kvi.Unavailable  # the present state is always there
    store = Store(3 * PAGE)
    feed = store.feed()
    store.items.append(kvi.Compacted("gone"))
    getattr(store, where).extend([error("as the test wants it")] * 2)
    batches: list[Batch | None] = []
    for _ in range(5):
        try:
            batches.append(feed.poll(5))
        except (kvi.Unavailable, kvi.Timeout):
            store.revision += 10
    assert [batch for batch in batches if batch] == [resync(store)]
    assert [changes.closes for changes in store.opened] == [1, 0]
    assert store.opened[-1].start == store.revision + 1


def test_error_that_does_not_pass() -> None:
    """Any other error of the changes is the watch's."""
    store = Store(3)
    feed = store.feed()
    store.items.append(kvi.PermissionDenied("taken away"))
    with pytest.raises(kvi.PermissionDenied):
        feed.poll(5)


@pytest.mark.parametrize("state", ["listing", "following", "gone"])
def test_close(state: str) -> None:
    """Wherever it is closed, its changes are closed once, and it says nothing but what is over."""
    store = Store(3 * PAGE)
    feed = store.feed(initial=state == "listing")
    if state == "gone":
        store.items.append(kvi.Compacted("gone"))
        store.ranging.append(kvi.Unavailable("out of reach"))
        with pytest.raises(kvi.Unavailable):
            feed.poll(5)
    feed.close()
    feed.close()
    if state != "listing":
        assert feed.poll(5) is None
    assert [changes.closes for changes in store.opened] == [1]


@pytest.mark.parametrize("initial", [True, False])
def test_closed_while_a_resync_is_under_way(initial: bool) -> None:
    """Changes that are opened while it is closed are closed as well."""
    store = Store(3)
    feed = store.feed(initial=initial)
    if initial:
        assert feed.poll(5)
    store.items.append(kvi.Compacted("gone"))
    store.meanwhile = feed.close
    feed.poll(5)
    assert [changes.closes for changes in store.opened] == [1, 1]
    assert feed.poll(5) is None


def test_closed_at_any_moment_of_a_poll() -> None:
    """A poll that meets a close returns, whatever it has just been about to do."""
    for _ in range(300):
        store = Store(0)
        feed = store.feed()
        store.items += [Batch([put(101)], 101)] * 5
        errors: list[BaseException] = []

        def poll(feed: Feed = feed, errors: list[BaseException] = errors) -> None:
            try:
                for _ in range(20):
                    feed.poll(5)
            except BaseException as error:  # noqa: BLE001  (looked at below)
                errors.append(error)

        thread = threading.Thread(target=poll)
        thread.start()
        feed.close()
        thread.join(20)
        assert not errors
        assert store.opened[0].closes == 1


def test_on_a_real_store(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that the memory store's history has left behind gets the state, and goes on."""
    import kvi_memory.state

    monkeypatch.setattr(kvi_memory.state, "HISTORY", 10)
    with kvi.open(uri) as store:
        store.store("a", b"")
        watch = store.watch(prefix="", initial=True)
        late = store.watch(prefix="")
        for number in range(50):
            store.store("b", str(number))
        assert watch.next(5).key == "a"
        event = watch.next(5)
        assert event.type is EventType.RESYNC
        assert event.snapshot is not None
        assert [entry.key for entry in event.snapshot] == ["a", "b"]
        assert watch.revision == event.revision == 51
        assert late.next(5) == event
        store.store("c", b"")
        assert watch.next(5).key == late.next(5).key == "c"
        with pytest.raises(kvi.Compacted):
            store.watch(prefix="", from_revision=1)
