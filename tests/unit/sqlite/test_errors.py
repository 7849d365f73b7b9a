"""SQLite's errors as kvi's, above all: may the write have happened?"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import kvi
import pytest
from kvi_sqlite.connection import Connection
from kvi_sqlite.errors import translate

from tests.support.inside import inmost


def native(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "before", "at_commit"),
    [
        (sqlite3.SQLITE_BUSY, kvi.Timeout, kvi.Timeout),
        (sqlite3.SQLITE_BUSY_RECOVERY, kvi.Timeout, kvi.Timeout),
        (sqlite3.SQLITE_FULL, kvi.Unavailable, kvi.Unavailable),
        (sqlite3.SQLITE_IOERR, kvi.Unavailable, kvi.OutcomeUnknown),
        (sqlite3.SQLITE_IOERR_FSYNC, kvi.Unavailable, kvi.OutcomeUnknown),
        (sqlite3.SQLITE_READONLY, kvi.PermissionDenied, kvi.PermissionDenied),
        (sqlite3.SQLITE_CANTOPEN, kvi.Unavailable, kvi.OutcomeUnknown),
        (sqlite3.SQLITE_CORRUPT, kvi.Unavailable, kvi.OutcomeUnknown),
        (sqlite3.SQLITE_NOTADB, kvi.Unavailable, kvi.OutcomeUnknown),
        (sqlite3.SQLITE_TOOBIG, kvi.ValueTooLarge, kvi.ValueTooLarge),
        (0, kvi.Unavailable, kvi.OutcomeUnknown),
    ],
)
def test_each_code_has_its_error(
    path: Path, code: int, before: type[kvi.KviError], at_commit: type[kvi.KviError]
) -> None:
    """Before COMMIT nothing can have happened; at COMMIT only some codes say so surely."""
    assert type(translate(native(code), path)) is before
    assert type(translate(native(code), path, committing=True)) is at_commit


def test_interrupt_is_the_time_out_or_the_close(path: Path) -> None:
    """An interrupted statement ran out of time, unless the handle is being closed."""
    error = native(sqlite3.SQLITE_INTERRUPT)
    assert type(translate(error, path)) is kvi.Timeout
    assert type(translate(error, path, closing=True)) is kvi.Unavailable


def test_full_disk_applies_nothing(path: Path, uri: str) -> None:
    """A write that the disk has no room for is Unavailable, with the native error as cause."""
    with kvi.open(uri) as store:
        store.store("k", "old")
        pool = inmost(store)._pool
        connection = pool.borrow(1e12)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        pool.give_back(connection)
        with pytest.raises(kvi.Unavailable, match="disk is full") as caught:
            store.store("k", b"v" * 1_000_000)
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        entry = store.get("k")
        assert entry is not None
        assert (entry.text, entry.revision) == ("old", 1)
        assert store.store("k", "new") == 2


@pytest.mark.parametrize("timeout", [None, 5], ids=["at once", "by another thread"])
def test_failed_commit_is_undone_and_told(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    """A disk error at COMMIT is OutcomeUnknown; the handle stays usable, its lock is let go."""
    store.store("k", "old")
    pool = inmost(store)._pool

    def fail(connection: Connection, deadline: float) -> None:
        raise native(sqlite3.SQLITE_IOERR_FSYNC)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_commit", fail)
        with pytest.raises(kvi.OutcomeUnknown, match="store 'k'"):
            store.store("k", "new", timeout=timeout)
    assert store.store("k", "newer") == 2


def test_lost_commit_is_made_again_if_the_program_says_so(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``idempotent``, a store of unknown fate is repeated, wherever it was done."""
    failures = [native(sqlite3.SQLITE_IOERR_FSYNC)]
    with kvi.open(uri, retry=kvi.RetryPolicy(idempotent=True)) as store:
        store.store("k", "old")
        pool = inmost(store)._pool
        commit = pool._commit

        def fail_once(connection: Connection, deadline: float) -> None:
            if failures:
                raise failures.pop()
            commit(connection, deadline)

        monkeypatch.setattr(pool, "_commit", fail_once)
        assert store.store("k", "new") == 2
        assert failures == []


@pytest.mark.parametrize("timeout", [None, 5], ids=["at once", "by another thread"])
def test_exception_amid_a_write_undoes_it(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    """An interrupt from the keyboard, or no memory, passes through; nothing is written or held."""
    store.store("k", "old")

    def fail(connection: Connection, revision: int, history: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kvi_sqlite.store.trim", fail)
        with pytest.raises(KeyboardInterrupt):
            store.store("k", "new", timeout=timeout)
    entry = store.get("k")
    assert entry is not None
    assert entry.text == "old"
    assert store.store("k", "newer", timeout=1) == 2


def test_damaged_file_is_said(path: Path, uri: str) -> None:
    """A store whose file was overwritten is Unavailable, and the text says to restore it."""
    with kvi.open(uri) as store:
        store.store("k", "v")
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xaa" * (len(content) - 4096))
    with kvi.open(uri) as store, pytest.raises(kvi.Unavailable, match="backup"):
        store.get("k")


@pytest.mark.parametrize(
    ("code", "passing"),
    [
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_LOCKED, True),
        (sqlite3.SQLITE_PROTOCOL, True),
        (0, True),
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_IOERR, False),
        (sqlite3.SQLITE_CORRUPT, False),
        (sqlite3.SQLITE_NOTADB, False),
        (sqlite3.SQLITE_READONLY, False),
        (sqlite3.SQLITE_CANTOPEN, False),
    ],
)
def test_what_may_pass(path: Path, code: int, passing: bool) -> None:
    """Another connection's lock does; a full disk, a damaged or forbidden file does not."""
    assert translate(native(code), path).passing is passing
