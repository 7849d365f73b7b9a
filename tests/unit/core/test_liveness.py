"""Whether a store is alive: what proves it, who is told, and that nobody waits for a reader."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator

import kvi
import pytest
from kvi.flow.supervision import SIZE
from kvi.model import RangeResult, Scan
from kvi.policy.liveness import Liveness, verdict
from kvi.sync.backend import LivenessChannel

from tests.support.backends import Smallest, opened
from tests.support.faulty import Fault, Faulty
from tests.support.waiting import until

_numbers = itertools.count()

NOT_ALIVE = [
    kvi.Unavailable("x"),
    kvi.Unavailable("damaged", passing=False),
    kvi.Timeout("x"),
    kvi.OutcomeUnknown("x"),
]
SAYS_NOTHING = [
    kvi.InvalidArgument("x"),
    kvi.InvalidKey("x"),
    kvi.ValueTooLarge("x"),
    kvi.NotSupported("x"),
    kvi.Closed("x"),
    kvi.UsedAfterFork("x"),
]
ALIVE = [
    kvi.PermissionDenied("x"),
    kvi.AuthenticationFailed("x"),
    kvi.Contention("x"),
    kvi.Compacted("x"),
    kvi.LeaseLost("x"),
    kvi.KviError("x"),
]


class Clock:
    """Seconds that pass when they are told to."""

    time = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inner() -> Iterator[Faulty]:
    with Faulty(kvi.open(f"mem:alive-{next(_numbers)}")) as store:
        yield store


@pytest.fixture
def store(inner: Faulty, clock: Clock) -> kvi.Backend:
    backend = kvi.Backend(inner, retry=None)
    backend._monitored._now = clock
    return backend


def drain(channel: LivenessChannel) -> list[bool]:
    return [channel.get(0) for _ in range(len(channel))]


@pytest.mark.parametrize(
    ("error", "proves"),
    [
        *((error, False) for error in NOT_ALIVE),
        *((error, None) for error in SAYS_NOTHING),
        *((error, True) for error in ALIVE),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Exception) else str(given),
)
def test_what_errors_prove(error: kvi.KviError, proves: bool | None) -> None:
    """No answer, or damage: not alive. A refusal is an answer, a bad call proves nothing."""
    assert verdict(error) is proves


def test_not_alive_before_the_first_operation(store: kvi.Backend) -> None:
    """Until one proves otherwise."""
    assert store.alive is False
    store.get("k")
    assert store.alive is True


OPERATIONS: dict[str, Callable[[kvi.Kvi], object]] = {
    "get": lambda store: store.get("k"),
    "range": lambda store: list(store.range()),
    "count": lambda store: store.count(),
    "store": lambda store: store.store("k", ""),
    "delete": lambda store: store.delete("k"),
    "delete_range": lambda store: store.delete_range(prefix=""),
    "tas": lambda store: store.tas("k", None, None),
    "cas": lambda store: store.cas("k", 0, ""),
    "txn": lambda store: store.txn(),
    "lease_grant": lambda store: store.lease(10),
    "ping": lambda store: store.ping(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_updates_it(name: str, store: kvi.Backend, inner: Faulty) -> None:
    """A success makes it true, a fault makes it false, a refused permission leaves it true."""
    call = OPERATIONS[name]
    call(store)
    assert store.alive
    inner.fails(name, kvi.Unavailable("gone"))
    with pytest.raises(kvi.Unavailable):
        call(store)
    assert not store.alive
    inner.fails(name, kvi.PermissionDenied("no"))
    with pytest.raises(kvi.PermissionDenied):
        call(store)
    assert store.alive


def test_bad_input_leaves_it(store: kvi.Backend) -> None:
    """What was never sent proves nothing, in neither direction."""
    with pytest.raises(kvi.InvalidKey):
        store.get("")
    assert not store.alive
    store.get("k")
    with pytest.raises(kvi.InvalidArgument):
        store.get("k", timeout=-1)
    assert store.alive


def test_missing_key_is_an_answer(store: kvi.Backend) -> None:
    """And so makes it alive."""
    assert store.get("nothing") is None
    assert store.alive


def test_page_that_fails() -> None:
    """A range that loses its store half way makes it not alive."""

    class Failing(Smallest):
        def _range(self, scan: Scan, timeout: float) -> RangeResult:
            def pages() -> Iterator[list[kvi.KeyValue]]:
                raise kvi.Unavailable("gone")
                yield []

            return RangeResult(1, pages)

    with opened(Failing(kvi.open("mem:"))) as plain, kvi.Backend(plain, retry=None) as store:
        found = store.range()
        assert store.alive
        with pytest.raises(kvi.Unavailable):
            list(found)
        assert not store.alive


def test_watching_leaves_it(store: kvi.Backend, inner: Faulty) -> None:
    """Beginning a watch and its events prove nothing; that it could not begin does."""
    with store.watch("k") as watch:
        assert not store.alive
        inner.store("k", "v")
        assert watch.next(10).key == "k"
        assert not store.alive
    store.get("k")
    inner.fails("watch", kvi.Unavailable("gone"))
    with pytest.raises(kvi.Unavailable):
        store.watch("k")
    assert not store.alive


def test_losing_the_watches_connection_makes_it_not_alive(
    store: kvi.Backend, inner: Faulty
) -> None:
    """The backend reports it by itself, whoever wraps it."""
    channel = store.enable_liveness_channel()
    store.get("k")
    inner._scope.primitives._report(kvi.Unavailable("the stream broke"))
    assert not store.alive
    assert drain(channel) == [False, True, False]


def test_listeners_are_not_kept_alive(inner: Faulty) -> None:
    """A wrapper that was dropped is told nothing."""
    kept = kvi.Backend(inner)
    kvi.Backend(inner)
    inner._scope.primitives._report(kvi.Unavailable("x"))
    kept.get("k")
    assert kept.alive


# -- the channel ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", [False, True])
def test_first_item_is_the_present_state(store: kvi.Backend, alive: bool) -> None:
    """False before the first check, true after a good one."""
    if alive:
        store.get("k")
    channel = store.enable_liveness_channel()
    assert drain(channel) == [alive]
    assert store.enable_liveness_channel() is channel
    assert drain(channel) == []


def test_changes_are_posted_at_once(store: kvi.Backend, inner: Faulty, clock: Clock) -> None:
    """And nothing else, before the interval has passed."""
    channel = store.enable_liveness_channel()
    store.get("k")
    store.get("k")
    inner.fails("get", kvi.Timeout("x"), kvi.Timeout("x"))
    for _ in range(2):
        with pytest.raises(kvi.Timeout):
            store.get("k")
    store.get("k")
    assert drain(channel) == [False, True, False, True]


def test_same_state_only_after_the_interval(store: kvi.Backend, clock: Clock) -> None:
    """30 seconds after the last post, when an operation finds it again."""
    store.get("k")
    channel = store.enable_liveness_channel()
    begin = clock.time
    posted = []
    for second in range(200):
        clock.time = begin + second
        store.get("k")
        posted += [second] * len(drain(channel))
    assert posted == [0, 30, 60, 90, 120, 150, 180]


def test_interval_begins_with_each_post() -> None:
    """A change in between moves it."""
    state = Liveness(30)
    assert state.start(0) is False
    assert [state.observe(True, now) for now in (1, 29, 30.5)] == [True, False, False]
    assert state.observe(True, 31) is True
    assert state.observe(False, 32) is True
    assert [state.observe(False, now) for now in (61.9, 62)] == [False, True]


def test_nobody_reads_for_an_hour(store: kvi.Backend, inner: Faulty, clock: Clock) -> None:
    """The channel is never full for an operation: the oldest item goes, the newest are there."""
    channel = store.enable_liveness_channel()
    for second in range(3600):
        clock.time += 1
        if second % 7 == 0:
            inner.fails("get", kvi.Unavailable("x"))
            with pytest.raises(kvi.Unavailable):
                store.get("k")
        else:
            store.get("k")
        assert len(channel) <= SIZE
    assert store.alive
    # Failures at every seventh second, so posts alternate; the last was at 3,598 of 3,600.
    assert drain(channel) == [False, True] * 5
    clock.time += 31
    store.get("k")
    assert drain(channel) == [True]


def test_channel_waits_and_ends(store: kvi.Backend) -> None:
    """Reading waits for news, with a time-out; iterating ends with the store."""
    channel = store.enable_liveness_channel()
    assert channel.get() is False
    with pytest.raises(kvi.Timeout):
        channel.get(0)
    with pytest.raises(kvi.Timeout):
        channel.get(0.01)
    with pytest.raises(kvi.InvalidArgument):
        channel.get(-1)
    seen: list[bool] = []
    reader = threading.Thread(target=lambda: seen.extend(channel))
    reader.start()
    store.get("k")
    until(lambda: seen == [True])
    store.close()
    reader.join(20)
    assert not reader.is_alive()
    with pytest.raises(kvi.Closed):
        channel.get()
    assert not store.alive


def test_channel_ends_with_the_store_below(store: kvi.Backend, inner: Faulty) -> None:
    """Also where nobody closes the wrapper, and for a channel that is asked for afterwards."""
    channel = store.enable_liveness_channel()
    assert channel.get() is False
    ended: list[BaseException] = []

    def read() -> None:
        try:
            channel.get()
        except kvi.Closed as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    inner.close()
    reader.join(20)
    assert len(ended) == 1


def test_listeners_that_are_gone_leave_nothing(inner: Faulty) -> None:
    """However many wrappers come and go over one handle."""
    for _ in range(100):
        kvi.Backend(inner)
    gc.collect()
    kvi.Backend(inner)
    assert len(inner._scope.primitives._listeners) <= 2


def test_closing_is_no_fault(store: kvi.Backend, inner: Faulty) -> None:
    """What calls end with because the handle is closed is not posted."""
    channel = store.enable_liveness_channel()
    store.get("k")
    drain(channel)
    inner.fails("get", kvi.Unavailable("x"))
    inner.before["get"] = closing(store, inner.before["get"])
    with pytest.raises(kvi.Closed):
        store.get("k")
    store._monitored.failed(kvi.Unavailable("x"))
    assert drain(channel) == []


def closing(store: kvi.Kvi, fault: Fault) -> Fault:
    """A fault that comes because the handle is closed."""

    def fault_of_closing() -> None:
        store._scope.shut()
        fault()

    return fault_of_closing
