"""Reading the past: what is trimmed, what an older layout lacks, and what changed in between."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import kvi
import pytest
from kvi_sqlite import past, schema, snapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def opened(path: Path, **options: object) -> kvi.Kvi:
    return kvi.open(f"sqlite:{path}", **options)


@pytest.fixture
def store(path: Path) -> Iterator[kvi.Kvi]:
    with opened(path) as store:
        yield store


def test_trimmed(path: Path) -> None:
    """What the history does not go back to is Compacted; all behind it can be read."""
    with opened(path, history=300) as store:
        revisions = [store.store(f"k{number % 7}", str(number)) for number in range(1000)]
        trimmed = _number(path, "SELECT trimmed FROM history")
        assert 400 < trimmed < 999
        for revision in (revisions[0], trimmed - 1):
            with pytest.raises(kvi.Compacted, match=str(revision)):
                store.get("k1", revision=revision)
            with pytest.raises(kvi.Compacted, match=str(revision)):
                store.range(revision=revision)
        for revision in (trimmed, trimmed + 1, 999):
            expected = {f"k{number % 7}": str(number) for number in range(revision)}
            found = {entry.key: entry.text for entry in store.range(revision=revision)}
            assert found == expected
        assert len(store.history("k1")) == len([n for n in range(trimmed, 1000) if n % 7 == 1])


def test_upkeep_deletes_both(path: Path) -> None:
    """What was before a change goes with the change: neither table grows without bound."""
    with opened(path, history=10) as store:
        for number in range(2000):
            store.store("k", str(number))
    for table in ("events", "undo"):
        assert _number(path, f"SELECT count(*) FROM {table}") < 600


def test_older_layout(path: Path) -> None:
    """A file of version 3 is brought up to date; of its old changes, what was before is gone."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in (*schema._FIRST, *schema._LEASES, *schema._ENDS):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 3")
    for revision, key in ((1, b"a"), (2, b"b"), (3, b"a")):
        connection.execute(schema.UPSERT, (key, revision, revision, None, b"%d" % revision))
        connection.execute(schema.EVENT_OF_UPSERT, (revision << schema.SEQ_BITS, key))
    connection.close()
    with opened(path) as store:
        assert [(e.key, e.value) for e in store.range(revision=3)] == [("a", b"3"), ("b", b"2")]
        assert store.get("b", revision=2) == store.get("b")
        assert store.get("b", revision=1) is None  # it was created later: that is known
        for revision in (1, 2):
            with pytest.raises(kvi.Compacted):
                store.get("a", revision=revision)
        store.store("a", b"4")
        store.delete("b")
        assert [(e.key, e.value) for e in store.range(revision=3)] == [("a", b"3"), ("b", b"2")]
        assert [event.value for event in store.history("a")] == [b"4", b"3", b"1"]


def test_large_values(store: kvi.Kvi, path: Path) -> None:
    """What was before, and what is, are not one row: two large values fit where one does."""
    value = bytes(40_000_000)
    first = store.store("k", value + b"1")
    store.store("k", value + b"2")
    store.delete("k")
    entry = store.get("k", revision=first)
    assert entry is not None
    assert entry.value == value + b"1"
    longest = "SELECT max(length(value)) FROM undo"
    assert _number(path, longest) == len(value) + 1


def test_lease_that_is_being_buried(path: Path) -> None:
    """Keys of a large lease are there before its end, and not at it, buried or not."""
    with opened(path, timeout=30) as store:
        lease = store.lease(60)
        there: int | None = None
        for at in range(0, 3000, 100):
            names = [f"k/{number:05}" for number in range(at, at + 100)]
            there = store.txn(then=[kvi.Put(name, b"v", lease) for name in names]).revision
        lease.revoke()
        ended = store.range(limit=0).revision
        assert there is not None
        assert ended is not None
        for _ in range(3):  # upkeep is at it meanwhile
            assert len(list(store.range(revision=there))) == 3000
            assert len(list(store.range(revision=ended))) == 0
            last, first = store.history("k/02999")
            assert (last.type, first.type) == (kvi.EventType.DELETE, kvi.EventType.PUT)
            assert last.revision == ended
            assert last.previous is not None
            assert (last.previous.value, last.previous.lease) == (b"v", lease.id)


@pytest.mark.parametrize("ahead", [1, 3, 7])
@pytest.mark.parametrize("rows", [2, 5])
def test_pages_and_what_was_looked_up_ahead(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, ahead: int, rows: int
) -> None:
    """Wherever a page and what is known of the next keys end, each entry comes once, in order."""
    monkeypatch.setattr(past, "AHEAD", ahead)
    monkeypatch.setattr(snapshot, "PAGE_ROWS", rows)
    chance = random.Random(f"{ahead} {rows}")
    states: dict[int, dict[str, str]] = {}
    state: dict[str, str] = {}
    for number in range(120):
        key = f"k/{chance.randrange(25):02}"
        if chance.random() < 0.3 and key in state:
            store.delete(key)
            del state[key]
        else:
            store.store(key, str(number))
            state[key] = str(number)
        revision = store.range(limit=0).revision
        assert revision is not None
        states[revision] = dict(state)
    for revision, expected in states.items():
        found = [(entry.key, entry.text) for entry in store.range(revision=revision)]
        assert found == sorted(expected.items())
        back = store.range(revision=revision, reverse=True, limit=chance.randrange(1, 30))
        last = [(entry.key, entry.text) for entry in back]
        assert last == sorted(expected.items(), reverse=True)[: len(last)]
        part = store.range("k/07", "k/19", revision=revision, limit=6)
        within = [one for one in sorted(expected.items()) if "k/07" <= one[0] < "k/19"]
        assert [(entry.key, entry.text) for entry in part] == within[:6]


def test_watch_tells_the_entry_before(store: kvi.Kvi) -> None:
    """An event has what was there before, also one of the past."""
    first = store.store("k", b"1")
    store.store("k", b"2")
    store.delete("k")
    with store.watch("k", from_revision=first) as watch:
        created, changed, deleted = (watch.next(10) for _ in range(3))
    assert created.previous is None
    assert changed.previous == kvi.KeyValue("k", b"1", first, first, 1)
    assert deleted.previous == kvi.KeyValue("k", b"2", first + 1, first, 2)


def test_read_only(path: Path) -> None:
    """Whoever cannot write reads the past as well."""
    with opened(path) as store:
        first = store.store("k", b"1")
        store.store("k", b"2")
    with opened(path, read_only=True) as reader:
        entry = reader.get("k", revision=first)
        assert entry is not None
        assert entry.value == b"1"
        assert [event.value for event in reader.history("k")] == [b"2", b"1"]


def _number(path: Path, statement: str, *parameters: object) -> int:
    connection = sqlite3.connect(path)
    try:
        (number,) = connection.execute(statement, parameters).fetchone()
    finally:
        connection.close()
    return int(number)
