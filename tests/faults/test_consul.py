"""Consul's own hardships, on a real server: odd keys, sessions, contention, pauses, restarts.

What stops a server starts its own; the rest keeps to namespaces of its own on the run's server.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import random
import secrets
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import consul
import kvi
import pytest
from kvi import Delete, Get, Key, Put
from kvi.conformance.proxy import TcpProxy
from kvi.conformance.server_process import free_ports
from kvi_consul.store import CAPABILITIES
from kvi_consul.wire import Op

from tests.servers import ConsulServer
from tests.support.inside import inmost
from tests.support.tls import Certificates, TlsProxy
from tests.support.waiting import until

pytestmark = pytest.mark.consul

ODD_KEYS = [
    *[
        "/x",
        "//",
        "a//b",
        "a/../b",
        "..",
        ".",
        "./",
        "a/.",
        "p%41",
        "pA",
        "nul\0",
        "line\n",
        "cr\r",
    ],
    *[
        "😀",
        "del\x7f",
        "sp ace",
        "q?a=b",
        "h#x",
        'quo"te',
        "back\\",
        "<&>",
        "\u2028",
        "é",
        "e\u0301",
    ],
    *["x" * 1000, "\0", "\ufffd", "\U0010ffff", "a/b", "b", "a", "a/"],
]


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


class Session:
    """A session of Consul, made without this project."""

    def __init__(self, store: kvi.Kvi, behavior: str = "delete", delay: str = "0s") -> None:
        self._http = store.client.http
        wanted = {"TTL": "10s", "Behavior": behavior, "LockDelay": delay, "Checks": []}
        self.id: str = self._http.put(self._json, "/v1/session/create", data=json.dumps(wanted))[
            "ID"
        ]
        self.lease = UUID(self.id).int

    def destroy(self) -> None:
        """End it at once."""
        self._http.put(self._json, f"/v1/session/destroy/{self.id}")

    @staticmethod
    def _json(answer: Any) -> Any:
        assert answer.code == 200, answer
        return json.loads(answer.body)


# -- keys and values -------------------------------------------------------------------------------


def test_odd_keys_touch_no_other_key(store: kvi.Kvi) -> None:
    """Every key is itself: written, read, listed and deleted without touching another."""
    keys = sorted(ODD_KEYS)
    for number, key in enumerate(keys):
        store.store(key, f"{number}")
    assert [entry.key for entry in store.range()] == keys
    for number, key in enumerate(keys):
        found = store.get(key)
        assert found is not None
        assert found.text == f"{number}"
        below = [other for other in keys if other.startswith(key)]
        assert [entry.key for entry in store.range(prefix=key)] == below
        assert store.count(prefix=key) == len(below)
    for number, key in enumerate(keys):
        assert store.delete(key)
        assert not store.delete(key)
        assert [entry.key for entry in store.range(keys_only=True)] == keys[number + 1 :]


def test_odd_prefixes_delete_what_they_say(store: kvi.Kvi) -> None:
    """A prefix that is no clean path deletes the keys that start with it and no others."""
    for prefix in ("/", "a/../", "..", "p%", "é", "line\n", "a//"):
        for key in ODD_KEYS:
            store.store(key, "v")
        doomed = [key for key in ODD_KEYS if key.startswith(prefix)]
        assert store.delete_range(prefix=prefix) == len(doomed)
        assert {entry.key for entry in store.range()} == set(ODD_KEYS) - set(doomed)
        assert store.delete_range(prefix=prefix) == 0


def test_bounds_read_count_and_delete_alike(store: kvi.Kvi) -> None:
    """Any two bounds mean the same half-open span for ranges, counts and deletions."""
    rnd = random.Random(1)
    keys = sorted({*ODD_KEYS, *(f"k{n:02}" for n in range(40))})
    for key in keys:
        store.store(key, key)
    bounds = [None, "", *ODD_KEYS, "k2", "k20", "zz"]
    for _ in range(60):
        start, end = rnd.choice(bounds), rnd.choice(bounds)
        span = [key for key in keys if (start or "") <= key and (end is None or key < end)]
        assert [entry.key for entry in store.range(start, end)] == span
        assert [entry.key for entry in store.range(start, end, limit=3)] == span[:3]
        backward = [entry.key for entry in store.range(start, end, limit=3, reverse=True)]
        assert backward == span[::-1][:3]
        assert store.count(start, end) == len(span)
    assert store.delete_range("k05", "k38") == 33
    assert store.delete_range("k05", "k38") == 0
    assert [entry.key for entry in store.range("k", "l")] == [
        f"k{n:02}" for n in (0, 1, 2, 3, 4, 38, 39)
    ]


def test_a_key_above_a_namespace_survives_its_deletion(store: kvi.Kvi) -> None:
    """The key ``a/`` is no key of the namespace ``a``: emptying that leaves it as it was."""
    session = Session(store)
    view = store.namespace("a")
    native = inner_key(store, "a/")
    for lease, flags in ((None, 7), (session.lease, 8), (None, 0)):
        store.store("a/", "mark", lease=lease)
        if lease is None:
            store.client.kv.put(native, "mark", flags=flags)
        before = store.client.kv.get(native)[1]
        for number in range(100):
            view.store(f"k{number}", "v")
        assert view.delete_range(prefix="") == 100
        after = store.client.kv.get(native)[1]
        for name in ("Value", "Flags", "Session"):
            assert before.get(name) == after.get(name)
    session.destroy()
    store.delete("a/")
    view.store("k", "v")
    assert view.delete_range(prefix="") == 1
    assert store.count() == 0


def test_a_namespace_is_emptied_in_one_step_while_the_key_above_it_changes(
    store: kvi.Kvi,
) -> None:
    """Others may store and delete the key above; the deletion is right and loses none of it."""
    view = store.namespace("a")
    done = threading.Event()
    lost: list[int] = []

    def others() -> None:
        for number in range(10**6):
            if done.is_set():
                return
            store.store("a/", str(number))
            found = store.get("a/")
            if found is None or found.text != str(number):
                lost.append(number)
            if number % 3 == 0:
                store.delete("a/")

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(30):
            assert view.txn([], [Put(f"k{n}", "v") for n in range(5)])
            assert view.delete_range(prefix="") == 5
    finally:
        done.set()
        thread.join()
    assert lost == []


def test_the_whole_store_of_a_server() -> None:
    """Without a namespace, everything is read, counted and deleted as one range."""
    with ConsulServer() as server, kvi.open(server.uri) as store:
        assert (list(store.range()), store.count(), store.delete_range(prefix="")) == ([], 0, 0)
        for key in ("", "/", "a"):
            store.store(key + "k", key)
        assert [entry.key for entry in store.range()] == ["/k", "ak", "k"]
        assert [entry.key for entry in store.range("a", reverse=True)] == ["k", "ak"]
        assert store.count() == 3
        assert store.delete_range(prefix="") == 3
        assert store.count() == 0


def test_the_same_value_is_a_new_revision(store: kvi.Kvi) -> None:
    """Writing what is there already is a write like any other."""
    revisions = [store.store("k", "same") for _ in range(5)]
    revisions += [store.txn([], [Put("k", "same")]).revision or 0 for _ in range(5)]
    assert revisions == sorted(set(revisions))
    assert store.tas("k", "same", "same")
    found = store.get("k")
    assert found is not None
    assert found.revision > revisions[-1]
    assert found.create_revision == revisions[0]


def test_the_largest_keys_and_values_work(consul_uri: str, store: kvi.Kvi) -> None:
    """What the capabilities allow fits the server's limits, in each kind of write."""
    whole = kvi.open(consul_uri, timeout=30)
    key = f"kvi-test-{secrets.token_hex(8)}/".ljust(CAPABILITIES.max_key or 0, "k")
    value = random.randbytes(CAPABILITIES.max_value or 0)
    session = Session(store)
    try:
        revision = whole.store(key, value)
        assert whole.get(key) == (key, value, revision, revision, None, None)
        assert whole.tas(key, value, value)
        assert whole.store(key, value, lease=session.lease) > revision
        assert whole.store(key, value) > revision
        held = whole.store(key, value, lease=session.lease)
        assert whole.cas(key, held, value) is not None
        found = whole.get(key)
        assert found is not None
        assert found.lease is None
        assert [entry.value for entry in whole.range(prefix=key)] == [value]
    finally:
        assert whole.delete(key)
        whole.close()
        session.destroy()
    with pytest.raises(kvi.ValueTooLarge):
        store.store("k", value + b"x")
    with pytest.raises(kvi.ValueTooLarge):
        store.txn([], [Put("a", value), Put("b", value)])
    assert store.count() == 0


