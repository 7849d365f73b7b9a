"""The history of a key on etcd: where it begins and ends, and what is left of the looking."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import kvi
import pytest
from kvi.conformance.proxy import TcpProxy
from kvi_etcd.hub import Watch
from kvi_etcd.watches import Watches

from tests.servers import EtcdServer, find_etcdctl
from tests.support.waiting import until

pytestmark = [pytest.mark.etcd, pytest.mark.slow]


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    """An etcd of these tests."""
    with EtcdServer(fast=True) as running:
        yield running


@pytest.fixture
def store(server: EtcdServer, request: pytest.FixtureRequest) -> Iterator[kvi.Kvi]:
    """Keys of this test alone."""
    with kvi.open(server.uri, timeout=20) as whole:
        yield whole.namespace(request.node.name)


def compact(server: EtcdServer, revision: int) -> None:
    endpoint = f"--endpoints=127.0.0.1:{server.port}"
    command = [str(find_etcdctl().path), endpoint, "compact", str(revision)]
    subprocess.run(
        command,
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        timeout=60,
        check=True,
    )


def told(store: kvi.Kvi, key: str, limit: int | None = None) -> list[bytes | None]:
    return [event.value for event in store.history(key, limit=limit)]


def test_what_is_not_there(store: kvi.Kvi) -> None:
    """Of a key without an entry the whole history is told, and of one without changes none."""
    for number in range(50):
        store.store("other", str(number))
    assert told(store, "k") == []
    store.store("k", b"1")
    store.delete("k")
    store.store("k", b"2")
    store.delete("k")
    for number in range(50):
        store.store("other", str(number))
    assert told(store, "k") == [None, b"2", None, b"1"]
    assert told(store, "k", limit=1) == [None]


def test_behind_another_programs_change(server: EtcdServer, store: kvi.Kvi) -> None:
    """The store's latest change is of a key that kvi cannot name: it ends the history as well."""
    foreign = b"\xff\xfe"
    with kvi.open(server.uri) as whole:
        store.store("k", b"1")
        store.delete("k")
        client: Any = whole.client
        client.put(foreign, b"")
        assert told(store, "k") == [None, b"1"]
        client.delete(foreign)
        assert told(store, "k") == [None, b"1"]


def test_beside_watches_of_the_future(store: kvi.Kvi) -> None:
    """A watch of the handle that waits for revisions to come holds no history up."""
    with store.watch("k", from_revision=1_000_000):
        store.store("k", b"1")
        store.delete("k")
        store.store("other", b"")
        assert told(store, "k") == [None, b"1"]


def test_many_changes(store: kvi.Kvi) -> None:
    """More changes than etcd tells at once are all told, in order."""
    for number in range(2500):
        store.store("k", str(number))
    assert told(store, "k") == [str(number).encode() for number in reversed(range(2500))]
    store.delete("k")
    store.store("other", b"")
    assert told(store, "k", limit=2) == [None, b"2499"]


def test_compacted(server: EtcdServer, store: kvi.Kvi) -> None:
    """It begins behind the compaction, also where the entry itself is older than that."""
    store.store("old", b"1")
    store.store("k", b"1")
    second = store.store("k", b"2")
    third = store.store("k", b"3")
    compact(server, second)
    assert told(store, "k") == [b"3"]
    assert store.history("k")[0].previous == kvi.KeyValue("k", b"2", second, second - 1, 2)
    assert told(store, "old") == []
    assert store.get("old").value == b"1"  # type: ignore[union-attr]
    store.delete("k")
    store.store("other", b"")
    assert told(store, "k") == [None, b"3"]
    with pytest.raises(kvi.Compacted, match=str(second - 1)):
        store.get("k", revision=second - 1)
    assert store.get("k", revision=second).value == b"2"  # type: ignore[union-attr]
    assert store.get("k", revision=third).value == b"3"  # type: ignore[union-attr]


