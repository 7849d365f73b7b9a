"""Clients that record what they do."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import kvi
import pytest
from kvi import Key
from kvi.conformance.checking import (
    Call,
    Cas,
    Judgement,
    Outcome,
    Range,
    Tas,
    Verdict,
    by_revision,
    by_search,
)
from kvi.conformance.clients import Client, Kind, run_random
from kvi.model import Txn

_numbers = itertools.count()

CALLS: list[Call] = [
    kvi.Put("a", b"1"),
    kvi.Delete("a"),
    Tas("a", None, b"2"),
    Cas("a", 0, b"3"),
    Txn((Key("a").exists,), (kvi.Get("a"),), (kvi.Put("a", b"4"),)),
]
READS: list[Call] = [kvi.Get("a"), Range("", ("a",)), Txn(then=(kvi.Get("a"),))]


@pytest.fixture
def store() -> Iterator[kvi.Kvi]:
    """A store of this test alone."""
    with kvi.open(f"mem:clients{next(_numbers)}") as handle:
        yield handle


def fail(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Let every call fail."""

    def failing(*_: object, **__: object) -> None:
        assert error is not None
        raise error

    for name in ("get", "range", "store", "delete", "tas", "cas", "txn"):
        monkeypatch.setattr(store, name, failing)


def test_records(store: kvi.Kvi) -> None:
    """Each call is recorded with its result and times of the clock."""
    ticks = itertools.count()
    client = Client(3, store, lambda: next(ticks))
    revision = client.perform(kvi.Put("a", b"1")).result
    entry = client.perform(kvi.Get("a")).result
    assert isinstance(entry, kvi.KeyValue)
    assert entry.revision == revision
    assert client.seen["a"] == entry
    for call in (*CALLS, *READS):
        client.perform(call)
    assert [(one.invoked, one.returned) for one in client.operations] == [
        (2 * n, 2 * n + 1) for n in range(len(client.operations))
    ]
    assert all(one.client == 3 and one.outcome is Outcome.OK for one in client.operations)
    assert by_revision(client.operations)
    assert by_search(client.operations)


def test_fresh_values(store: kvi.Kvi) -> None:
    """No two values are the same, of one client or of two."""
    values = [client.fresh() for client in (Client(1, store), Client(11, store)) for _ in range(99)]
    assert len(set(values)) == len(values)


