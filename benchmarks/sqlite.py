"""The SQLite store, against the raw driver with the same durability.

The floor is one connection in WAL mode with ``synchronous=FULL``, a table of keys and values, and
one transaction a write; the driver keeps the statements compiled. Both files lie in one folder. For
an import it is a table with the columns that kvi has, filled by ``executemany``.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import kvi

from benchmarks.measure import FLOOR, KVI, Effort, calls, compare, threads
from benchmarks.report import Row, at_most, faster

_KEY, _VALUE = "service/settings/timeout", b"2500"
_ENTRIES, _SPAN = 1_000, 100
_THREADS = 8
_IMPORTED, _TOGETHER = 20_000, 1_000


class Raw:
    """The floor."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._run = self._connection.execute
        self._run("PRAGMA journal_mode=WAL")
        self._run("PRAGMA synchronous=FULL")
        self._run("CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def get(self, key: str) -> bytes:
        value: bytes = self._run("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()[0]
        return value

    def store(self, key: str, value: bytes) -> None:
        run = self._run
        run("BEGIN IMMEDIATE")
        run("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, value))
        run("COMMIT")

    def range(self, start: str, end: str) -> list[tuple[str, bytes]]:
        return self._run(
            "SELECT key, value FROM entries WHERE key >= ? AND key < ? ORDER BY key", (start, end)
        ).fetchall()

    def fill(self, number: int) -> float:
        """As `_import`."""
        run = self._run
        run(
            "CREATE TABLE IF NOT EXISTS filled (key TEXT UNIQUE, revision INTEGER, created INTEGER,"
            " version INTEGER, lease INTEGER, value BLOB)"
        )
        start = time.perf_counter()
        for at in range(0, _IMPORTED, _TOGETHER):
            run("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT INTO filled VALUES (?, ?, ?, 1, NULL, ?)",
                [(f"import/{at + key:08}", at, at, _VALUE) for key in range(_TOGETHER)],
            )
            run("COMMIT")
        took = time.perf_counter() - start
        run("DELETE FROM filled")
        return took / _IMPORTED * number

    def close(self) -> None:
        self._connection.close()


def rows(effort: Effort) -> Iterator[Row]:
    """Get, durable store, and a range."""
    with tempfile.TemporaryDirectory(prefix="kvi-benchmark-") as folder:
        path = Path(folder)
        with (
            kvi.open(f"sqlite:{path / 'kvi.db'}") as store,
            closing(Raw(path / "raw.db")) as floor,
        ):
            for put in (store.store, floor.store):
                put(_KEY, _VALUE)
                for number in range(_ENTRIES):
                    put(f"key/{number:04}", _VALUE)
            compared = compare(effort, {FLOOR: calls(floor.get, _KEY), KVI: calls(store.get, _KEY)})
            yield Row("sqlite", "get", compared, (at_most(compared, 2),))
            compared = compare(
                effort,
                {
                    FLOOR: calls(floor.store, _KEY, _VALUE),
                    KVI: calls(store.store, _KEY, _VALUE),
                },
            )
            yield Row("sqlite", "store, durable", compared, (at_most(compared, 1.25),))
            compared = compare(
                effort,
                {
                    FLOOR: calls(floor.store, _KEY, _VALUE),
                    KVI: threads(_THREADS, store.store, _KEY, _VALUE),
                },
            )
            goal = faster(compared, 3, FLOOR)
            yield Row("sqlite", f"store, durable, {_THREADS} threads", compared, (goal,))
            compared = compare(
                effort.few(),
                {FLOOR: floor.fill, KVI: lambda number: _import(store, number)},
            )
            yield Row(
                "sqlite",
                "import, a key",
                compared,
                (at_most(compared, 4),),
                remark=f"{_IMPORTED:,} keys in transactions of {_TOGETHER:,}",
            )
            bounds = f"key/{_ENTRIES // 2:04}", f"key/{_ENTRIES // 2 + _SPAN:04}"
            compared = compare(
                effort,
                {FLOOR: calls(floor.range, *bounds), KVI: calls(_read, store, *bounds)},
            )
            yield Row("sqlite", f"range of {_SPAN} of {_ENTRIES:,}", compared)


def _import(store: kvi.Kvi, number: int) -> float:
    """Put many keys; the time of one."""
    start = time.perf_counter()
    for at in range(0, _IMPORTED, _TOGETHER):
        keys = range(at, at + _TOGETHER)
        store.txn(then=[kvi.Put(f"import/{key:08}", _VALUE) for key in keys])
    took = time.perf_counter() - start
    store.delete_range(prefix="import/")
    return took / _IMPORTED * number


def _read(store: kvi.Kvi, start: str, end: str) -> list[kvi.KeyValue]:
    return list(store.range(start, end))
