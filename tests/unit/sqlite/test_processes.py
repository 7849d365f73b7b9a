"""Several processes on one file."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import kvi
import pytest

from tests.unit.sqlite.workers import (
    finish,
    increment,
    lock_file,
    open_first,
    pipe,
    start,
    transfer,
    write_pairs,
)


def intact(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok")
    finally:
        connection.close()


@pytest.mark.slow
def test_no_increment_is_lost(store: kvi.Kvi, uri: str) -> None:
    """Eight processes adding one by test-and-set, five hundred times each, make four thousand."""
    store.store("counter", "0")
    finish(*[start(increment, uri, 500) for _ in range(8)])
    entry = store.get("counter")
    assert entry is not None
    assert entry.text == "4000"
    assert entry.version == 4001
    assert entry.revision == 4001


@pytest.mark.slow
def test_transfers_keep_the_sum(store: kvi.Kvi, uri: str) -> None:
    """Eight processes moving between accounts, in transactions of two keys, lose nothing."""
    for number in range(5):
        store.store(f"account/{number}", "1000")
    workers = [start(transfer, uri, 500, 5) for _ in range(8)]
    while any(worker.is_alive() for worker in workers):
        assert sum(int(entry.text) for entry in store.range(prefix="account/")) == 5000
        time.sleep(0.01)
    finish(*workers)
    assert sum(int(entry.text) for entry in store.range(prefix="account/")) == 5000
    assert store.range().revision == 5 + 8 * 500


def test_many_processes_create_one_store(path: Path, uri: str) -> None:
    """Processes that open a new file at the same moment all write to the one store."""
    go = time.time() + 2
    finish(*[start(open_first, uri, go, f"p{n}") for n in range(10)])
    with kvi.open(uri) as store:
        assert {entry.key for entry in store.range()} == {f"p{n}" for n in range(10)}
        assert store.range().revision == 10
    assert intact(path)


def test_killed_writer_leaves_whole_transactions(path: Path, store: kvi.Kvi, uri: str) -> None:
    """After kill -9 amid writes, what was acknowledged is there and nothing is half there."""
    for round_ in range(6):
        ours, theirs = pipe()
        worker = start(write_pairs, uri, theirs)
        theirs.close()
        said = -1
        while said < 20 + 7 * round_:
            said = ours.recv()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        try:
            while True:
                said = ours.recv()
        except EOFError:
            ours.close()
        left, right = store.get("left"), store.get("right")
        assert left is not None
        assert right is not None
        assert left.value == right.value
        assert left.revision == right.revision == store.range().revision
        assert said <= int(left.text) <= said + 1
    store.close()
    assert intact(path)


def test_locked_file_is_a_timeout(path: Path, store: kvi.Kvi) -> None:
    """While another process holds the lock, reads go on and a write is a Timeout, not applied."""
    store.store("k", "old")
    ours, theirs = pipe()
    holder = start(lock_file, str(path), theirs)
    assert ours.recv() == "locked"
    before = time.monotonic()
    with pytest.raises(kvi.Timeout, match="locked") as caught:
        store.store("k", "new", timeout=0.3)
    assert 0.3 <= time.monotonic() - before < 2
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    entry = store.get("k")
    assert entry is not None
    assert entry.text == "old"
    assert not store.txn([kvi.Key("k").value == "new"], [kvi.Get("k")])
    ours.send("let go")
    finish(holder)
    assert store.store("k", "new", timeout=5) == 2