def test_sixty_four_operations_are_one_transaction(store: kvi.Kvi) -> None:
    """The server takes what the capability says."""
    assert store.txn([], [Put(f"k{n:02}", str(n)) for n in range(64)])
    got = store.txn([], [Get(f"k{n:02}") for n in range(64)]).results
    assert [entry.text for entry in got if isinstance(entry, kvi.KeyValue)] == [
        str(n) for n in range(64)
    ]
    when = [Key(f"k{n:02}").value == str(n) for n in range(32)]
    assert store.txn(when, [Delete(f"k{n:02}") for n in range(32)]).results == (True,) * 32
    assert store.count() == 32


# -- many at once ----------------------------------------------------------------------------------


def in_processes(work: Callable[..., Any], *args: Any, count: int = 8) -> list[Any]:
    """Run ``work`` in so many processes at once; its results."""
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        return pool.starmap(work, [args] * count, chunksize=1)


def increment(place: str, times: int) -> None:
    """Add one to a counter, so many times."""
    with kvi.open(place, timeout=60) as store:
        for _ in range(times):
            while True:
                found = store.get("counter")
                assert found is not None
                if store.tas("counter", found.value, str(int(found.text) + 1)):
                    break


def transfer(place: str, times: int) -> None:
    """Move one from an account to another, so many times."""
    rnd = random.Random()
    with kvi.open(place, timeout=60) as store:
        for _ in range(times):
            while True:
                one, other = rnd.sample("ABCD", 2)
                read = store.txn([], [Get(one), Get(other)]).results
                taken, given = (entry for entry in read if isinstance(entry, kvi.KeyValue))
                if store.txn(
                    [Key(one).value == taken.text, Key(other).value == given.text],
                    [Put(one, str(int(taken.text) - 1)), Put(other, str(int(given.text) + 1))],
                ):
                    break


