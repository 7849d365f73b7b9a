"""The SQLite store, against the raw driver with the same durability.

The floor is one connection in WAL mode with ``synchronous=FULL``, a table of keys and values, and
one transaction a write; the driver keeps the statements compiled. Both files lie in one folder.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import kvi

from benchmarks.measure import FLOOR, KVI, Effort, calls, compare
from benchmarks.report import Row, at_most

_KEY, _VALUE = "service/settings/timeout", b"2500"
_ENTRIES, _SPAN = 1_000, 100


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
            yield Row("sqlite", "get", compared, (at_most(compared, 3),))
            compared = compare(
                effort,
                {
                    FLOOR: calls(floor.store, _KEY, _VALUE),
                    KVI: calls(store.store, _KEY, _VALUE),
                },
            )
            yield Row("sqlite", "store, durable", compared, (at_most(compared, 1.3),))
            bounds = f"key/{_ENTRIES // 2:04}", f"key/{_ENTRIES // 2 + _SPAN:04}"
            compared = compare(
                effort,
                {FLOOR: calls(floor.range, *bounds), KVI: calls(_read, store, *bounds)},
            )
            yield Row("sqlite", f"range of {_SPAN} of {_ENTRIES:,}", compared)


def _read(store: kvi.Kvi, start: str, end: str) -> list[kvi.KeyValue]:
    return list(store.range(start, end))
