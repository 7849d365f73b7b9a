"""The events table: the history of the last commits, and the revision counter."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi import Delete, Put
from kvi_sqlite import schema

from tests.support.waiting import until


def rows(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


EVENTS = "SELECT revision, key, value, create_revision, version, lease FROM events ORDER BY id"


def test_every_change_is_an_event(path: Path, store: kvi.Kvi) -> None:
    """Each change of each commit is in the history, in order, with what it made of the key."""
    store.store("a", "1")
    store.store("a", "2")
    store.txn(then=[Put("b", "3"), Delete("a"), Delete("nothing"), Put("c", "")])
    store.delete("b")
    store.store("d", "4")
    assert store.delete_range(prefix="") == 2
    assert rows(path, EVENTS) == [
        (1, b"a", b"1", 1, 1, None),
        (2, b"a", b"2", 1, 2, None),
        (3, b"b", b"3", 3, 1, None),
        (3, b"a", None, None, None, None),
        (3, b"c", b"", 3, 1, None),
        (4, b"b", None, None, None, None),
        (5, b"d", b"4", 5, 1, None),
        (6, b"c", None, None, None, None),
        (6, b"d", None, None, None, None),
    ]


def test_what_changes_nothing_uses_no_revision(path: Path, store: kvi.Kvi) -> None:
    """Deletes of nothing and transactions that write nothing make no event and no revision."""
    store.store("a", "1")
    assert not store.delete("x")
    assert store.delete_range(prefix="x") == 0
    assert not store.tas("a", "2", "3")
    assert store.txn(then=[Delete("x")]).revision == 1
    assert store.txn(then=[kvi.Get("a")]).revision == 1
    with pytest.raises(kvi.LeaseLost):
        store.store("a", "2", lease=5)
    with pytest.raises(kvi.LeaseLost):
        store.txn(then=[Put("b", "2"), Put("a", "2", lease=5)])
    assert store.range().revision == 1
    assert len(rows(path, EVENTS)) == 1
    assert store.store("a", "1") == 2


def test_history_is_trimmed(path: Path) -> None:
    """At least the last `history` commits stay, not many more, and the file says from where on."""
    with kvi.open(f"sqlite:{path}?history=100") as store:
        for number in range(schema.TRIM_EVERY * 3 + 10):
            store.store(f"k{number % 7}", str(number))
        last = store.range().revision
        until(lambda: len(rows(path, EVENTS)) <= 100 + schema.TRIM_EVERY)
    assert last == schema.TRIM_EVERY * 3 + 10
    kept = [row[0] for row in rows(path, EVENTS)]
    assert kept == list(range(kept[0], last + 1))
    assert 100 <= len(kept) <= 100 + schema.TRIM_EVERY
    assert rows(path, "SELECT trimmed FROM history") == [(kept[0] - 1,)]


def test_revision_survives_trimming_and_an_empty_store(path: Path) -> None:
    """Revisions go on from the last commit when nothing is left and the file is opened again."""
    uri = f"sqlite:{path}?history=1"
    with kvi.open(uri) as store:
        for number in range(schema.TRIM_EVERY - 1):
            store.store("k", str(number))
        assert store.delete("k")
    assert len(rows(path, EVENTS)) == 1
    with kvi.open(uri) as store:
        assert store.range().revision == schema.TRIM_EVERY
        assert store.store("k", "v") == schema.TRIM_EVERY + 1


def test_commit_larger_than_its_ids_skips_revisions(
    path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit with more changes than ids of its own keeps one revision; the next is larger."""
    monkeypatch.setattr(schema, "SEQ_BITS", 2)
    result = store.txn(then=[Put(f"k{n}", "v") for n in range(10)])
    assert result.revision == 1
    assert {e.revision for e in store.range()} == {1}
    assert store.range().revision == 1
    after = store.store("k", "v")
    assert after > 1
    assert store.delete_range(prefix="k") == 11
    assert store.store("z", "v") > after + 1
    revisions = [row[0] for row in rows(path, EVENTS)]
    assert revisions == sorted(revisions)
    assert revisions.count(1) == 10


@pytest.mark.parametrize(
    "sql",
    [
        schema.COUNT,
        schema.range_sql(reverse=True, keys_only=True),
        schema.few_sql(reverse=False, keys_only=False),
        schema.few_sql(reverse=True, keys_only=True),
    ],
)
def test_spans_use_the_index(path: Path, store: kvi.Kvi, sql: str) -> None:
    """Counting and reading a span costs what the span is, not what the store is."""
    store.ping()
    connection = sqlite3.connect(path)
    marks = (1,) * sql.count("?")
    plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", marks))
    connection.close()
    assert "INDEX" in plan
    assert "SCAN entries" not in plan  # of the events, only the last is looked at
    assert "TEMP B-TREE" not in plan


def test_revision_is_read_from_one_row(path: Path, store: kvi.Kvi) -> None:
    """The revision is found at the end of the events, without a walk through them."""
    store.ping()
    connection = sqlite3.connect(path)
    listing = connection.execute(f"EXPLAIN {schema.NEWEST}").fetchall()
    connection.close()
    assert "Last" in [row[1] for row in listing]
