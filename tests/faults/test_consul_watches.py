"""Consul's watches, leases and locks under hardship, on a real server.

Servers that stop, connections that break, histories that are replaced, consumers that do not read;
many watches at once; sessions that end by themselves; and `consul lock` beside us.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import kvi
import pytest
from kvi import EventType, Key, Put
from kvi.conformance.proxy import TcpProxy
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import Claim, Grant, KeyValue, Span
from kvi.ops import ClaimOp, GrantOp, PollOp, ReleaseOp, RenewOp, RevokeOp, WatchOp
from kvi_consul import diff, sessions, watches, wire
from kvi_consul.store import ConsulKvi
from kvi_consul.transport import CONNECTIONS
from kvi_consul.watches import ConsulFeed, Query

from tests.servers import ConsulServer
from tests.servers.find import find_consul
from tests.support.inside import inmost
from tests.support.secure import SecureConsul
from tests.support.waiting import until

pytestmark = [pytest.mark.consul, pytest.mark.xdist_group("consul")]

EVERYTHING = Span.of_prefix("")
_PASSING = (kvi.Unavailable, kvi.Timeout)


@pytest.fixture
def place(consul_uri: str) -> Iterator[str]:
    """The URI of a namespace of this test's own."""
    where = f"{consul_uri}/kvi-test-{secrets.token_hex(8)}"
    yield where
    with kvi.open(where, timeout=30) as store:
        store.delete_range(prefix="")


@pytest.fixture
def store(place: str) -> Iterator[kvi.Kvi]:
    """A store of this test's own."""
    with kvi.open(place, timeout=30) as opened:
        yield opened


def key(name: str) -> Span:
    """The span of one key."""
    return Span(name, name + "\0")


def nothing() -> None:
    """For feeds that are asked without having been woken."""


def inner(store: kvi.Kvi) -> ConsulKvi:
    """The Consul handle itself, below its namespace."""
    found = inmost(store)
    assert isinstance(found, ConsulKvi)
    return found


def native(store: kvi.Kvi, name: str) -> str:
    """The key as the server has it."""
    return urlsplit(store.uri).path[1:] + "/" * bool(urlsplit(store.uri).path[1:]) + name


# What programs do not call themselves, within the store's namespace.


class Within(Feed):
    """A feed as it is polled through a handle: in the keys of its namespace."""

    def __init__(self, store: kvi.Kvi, inner: Feed) -> None:
        self._store = store
        self._inner = inner
        self.revision = inner.revision

    def poll(self, timeout: float) -> Batch | None:
        """The next events."""
        return self._store._do(PollOp(self._inner), timeout)

    def close(self) -> None:
        """End it."""
        self._inner.close()


def watch(store: kvi.Kvi, spec: WatchSpec, wake: Wake, seconds: float = 5) -> Feed:
    """A feed."""
    return Within(store, store._do(WatchOp(spec, wake), seconds))


def grant(store: kvi.Kvi, ttl: float, seconds: float = 5) -> Grant:
    """A lease that nobody keeps alive."""
    return store._do(GrantOp(ttl), seconds)


def renew(store: kvi.Kvi, lease: int, seconds: float = 5) -> float:
    """Renew a lease; its ttl."""
    return store._do(RenewOp(lease), seconds)


def revoke(store: kvi.Kvi, lease: int, seconds: float = 5) -> None:
    """End a lease."""
    store._do(RevokeOp(lease), seconds)


def claim(store: kvi.Kvi, name: str, lease: int, seconds: float = 5) -> Claim:
    """Claim a lock."""
    return store._do(ClaimOp(name, lease), seconds)


def release(store: kvi.Kvi, held: Claim, seconds: float = 5) -> bool:
    """Let go of a claim."""
    return store._do(ReleaseOp(held), seconds)


def targets(store: kvi.Kvi) -> set[str]:
    """What a handle asks for, without its namespace; single keys end in ``!``."""
    cut = len(native(store, ""))
    return {target[cut:] for target in inner(store)._watches.queries}


def in_step(store: kvi.Kvi) -> bool:
    """Whether no watch is still joining a query."""
    return not any(query.joining for query in inner(store)._watches.queries.values())


def threads() -> int:
    """How many threads of watches there are."""
    return sum(thread.name == "kvi-consul-watch" for thread in threading.enumerate())