def test_unknown(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose fate is unknown has no end; a read without an answer is worth nothing."""
    fail(store, monkeypatch, kvi.OutcomeUnknown("gone"))
    client = Client(0, store)
    for call in CALLS:
        operation = client.perform(call)
        assert operation.outcome is Outcome.UNKNOWN
        assert operation.returned == inf
    for call in READS:
        assert client.perform(call).outcome is Outcome.DENIED


@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.Timeout, kvi.Contention])
def test_denied(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, error: type[kvi.KviError]) -> None:
    """What is surely not applied is recorded as that, and ended."""
    fail(store, monkeypatch, error("no"))
    client = Client(0, store)
    for call in (*CALLS, *READS):
        operation = client.perform(call)
        assert operation.outcome is Outcome.DENIED
        assert operation.returned < inf


@pytest.mark.parametrize("error", [kvi.Closed("closed"), kvi.PermissionDenied("no"), ValueError()])
def test_raised(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Every other error is raised; a write that it ended may have been applied."""
    fail(store, monkeypatch, error)
    client = Client(0, store)
    with pytest.raises(type(error)):
        client.perform(kvi.Put("a", b"1"))
    assert client.operations[-1].outcome is Outcome.UNKNOWN


def test_range_without_snapshot(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without snapshots a range is a read of each key, all within its time."""
    client = Client(0, store)
    client.perform(kvi.Put("a", b"1"))
    capabilities = kvi.Capabilities(
        **{name: getattr(store.capabilities, name) for name in kvi.Capabilities.__slots__}
        | {"snapshot_range": False}
    )
    monkeypatch.setattr(store._scope, "capabilities", capabilities)
    client.perform(Range("", ("a", "b")))
    a, b = client.operations[1:]
    assert (a.call, b.call) == (kvi.Get("a"), kvi.Get("b"))
    assert (a.invoked, a.returned) == (b.invoked, b.returned)
    assert isinstance(a.result, kvi.KeyValue)
    assert b.result is None
    assert by_search(client.operations)


def test_range_of_strangers(store: kvi.Kvi) -> None:
    """A range that has what nobody wrote fails at once."""
    store.store("x", b"")
    with pytest.raises(AssertionError, match="nobody wrote"):
        Client(0, store).perform(Range("", ("a",)))


def test_random_calls(store: kvi.Kvi) -> None:
    """The seed chooses the calls, of all the kinds that are asked for."""
    kinds: tuple[Kind, ...] = ("get", "store", "delete", "tas", "cas", "txn", "range")
    with store.namespace("one") as one, store.namespace("two") as two:
        histories = [
            run_random([view], kinds=kinds, clients=1, calls=100, seed=7) for view in (one, two)
        ]
    calls = [[operation.call for operation in history.operations] for history in histories]
    assert len(calls[0]) == 100
    assert {type(call) for call in calls[0]} == {
        *(kvi.Get, kvi.Put, kvi.Delete, Tas, Cas, Txn, Range)
    }
    kind_of = [[type(call) for call in one] for one in calls]
    assert kind_of[0] == kind_of[1]
    assert [history.seed for history in histories] == [7, 7]
    for history in histories:
        assert by_revision(history.operations)


def test_until(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients go on until they are told to end, also while nothing can be had."""
    ended = threading.Event()
    timer = threading.Timer(0.15, ended.set)
    timer.start()
    fail(store, monkeypatch, kvi.Unavailable("away"))
    history = run_random([store], clients=3, until=ended)
    timer.join()
    assert {operation.client for operation in history.operations} == {0, 1, 2}
    assert all(operation.outcome is Outcome.DENIED for operation in history.operations)
    assert 3 <= len(history.operations) <= 60, "they rest after a denial"
    assert by_revision(history.operations)


# -- stores that break the contract are found out -------------------------------------------------


def judged(store: kvi.Kvi, kind: Kind) -> Judgement:
    """What the checker says of random clients, after a few tries: not all of them collide."""
    for _ in range(20):
        history = run_random([store], kinds=("get", kind, kind), calls=40)
        found = by_revision(history.operations)
        assert found.verdict is by_search(history.operations).verdict
        if not found:
            return found
        store.delete_range(prefix="")
    pytest.fail("nothing was found in twenty histories")


def test_racing_tas_is_found(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test-and-set that is a read and then a write has two winners."""

    def tas(key: str, test: bytes | None, new: bytes | None) -> bool:
        entry = store.get(key)
        time.sleep(0.0005)
        if (None if entry is None else entry.value) != test:
            return False
        if new is None:
            store.delete(key)
        else:
            store.store(key, new)
        return True

    monkeypatch.setattr(store, "tas", tas)
    assert judged(store, "tas").verdict is Verdict.VIOLATION


def test_stale_reads_are_found(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads from a cache that is a little behind are no reads of the store."""
    real, cache = store.get, dict[str, tuple[float, kvi.KeyValue | None]]()

    def get(key: str) -> kvi.KeyValue | None:
        now = time.monotonic()
        if key not in cache or cache[key][0] < now - 0.001:
            cache[key] = now, real(key)
        return cache[key][1]

    monkeypatch.setattr(store, "get", get)
    found = judged(store, "store")
    assert found.verdict is Verdict.VIOLATION
    assert len(found.operations) <= 6, str(found)


def test_torn_transactions_are_found(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that reads one key after another has mixed two states."""
    real = store.txn

    def txn(when: Any, then: Any, otherwise: Any) -> kvi.TxnResult:
        if when or not all(isinstance(action, kvi.Get) for action in then):
            return real(when, then, otherwise)
        entries = []
        for action in then:
            entries.append(store.get(action.key))
            time.sleep(0.0005)
        return kvi.TxnResult(True, None, tuple(entries))

    monkeypatch.setattr(store, "txn", txn)
    assert judged(store, "txn").verdict is Verdict.VIOLATION