def claim(place: str, keys: int) -> list[str]:
    """Delete keys, two at a time, and say which of them were there."""
    rnd = random.Random()
    claimed = []
    names = [f"job{n:03}" for n in range(keys)]
    with kvi.open(place, timeout=60) as store:
        for one, other in zip(rnd.sample(names, keys), rnd.sample(names, keys), strict=True):
            if one == other:
                claimed += [one] * store.delete(one)
            else:
                won = store.txn([], [Delete(one), Delete(other)]).results
                claimed += [name for name, done in zip((one, other), won, strict=True) if done]
    return claimed


@pytest.mark.timeout(300)
def test_increments_of_many_processes_are_all_counted(place: str, store: kvi.Kvi) -> None:
    """Test-and-set loses no increment among processes."""
    store.store("counter", "0")
    in_processes(increment, place, 100)
    found = store.get("counter")
    assert found is not None
    assert found.text == "800"


@pytest.mark.timeout(300)
def test_transfers_of_many_processes_keep_the_total(place: str, store: kvi.Kvi) -> None:
    """Transactions over two keys apply whole or not at all, and reads of two are one moment."""
    for name in "ABCD":
        store.store(name, "1000")
    done = threading.Event()
    totals = set()

    def watch() -> None:
        while not done.is_set():
            read = store.txn([], [Get(name) for name in "ABCD"]).results
            totals.add(sum(int(entry.text) for entry in read if isinstance(entry, kvi.KeyValue)))

    thread = threading.Thread(target=watch)
    thread.start()
    in_processes(transfer, place, 100)
    done.set()
    thread.join()
    assert totals == {4000}