class Mirror:
    """A consumer: keeps the state that a feed tells of, and checks what it is told.

    Attributes:
        state: value and revision by key.
        history: revision and value of every event by key; ``None`` for a deletion.
        resyncs: how often the whole state was told anew.

    """

    def __init__(self, store: kvi.Kvi, span: Span = EVERYTHING, *, initial: bool = True) -> None:
        self._wake = threading.Event()
        self.feed: Feed = watch(store, WatchSpec(span, initial=initial), self._wake.set, 10)
        self._span, self._initial = span, initial
        self.state: dict[str, tuple[bytes | None, int]] = {}
        self.history: dict[str, list[tuple[int, bytes | None]]] = {}
        self.resyncs = 0
        self.error: BaseException | None = None
        self._through = self.feed.revision
        self._done = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._done:
                self._wake.clear()
                try:
                    batch = self.feed.poll(5)
                except _PASSING:
                    time.sleep(0.05)
                    continue
                if batch is None:
                    self._wake.wait(30)
                else:
                    self._take(batch)
        except Exception as error:  # noqa: BLE001  (the test looks at it)
            self.error = error

    def _take(self, batch: Batch) -> None:
        revisions = [event.revision for event in batch.events if not event.initial]
        assert revisions == sorted(revisions)
        for event in batch.events:
            assert event.key in self._span or event.type is EventType.RESYNC
            match event.type:
                case EventType.RESYNC:
                    assert event.snapshot is not None
                    self.resyncs += 1
                    self.history.clear()
                    self._through = None
                    self.state = {e.key: (e.value, e.revision) for e in event.snapshot}
                case EventType.PUT:
                    if event.initial:
                        assert not self.history.get(event.key), "initial state after a change"
                    else:
                        assert self._through is None or event.revision > self._through
                    self._note(event.key, event.revision, event.value)
                    self.state[event.key] = (event.value, event.revision)
                case EventType.DELETE:
                    if self._initial:
                        assert event.key in self.state, "deletion of a key that was not there"
                    self._note(event.key, event.revision, None)
                    self.state.pop(event.key, None)
        if batch.revision is not None:
            assert self._through is None or batch.revision >= self._through
            assert not revisions or batch.revision >= revisions[-1]
            self._through = batch.revision

    def _note(self, name: str, revision: int, value: bytes | None) -> None:
        told = self.history.setdefault(name, [])
        assert not told or told[-1][0] < revision, "told twice, or an older state"
        told.append((revision, value))

    def agrees(self, store: kvi.Kvi) -> bool:
        """Whether it knows the present state."""
        assert self.error is None, self.error
        now = {
            entry.key: (entry.value, entry.revision)
            for entry in store.range()
            if entry.key in self._span
        }
        return self.state == now

    def catch_up(self, store: kvi.Kvi) -> None:
        """Wait until it knows the present state."""
        until(lambda: self.agrees(store))

    def close(self) -> None:
        """End it; fails if anything was told wrong."""
        self._done = True
        self._wake.set()
        self._thread.join(10)
        self.feed.close()
        assert not self._thread.is_alive()
        assert self.error is None, self.error


class Writers:
    """Threads that store numbers that only grow, and delete now and then, until the block ends."""

    def __init__(self, store: kvi.Kvi, keys: list[str], count: int = 3, pause: float = 0.0) -> None:
        self._store, self._keys, self._pause = store, keys, pause
        self._done = threading.Event()
        self.written = 0
        self.errors: list[kvi.KviError] = []
        self._threads = [
            threading.Thread(target=self._run, args=(keys[n::count],)) for n in range(count)
        ]

    def _run(self, keys: list[str]) -> None:
        rnd = random.Random()
        number = 0
        while not self._done.wait(self._pause):
            number += 1
            name = rnd.choice(keys)
            try:
                if rnd.random() < 0.2:
                    self._store.delete(name)
                else:
                    self._store.store(name, str(number))
                self.written += 1
            except kvi.KviError as error:
                self.errors.append(error)

    def wait(self, number: int) -> None:
        """Wait until so much was written."""
        until(lambda: self.written > number)

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)


# -- many watches, few polls -----------------------------------------------------------------------


def test_a_thousand_watches_cost_little(store: kvi.Kvi) -> None:
    """They share a thread and a connection or few, each hears of its key, and end at once."""
    woken: list[int] = []

    def waker(number: int) -> Callable[[], None]:
        return lambda: woken.append(number)

    feeds = [watch(store, WatchSpec(key(f"k{n:04}")), waker(n)) for n in range(1000)]
    assert threads() <= CONNECTIONS
    for first in range(0, 1000, 50):
        batch = range(first, first + 50)
        store.txn([], [Put(f"k{n:04}", str(n)) for n in batch])
    until(lambda: set(woken) == set(range(1000)))
    transport = inner(store)._transport
    assert transport._pool.busy + transport._pool.idle < 10
    for number, feed in enumerate(feeds):
        told = feed.poll(1)
        assert told is not None
        assert [(e.key, e.value) for e in told.events] == [(f"k{number:04}", b"%d" % number)]
        assert feed.poll(1) is None
    began = monotonic()
    for feed in feeds:
        feed.close()
    until(lambda: threads() == 0, within=1)
    assert monotonic() - began < 2


def test_a_change_is_told_quickly(store: kvi.Kvi) -> None:
    """A waiting query answers as soon as the key changes, also on a store that changes a lot."""
    mirror = Mirror(store, key("k"))
    try:
        with Writers(store, ["other/a", "other/b"], 2):
            slowest = 0.0
            for number in range(50):
                began = monotonic()
                store.store("k", str(number))
                mirror.catch_up(store)
                slowest = max(slowest, monotonic() - began)
        assert slowest < 1
    finally:
        mirror.close()


