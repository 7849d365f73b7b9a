"""Copies of stores that are in use."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import kvi
import pytest
from kvi import Put
from kvi_sqlite import schema
from kvi_sqlite.backup import backup

from tests.support.inside import inmost


def test_copy_is_of_one_moment(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """While others write, each copy is whole, of one revision, and holds all that was before."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            store.txn(then=[Put(key, f"{number:06d}") for key in "abc"])

    store.txn(then=[Put(key, "000000") for key in "abc"])
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(10):
            copy = tmp_path / f"copy{number}.db"
            before = store.range().revision
            backup(path, copy)
            with kvi.open(f"sqlite:{copy}") as other:
                entries = list(other.range())
                assert len({entry.value for entry in entries}) == 1
                assert entries[0].revision >= (before or 0)
                other.store("a", "of the copy")
    finally:
        stop.set()
        writer.join()
    assert sorted(file.suffix for file in tmp_path.iterdir() if "copy" in file.name) == [".db"] * 10


def test_copy_of_a_store_at_rest(tmp_path: Path, path: Path, uri: str) -> None:
    """Nothing is left beside the store; the copy has the leases and is intact."""
    with kvi.open(uri) as store:
        lease = inmost(store)._lease_grant(60, 5).id
        store.store("k", "v", lease=lease)
    backup(path, tmp_path / "copy.db")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "store.db"]
    with kvi.open(f"sqlite:{tmp_path}/copy.db") as copy:
        entry = copy.get("k")
        assert entry is not None
        assert entry.lease == lease
    connection = sqlite3.connect(tmp_path / "copy.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_copy_of_a_store_with_a_long_log(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """As a busy writer, or one that crashed, leaves it: a thread of its own opens it then."""
    store.ping()
    inmost(store)._pool.chores = lambda: None  # nothing copies the log into the file
    store.store("k", b"v" * schema.WAL_KEPT)
    store.store("last", "w")
    assert path.with_name(path.name + "-wal").stat().st_size > schema.WAL_KEPT
    backup(path, tmp_path / "copy.db")
    with kvi.open(f"sqlite:{tmp_path}/copy.db") as copy:
        assert [entry.key for entry in copy.range(keys_only=True)] == ["k", "last"]


def test_nothing_is_overwritten(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """A target that is there, or nowhere, is refused; so is a source that is no store."""
    store.store("k", "v")
    (tmp_path / "there").write_bytes(b"data")
    for target in ("there", "no/such", "store.db"):
        with pytest.raises(kvi.InvalidArgument):
            backup(path, tmp_path / target)
    assert (tmp_path / "there").read_bytes() == b"data"
    for source in ("there", "missing"):
        with pytest.raises(kvi.Unavailable):
            backup(tmp_path / source, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_file_is_replaced_when_asked_for(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """Once the copy is whole, behind a link; but nothing that is no file, or a store in use."""
    store.store("k", "v")
    (tmp_path / "there").write_bytes(b"data")
    (tmp_path / "link").symlink_to("there")
    backup(path, tmp_path / "link", replace=True)
    with kvi.open(f"sqlite:{tmp_path}/there", read_only=True) as copy:
        assert copy.get("k") is not None
    assert (tmp_path / "link").is_symlink()
    for target in (path, tmp_path):
        with pytest.raises(kvi.InvalidArgument):
            backup(path, target, replace=True)
    assert store.get("k") is not None


@pytest.mark.parametrize("beside", ["-wal", "-shm", "-journal"])
def test_remains_of_another_store_are_refused(
    tmp_path: Path, path: Path, store: kvi.Kvi, beside: str
) -> None:
    """SQLite would take the log of a former store of that name for the copy's."""
    store.store("k", "v")
    (tmp_path / f"copy.db{beside}").write_bytes(b"left")
    for replace in (False, True):
        with pytest.raises(kvi.InvalidArgument, match=beside):
            backup(path, tmp_path / "copy.db", replace=replace)
    assert not (tmp_path / "copy.db").exists()


def test_copy_is_as_private_as_the_store(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """Nobody may read the copy who may not read the store."""
    store.store("k", "v")
    path.chmod(0o600)
    backup(path, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