def test_refusal_that_is_known_at_once(
    server: EtcdServer, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have refused what is gone before the caller looks whether it has begun."""
    compact(server, store.store("k", b"1"))
    store.store("k", b"2")
    enter, refused = Watches._enter, []

    def late(watches: Watches, watch: Watch) -> object:
        run = enter(watches, watch)
        if watch.cursor.seen == 1:
            until(lambda: watch.error is not None)
            refused.append(watch.error)
        return run

    monkeypatch.setattr(Watches, "_enter", late)
    assert [event.value for event in store.history("k")] == [b"2"]
    assert refused


def test_page_of_the_past_that_is_compacted(server: EtcdServer, store: kvi.Kvi) -> None:
    """A range at a revision that is compacted while it is read raises Compacted, and never ends."""
    for at in range(0, 1000, 100):
        store.txn(then=[kvi.Put(f"k/{number:04}", b"v") for number in range(at, at + 100)])
    then = store.range(limit=0).revision
    last = store.store("other", b"")
    entries = iter(store.range(prefix="k/", revision=then))
    next(entries)
    compact(server, last)
    with pytest.raises(kvi.Compacted):
        list(entries)


def test_compacted_again_and_again(server: EtcdServer, store: kvi.Kvi) -> None:
    """A compaction during the call is no error: what is left of the history is told."""
    done = threading.Event()

    def compact_all() -> None:
        while not done.wait(0.4):  # a look takes 0.2
            compact(server, store.store("other", b""))

    store.store("k", b"1")
    store.delete("k")
    compacting = threading.Thread(target=compact_all)
    compacting.start()
    try:
        for _ in range(15):
            assert told(store, "never") == []
            assert told(store, "k") in ([None, b"1"], [None], [])
    finally:
        done.set()
        compacting.join()


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.1, 0.2])
def test_closed_meanwhile(server: EtcdServer, delay: float) -> None:
    """Closing the handle ends a look at once, whatever it waits for."""
    raised: list[kvi.KviError] = []
    with kvi.open(server.uri, timeout=30) as store:
        store.store("other", b"")

        def look_again_and_again() -> None:
            while True:
                store.history("never there")

        def look() -> None:
            with pytest.raises(kvi.KviError) as caught:
                look_again_and_again()
            raised.append(caught.value)

        thread = threading.Thread(target=look)
        thread.start()
        time.sleep(delay)  # somewhere in it
        began = time.monotonic()
        store.close()
        thread.join(10)
    assert time.monotonic() - began < 5
    assert [type(error) for error in raised] == [kvi.Closed]


def test_nothing_is_left(store: kvi.Kvi) -> None:
    """Each looking back ends its stream and its thread."""

    def readers() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "kvi-etcd-watches"]

    store.store("k", b"1")
    for _ in range(20):
        store.history("k")
    until(lambda: not readers())


def test_server_that_does_not_answer(server: EtcdServer, store: kvi.Kvi) -> None:
    """It ends with the time-out; and at once, if the handle is closed meanwhile."""
    store.store("other", b"")
    with kvi.open(server.uri, timeout=20) as other:
        raised: list[kvi.KviError] = []

        def look() -> None:
            with pytest.raises(kvi.KviError) as caught:
                other.history("never there")
            raised.append(caught.value)

        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises((kvi.Timeout, kvi.Unavailable)):
                store.history("k", timeout=1)
            assert time.monotonic() - began < 5
            thread = threading.Thread(target=look)
            thread.start()
            until(lambda: other._runtime._ports)
            other.close()
            thread.join(10)
            assert not thread.is_alive()
        finally:
            server.resume()
    assert [type(error) for error in raised] == [kvi.Closed]


def test_connection_that_breaks(server: EtcdServer) -> None:
    """A stream that is cut in the middle is bridged: nothing is missing, and nothing twice."""
    with TcpProxy(server.port) as proxy:
        uri = f"etcd://127.0.0.1:{proxy.port}"
        with kvi.open(uri, timeout=20) as store:
            for number in range(200):
                store.store("cut", str(number))
            expected = [str(number).encode() for number in reversed(range(200))]
            done = threading.Event()

            def cut() -> None:
                while not done.wait(0.4):  # etcd needs 0.1 to look back
                    proxy.cut()

            cutter = threading.Thread(target=cut)
            cutter.start()
            try:
                for _ in range(10):
                    assert told(store, "cut") == expected
            finally:
                done.set()
                cutter.join()