def test_watches_that_begin_among_writers_miss_nothing(store: kvi.Kvi) -> None:
    """Initial state and changes fit together, without a gap and without anything twice."""
    keys = [f"a/{n}" for n in range(10)] + [f"b/{n}" for n in range(10)]
    spans = [EVERYTHING, Span.of_prefix("a/"), Span("a/5", "b/5"), key("a/0"), key("b/9")]
    mirrors: list[Mirror] = []
    try:
        with Writers(store, keys) as writers:
            mirrors += [Mirror(store, spans[number % len(spans)]) for number in range(60)]
            writers.wait(1000)
        for mirror in mirrors:
            mirror.catch_up(store)
        assert writers.errors == []
    finally:
        for mirror in mirrors:
            mirror.close()
    assert {mirror.resyncs for mirror in mirrors} == {0}


def test_a_watch_that_begins_while_a_look_comes_in(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first change is told, though the look that shows it passed the key before it came."""
    store.store("a", "1")
    others = [watch(store, WatchSpec(key(name)), nothing) for name in "bcdefghijklmnopqrs"]
    assert targets(store) == {""}  # of nobody who follows "a"
    until(lambda: in_step(store))
    passed, entered = threading.Event(), threading.Event()
    baseline, finish = watches.Watches.baseline, diff.Snapshot.finish

    def read(self: watches.Watches, span: Span, timeout: float, *, keep: bool) -> Any:
        found = baseline(self, span, timeout, keep=keep)
        store.store("a", "2")
        assert passed.wait(10)
        return found

    def wait(self: diff.Snapshot[ConsulFeed], index: int) -> None:
        passed.set()
        assert entered.wait(10)
        finish(self, index)

    monkeypatch.setattr(watches.Watches, "baseline", read)
    monkeypatch.setattr(diff.Snapshot, "finish", wait)
    feed = watch(store, WatchSpec(key("a")), nothing)
    monkeypatch.undo()
    entered.set()
    assert [(e.key, e.value) for e in heard(feed).events] == [("a", b"2")]
    store.store("a", "3")
    assert [(e.key, e.value) for e in heard(feed).events] == [("a", b"3")]
    for each in (feed, *others):
        each.close()


def test_watches_without_a_beginning_see_what_comes_after(store: kvi.Kvi) -> None:
    """From the moment that a watch is made, the last state of a key is told."""
    with Writers(store, [f"k{n}" for n in range(5)], 2):
        for number in range(100):
            feed = watch(store, WatchSpec(key(f"mine{number}")), nothing)
            revision = store.store(f"mine{number}", "v")
            batch = heard(feed)
            assert [(e.value, e.revision) for e in batch.events] == [(b"v", revision)]
            assert batch.revision is not None
            assert batch.revision >= revision
            feed.close()


def test_polls_merge_and_part_without_a_loss(store: kvi.Kvi) -> None:
    """Watches of ever more trees share polls, and leave them again, while all of it changes."""
    trees = "abcdefghijkl"
    keys = [f"{tree}/{n}" for tree in trees for n in range(3)]
    steady = [Mirror(store, Span.of_prefix(f"{tree}/")) for tree in "ab"]
    seen = set()
    try:
        with Writers(store, keys) as writers:
            for _ in range(6):
                with ExitStack() as stack:
                    for tree in trees[2:]:
                        mirror = Mirror(store, Span.of_prefix(f"{tree}/"))
                        stack.callback(mirror.close)
                        assert len(targets(store)) <= CONNECTIONS
                        seen.add(len(targets(store)))
                writers.wait(writers.written + 50)
                until(lambda: targets(store) == {"a/", "b/"})
        for mirror in steady:
            mirror.catch_up(store)
    finally:
        for mirror in steady:
            mirror.close()
    assert set(range(3, CONNECTIONS + 1)) <= seen
    assert {mirror.resyncs for mirror in steady} == {0}
    until(lambda: threads() == 0, within=2)


def test_one_key_costs_no_look_at_those_below_it(store: kvi.Kvi) -> None:
    """A watch of ``config`` does not read ``config/…``, until somebody watches those as well."""
    for number in range(20):
        store.store(f"config/{number}", bytes(1000))
    one = Mirror(store, key("config"))
    until(lambda: targets(store) == {"config!"})
    (query,) = inner(store)._watches.queries.values()
    store.store("config", "1")
    one.catch_up(store)
    assert len(query.known) == 1
    below = Mirror(store, Span.of_prefix("config"))
    store.store("config/3", "new")
    store.store("config", "2")
    until(lambda: below.agrees(store) and one.agrees(store))
    (query,) = inner(store)._watches.queries.values()
    assert len(query.known) == 21
    below.close()
    store.store("config", "3")
    store.delete("config")
    one.catch_up(store)
    assert targets(store) == {"config!"}
    one.close()
    assert (one.resyncs, below.resyncs) == (0, 0)


def test_odd_keys_are_watched_as_any_other(store: kvi.Kvi) -> None:
    """What has no path of its own in Consul is watched through one that is above it."""
    odd = ["/x", "a//b", "a/../b", "..", "nul\0", "line\n", "é", "😀", "p%41", "a b", "a/."]
    mirrors = [Mirror(store, key(name)) for name in odd]
    mirrors += [Mirror(store, Span.of_prefix(name)) for name in odd]
    try:
        for name in odd:
            for value in ("1", "2"):
                store.store(name, value)
            store.store(name + "below", "3")
        store.delete(odd[0])
        for mirror in mirrors:
            mirror.catch_up(store)
    finally:
        for mirror in mirrors:
            mirror.close()


@pytest.mark.parametrize("above", ["", "a", "a/b", "a/b/"])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_deleted_tree_is_told_below_it(store: kvi.Kvi, above: str, count: int) -> None:
    """Who watches a folder within a tree is told its deletion, also where Consul's index falls."""
    store.store("a/b/old", b"")
    store.delete("a/b/old")  # Consul keeps this grave, and falls back to it
    store.store("other", b"")
    keys = [f"a/b/{number:03}" for number in range(count)]
    for key in keys:
        store.store(key, b"")
    with store.watch(prefix="a/b/") as watch:
        assert store.delete_range(prefix=above) == count + (not above)
        events = [watch.next(30) for _ in keys]
    assert {event.type for event in events} == {kvi.EventType.DELETE}
    assert sorted(event.key for event in events) == keys


def test_the_mark_above_a_namespace_is_not_watched(store: kvi.Kvi) -> None:
    """The key ``ns/`` of other tools belongs to no watch of the namespace ``ns``."""
    view = store.namespace("ns")
    mirror = Mirror(view)
    store.store("ns/", "mark")
    store.store("ns0", "behind")
    view.store("k", "v")
    mirror.catch_up(view)
    assert set(mirror.history) == {"k"}
    mirror.close()


# -- slow consumers --------------------------------------------------------------------------------


def test_who_does_not_read_is_told_the_whole_state(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for it is bounded; others are told as ever; then it goes on with changes."""
    monkeypatch.setattr(diff, "MOST_PENDING", 50_000)
    woken = threading.Event()
    slow = watch(store, WatchSpec(EVERYTHING), woken.set)
    mirror = Mirror(store)
    for number in range(200):
        store.store(f"k{number:03}", bytes(1000))
        store.store("hot", str(number))
    mirror.catch_up(store)
    assert woken.is_set()
    (other,) = (feed for feed in gather(slow) if isinstance(feed, ConsulFeed))
    assert other.behind
    assert not other.pending
    batch = heard(slow)
    (event,) = batch.events
    assert event.type is EventType.RESYNC
    assert event.snapshot == list(store.range())
    assert slow.poll(5) is None
    woken.clear()
    revision = store.store("hot", "last")
    assert woken.wait(10)
    batch = heard(slow)
    assert [(e.key, e.value, e.revision) for e in batch.events] == [("hot", b"last", revision)]
    slow.close()
    mirror.close()
    assert mirror.resyncs == 0


def heard(feed: Feed) -> Batch:
    """The next batch."""
    found: list[Batch] = []

    def polled() -> bool:
        batch = feed.poll(5)
        if batch is not None:
            found.append(batch)
        return bool(found)

    until(polled)
    return found[0]


def gather(feed: Feed) -> list[Feed]:
    """A feed and those inside of it."""
    within = getattr(feed, "_inner", None)
    return [feed] if within is None else [feed, *gather(within)]


def test_a_large_initial_state_comes_in_pages(store: kvi.Kvi) -> None:
    """It is in key order, marked as initial, and changes wait until it is told."""
    for first in range(0, 1280, 64):
        store.txn([], [Put(f"k{n:04}", str(n)) for n in range(first, first + 64)])
    feed = watch(store, WatchSpec(EVERYTHING, initial=True), nothing)
    assert feed.revision is None
    store.store("a", "later")
    batches = [heard(feed) for _ in range(3)]
    events = [event for batch in batches for event in batch.events]
    assert [event.key for event in events] == [f"k{n:04}" for n in range(1280)]
    assert all(event.initial for event in events)
    assert [batch.revision is None for batch in batches] == [True, True, False]
    assert [(e.key, e.initial) for e in heard(feed).events] == [("a", False)]
    feed.close()


# -- servers and connections that fail -------------------------------------------------------------


def test_watches_survive_a_killed_server() -> None:
    """After a kill and a restart they tell what changed, and nothing twice."""
    with ConsulServer() as server, kvi.open(server.uri, timeout=10) as store:
        store.store("kept", "1")
        store.store("gone", "1")
        mirrors = [Mirror(store), Mirror(store, key("gone")), Mirror(store, key("new"))]
        quiet = Mirror(store, key("kept"), initial=False)
        for _ in range(2):
            server.kill()
            time.sleep(0.2)
            server.start()
            # a writer beside us, so that the change comes while watches are still backing off
            ask(server, "PUT", "/v1/kv/new", secrets.token_hex(4))
            ask(server, "DELETE", "/v1/kv/gone")
            for mirror in mirrors:
                mirror.catch_up(store)
            store.store("gone", "2")
            for mirror in mirrors:
                mirror.catch_up(store)
        for mirror in [*mirrors, quiet]:
            mirror.close()
        assert {mirror.resyncs for mirror in [*mirrors, quiet]} == {0}
        assert quiet.history == {}


def test_watches_survive_connections_that_break() -> None:
    """Cut, refused and silent connections cost time; in the end everything was told."""
    with ConsulServer() as server, TcpProxy(server.port) as proxy:
        there = kvi.open(f"consul://127.0.0.1:{proxy.port}", timeout=10)
        with there as store, kvi.open(server.uri) as beside:
            keys = [f"{tree}/{n}" for tree in "abcde" for n in range(4)]
            mirrors = [
                Mirror(store),
                Mirror(store, Span.of_prefix("a/")),
                Mirror(store, key("b/1")),
            ]
            with Writers(beside, keys, pause=0.002) as writers:
                for _ in range(10):
                    proxy.cut()
                    time.sleep(0.05)
                proxy.refuse()
                proxy.cut()
                writers.wait(writers.written + 100)
                proxy.refuse(False)
                proxy.stall()
                time.sleep(0.3)
                proxy.flow()
            for mirror in mirrors:
                mirror.catch_up(beside)
            for mirror in mirrors:
                mirror.close()
            assert {mirror.resyncs for mirror in mirrors} == {0}


def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What swallows everything and ends nothing is noticed when the wait is over."""
    monkeypatch.setattr(watches, "_WAIT", 1.0)
    monkeypatch.setattr(watches, "_GRACE", 0.5)
    with ConsulServer() as server, TcpProxy(server.port) as proxy:
        there = kvi.open(f"consul://127.0.0.1:{proxy.port}", timeout=10)
        with there as store, kvi.open(server.uri) as beside:
            mirror = Mirror(store)
            beside.store("k", "1")
            mirror.catch_up(beside)
            proxy.stall()
            beside.store("k", "2")
            until(lambda: proxy.accepted > 3)  # it has tried anew, more than once
            proxy.flow()
            mirror.catch_up(beside)
            mirror.close()


def test_watches_survive_a_paused_server() -> None:
    """A server that froze and goes on loses nothing."""
    with ConsulServer() as server, kvi.open(server.uri, timeout=10) as store:
        mirror = Mirror(store)
        store.store("k", "1")
        mirror.catch_up(store)
        server.pause()
        time.sleep(1)
        server.resume()
        store.store("k", "2")
        mirror.catch_up(store)
        mirror.close()


def test_a_restored_snapshot_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """All indexes differ afterwards, and are smaller; watches tell it when their wait is over."""
    monkeypatch.setattr(watches, "_WAIT", 2.0)
    with ConsulServer() as server, kvi.open(server.uri, timeout=10) as store:
        for number in range(10):
            store.store(f"k{number}", "old")
        saved = ask(server, "GET", "/v1/snapshot")
        for number in range(5):
            store.store(f"k{number}", "new")
        store.delete("k9")
        store.store("later", "v")
        mirrors = [Mirror(store), Mirror(store, key("k0")), Mirror(store, key("later"))]
        for mirror in mirrors:
            mirror.catch_up(store)
        for number in range(50):
            store.store("later", str(number))
        ask(server, "PUT", "/v1/snapshot", saved)
        server.wait_ready()
        for mirror in mirrors:
            mirror.catch_up(store)
        assert mirrors[0].state["k0"][0] == b"old"
        assert mirrors[0].resyncs >= 1
        store.store("k0", "newest")
        for mirror in mirrors:
            mirror.catch_up(store)
            mirror.close()


def test_a_server_that_lost_its_data_is_told() -> None:
    """The indexes begin anew; what is gone is told as deleted, what comes as new."""
    with ConsulServer() as server, kvi.open(server.uri, timeout=10) as store:
        for number in range(30):
            store.store(f"k{number}", "old")
        mirrors = [Mirror(store), Mirror(store, key("k0")), Mirror(store, key("k1"))]
        for mirror in mirrors:
            mirror.catch_up(store)
        server.stop()
        shutil.rmtree(server.data_dir)
        server.data_dir.mkdir()
        server.start()
        for mirror in mirrors:
            mirror.catch_up(store)
        assert mirrors[0].state == {}
        for number in range(5):
            store.store("k0", str(number))
            for mirror in mirrors:
                mirror.catch_up(store)
        for mirror in mirrors:
            mirror.close()


def ask(server: ConsulServer, method: str, path: str, body: str | bytes = b"") -> bytes:
    """Ask Consul without this project."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content
    finally:
        connection.close()


# -- the end ---------------------------------------------------------------------------------------


def test_closing_a_handle_ends_its_polls_at_once() -> None:
    """Also while the server is frozen, no thread is left within two seconds."""
    with ConsulServer() as server:
        store = kvi.open(server.uri, timeout=10)
        feeds = [watch(store, WatchSpec(key(f"{tree}/k")), nothing) for tree in "abcd"]
        until(lambda: in_step(store))
        assert threads() == 4
        server.pause()
        began = monotonic()
        store.close()
        assert monotonic() - began < 2
        until(lambda: threads() == 0, within=1)
        for feed in feeds:
            feed.close()
            feed.close()
        server.resume()


def test_the_last_watch_takes_its_poll_along(store: kvi.Kvi) -> None:
    """The query is not waited for."""
    feeds = [watch(store, WatchSpec(key("k")), nothing) for _ in range(3)]
    until(lambda: threads() == 1)
    for feed in feeds[:2]:
        feed.close()
    assert targets(store) == {"k!"}
    feeds[2].close()
    until(lambda: threads() == 0, within=1)
    transport = inner(store)._transport
    until(lambda: not transport._pool.busy, within=1)
    store.store("k", "v")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_leaves_the_watches_of_the_parent_alone(store: kvi.Kvi) -> None:
    """The child may do what it likes with what it inherited."""
    mirror = Mirror(store)
    store.store("k", "1")
    mirror.catch_up(store)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mirror.feed.close()
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    (query,) = inner(store)._watches.queries.values()
    assert query._waiting
    for number in range(3):
        store.store("k", f"after {number}")
        mirror.catch_up(store)
    mirror.close()


# -- access ----------------------------------------------------------------------------------------


def test_a_token_that_ends_ends_the_watch() -> None:
    """A watch whose token is deleted raises that; one that may not make sessions is told so."""
    with SecureConsul() as secured:
        token = secured.token('key_prefix "open/" {policy="write"}')
        uri = f"consul://{token['SecretID']}@{secured.address}"
        with kvi.open(uri, timeout=10) as store:
            woken = threading.Event()
            feed = watch(store, WatchSpec(Span.of_prefix("open/")), woken.set)
            store.store("open/k", "v")
            assert woken.wait(10)
            assert feed.poll(5) is not None
            with pytest.raises(kvi.PermissionDenied) as denied:
                grant(store, 10)
            assert token["SecretID"] not in str(denied.value)
            secured.ask("PUT", "/v1/kv/shut/k", "v")
            with pytest.raises(kvi.PermissionDenied):
                watch(store, WatchSpec(key("shut/k")), nothing)
            secured.ask("DELETE", f"/v1/acl/token/{token['AccessorID']}")
            # the query that waits ends by a change, as it would by its wait
            woken.clear()
            secured.ask("PUT", "/v1/kv/open/k", "w")
            (below,) = (f for f in gather(feed) if isinstance(f, ConsulFeed))
            until(lambda: below.error)
            assert woken.is_set()
            with pytest.raises(kvi.AuthenticationFailed) as refused:
                feed.poll(5)
            assert token["SecretID"] not in str(refused.value)
            until(lambda: threads() == 0, within=2)
            feed.close()


def test_sessions_with_acls() -> None:
    """Who may make sessions can grant, renew and revoke them, and revoke them again."""
    with SecureConsul() as secured:
        token = secured.token('key_prefix "" {policy="write"} session_prefix "" {policy="write"}')
        with kvi.open(f"consul://{token['SecretID']}@{secured.address}", timeout=10) as store:
            mirror = Mirror(store, Span.of_prefix("k"))
            granted = grant(store, 10)
            store.store("k", "v", lease=granted.id)
            assert renew(store, granted.id) == 10
            claimed = claim(store, "n", granted.id)
            assert claimed.ahead is None
            for _ in range(2):
                revoke(store, granted.id)
            assert store.get("k") is None
            with pytest.raises(kvi.LeaseLost):
                renew(store, granted.id)
            # a server that comes back knows its tokens, and the watch goes on
            store.store("k", "before")
            secured.server.restart()
            until(lambda: stored(store, "k", "after"))
            until(lambda: mirror.agrees(store) if mirror.state else False)
            until(lambda: mirror.state["k"][0] == b"after")
            mirror.close()


def stored(store: kvi.Kvi, name: str, value: str) -> bool:
    """Whether it could be stored."""
    try:
        store.store(name, value)
    except kvi.KviError:
        time.sleep(0.05)
        return False
    return True


# -- leases ----------------------------------------------------------------------------------------


def test_a_lease_is_a_session(store: kvi.Kvi) -> None:
    """Granted with the ttl asked for, renewed, revoked any number of times; its keys go with it."""
    mirror = Mirror(store)
    granted = grant(store, 10.5)
    assert granted.ttl == 10.5
    session = info(store, granted.id)
    assert (session["TTL"], session["Behavior"], session["LockDelay"]) == ("10500ms", "delete", 0)
    assert not session.get("NodeChecks")
    assert not session.get("ServiceChecks")
    other = grant(store, 86_400)
    names = [f"k{n}" for n in range(20)]
    store.txn([], [Put(name, "1", granted.id) for name in names])
    store.txn([], [Put(name, "2", granted.id) for name in names])  # again by the same
    store.store("k0", "permanent")
    store.store("k1", "theirs", lease=other.id)
    assert store.txn([Key("k2").lease == granted.id], [Put("k2", "3", granted.id)])
    assert not store.txn([Key("k1").lease == granted.id], [Put("k1", "3", granted.id)])
    assert renew(store, granted.id) == 10.5
    revoke(store, granted.id)
    assert [(e.key, e.text, e.lease) for e in store.range()] == [
        ("k0", "permanent", None),
        ("k1", "theirs", other.id),
    ]
    mirror.catch_up(store)
    revisions = {mirror.history[name][-1] for name in names[2:]}
    assert len(revisions) == 1  # in one step
    revoke(store, granted.id)
    for lost in (granted.id, 1, 1 << 200):
        revoke(store, lost)
        with pytest.raises(kvi.LeaseLost):
            renew(store, lost)
        with pytest.raises(kvi.LeaseLost):
            store.store("k5", "v", lease=lost)
        with pytest.raises(kvi.LeaseLost):
            claim(store, "n", lost)
    # no lock-delay keeps the keys
    again = grant(store, 10)
    for name in ("k2", "k3"):
        store.store(name, "again", lease=again.id)
    revoke(store, again.id)
    revoke(store, other.id)
    assert [entry.key for entry in store.range()] == ["k0"]
    mirror.catch_up(store)
    mirror.close()


def info(store: kvi.Kvi, lease: int) -> Any:
    """What Consul says of a session."""
    (session,) = store.client.http.get(
        lambda answer: json.loads(answer.body), f"/v1/session/info/{wire.session_of(lease)}"
    )
    return session


def test_leases_when_answers_are_lost() -> None:
    """A grant is then unknown, a renewal merely failed, and neither is ever `LeaseLost`."""
    with ConsulServer() as server, kvi.open(server.uri, timeout=10) as store:
        granted = grant(store, 10)
        server.pause()
        try:
            with pytest.raises(kvi.OutcomeUnknown):
                grant(store, 10, 0.3)
            with pytest.raises(kvi.Timeout):
                renew(store, granted.id, 0.3)
        finally:
            server.resume()
        server.wait_ready()
        assert renew(store, granted.id) == 10
        server.kill()
        for call in (
            lambda: renew(store, granted.id, 1),
            lambda: grant(store, 10, 1),
            lambda: revoke(store, granted.id, 1),
            lambda: claim(store, "n", granted.id, 1),
        ):
            with pytest.raises(kvi.Unavailable):
                call()
        server.start()
        until(lambda: renewed(store, granted.id))  # the session outlives its server


def renewed(store: kvi.Kvi, lease: int) -> bool:
    """Whether it could be renewed."""
    try:
        renew(store, lease)
    except (kvi.Unavailable, kvi.Timeout):
        return False
    return True


@pytest.mark.slow
def test_a_lease_that_nobody_renews_ends_between_one_and_two_ttls(store: kvi.Kvi) -> None:
    """Its keys and its lock vanish with events, and can be taken again in that moment."""
    mirror = Mirror(store)
    began = monotonic()
    lost, kept = grant(store, 10, 5), grant(store, 10)
    sent = monotonic()
    store.store("temporary", "v", lease=lost.id)
    store.store("kept", "v", lease=kept.id)
    claimed = claim(store, "n", lost.id)
    waits = claim(store, "n", kept.id)
    assert (claimed.ahead, waits.ahead) == (None, "n/.lock")
    mirror.catch_up(store)
    renewals = iter(range(3, 60, 3))
    due = began + next(renewals)
    while "n/.lock" in mirror.state:
        assert monotonic() - sent < 21
        if monotonic() > due:
            renew(store, kept.id)
            due = began + next(renewals)
        time.sleep(0.01)
    ended = monotonic()
    assert ended - began >= 10
    won = claim(store, "n", kept.id)
    assert won.ahead is None
    assert won.fence > claimed.fence
    assert not store.txn([claimed.guard], [Put("protected", "stale")])
    assert store.txn([won.guard], [Put("protected", "fresh")])
    store.store("temporary", "mine", lease=kept.id, timeout=1)
    with pytest.raises(kvi.LeaseLost):
        renew(store, lost.id)
    assert not release(store, claimed)
    assert release(store, won)
    revoke(store, kept.id)
    mirror.catch_up(store)
    mirror.close()


# -- locks -----------------------------------------------------------------------------------------


@pytest.fixture
def leases(store: kvi.Kvi) -> Iterator[list[int]]:
    """Three leases."""
    granted = [grant(store, 60).id for _ in range(3)]
    yield granted
    for lease in granted:
        revoke(store, lease)


def test_one_claim_holds_a_lock(store: kvi.Kvi, leases: list[int]) -> None:
    """Others wait for its key; claiming again changes nothing; fences grow; nothing is left."""
    one, two, three = leases
    claimed = claim(store, "n", one)
    assert (claimed.key, claimed.ahead) == ("n/.lock", None)
    found = store.get("n/.lock")
    assert found == KeyValue("n/.lock", b"", claimed.fence, claimed.fence, None, one)
    assert claim(store, "n", one) == claimed
    assert claim(store, "n", two).ahead == "n/.lock"
    waits = claim(store, "n", two)
    assert release(store, waits)  # a waiter leaves, the holder stays
    assert store.txn([claimed.guard], [Put("k", "v")])
    assert not store.txn([waits.guard], [Put("k", "w")])
    assert release(store, claimed)
    assert not release(store, claimed)
    assert store.get("n/.lock") is None
    after = claim(store, "n", three)
    assert after.fence > claimed.fence
    assert not store.txn([claimed.guard], [Put("k", "w")])
    # a waiter whose claimed was granted, and the answer lost, withdraws all the same
    release(store, after)
    claim(store, "n", two)
    assert release(store, waits)
    assert store.get("n/.lock") is None
    assert claim(store, "n/.lock", one).ahead is None  # another lock
    assert claim(store, "n", two).ahead is None


def test_a_lock_delay_of_others_is_waited_for(store: kvi.Kvi, leases: list[int]) -> None:
    """`consul lock` leaves one behind when it dies: the claim waits, and is granted after it."""
    stranger = make_session(store, "delete", "1s")
    store.store("n/.lock", "theirs", lease=UUID(stranger).int)
    store.client.http.put(lambda answer: answer, f"/v1/session/destroy/{stranger}")
    claimed = claim(store, "n", leases[0])
    assert claimed.ahead == "n/.lock"
    assert store.get("n/.lock") is None
    until(lambda: claim(store, "n", leases[0]).ahead is None, within=5)


def make_session(store: kvi.Kvi, behavior: str, delay: str) -> str:
    """A session of a stranger."""
    wanted = {"TTL": "60s", "Behavior": behavior, "LockDelay": delay, "Checks": []}
    made = store.client.http.put(
        lambda answer: json.loads(answer.body), "/v1/session/create", data=json.dumps(wanted)
    )
    return str(made["ID"])


def test_data_under_the_key_of_a_lock_is_not_touched(store: kvi.Kvi, leases: list[int]) -> None:
    """What is no lock's key, as a semaphore's, makes the name unusable; it is not overwritten."""
    lock = native(store, "n/.lock")
    for flags in (0, 1, 0xE0F69A2BAA414DE0):
        store.client.kv.put(lock, "data", flags=flags)
        with pytest.raises(kvi.InvalidArgument, match="choose another name"):
            claim(store, "n", leases[0])
        found = store.get("n/.lock")
        assert found is not None
        assert (found.text, found.lease) == ("data", None)
    store.client.kv.put(lock, "left behind", flags=sessions.LOCK)
    assert claim(store, "n", leases[0]).ahead is None


@pytest.mark.parametrize("runs", range(3))
def test_one_of_many_claims_at_once(store: kvi.Kvi, leases: list[int], runs: int) -> None:
    """Of all who claim at once exactly one holds the lock."""
    start = threading.Barrier(len(leases))
    claims: list[Claim] = []

    def run(lease: int) -> None:
        start.wait()
        claims.append(claim(store, "n", lease))

    several = [threading.Thread(target=run, args=(lease,)) for lease in leases]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert sorted(claimed.ahead is None for claimed in claims) == [False, False, True]


class ConsulLock:
    """`consul lock NAME`, holding until it is told to let go."""

    def __init__(self, store: kvi.Kvi, name: str, *options: str) -> None:
        port = inner(store)._transport.port
        self._process = subprocess.Popen(
            [
                *(str(find_consul().path), "lock", f"-http-addr=127.0.0.1:{port}", *options),
                *("-pass-stdin", "-shell=false", native(store, name)),
                *("sh", "-c", "echo held; read line; echo done"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"]},
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.said.extend(line.strip() for line in self._process.stdout)

    @property
    def held(self) -> bool:
        """Whether it says so."""
        return "held" in self.said

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def finish(self) -> int:
        """Let go of the lock, if it has it; the exit code."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.close()
        code = self._process.wait(20)
        self._end()
        return code

    def end(self) -> int:
        """Wait for it to give up."""
        code = self._process.wait(20)
        self._end()
        return code

    def _end(self) -> None:
        self._reader.join(20)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def test_consul_lock_and_ours_exclude_each_other(store: kvi.Kvi, leases: list[int]) -> None:
    """In both directions, one after the other, whatever key it leaves behind."""
    one, two, _ = leases
    ours = claim(store, "n", one)
    assert ours.ahead is None
    in_vain = ConsulLock(store, "n", "-timeout=1s")
    assert in_vain.end() != 0
    assert not in_vain.held
    theirs = ConsulLock(store, "n")
    time.sleep(0.5)
    assert not theirs.held
    assert store.txn([ours.guard], [Put("k", "v")])
    assert release(store, ours)
    until(lambda: theirs.held or theirs.ended)
    assert theirs.held, theirs.said
    waits = claim(store, "n", two)
    assert waits.ahead == "n/.lock"
    woken = threading.Event()
    feed = watch(store, WatchSpec(key("n/.lock")), woken.set)
    assert claim(store, "n", two).ahead == "n/.lock"
    woken.clear()
    assert theirs.finish() == 0
    assert woken.wait(5)
    until(lambda: claim(store, "n", two).ahead is None, within=5)
    again = claim(store, "n", two)
    assert again.fence > ours.fence
    assert release(store, again)
    feed.close()


# -- the pieces ------------------------------------------------------------------------------------


def test_a_poll_that_fails_oddly_tells_its_watches(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in its thread, a watch does not go quiet."""
    woken = threading.Event()
    feed = watch(store, WatchSpec(key("k")), woken.set)
    until(lambda: in_step(store))

    def fails(*_: object) -> None:
        raise RuntimeError("oddly")

    monkeypatch.setattr(Query, "take", fails)
    store.store("k", "v")
    assert woken.wait(10)
    with pytest.raises(kvi.KviError, match="RuntimeError: oddly"):
        feed.poll(5)
    feed.close()


def test_a_watch_whose_thread_cannot_be_started(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is `Unavailable`; the next one hears of changes, and the handle can be closed."""
    store = kvi.open(place, retry=None)
    start = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        if thread.name == "kvi-consul-watch":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        with pytest.raises(kvi.Unavailable, match="can't start new thread"):
            store.watch("k")
    assert targets(store) == set()
    with store.watch("k") as watch:
        store.store("k", "v")
        assert watch.next(10).value == b"v"
        store.close()
    until(lambda: threads() == 0, within=2)
