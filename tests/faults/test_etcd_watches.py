"""Watches, leases and lock claims on etcd that is away, cut off, paused, restarted, compacted."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import kvi
import pytest
from kvi.conformance.proxy import TcpProxy
from kvi.coroutine import run
from kvi.feed import Batch, Feed, WatchSpec
from kvi.model import Event, EventType, Span
from kvi_etcd import cursor, driver, hub, watches, wire
from kvi_etcd import wire_pb2 as pb

from tests.servers import EtcdServer, find_etcdctl
from tests.support.inside import inmost
from tests.support.waiting import until

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

Change = tuple[str, str, bytes | None, int]


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """An etcd of this test alone."""
    with EtcdServer(fast=True) as running:
        yield running


@pytest.fixture
def proxy(server: EtcdServer) -> Iterator[TcpProxy]:
    """What stands between the store and the server."""
    with TcpProxy(server.port) as between:
        yield between


@pytest.fixture
def writer(server: EtcdServer) -> Iterator[kvi.Kvi]:
    """A handle that goes straight to the server."""
    with kvi.open(server.uri) as store:
        yield store


@pytest.fixture
def store(proxy: TcpProxy) -> Iterator[kvi.Kvi]:
    """A handle that goes through the proxy."""
    with kvi.open(f"etcd://127.0.0.1:{proxy.port}") as through:
        yield through


class Consumer:
    """Polls a feed whenever it is woken, on a thread of its own, and keeps what it gets."""

    def __init__(self, store: kvi.Kvi, span: Span, start: int | None = None) -> None:
        self._woken = threading.Event()
        self._end = False
        self.events: list[Event] = []
        self.error: kvi.KviError | None = None
        self.feed: Feed = inmost(store)._watch(WatchSpec(span, start), self._woken.set, 10)
        self.revision = self.feed.revision
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = True
        self._woken.set()
        self._thread.join(20)
        self.feed.close()

    def _run(self) -> None:
        while not self._end:
            self._woken.wait()
            self._woken.clear()
            try:
                self._drain()
            except kvi.KviError as error:
                self.error = error
                return

    def _drain(self) -> None:
        while not self._end:
            try:
                batch = self.feed.poll(5)
            except (kvi.Unavailable, kvi.Timeout):
                time.sleep(0.05)  # as the interface says: it is called again later
                continue
            if batch is None:
                return
            self.events += batch.events
            self.revision = batch.revision

    def wait_for(self, revision: int) -> None:
        """Return once the last event is that of ``revision``."""
        until(lambda: self.events and self.events[-1].revision == revision)

    def values(self) -> list[bytes | None]:
        """The values, in the order of the events."""
        return [event.value for event in list(self.events)]


def drained(feed: Feed, enough: Callable[[list[Event]], bool]) -> list[Event]:
    """The events of a feed that is polled by the test itself, until there are enough."""
    events: list[Event] = []

    def look() -> bool:
        with suppress(kvi.Unavailable, kvi.Timeout):
            while (batch := feed.poll(5)) is not None:
                events.extend(batch.events)
        return enough(events)

    until(look)
    return events


def behind(revision: int, events: list[Event]) -> bool:
    """Whether there is something newer."""
    return bool(events) and events[-1].revision > revision


def nothing() -> None:
    """A wake that wakes nobody."""


def everything() -> Span:
    """All keys."""
    return Span.of_prefix("")


def etcdctl(server: EtcdServer, *arguments: str) -> str:
    """Run etcdctl against the server and return what it prints."""
    command = [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def cut_off(proxy: TcpProxy) -> None:
    """Break all connections and let none through, until told otherwise."""
    proxy.refuse()
    proxy.cut()


def running_threads() -> int:
    """The threads of Python, beside those of the proxy and those that core keeps at hand."""
    aside = {"proxy", "kvi-flow", "kvi-scheduler"}
    return sum(thread.name not in aside for thread in threading.enumerate())


def insistently(action: Callable[[], object], *, within: float = 20) -> None:
    """Do ``action``, again while the server is away; it may be done twice."""
    deadline = time.monotonic() + within
    while True:
        try:
            action()
            return
        except (kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown):
            assert time.monotonic() < deadline, "the server does not come back"


def told(events: list[Event]) -> list[tuple[int, str]]:
    """What makes an event one of its kind."""
    return [(event.revision, event.key) for event in events]


# -- streams that break ----------------------------------------------------------------------------


def test_killed_and_restarted(server: EtcdServer) -> None:
    """Changes before, between and after kills come once each, in order."""
    with kvi.open(server.uri) as store, kvi.open(server.uri) as writer:
        with Consumer(store, everything()) as all_keys, Consumer(store, Span("b", "b\0")) as one:
            for turn in range(3):
                writer.store("a", f"{turn}")
                server.kill()
                server.start()
                insistently(lambda: writer.store("b", "x"))
                all_keys.wait_for(writer.store("b", f"{turn}"))
            one.wait_for(all_keys.events[-1].revision)
        history = Consumer(store, everything(), start=1)
        with history:
            until(lambda: len(history.events) >= len(all_keys.events))
        assert told(all_keys.events) == told(history.events)
        assert told(one.events) == [change for change in told(history.events) if change[1] == "b"]


def test_cut_connections(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """Twenty cuts under a steady flow of writes: nothing is lost, nothing comes twice."""
    with Consumer(store, everything()) as consumer:
        for number in range(2000):
            writer.store(f"k{number % 7}", f"{number}")
            if number % 100 == 50:
                until(lambda: proxy.open)
                proxy.cut()
        until(lambda: len(consumer.events) >= 2000)
        assert consumer.values() == [f"{number}".encode() for number in range(2000)]
    assert proxy.accepted >= 20


def test_transactions_stay_whole(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """All changes of one revision come in one batch, also when connections are cut."""
    woken = threading.Event()
    feed = inmost(store)._watch(WatchSpec(everything()), woken.set, 5)
    batches: list[Batch] = []

    def take() -> int:
        while (batch := feed.poll(1)) is not None:
            batches.append(batch)
        return sum(len(batch.events) for batch in batches)

    for number in range(60):
        writer.txn(then=[kvi.Put(f"k{place}", f"{number}") for place in range(40)])
        if number % 10 == 5:
            proxy.cut()
        take()
    until(lambda: take() >= 2400)
    assert take() == 2400
    for batch in batches:
        revisions = [event.revision for event in batch.events]
        assert all(revisions.count(revision) == 40 for revision in set(revisions))
        assert batch.revision == revisions[-1]
    feed.close()


def test_away_for_a_while(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """While connections are refused, nothing comes and nothing is lost; close works meanwhile."""
    with Consumer(store, everything()) as consumer:
        cut_off(proxy)
        for number in range(10):
            writer.store("k", f"{number}")
        other = inmost(store)._watch
        with pytest.raises((kvi.Unavailable, kvi.Timeout)):
            other(WatchSpec(everything()), nothing, 1)
        assert consumer.events == []
        proxy.refuse(False)
        until(lambda: len(consumer.events) >= 10)
        assert consumer.values() == [f"{number}".encode() for number in range(10)]


def test_half_open(
    proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is open but dead is noticed without any call, and bridged."""
    with Consumer(store, everything()) as consumer:
        writer.store("k", "before")
        until(lambda: consumer.events)
        before = proxy.accepted
        proxy.stall()
        writer.store("k", "meanwhile")
        # gRPC pings after 10 s without data and waits 5 s for the answer
        until(lambda: proxy.accepted > before, within=40)
        proxy.flow()
        writer.store("k", "after")
        until(lambda: len(consumer.events) >= 3, within=30)
        assert consumer.values() == [b"before", b"meanwhile", b"after"]


