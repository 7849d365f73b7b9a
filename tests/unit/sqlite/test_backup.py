"""Copies of stores that are in use."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from pathlib import Path
from types import FrameType

import kvi
import pytest
from kvi import Put
from kvi_sqlite import backup as backups
from kvi_sqlite import schema
from kvi_sqlite.backup import backup

from tests.support.inside import inmost
from tests.support.waiting import until


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


def test_writes_do_not_begin_the_copying_anew(
    tmp_path: Path, path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that takes many steps is of the moment of the first, whoever writes between them."""
    store.txn(then=[Put(f"k{n:03}", "v" * 500) for n in range(300)])
    steps = 0

    def write(*_: int) -> None:
        nonlocal steps
        steps += 1
        assert steps < 1000
        store.store("k000", "w" * 500)

    monkeypatch.setattr(backups, "PAGES", 4)
    monkeypatch.setattr(backups, "_step", write)
    backup(path, tmp_path / "copy.db")
    assert steps > 10
    with kvi.open(f"sqlite:{tmp_path}/copy.db") as copy:
        assert copy.range().revision == 1
        assert {entry.text for entry in copy.range()} == {"v" * 500}


class Stopped(Exception):
    """What the handler of a signal raises."""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals on this system")
def test_handler_of_a_signal_ends_the_copying(tmp_path: Path, path: Path, uri: str) -> None:
    """It runs amid of it, and what it raises, as for Ctrl-C, leaves nothing behind."""
    with kvi.open(f"{uri}?history=1") as store:
        for number in range(8):
            store.store(f"k{number}", os.urandom(16 * 1024 * 1024))
    sizes: list[int] = []

    def parts() -> list[Path]:
        return list(tmp_path.glob(".copy.db*part"))

    def interrupt() -> None:
        until(parts)
        os.kill(os.getpid(), signal.SIGUSR1)

    def stop(_: int, __: FrameType | None) -> None:
        sizes.extend(part.stat().st_size for part in parts())
        raise Stopped

    before = signal.signal(signal.SIGUSR1, stop)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(Stopped):
            backup(path, tmp_path / "copy.db")
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    (size,) = sizes
    assert size < path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"]


def test_two_copies_to_one_name_at_once(
    tmp_path: Path, path: Path, store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither touches what the other has begun, though both have one process id."""
    store.txn(then=[Put(f"k{n:03}", "v" * 500) for n in range(300)])
    began: list[Path] = []

    def another(*_: int) -> None:
        if began:
            return
        began.extend(tmp_path.glob(".copy.db*part"))
        backup(path, tmp_path / "copy.db", replace=True)
        assert list(tmp_path.glob(".copy.db*part")) == began

    monkeypatch.setattr(backups, "PAGES", 4)
    monkeypatch.setattr(backups, "_step", another)
    backup(path, tmp_path / "copy.db", replace=True)
    assert len(began) == 1
    assert not list(tmp_path.glob(".*"))
    with kvi.open(f"sqlite:{tmp_path}/copy.db", read_only=True) as copy:
        assert copy.count() == 300