def test_a_key_is_deleted_by_one(place: str, store: kvi.Kvi) -> None:
    """Of all who delete a key at once, exactly one is told that it was there."""
    for number in range(150):
        store.store(f"job{number:03}", "x")
    claimed = [name for names in in_processes(claim, place, 150) for name in names]
    assert sorted(claimed) == [f"job{number:03}" for number in range(150)]


def test_one_of_many_creates(store: kvi.Kvi) -> None:
    """Of all who create a key at once with the same value, exactly one succeeds."""
    for number in range(20):
        won: list[bool] = []
        start = threading.Barrier(8)

        def create(key: str, start: threading.Barrier = start, won: list[bool] = won) -> None:
            start.wait()
            won.append(store.tas(key, None, "same"))

        threads = [threading.Thread(target=create, args=(f"k{number}",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [False] * 7 + [True]


# -- sessions --------------------------------------------------------------------------------------


def test_keys_of_a_lease_vanish_with_it(store: kvi.Kvi) -> None:
    """A key stored with a lease has it, and goes with it; one stored over without it stays."""
    session = Session(store)
    store.store("permanent", "1", lease=session.lease)
    store.store("by txn", "1", lease=session.lease)
    store.store("by cas", "1", lease=session.lease)
    revision = store.store("by tas", "1", lease=session.lease)
    store.store("temporary", "1", lease=session.lease)
    found = store.get("by tas")
    assert found is not None
    assert (found.lease, found.revision) == (session.lease, revision)

    revision = store.store("permanent", "2")
    found = store.get("permanent")
    assert found is not None
    assert (found.text, found.lease, found.revision) == ("2", None, revision)
    done = store.txn([], [Put("by txn", "2"), Get("by txn")])
    assert done.results == (done.revision, store.get("by txn"))
    found = store.get("by cas")
    assert found is not None
    changed = store.cas("by cas", found.revision, "2")
    found = store.get("by cas")
    assert found is not None
    assert found.revision == changed
    assert store.tas("by tas", "1", "2")

    session.destroy()
    assert [entry.key for entry in store.range()] == ["by cas", "by tas", "by txn", "permanent"]
    assert {entry.lease for entry in store.range()} == {None}


def test_a_lease_takes_over_the_key_of_another(store: kvi.Kvi) -> None:
    """A key belongs to the lease that it was stored with last."""
    one, other = Session(store), Session(store)
    store.store("k", "1", lease=one.lease)
    store.store("k", "2", lease=other.lease)
    assert store.txn([Key("k").lease == other.lease], [Put("k", "3", one.lease)])
    assert not store.txn([Key("k").lease == other.lease], [Put("k", "4", one.lease)])
    assert store.txn([Key("k").value == "3"], [Put("k", "5", other.lease)])
    one.destroy()
    found = store.get("k")
    assert found is not None
    assert (found.text, found.lease) == ("5", other.lease)
    other.destroy()
    assert store.get("k") is None


def test_a_lease_that_is_gone_writes_nothing(store: kvi.Kvi) -> None:
    """Storing with a lease that ended is an error of its own."""
    session = Session(store)
    session.destroy()
    for lease in (session.lease, 1, 1 << 200):
        with pytest.raises(kvi.LeaseLost):
            store.store("k", "v", lease=lease)
        with pytest.raises(kvi.LeaseLost):
            store.txn([Key("k").absent], [Put("a", "v"), Put("k", "v", lease)])
    assert store.count() == 0


def test_a_lock_delay_is_waited_for_and_then_told(store: kvi.Kvi) -> None:
    """A key that a stranger's session left behind with a lock-delay is free again after it."""
    stranger, session = Session(store, delay="6s"), Session(store)
    store.store("k", "theirs", lease=stranger.lease)
    stranger.destroy()
    with pytest.raises(kvi.Unavailable, match="lock-delay"):
        store.store("k", "ours", lease=session.lease, timeout=3)
    assert store.get("k") is None
    store.store("k", "ours", lease=session.lease, timeout=30)
    session.destroy()


def test_a_writer_racing_with_the_end_of_a_session_stays(store: kvi.Kvi) -> None:
    """What was stored without a lease is there, also if the old lease ended in that moment."""
    for number in range(30):
        session = Session(store)
        key = f"k{number}"
        store.store(key, "old", lease=session.lease)
        end = threading.Thread(target=session.destroy)
        end.start()
        store.store(key, "new")
        end.join()
        found = store.get(key)
        assert found is not None
        assert (found.text, found.lease) == ("new", None)


def test_a_deletion_amid_a_write_over_a_lease_stands(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has read the new value may delete the key: it does not come back."""
    backend, key = inmost(store), inner_key(store, "k")
    apply, read = backend._apply, []

    def late(ops: Sequence[Op], deadline: float) -> Any:
        if any(op.verb == "unlock" for op in ops):
            entry = backend._get(key, 10)
            assert entry is not None
            read.append(entry.value)
            assert backend._delete(key, 10)
        return apply(ops, deadline)

    session = Session(store)
    store.store("k", "old", lease=session.lease)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_apply", late)
        assert store.store("k", "new") > 0
    assert read == [b"new"]
    assert store.get("k") is None
    session.destroy()


# -- large ranges ----------------------------------------------------------------------------------


def test_large_ranges_take_bounded_memory(store: kvi.Kvi) -> None:
    """Twenty megabytes are read in either order, several times, in a fraction of that memory."""
    count = 20_000
    for first in range(0, count, 64):
        batch = range(first, min(first + 64, count))
        store.txn([], [Put(f"k{n:05}", bytes(1000) + b"%d" % n) for n in batch])
    gc.collect()
    tracemalloc.start()
    try:
        for reverse in (False, True):
            numbers = iter(range(count)[:: -1 if reverse else 1])
            result = store.range(reverse=reverse)
            for _ in range(2 if reverse else 1):
                numbers = iter(range(count)[:: -1 if reverse else 1])
                for entry, number in zip(result, numbers, strict=True):
                    assert entry.key == f"k{number:05}"
                    assert entry.value is not None
                    assert entry.value.endswith(b"%d" % number)
            del result
        assert store.count() == count
        assert len(list(store.range(limit=5))) == 5
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20
    assert store.delete_range("k", "k00500") == 500
    assert store.delete_range(prefix="") == count - 500


def test_a_range_is_one_moment(store: kvi.Kvi) -> None:
    """A result that is iterated later, or again, tells of the moment it was read."""
    for number in range(600):
        store.store(f"k{number:03}", "old")
    result = store.range()
    first = iter(result)
    next(first)
    store.delete_range(prefix="")
    assert sum(1 for _ in first) == 599
    assert sum(1 for _ in result) == 600


# -- servers that stop -----------------------------------------------------------------------------


def test_a_paused_server_costs_the_time_out() -> None:
    """While the server is frozen a call ends in time, and a write is unknown only if it was sent.

    It is sent on a connection that served before; a new one is not taken by anybody.
    """
    with ConsulServer() as server, kvi.open(server.uri, timeout=5, retry=None) as store:
        store.store("k", "before")
        server.pause()
        calls: list[tuple[Callable[[], object], type[kvi.KviError]]] = [
            (lambda: store.store("k", "v", timeout=1), kvi.OutcomeUnknown),
            (lambda: store.get("k", timeout=1), kvi.Timeout),
            (lambda: store.count(timeout=1), kvi.Timeout),
            (lambda: list(store.range(timeout=1)), kvi.Timeout),
            (lambda: store.ping(timeout=1), kvi.Timeout),
            (lambda: store.tas("k", "x", "y", timeout=1), kvi.Timeout),
            (lambda: store.delete("k", timeout=1), kvi.Timeout),
            (lambda: store.cas("k", 1, "v", timeout=1), kvi.Timeout),
            (lambda: store.delete_range(prefix="x", timeout=1), kvi.Timeout),
        ]
        try:
            for call, error in calls:
                began = monotonic()
                with pytest.raises(error) as caught:
                    call()
                assert type(caught.value) is error
                assert 0.9 < monotonic() - began < 2
        finally:
            server.resume()
        server.wait_ready()
        store.store("k", "after")
        found = store.get("k")
        assert found is not None
        assert found.text == "after"


def test_a_server_that_is_gone_and_comes_back() -> None:
    """A killed server is `Unavailable`, nothing applied; the handle works again after a restart."""
    with ConsulServer() as server, kvi.open(server.uri, timeout=5, retry=None) as store:
        store.store("k", "kept")
        server.kill()
        for call in (
            lambda: store.get("k"),
            lambda: store.store("k", "v"),
            lambda: store.delete("k"),
            store.count,
            store.ping,
        ):
            began = monotonic()
            with pytest.raises(kvi.Unavailable, match="is the agent running"):
                call()
            assert monotonic() - began < 1
        server.start()
        store.ping()
        found = store.get("k")
        assert found is not None
        assert found.text == "kept"
        server.restart()
        assert store.store("k", "again") > found.revision


def test_writers_over_a_kill_are_never_told_wrong() -> None:
    """With the server killed under load, what was acknowledged is there and the rest is unknown."""
    with ConsulServer() as server, kvi.open(server.uri, timeout=5) as store:
        acknowledged: dict[str, set[str]] = {str(n): set() for n in range(8)}
        refused: dict[str, set[str]] = {str(n): set() for n in range(8)}
        done = threading.Event()

        def write(name: str) -> None:
            for number in range(10**6):
                if done.is_set():
                    return
                key = f"{name}/{number}"
                try:
                    store.store(key, "v")
                    acknowledged[name].add(key)
                except kvi.OutcomeUnknown:
                    pass
                except (kvi.Unavailable, kvi.Timeout):
                    refused[name].add(key)
                    time.sleep(0.01)

        threads = [threading.Thread(target=write, args=(name,)) for name in acknowledged]
        for thread in threads:
            thread.start()
        until(lambda: sum(map(len, acknowledged.values())) > 500)
        server.kill()
        server.start()
        before = sum(map(len, acknowledged.values()))
        until(lambda: sum(map(len, acknowledged.values())) > before + 100)
        done.set()
        for thread in threads:
            thread.join()
        present = {entry.key for entry in store.range(keys_only=True)}
        assert set().union(*acknowledged.values()) <= present
        assert not set().union(*refused.values()) & present


def test_closing_wakes_calls_on_a_paused_server() -> None:
    """A call that waits for a frozen server ends with `Closed` when the handle is closed."""
    with ConsulServer() as server:
        store = kvi.open(server.uri, timeout=30)
        store.store("k", "v")
        server.pause()
        ends: list[BaseException] = []

        def call() -> None:
            try:
                store.get("k")
            except kvi.KviError as error:
                ends.append(error)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: inmost(store)._transport._pool.busy == 3)
        began = monotonic()
        store.close()
        for thread in threads:
            thread.join(20)
        assert monotonic() - began < 5
        assert [type(end) for end in ends] == [kvi.Closed] * 3
        server.resume()


# -- access ----------------------------------------------------------------------------------------


def test_tokens_and_permissions() -> None:
    """Who is unknown, what is not permitted and what is missing are three different things."""
    master = "11111111-2222-3333-4444-555555555555"
    config = {
        "primary_datacenter": "dc1",
        "acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": master}},
    }
    with ConsulServer(config=config) as server:
        address = urlsplit(server.uri).netloc
        with kvi.open(f"consul://{master}@{address}", timeout=10) as store:
            until_acls_work(store)
            store.store("open/k", "v")
            store.store("shut/k", "v")
            http = store.client.http
            rules = 'key_prefix "open/" {policy="write"} key_prefix "seen/" {policy="read"}'
            policy = {"Name": "p", "Rules": rules}
            http.put(Session._json, "/v1/acl/policy", data=json.dumps(policy))
            token = http.put(
                Session._json, "/v1/acl/token", data=json.dumps({"Policies": [{"Name": "p"}]})
            )["SecretID"]
        with kvi.open(f"consul://{address}?token={token}", timeout=5) as store:
            store.ping()
            assert store.store("open/k", "w") > 0
            assert store.get("open/none") is None
            assert store.get("seen/none") is None
            refused: list[Callable[[], object]] = [
                lambda: store.get("shut/k"),
                lambda: store.store("shut/k", "v"),
                lambda: store.store("seen/k", "v"),
                lambda: store.delete("shut/k"),
                lambda: store.tas("shut/k", "v", "w"),
                lambda: store.cas("shut/k", 5, "w"),
                lambda: store.txn([], [Put("open/k", "x"), Put("shut/k", "x")]),
                lambda: store.delete_range(prefix="shut/"),
                lambda: store.delete_range(prefix=""),
            ]
            for call in refused:
                with pytest.raises(kvi.PermissionDenied) as caught:
                    call()
                assert token not in str(caught.value)
            found = store.get("open/k")
            assert found is not None
            assert found.text == "w"
        unknown = "99999999-2222-3333-4444-555555555555"
        with kvi.open(f"consul://{unknown}@{address}", timeout=5) as store:
            for call in (
                store.ping,
                lambda: store.get("k"),
                lambda: store.store("k", "v"),
                store.count,
            ):
                with pytest.raises(kvi.AuthenticationFailed) as auth:
                    call()
                assert unknown not in str(auth.value)


def until_acls_work(store: kvi.Kvi) -> None:
    """Wait until the server has set up its ACLs, a moment after it has a leader."""
    deadline = monotonic() + 20
    while True:
        try:
            store.store("probe", "v")
            return
        except kvi.KviError:
            assert monotonic() < deadline
            time.sleep(0.1)


def test_tls(tmp_path: Path) -> None:
    """TLS works with the right files, and says what is wrong with the others."""
    made = certificates(tmp_path)
    config = {
        "ca_file": made["ca"],
        "cert_file": made["server"],
        "key_file": made["server-key"],
        "verify_incoming_rpc": False,
        "verify_incoming_https": True,
    }
    (port,) = free_ports(1)
    with ConsulServer(config={**config, "ports": {"https": port}}) as server:
        files = {"ca": made["ca"], "cert": made["client"], "key": made["client-key"]}
        where = f"consul+tls://localhost:{port}"
        with kvi.open(where, **files) as store:
            for _ in range(3):
                store.store("k", "v" * 300_000)
                found = store.get("k")
                assert found is not None
                assert found.text == "v" * 300_000
            assert store.count() == 1
        wrong: list[tuple[str, dict[str, str], type[kvi.KviError], str]] = [
            (where, {}, kvi.AuthenticationFailed, "option ca"),
            (where, {"ca": made["ca"]}, kvi.AuthenticationFailed, "client certificate"),
            (f"consul+tls://127.0.0.1:{port}", files, kvi.AuthenticationFailed, "be trusted"),
            (f"consul+tls://localhost:{server.port}", files, kvi.Unavailable, "consul://"),
            (f"consul://localhost:{port}", {}, kvi.Unavailable, "speaks TLS"),
        ]
        for address, options, error, says in wrong:
            with kvi.open(address, **options) as store, pytest.raises(error, match=says):
                store.store("k", "v")
            with kvi.open(address, **options) as store, pytest.raises(error, match=says):
                store.get("k")
        both = f"consul://localhost:{port},localhost:{server.port}"
        for call in (lambda: store.get("k"), lambda: store.store("k", "v"), lambda: store.ping()):
            with kvi.open(both, retry=None) as store:
                call()


def test_certificates_are_renewed_on_disk(consul_uri: str, tmp_path: Path) -> None:
    """The next connection goes by the new files; while they are half written, by the old ones."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (Certificates.make(tmp_path / name) for name in ("first", "second"))
    parts = {"ca": "ca", "cert": "client_cert", "key": "client_key"}

    def install(files: Certificates) -> None:
        for option, name in parts.items():
            (tmp_path / option).write_bytes(getattr(files, name).read_bytes())

    install(first)
    at = urlsplit(consul_uri)
    assert at.hostname is not None
    assert at.port is not None
    with (
        TlsProxy((at.hostname, at.port), first, mutual=True) as old,
        TlsProxy((at.hostname, at.port), second, mutual=True) as new,
        TcpProxy(old.port) as between,
        kvi.open(
            f"consul+tls://127.0.0.1:{between.port}/renewed",
            retry=None,
            **{option: str(tmp_path / option) for option in parts},
        ) as store,
    ):
        store.store("k", "1")
        (tmp_path / "key").write_bytes(b"half written")
        between.cut()
        assert store.get("k").text == "1"  # type: ignore[union-attr]
        between.target = new.port
        between.cut()
        with pytest.raises(kvi.AuthenticationFailed, match="the option ca must name"):
            store.get("k")
        install(second)
        store.store("k", "2")
        assert store.get("k").text == "2"  # type: ignore[union-attr]
        store.delete("k")


def certificates(folder: Path) -> dict[str, str]:
    """A CA, a server certificate for ``localhost`` and a client certificate."""

    def run(*args: str) -> None:
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=folder)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca", "-subj", "/CN=CA", "-days", "2")
    for name in ("server", "client"):
        run("req", *curve, "-keyout", f"{name}-key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "ext").write_text("subjectAltName=DNS:localhost,DNS:server.dc1.consul\n")
        run(
            *["x509", "-req", "-in", f"{name}.csr", "-CA", "ca", "-CAkey", "ca.key", "-days", "2"],
            *["-CAcreateserial", "-extfile", "ext", "-out", name],
        )
    return {path.name: str(path) for path in folder.iterdir()}


# -- python-consul ---------------------------------------------------------------------------------


def test_the_native_client_sees_the_same_keys(store: kvi.Kvi) -> None:
    """python-consul works on the handle's connections, and what it cannot do is an error."""
    client = store.client
    store.store("k", "v")
    name = inner_key(store, "k")
    _, found = client.kv.get(name)
    assert found["Value"] == b"v"
    assert client.kv.put(name, "w")
    entry = store.get("k")
    assert entry is not None
    assert entry.text == "w"
    assert client.status.leader()
    index, _ = client.kv.get(name)
    began = monotonic()
    client.kv.get(name, index=index, wait="1s")
    assert 0.9 < monotonic() - began < 2
    with pytest.raises(consul.ConsulException, match="redirects"):
        client.kv.put(inner_key(store, "a//b"), "x")
    assert store.get("a/b") is None


def inner_key(store: kvi.Kvi, key: str) -> str:
    """The key as the server has it."""
    return f"{urlsplit(store.uri).path[1:]}/{key}"