def test_paused_server(server: EtcdServer, writer: kvi.Kvi) -> None:
    """A stopped server: watch() ends in time, and the watches that stand go on afterwards."""
    with kvi.open(server.uri) as store, Consumer(store, everything()) as consumer:
        server.pause()
        begin = time.monotonic()
        with pytest.raises((kvi.Unavailable, kvi.Timeout)):
            inmost(store)._watch(WatchSpec(everything()), nothing, 0.5)
        assert time.monotonic() - begin < 1.5
        server.resume()
        insistently(lambda: writer.store("k", "last"))
        until(lambda: b"last" in consumer.values(), within=40)
        assert len(set(told(consumer.events))) == len(consumer.events)


def test_slow_network(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """Creates that overlap on a slow line are told apart."""
    store.ping()
    proxy.delay = 0.02
    feeds: dict[int, Feed] = {}

    def begin(number: int) -> None:
        feeds[number] = inmost(store)._watch(
            WatchSpec(Span(f"k{number}", f"k{number}\0")), nothing, 10
        )
        if number % 3 == 0:
            feeds[number].close()

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number in range(30):
        writer.store(f"k{number}", f"{number}")
    for number in range(30):
        if number % 3:
            events = drained(feeds[number], bool)
            assert [event.key for event in events] == [f"k{number}"]


def test_given_up_and_begun_again(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """A watch that did not begin in time leaves nothing that confuses the next one."""
    store.ping()
    proxy.delay = 0.1  # a call takes 0.2 s, and beginning to watch takes two
    for _ in range(3):
        with pytest.raises((kvi.Unavailable, kvi.Timeout)):
            inmost(store)._watch(WatchSpec(everything()), nothing, 0.3)
    proxy.delay = 0.0
    with Consumer(store, everything()) as consumer:
        consumer.wait_for(writer.store("k", "1"))
        assert len(consumer.events) == 1


def test_second_endpoint(server: EtcdServer, proxy: TcpProxy, writer: kvi.Kvi) -> None:
    """With several hosts, watches move on from one that goes away."""
    uri = f"etcd://127.0.0.1:1,127.0.0.1:{proxy.port},{server.host}:{server.port}"
    with kvi.open(uri) as store, Consumer(store, everything()) as consumer:
        writer.store("k", "before")
        until(lambda: consumer.events)
        cut_off(proxy)
        writer.store("k", "after")
        until(lambda: len(consumer.events) >= 2)
        assert store.get("k") is not None


def table(store: kvi.Kvi) -> hub.Hub:
    """What is known of the watches that are open."""
    run = inmost(store)._watches._run
    assert run is not None
    kept: hub.Hub = run.hub
    return kept


def place(store: kvi.Kvi) -> int:
    """Which endpoint the handle is at."""
    return int(inmost(store)._connection._at)


def test_endings_do_not_move_the_handle(server: EtcdServer) -> None:
    """Cancelled watches and vain waits stay at the endpoint that works; so leases live on."""
    with TcpProxy(server.port) as hole:
        hole.stall()
        uri = f"etcd://{server.host}:{server.port},127.0.0.1:{hole.port}"
        with kvi.open(uri, timeout=2) as store, kvi.open(server.uri) as other:
            lease = store.lease(3)
            with other.lock("jobs"):
                begin = time.monotonic()
                for turn in range(5):
                    watch = store.watch("k")
                    store.store("k", f"{turn}")
                    assert watch.next(20).value == f"{turn}".encode()
                    watch.cancel()
                    assert not store.lock("jobs").acquire(0.1)
                    time.sleep(0.1)  # the reader comes to its end
                    assert store.get("k") is not None
                    assert place(store) == 0
                until(lambda: time.monotonic() - begin > 4, within=6)
            assert lease.alive
            lease.revoke()


def test_silent_endpoint_is_left(server: EtcdServer) -> None:
    """A watch that gets no answer moves the handle on; one that hardly waited for it does not."""
    with TcpProxy(server.port) as hole:
        uri = f"etcd://127.0.0.1:{hole.port},{server.host}:{server.port}"
        with kvi.open(uri, timeout=2) as store:
            store.ping()
            opener: watches.Watches = inmost(store)._watches
            span = Span("k", "k\0")
            with pytest.MonkeyPatch.context() as patch:
                # the reads before the watches are not what this is about
                patch.setattr(opener, "_place", lambda *_: (1, 1))
                hole.stall()
                for silence, expected in ((3600, 0), (0.1, 1)):
                    patch.setattr(hub, "SILENCE", silence)
                    with pytest.raises((kvi.Unavailable, kvi.Timeout)):
                        opener.open(span, None, nothing, 1)
                    assert place(store) == expected
            feed = inmost(store)._watch(WatchSpec(span), nothing, 2)
            store.store("k", "1")
            assert len(drained(feed, bool)) == 1
            feed.close()


# -- history that is gone --------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [0, 1, 5])
def test_compacted_while_away(
    behind: int, server: EtcdServer, proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi
) -> None:
    """History that went while the watch was cut off becomes one RESYNC; then changes go on.

    ``behind=0`` compacts at exactly the revision that comes next, a delete: etcd would go on there
    without it.
    """
    writer.store("stays", "1")
    writer.store("goes", "1")
    with Consumer(store, everything()) as consumer:
        writer.store("seen", "1")
        until(lambda: consumer.events)
        cut_off(proxy)
        writer.delete("goes")
        gone = writer.txn().revision
        assert gone is not None
        for number in range(behind):
            writer.store("later", f"{number}")
        etcdctl(server, "compact", str(gone + behind))
        proxy.refuse(False)
        until(lambda: len(consumer.events) >= 2)
        resync = consumer.events[1]
        assert resync.type is EventType.RESYNC
        assert resync.revision == gone + behind
        assert resync.snapshot is not None
        assert {entry.key for entry in resync.snapshot} == {"stays", "seen"} | (
            {"later"} if behind else set()
        )
        writer.store("after", "1")
        until(lambda: len(consumer.events) >= 3)
        assert told(consumer.events[2:]) == [(gone + behind + 1, "after")]


def test_compacted_up_to_what_was_seen(
    server: EtcdServer, proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi
) -> None:
    """A compaction at the last revision seen takes nothing away: no RESYNC, no loss."""
    with Consumer(store, everything()) as consumer:
        seen = writer.store("k", "1")
        until(lambda: consumer.events)
        cut_off(proxy)
        etcdctl(server, "compact", str(seen))
        writer.delete("k")
        proxy.refuse(False)
        until(lambda: len(consumer.events) >= 2)
        assert [event.type for event in consumer.events] == [EventType.PUT, EventType.DELETE]


def test_store_that_went_back(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """Another history under the same address, as after a restored backup, gives a RESYNC."""
    with EtcdServer() as restored, kvi.open(restored.uri) as other:
        other.store("old", "from the backup")
        for number in range(20):
            writer.store("k", str(number))
        with Consumer(store, everything()) as consumer:
            consumer.wait_for(writer.store("k", "last"))
            waiting = inmost(store)._watch(
                WatchSpec(everything(), (consumer.revision or 0) + 1000), nothing, 5
            )
            proxy.target = restored.port
            proxy.cut()
            until(lambda: consumer.events[-1].type is EventType.RESYNC)
            event = consumer.events[-1]
            assert event.snapshot is not None
            assert [(e.key, e.text) for e in event.snapshot] == [("old", "from the backup")]
            consumer.wait_for(other.store("new", "after it"))
            assert waiting.poll(1) is None, "what waits for the future has lost nothing"
            waiting.close()


def test_restored_and_written_to_since(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """Another history that is already beyond the watch's revision gives a RESYNC all the same."""
    with EtcdServer() as restored, kvi.open(restored.uri) as other:
        for number in range(10):
            other.store(f"k{number}", "from the backup")
        for number in range(10):
            writer.store(f"k{number}", "lost")
        with Consumer(store, everything()) as consumer:
            consumer.wait_for(writer.store("k0", "lost"))
            for _ in range(20):
                other.store("k0", "written since")
            proxy.target = restored.port
            proxy.cut()
            until(lambda: consumer.events[-1].type is EventType.RESYNC)
            snapshot = consumer.events[-1].snapshot
            assert snapshot is not None
            assert sorted((entry.key, entry.text) for entry in snapshot) == [
                ("k0", "written since"),
                *((f"k{number}", "from the backup") for number in range(1, 10)),
            ]
            consumer.wait_for(other.store("new", "after it"))


def test_restored_in_place(tmp_path: Path) -> None:
    """So is one of the same name and members, and so of the same id: its term begins anew."""
    saved = tmp_path / "saved"
    with (
        EtcdServer(fast=True) as server,
        TcpProxy(server.port) as proxy,
        kvi.open(f"etcd://127.0.0.1:{proxy.port}") as store,
    ):

        def etcdctl(*args: str) -> None:
            program = [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}"]
            env = {"ETCDCTL_API": "3"}
            subprocess.run([*program, *args], check=True, capture_output=True, env=env)

        with kvi.open(server.uri) as writer:
            writer.store("a", "from the backup")
            etcdctl("snapshot", "save", str(saved))
        for _ in range(2):  # each start is a term
            server.kill()
            server.start()
        with kvi.open(server.uri) as writer:
            writer.store("a", "lost")
            with (
                Consumer(store, everything()) as consumer,
                Consumer(store, Span("a", "b")) as one,
            ):
                for each in (consumer, one):
                    each.wait_for(writer.store("a", "lost as well"))
                proxy.refuse()
                proxy.cut()
                server.kill()
                shutil.rmtree(server.data_dir)
                (member,) = (p for p in server.command() if p.startswith("--initial-cluster="))
                kept = ("--name=", "--data-dir=", "--initial-advertise-peer-urls=")
                options = [part for part in server.command() if part.startswith(kept)]
                etcdctl("snapshot", "restore", str(saved), member, *options)
                server.start()
                with kvi.open(server.uri) as since:
                    for _ in range(10):
                        since.store("b", "written since")
                    proxy.refuse(False)
                    for each, there in ((consumer, ["a", "b"]), (one, ["a"])):
                        until(lambda: each.events[-1].type is EventType.RESYNC, within=60)  # noqa: B023
                        assert [entry.key for entry in each.events[-1].snapshot or ()] == there
                    consumer.wait_for(since.store("new", "after it"))


class Older:
    """Lets creates look as if a member answered that is behind, and hears what is asked then."""

    def __init__(self, store: kvi.Kvi, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[bytes] = []
        self.refused: set[bytes] = set()
        self.meanwhile: Callable[[], object] = nothing
        connection: driver.Connection = inmost(store)._connection
        reader: watches.Watches = inmost(store)._watches
        self._call, self._hear = connection.call, reader._hear
        patch.setattr(connection, "call", self.call)
        patch.setattr(reader, "_hear", self.hear)

    def hear(self, run: Any, stream: Any, answer: Any, size: int) -> bool:
        """What the reader does with an answer."""
        if answer.created:
            answer.header.revision = 1
        return self._hear(run, stream, answer, size)

    def call(self, method: str, request: Any, timeout: float, *, write: bool) -> Any:
        """A call; those of the reader are recorded."""
        if threading.current_thread().name != "kvi-etcd-watches":
            return self._call(method, request, timeout, write=write)
        self.asked.append(request.key)
        if request.key in self.refused:
            raise kvi.PermissionDenied("not this key")
        answer = self._call(method, request, timeout, write=write)
        self.meanwhile()
        return answer


def test_doubt_about_one_key(
    store: kvi.Kvi, writer: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that may not be asked for a watch's key ends that watch, and no other."""
    before = running_threads()
    writer.store("a", "0")
    older = Older(store, monkeypatch)
    older.refused = {b"a"}

    def refused() -> None:
        with pytest.raises(kvi.PermissionDenied, match="not this key"):
            drained(inmost(store)._watch(WatchSpec(Span("a", "a\0")), nothing, 5), bool)

    refused()
    with Consumer(store, Span("b", "b\0")) as consumer:
        refused()
        consumer.wait_for(writer.store("b", "1"))
        refused()
        consumer.wait_for(writer.store("b", "2"))
        assert consumer.error is None
        assert consumer.values() == [b"1", b"2"]
    assert older.asked == [b"a", b"b", b"a", b"a"]
    store.close()
    until(lambda: running_threads() == before, within=5)


def test_doubt_is_about_those_before(
    store: kvi.Kvi, writer: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store answered says nothing about a watch that was opened after it."""
    writer.store("a", "0")
    older = Older(store, monkeypatch)
    later: list[Feed | kvi.KviError] = []

    def open_later() -> None:
        try:
            later.append(inmost(store)._watch(WatchSpec(Span("b", "b\0")), nothing, 10))
        except kvi.KviError as error:
            later.append(error)

    def move_on() -> None:
        older.meanwhile = nothing
        for number in range(5):
            writer.store("a", f"{number}")
        threading.Thread(target=open_later).start()
        until(lambda: len(table(store).watches) == 2)

    older.meanwhile = move_on
    first = inmost(store)._watch(WatchSpec(Span("a", "a\0")), nothing, 5)
    until(lambda: later)
    feed = later[0]
    assert isinstance(feed, Feed)
    assert older.asked == [b"a", b"b"]
    revision = writer.store("b", "1")
    assert told(drained(feed, bool)) == [(revision, "b")], "and no RESYNC before it"
    first.close()
    feed.close()


def test_start_in_the_past(server: EtcdServer, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """A start is inclusive; one that is compacted, or would lose its delete, is Compacted."""
    first = writer.store("k", "1")
    writer.delete("k")
    feed = inmost(store)._watch(WatchSpec(everything(), 1), nothing, 5)
    assert feed.revision in (0, 1)
    feed.close()
    with Consumer(store, everything(), start=1) as consumer:
        until(lambda: len(consumer.events) >= 2)
        assert [event.revision for event in consumer.events] == [first, first + 1]
    last = writer.store("k", "2")
    etcdctl(server, "compact", str(first + 1))
    for start in (1, first, first + 1):
        with pytest.raises(kvi.Compacted, match=str(start)):
            inmost(store)._watch(WatchSpec(everything(), start), nothing, 5)
    with Consumer(store, everything(), start=last) as consumer:
        until(lambda: consumer.events)
        assert told(consumer.events) == [(last, "k")]


def test_start_in_the_future(proxy: TcpProxy, store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """A start that is not reached yet waits for it, also through a cut."""
    now = writer.store("k", "0")
    with Consumer(store, everything(), start=now + 3) as consumer:
        assert consumer.revision == now + 2
        writer.store("k", "1")
        proxy.cut()
        for number in range(2, 6):
            writer.store("k", f"{number}")
        until(lambda: len(consumer.events) >= 3)
        assert consumer.values() == [b"3", b"4", b"5"]


def test_begins_behind_a_busy_writer(store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """A watch begun amid writes misses none that came after watch() returned."""
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            written.append(writer.store("k", "x"))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(50):  # one after the other: many at once see more than can be carried
            feed = inmost(store)._watch(WatchSpec(everything()), nothing, 5)
            begun = writer.txn().revision
            assert begun is not None
            assert feed.revision is not None
            assert feed.revision <= begun
            events = drained(feed, partial(behind, begun))
            revisions = [event.revision for event in events]
            assert revisions == list(range(feed.revision + 1, revisions[-1] + 1))
            feed.close()
    finally:
        stop.set()
        thread.join(10)


# -- logins and rights -----------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Iterator[EtcdServer]:
    """An etcd with a user ada, who may use app/, and tokens that live for two seconds."""
    with EtcdServer(fast=True, extra_args=["--auth-token-ttl=2"]) as running:
        etcdctl(running, "user", "add", "root:rootpw")
        etcdctl(running, "user", "grant-role", "root", "root")
        etcdctl(running, "user", "add", "ada:s3cret")
        etcdctl(running, "role", "add", "app")
        etcdctl(running, "role", "grant-permission", "app", "--prefix=true", "readwrite", "app/")
        etcdctl(running, "user", "grant-role", "ada", "app")
        etcdctl(running, "auth", "enable")
        yield running


def test_token_expiry(guarded: EtcdServer) -> None:
    """Watches live on without a token, begin again after it ran out, and survive a restart."""
    app = Span.of_prefix("app/")
    with (
        kvi.open(f"etcd://ada:s3cret@{guarded.host}:{guarded.port}") as store,
        Consumer(store, app) as old,
    ):
        link = inmost(store)._connection._endpoint
        token = link.metadata

        def expired() -> bool:
            time.sleep(2.5)  # asking keeps it alive
            try:
                run(link.unary("range", pb.RangeRequest(key=b"app/"), 5, token))
            except grpc.RpcError as error:
                return "invalid auth token" in str(error)
            return False

        until(expired, within=30)
        with Consumer(store, app) as young:  # on the stream of the old token
            store.store("app/k", "1")
            until(lambda: old.events and young.events)
            guarded.restart()
            insistently(lambda: store.store("app/k", "2"))
            until(lambda: old.values()[-1:] == [b"2"] and young.values()[-1:] == [b"2"])
            assert told(old.events) == told(young.events)
        assert old.error is None


def test_token_that_the_server_forgot(guarded: EtcdServer) -> None:
    """However young the login is: only what the keys themselves are refused for ends a watch."""
    as_root = partial(etcdctl, guarded, "--user=root:rootpw")
    with (
        TcpProxy(guarded.port) as proxy,
        kvi.open(f"etcd://ada:s3cret@127.0.0.1:{proxy.port}") as store,
        Consumer(store, Span.of_prefix("app/")) as consumer,
    ):
        for number in range(3):
            as_root("auth", "disable")  # all tokens are gone
            etcdctl(guarded, "auth", "enable")
            proxy.cut()
            as_root("put", "app/k", str(number))
            until(lambda: consumer.events or consumer.error)
            assert consumer.error is None
            assert consumer.events.pop().value == str(number).encode()


def test_refused_watch(guarded: EtcdServer) -> None:
    """A watch without the right to read is PermissionDenied, and harms no other."""
    with (
        kvi.open(f"etcd://ada:s3cret@{guarded.host}:{guarded.port}") as store,
        Consumer(store, Span.of_prefix("app/")) as consumer,
    ):
        # the first is refused by the read before it, the second by the watch itself
        for span in (Span.of_prefix("other/"), Span("app/", "b")):
            with pytest.raises(kvi.PermissionDenied):
                inmost(store)._watch(WatchSpec(span), nothing, 5)
        store.store("app/k", "1")
        until(lambda: consumer.events)
        assert told(consumer.events)[0][1] == "app/k"


def test_right_taken_away(guarded: EtcdServer) -> None:
    """A watch that may not go on after a restart ends with PermissionDenied."""
    with (
        kvi.open(f"etcd://ada:s3cret@{guarded.host}:{guarded.port}") as store,
        Consumer(store, Span.of_prefix("app/")) as consumer,
    ):
        etcdctl(
            guarded,
            "--user=root:rootpw",
            "role",
            "revoke-permission",
            "app",
            "--prefix=true",
            "app/",
        )
        guarded.restart()
        until(lambda: consumer.error is not None)
        assert isinstance(consumer.error, kvi.PermissionDenied)


# -- slow consumers --------------------------------------------------------------------------------


def test_overflow(store: kvi.Kvi, writer: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that does not poll has a bounded buffer, and later gets every change, once."""
    monkeypatch.setattr(cursor, "MAX_EVENTS", 100)
    slow = inmost(store)._watch(WatchSpec(everything()), nothing, 5)
    with Consumer(store, everything()) as quick:
        for number in range(3000):
            writer.store("k", f"{number}")
        until(lambda: len(quick.events) >= 3000)
        kept = table(store)
        until(lambda: any(w.state is hub.State.FULL for w in kept.watches))
        assert max(w.events for w in kept.watches) <= 100
        events = drained(slow, lambda got: len(got) >= 3000)
        assert [event.value for event in events] == quick.values()
        assert quick.values() == [f"{number}".encode() for number in range(3000)]
        until(lambda: kept.weight == 0)
    slow.close()


def test_large_values_are_counted(store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """What a slow consumer's values weigh bounds its buffer."""
    slow = inmost(store)._watch(WatchSpec(everything()), nothing, 5)
    for number in range(40):
        writer.store("k", bytes([number]) * 1_000_000)
    kept = table(store)
    until(lambda: any(w.state is hub.State.FULL for w in kept.watches))
    assert kept.weight <= cursor.MAX_BYTES
    events = drained(slow, lambda got: len(got) >= 40)
    assert [event.value[:1] for event in events if event.value] == [bytes([n]) for n in range(40)]
    assert events[-1].previous is not None
    slow.close()


def test_answers_too_large(
    store: kvi.Kvi, writer: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """History that comes in an answer of more than the bound is asked for in fragments."""
    asked: list[bool] = []
    create = wire.create_request

    def recorded(*arguments: int | bytes, fragment: bool) -> object:
        asked.append(fragment)
        return create(*arguments, fragment=fragment)  # type: ignore[arg-type]

    monkeypatch.setattr(wire, "create_request", recorded)
    first = 0
    for number in range(60):
        first = first or writer.store("k", bytes([number]) * 1_000_000)
        if number:
            writer.store("k", bytes([number]) * 1_000_000)
    with Consumer(store, everything(), start=first) as consumer:
        until(lambda: len(consumer.events) >= 60, within=60)
        assert [event.value[0] for event in consumer.events if event.value] == list(range(60))
    assert asked[0] is False
    assert asked[-1] is True


def test_closed_while_decoding(
    store: kvi.Kvi, writer: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that is closed amid a poll is not counted twice."""
    feed = inmost(store)._watch(WatchSpec(everything()), nothing, 5)
    kept = table(store)
    writer.store("k", "1")
    until(lambda: kept.weight)
    decode = wire.events

    def and_close(*arguments: Any) -> list[Event]:
        feed.close()
        return decode(*arguments)

    monkeypatch.setattr(wire, "events", and_close)
    batch = feed.poll(1)
    assert batch is not None
    assert len(batch.events) == 1
    assert kept.weight == 0


def test_foreign_keys_are_left_out(
    store: kvi.Kvi, writer: kvi.Kvi, caplog: pytest.LogCaptureFixture
) -> None:
    """Changes of keys that are not UTF-8 are skipped, with one warning; the watch goes on."""
    client = writer.client
    with caplog.at_level(logging.WARNING, "kvi"), Consumer(store, everything()) as consumer:
        writer.store("k", "1")
        client.put(b"k\xff", b"x")
        client.put(b"l\xff", b"x")
        writer.store("k", "2")
        client.delete(b"k\xff")
        consumer.wait_for(writer.store("k", "3"))
        assert consumer.values() == [b"1", b"2", b"3"]
        assert consumer.error is None
    (record,) = [record for record in caplog.records if record.name == "kvi"]
    assert r"b'k\xff'" in record.getMessage()


# -- the handle ------------------------------------------------------------------------------------


def test_no_thread_to_be_had(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that gets no thread is Unavailable; the next one works, and close() does anyway."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "kvi-etcd-watches":
            raise RuntimeError("can't start new thread")
        start(thread)

    for again in (True, False):
        with kvi.open(server.uri, retry=None) as store:
            store.ping()
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refused)
                begin = time.monotonic()
                for _ in range(2):
                    with pytest.raises(kvi.Unavailable, match="thread"):
                        inmost(store)._watch(WatchSpec(everything()), nothing, 5)
                assert time.monotonic() - begin < 1
            assert inmost(store)._watches._run is None
            if again:
                with Consumer(store, everything()) as consumer:
                    consumer.wait_for(store.store("k", "1"))


@pytest.mark.parametrize("number", [2_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_many_watches(server: EtcdServer, writer: kvi.Kvi, number: int) -> None:
    """Thousands of watches need few threads, outlive a restart, and close at once."""
    woken: list[int] = []
    before = running_threads()
    store = kvi.open(server.uri)
    feeds = [
        inmost(store)._watch(WatchSpec(Span(f"k{n}", f"k{n}\0")), partial(woken.append, n), 5)
        for n in range(number)
    ]
    assert running_threads() - before <= 4
    for feed in feeds:
        assert feed.poll(1) is None
    woken.clear()
    server.kill()
    server.start()
    for n in (0, 17, number - 1):
        insistently(partial(writer.store, f"k{n}", "x"))
    until(lambda: {0, 17, number - 1} <= set(woken), within=120)
    begin = time.monotonic()
    store.close()
    assert time.monotonic() - begin < 2
    until(lambda: running_threads() == before, within=2)


def test_last_watch_ends_the_stream(store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """Without a watch there is no thread; a watch after that begins a new stream."""
    before = running_threads()
    for turn in range(20):
        with Consumer(store, everything()) as consumer:
            writer.store("k", f"{turn}")
            until(lambda: consumer.events)
            assert consumer.values() == [f"{turn}".encode()]
    until(lambda: running_threads() == before, within=5)


def test_close_while_away(proxy: TcpProxy) -> None:
    """close() does not wait for a server that is away, and leaves no thread."""
    before = running_threads()
    for trouble in (partial(cut_off, proxy), proxy.stall):
        store = kvi.open(f"etcd://127.0.0.1:{proxy.port}")
        inmost(store)._watch(WatchSpec(everything()), nothing, 5)
        trouble()
        begin = time.monotonic()
        store.close()
        assert time.monotonic() - begin < 2
        proxy.refuse(False)
        until(lambda: running_threads() == before, within=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_beside_a_stream(server: EtcdServer, writer: kvi.Kvi) -> None:
    """Parent and child both watch after a fork, and neither misses anything."""
    with kvi.open(server.uri) as store, Consumer(store, everything()) as consumer:
        ends = []
        for turn in range(10):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    signal.alarm(30)
                    consumer.feed.close()
                    store.close()
                    with kvi.open(server.uri) as own:
                        feed = inmost(own)._watch(WatchSpec(Span("child", "child\0")), nothing, 5)
                        own.store("child", f"{turn}")
                        status = 0 if drained(feed, bool) else 2
                finally:
                    os._exit(status)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert ends == [0] * 10
        writer.store("parent", "x")
        until(lambda: consumer.values()[-1:] == [b"x"])
        assert consumer.values() == [*(b"%d" % turn for turn in range(10)), b"x"]


# -- leases and locks ------------------------------------------------------------------------------


def test_lease_ids_that_cannot_be(store: kvi.Kvi) -> None:
    """An id that no lease of etcd can have is a lease that is gone."""
    for lease in (2**63, 2**200):
        for call in (
            lambda i=lease: store.store("k", "", lease=i),
            lambda i=lease: inmost(store)._lease_renew(i, 5),
            lambda i=lease: inmost(store)._lock_claim("L", i, 5),
        ):
            with pytest.raises(kvi.LeaseLost):
                call()
        inmost(store)._lease_revoke(lease, 5)
    with pytest.raises(kvi.LeaseLost):
        inmost(store)._lease_renew(0, 5)


def test_lease_lives_and_ends(store: kvi.Kvi, writer: kvi.Kvi) -> None:
    """A lease is at least as long as asked for; its keys go with it, in one revision."""
    grant = inmost(store)._lease_grant(2.1, 5)
    assert grant.ttl == 3
    assert inmost(store)._lease_renew(grant.id, 5) == 3
    with Consumer(store, everything()) as consumer:
        writer.store("a", "", lease=grant.id)
        writer.store("b", "", lease=grant.id)
        inmost(store)._lease_revoke(grant.id, 5)
        inmost(store)._lease_revoke(grant.id, 5)
        until(lambda: len(consumer.events) >= 4)
        assert [event.type for event in consumer.events[2:]] == [EventType.DELETE] * 2
        assert consumer.events[2].revision == consumer.events[3].revision
    with pytest.raises(kvi.LeaseLost):
        inmost(store)._lease_renew(grant.id, 5)
    short = inmost(store)._lease_grant(0.5, 5)
    assert short.ttl == 2
    with pytest.raises(kvi.LeaseLost):
        until(lambda: store.store("c", "", lease=short.id) == 0, within=10)


def test_grant_whose_answer_is_lost(proxy: TcpProxy, store: kvi.Kvi) -> None:
    """A grant is sent again under its id until its fate is known, or the time is up."""
    store.ping()
    proxy.delay = 0.2
    cut = threading.Timer(0.3, proxy.cut)  # on the way of the answer
    cut.start()
    grant = inmost(store)._lease_grant(10, 10)
    cut.join()
    assert grant.ttl == 10
    proxy.delay = 0.0
    assert inmost(store)._lease_renew(grant.id, 5) == 10
    proxy.stall()
    with pytest.raises(kvi.OutcomeUnknown):
        inmost(store)._lease_grant(10, 0.5)
    with pytest.raises((kvi.Unavailable, kvi.Timeout)):
        inmost(store)._lease_renew(grant.id, 0.5)
    proxy.flow()


def test_renewals_over_a_restart(server: EtcdServer, writer: kvi.Kvi) -> None:
    """A lease goes on over kill, restart and pause, by renewals that fail and pass."""
    grant = inmost(writer)._lease_grant(30, 5)
    for fault in (server.kill, server.pause):
        fault()
        with pytest.raises((kvi.Unavailable, kvi.Timeout)):
            inmost(writer)._lease_renew(grant.id, 0.5)
        if fault == server.kill:
            server.start()
        else:
            server.resume()
        insistently(lambda: inmost(writer)._lease_renew(grant.id, 1))


def test_lock_beside_etcdctl(server: EtcdServer, store: kvi.Kvi) -> None:
    """Etcdctl waits in the queue behind a claim of ours, and we behind it."""
    grant = inmost(store)._lease_grant(60, 5)
    claim = inmost(store)._lock_claim("jobs", grant.id, 5)
    assert claim.ahead is None
    assert inmost(store)._lock_claim("jobs", grant.id, 5)[:4] == claim[:4]
    command = [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", "lock", "jobs"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as theirs:
        try:
            until(lambda: store.count(prefix="jobs/") == 2)
            assert inmost(store)._lock_claim("jobs", grant.id, 5).ahead is None
            assert inmost(store)._lock_release(claim, 5)
            assert not inmost(store)._lock_release(claim, 5)
            again = inmost(store)._lock_claim("jobs", grant.id, 5)
            assert again.fence > claim.fence
            (other,) = [e for e in store.range(prefix="jobs/") if e.lease != grant.id]
            assert again.ahead == other.key
        finally:
            theirs.send_signal(signal.SIGINT)
        theirs.wait(20)
    until(lambda: inmost(store)._lock_claim("jobs", grant.id, 5).ahead is None)


def test_lock_and_unlock_take_two_calls(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free lock costs one round trip to take and one to give back."""
    grant = inmost(store)._lease_grant(10, 5)
    calls: list[str] = []
    connection = inmost(store)._connection
    ask = connection.ask

    async def counted(method: str, *arguments: object, **options: object) -> object:
        calls.append(method)
        return await ask(method, *arguments, **options)

    monkeypatch.setattr(connection, "ask", counted)
    assert inmost(store)._lock_release(inmost(store)._lock_claim("L", grant.id, 5), 5)
    assert calls == ["txn", "txn"]
