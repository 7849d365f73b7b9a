"""Which files are stores, and what is said about those that are not."""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from math import inf
from pathlib import Path
from urllib.parse import quote

import kvi
import pytest
from kvi import Put
from kvi_sqlite import schema
from kvi_sqlite.backup import backup
from kvi_sqlite.connection import Deadline

from tests.support.inside import inmost


def contents(path: Path) -> dict[str, bytes]:
    """All files of a directory."""
    return {file.name: file.read_bytes() for file in path.iterdir()}


def somebodys(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:", "needs a path"),
        ("sqlite://", "needs a path"),
        ("sqlite://data/store.db", "no host"),
        ("sqlite://user@host/store.db", "no host"),
        ("sqlite::memory:", "mem:"),
        ("sqlite:///:memory:", "mem:"),
        ("sqlite:a%00b", "NUL"),
        ("sqlite:folder/", "names a directory"),
        ("sqlite:x?history=0", "history"),
        ("sqlite:x?history=many", "history"),
    ],
)
def test_bad_uri_is_refused_with_the_mend(uri: str, said: str) -> None:
    """What cannot be a file is an InvalidOption whose text says what to write instead."""
    with pytest.raises(kvi.InvalidOption, match=said):
        kvi.open(uri)


def test_opening_touches_nothing(path: Path, uri: str) -> None:
    """Opening and closing makes no file; the first operation does."""
    with kvi.open(uri):
        pass
    assert not path.exists()
    with kvi.open(uri) as store:
        assert store.get("k") is None
        assert path.exists()


def test_relative_and_absolute_paths_name_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is meant from the directory that was current at the time of opening."""
    monkeypatch.chdir(tmp_path)
    with (
        kvi.open("sqlite:s%20%25.db") as relative,
        kvi.open(f"sqlite://{tmp_path}/s%20%25.db") as b,
    ):
        monkeypatch.chdir("/")
        relative.store("k", "v")
        assert (tmp_path / "s %.db").exists()
        entry = b.get("k")
        assert entry is not None
        assert entry.text == "v"


def test_absolute_path_needs_no_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is gone, a relative path is an InvalidOption that says so, and no other is."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with kvi.open(f"sqlite://{tmp_path}/store.db") as store:
        assert store.store("k", "v") == 1
    backup(tmp_path / "store.db", tmp_path / "copy.db")
    with pytest.raises(kvi.InvalidOption, match="no working directory"):
        kvi.open("sqlite:store.db")


def test_names_that_are_no_text_are_files_of_their_own(tmp_path: Path) -> None:
    """Every path of the system has a URI, also of bytes that are no UTF-8."""
    paths = [tmp_path / os.fsdecode(b"\xfe-\xc3\xa9-" + end) for end in (b"a", b"\xff", b"\xfe")]
    try:
        for path in paths:
            path.touch()
    except OSError:
        pytest.skip("this file system has names of text alone")
    uris = [f"sqlite:{quote(os.fsencode(path))}" for path in paths]
    for uri in uris:
        with kvi.open(uri) as store:
            store.store("k", uri)
            assert repr(store) == f"<Kvi {uri}>"
    for uri, path in zip(uris, paths, strict=True):
        backup(path, f"{path}-copy")
        for each in (uri, f"{uri}-copy"):
            with kvi.open(each, read_only=True) as store:
                entry = store.get("k")
                assert entry is not None
                assert entry.text == uri
    assert set(tmp_path.iterdir()) == {*paths, *(Path(f"{path}-copy") for path in paths)}


def test_link_leads_to_the_same_store(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """A symbolic link to the file opens the same store."""
    store.store("k", "v")
    (tmp_path / "link").symlink_to(path)
    with kvi.open(f"sqlite:{tmp_path}/link") as other:
        assert other.store("k", "w") == 2
        assert store.count() == 1


@pytest.mark.parametrize("number", range(8))
def test_store_that_somebody_else_makes_meanwhile(path: Path, uri: str, number: int) -> None:
    """Whenever it comes while a new file is opened, it is a store's file, not another program's."""
    statements = itertools.count()

    def make(_: str) -> None:
        if next(statements) == number:
            with suppress(kvi.Timeout), kvi.open(uri) as store:  # amid a transaction it may not
                store.store("k", "v", timeout=0.1)

    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        connection.set_trace_callback(make)
        schema.prepare(connection, path)
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        assert next(statements) > number


def test_store_that_is_made_while_it_is_read(
    path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of a file that is written at that moment reads it anew, whatever it saw."""
    path.touch()
    check = schema.check_readable

    def check_and_make(connection: sqlite3.Connection, file: Path) -> None:
        try:
            check(connection, file)
        except kvi.Unavailable:
            with kvi.open(uri) as store:
                store.store("k", "v")
            raise

    monkeypatch.setattr(schema, "check_readable", check_and_make)
    with kvi.open(uri, read_only=True, retry=None) as store:
        assert [entry.text for entry in store.range()] == ["v"]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE notes (text)"],
        ["PRAGMA application_id = 77"],
        ["PRAGMA user_version = 3"],
        ["PRAGMA journal_mode = WAL", "CREATE TABLE notes (text)"],
    ],
    ids=["tables", "application", "version", "wal"],
)
def test_database_of_another_program_is_left_alone(
    tmp_path: Path, path: Path, uri: str, statements: list[str]
) -> None:
    """Somebody else's database is Unavailable, with its path in the text, and not changed."""
    somebodys(path, *statements)
    before = contents(tmp_path)
    with kvi.open(uri) as store:
        for call in (store.ping, lambda: store.store("k", "v"), lambda: store.get("k")):
            with pytest.raises(kvi.Unavailable, match="another program") as caught:
                call()
            assert str(path) in str(caught.value)
    assert contents(tmp_path) == before


def test_newer_schema_is_refused(path: Path, uri: str) -> None:
    """A store written by a newer kvi-sqlite is refused, and the text says to install it."""
    with kvi.open(uri) as store:
        store.store("k", "v")
    somebodys(path, f"PRAGMA user_version = {schema.VERSION + 1}")
    with kvi.open(uri) as store, pytest.raises(kvi.Unavailable, match="install a newer"):
        store.get("k")


@pytest.mark.parametrize("content", [b"hello", b"x" * 10_000], ids=["short", "long"])
def test_file_that_is_no_database_is_refused(path: Path, uri: str, content: bytes) -> None:
    """A file of another kind is Unavailable and stays as it is."""
    path.write_bytes(content)
    with kvi.open(uri) as store, pytest.raises(kvi.Unavailable, match="not an SQLite database"):
        store.store("k", "v")
    assert path.read_bytes() == content


def test_empty_file_becomes_a_store(path: Path, uri: str) -> None:
    """An empty file, such as a temporary one, is as good as none."""
    path.touch()
    with kvi.open(uri) as store:
        assert store.store("k", "v") == 1


def test_missing_directory_is_named(tmp_path: Path) -> None:
    """A missing directory is Unavailable; the text names it and says to create it."""
    with (
        kvi.open(f"sqlite:{tmp_path}/no/such/store.db") as store,
        pytest.raises(kvi.Unavailable, match=f"{tmp_path}/no/such does not exist; create"),
    ):
        store.get("k")
    assert not (tmp_path / "no").exists()


def test_directory_is_no_store(tmp_path: Path) -> None:
    """A path to a directory is Unavailable, with the mend; so is one below a file."""
    (tmp_path / "file").touch()
    with kvi.open(f"sqlite:{tmp_path}") as store, pytest.raises(kvi.Unavailable, match="name a fi"):
        store.get("k")
    with (
        kvi.open(f"sqlite:{tmp_path}/file/store.db") as store,
        pytest.raises(kvi.Unavailable, match="not a directory"),
    ):
        store.get("k")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_no_permission_is_said(tmp_path: Path) -> None:
    """A directory that this user may not use is Unavailable, and the text says who may mend it."""
    tmp_path.chmod(0o500)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with kvi.open(f"sqlite:{tmp_path}/store.db") as store:
                store.get("k")
        except kvi.Unavailable as error:
            os._exit(0 if "let this user" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_old_library_is_refused() -> None:
    """A Python with too old an SQLite library gets a BackendLoadError that names both versions."""
    program = """
        import sqlite3
        sqlite3.sqlite_version, sqlite3.sqlite_version_info = "3.34.1", (3, 34, 1)
        import kvi
        try:
            kvi.open("sqlite:x")
        except kvi.BackendLoadError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert "3.35.0 or newer" in done.stdout
    assert "3.34.1" in done.stdout


def test_marks_are_in_the_file(path: Path, store: kvi.Kvi) -> None:
    """The file says whose it is: application id, schema version and WAL are in its header."""
    store.store("k", "v")
    connection = sqlite3.connect(path)
    pragmas = ("application_id", "user_version", "journal_mode")
    marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    connection.close()
    assert marks == [schema.APPLICATION_ID, schema.VERSION, "wal"]


def test_commits_are_synced(store: kvi.Kvi) -> None:
    """The connections that write are set to sync each commit, whatever the library's default."""
    store.store("k", "v")
    seen: list[int] = []
    pool = inmost(store)._pool
    pool.read(lambda c: seen.append(c.execute("PRAGMA synchronous").fetchone()[0]), 1e12)
    assert seen == [2]


@pytest.mark.parametrize(
    "key",
    [
        "/", "//", ".", "..", "a/../b", " ", "a b", "?", "#", "%41", "\0", "a\0", "a\0b",
        "\n", "\r\n", "\x7f", "\x80", "é", "e\u0301", "🎈", "\uffff", "\U0010ffff", "'", '"',
        ";--", "k" * 100_000,
    ],
)  # fmt: skip
def test_odd_keys_round_trip(store: kvi.Kvi, key: str) -> None:
    """Every key comes back exactly, from every call, and is found by its bounds."""
    store.store(key, "v")
    entry = store.get(key)
    assert entry is not None
    assert entry.key == key
    assert [e.key for e in store.range(prefix=key)] == [key]
    assert [e.key for e in store.range(start=key, end=key + "\0")] == [key]
    assert store.count(start=key) == 1
    assert store.tas(key, "v", None)
    assert store.get(key) is None


def test_order_is_the_order_of_the_bytes(store: kvi.Kvi) -> None:
    """Ranges are sorted by UTF-8 bytes, both ways."""
    keys = ["a", "a\0", "a\0\0", "a\x01", "a/", "aa", "b", "z", "é", "\ud7ff", "\ue000", "🎈"]
    for key in reversed(keys):
        store.store(key, key)
    assert [e.key for e in store.range()] == keys
    assert [e.key for e in store.range(reverse=True)] == keys[::-1]


def test_large_values_round_trip(store: kvi.Kvi) -> None:
    """A value of many megabytes comes back whole; one above the limit is refused unsent."""
    value = os.urandom(16 * 1024 * 1024)
    store.store("k", value)
    entry = store.get("k")
    assert entry is not None
    assert entry.value == value
    limit = store.capabilities.max_value
    assert limit is not None
    assert limit > 900_000_000


def test_row_of_the_largest_key_and_value_fits() -> None:
    """Key, value and row overhead at their limits are what the library takes in one row."""
    from kvi_sqlite.store import CAPABILITIES, MAX_KEY, ROW_OVERHEAD

    connection = sqlite3.connect(":memory:", isolation_level=None)
    longest = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    assert CAPABILITIES.max_value == longest - MAX_KEY - ROW_OVERHEAD
    small = 2 * MAX_KEY
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, small)
    for statement in schema.TABLES:
        connection.execute(statement)
    key, value, big = b"k" * MAX_KEY, b"v" * (small - MAX_KEY - ROW_OVERHEAD), 2**62
    connection.execute(schema.UPSERT, (key, big, big, big, value))
    connection.execute(schema.EVENT_OF_UPSERT, (big, key))
    with pytest.raises(sqlite3.DataError):
        connection.execute(schema.UPSERT, (key, big, big, big, value + b"v" * ROW_OVERHEAD))
    connection.close()


def wal(path: Path) -> Path:
    """The write-ahead log of a store."""
    return path.with_name(path.name + "-wal")


def test_deleted_file_is_noticed_before_the_next_write(path: Path, store: kvi.Kvi) -> None:
    """Nothing is acknowledged into a file that is gone; the handle says so until it is closed."""
    store.store("k", "v")
    path.unlink()
    for _ in range(2):
        with pytest.raises(kvi.Unavailable, match="deleted, moved or replaced") as caught:
            store.store("k", "w")
        assert not caught.value.passing
        assert str(path) in str(caught.value)
    assert not path.exists()


def test_moved_and_replaced_file_is_noticed(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """A file that another took the place of is not written to; put back, it is."""
    store.store("k", "v")
    moved = tmp_path / "moved.db"
    path.rename(moved)
    wal(path).rename(wal(moved))
    with pytest.raises(kvi.Unavailable, match="deleted, moved or replaced"):
        store.lock("l").acquire(timeout=1)
    somebodys(path, "CREATE TABLE notes (text)")
    with pytest.raises(kvi.Unavailable, match="deleted, moved or replaced"):
        store.store("k", "w")
    path.unlink()
    moved.rename(path)
    wal(moved).rename(wal(path))
    assert store.store("k", "w") == 2


def test_handle_does_not_open_another_file_by_itself(path: Path, store: kvi.Kvi) -> None:
    """A connection that is opened later is one to the same file, or none."""
    store.store("k", "v")
    pool = inmost(store)._pool
    path.unlink()
    while pool._idle:
        pool.discard(pool._idle.pop())
    with pytest.raises(kvi.Unavailable, match="deleted, moved or replaced"):
        store.get("other")
    assert not path.exists()


def test_removed_log_is_noticed(path: Path, uri: str, store: kvi.Kvi) -> None:
    """Without its write-ahead log, a commit is seen by nobody else: it is refused, by name."""
    store.store("k", "v")
    wal(path).unlink()
    with pytest.raises(kvi.Unavailable, match="-wal was deleted") as caught:
        store.store("k", "w")
    assert not caught.value.passing


def test_log_behind_a_link_is_watched_too(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """A store opened by a symbolic link has its log beside the file, and notices its removal."""
    store.store("k", "v")
    (tmp_path / "link").symlink_to(path)
    with kvi.open(f"sqlite:{tmp_path}/link") as other:
        other.store("k", "w")
        wal(path).unlink()
        with pytest.raises(kvi.Unavailable, match="-wal was deleted"):
            other.store("k", "x")


def shm(path: Path) -> Path:
    """The shared memory of a store."""
    return path.with_name(path.name + "-shm")


def run(program: str, *args: object) -> str:
    """What a program prints that runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


NEWCOMER = """
    import sys, kvi
    with kvi.open(sys.argv[1], timeout=0.3) as store:
        try:
            print("acknowledged at", store.store("new", "v"))
        except kvi.Unavailable as error:
            print(error)
"""


@pytest.mark.parametrize("ends", [["-wal"], ["-shm"], ["-wal", "-shm"]], ids="".join)
def test_what_was_removed_is_not_made_anew_while_the_store_is_open(
    path: Path, uri: str, ends: list[str]
) -> None:
    """Who opens the file then is told what is missing: beside those who have it, he would lose."""
    with kvi.open(uri) as store:
        store.txn(then=[Put(f"k{n:03}", "v" * 500) for n in range(300)])
        for end in ends:
            path.with_name(path.name + end).unlink()
        for said in (run(NEWCOMER, uri), run(NEWCOMER, uri)):
            for end in ends:
                assert f"{path}{end}" in said
            assert "open it anew" in said
        with (
            kvi.open(uri, timeout=0.3) as other,
            pytest.raises(kvi.Unavailable, match="put back what was removed"),
        ):
            other.get("k000")
        assert store.count() == 300
    assert "acknowledged at 2" in run(NEWCOMER, uri)
    with kvi.open(uri) as store:
        assert store.count() == 301
        assert store.client.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_file_with_two_names_is_open_by_one(tmp_path: Path, path: Path, store: kvi.Kvi) -> None:
    """A hard link has a log and locks of its own: while the file is open by its other name, no."""
    store.store("k", "v")
    (tmp_path / "link.db").hardlink_to(path)
    assert "keep to one name" in run(NEWCOMER, f"sqlite:{tmp_path}/link.db")
    with (
        kvi.open(f"sqlite:{tmp_path}/link.db", timeout=0.3) as other,
        pytest.raises(kvi.Unavailable, match="keep to one name"),
    ):
        other.lock("l").acquire(timeout=0)
    assert store.store("k", "w") == 2


def test_another_programs_lock_is_no_missing_file(path: Path, uri: str) -> None:
    """A database that is locked, and has no log, is said to be locked."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE notes (text)")
    connection.execute("BEGIN EXCLUSIVE")
    with kvi.open(uri, timeout=0.3) as store, pytest.raises(kvi.Timeout, match="stayed locked"):
        store.get("k")
    connection.close()


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_what_is_put_back_is_as_before(path: Path, uri: str, store: kvi.Kvi, end: str) -> None:
    """The handle that had the file open writes again, and so does a new one."""
    store.store("k", "v")
    beside, moved = path.with_name(path.name + end), path.with_name("moved")
    beside.rename(moved)
    with pytest.raises(kvi.Unavailable, match=f"{end} was deleted") as caught:
        store.store("k", "w")
    assert not caught.value.passing
    moved.rename(beside)
    assert store.store("k", "w") == 2
    assert "acknowledged at 3" in run(NEWCOMER, uri)


def test_replaced_shared_memory_is_noticed(path: Path, uri: str, store: kvi.Kvi) -> None:
    """Its locks keep nobody apart: the handle writes no more, nor does a new one beside it."""
    store.store("k", "v")
    shm(path).unlink()
    shm(path).write_bytes(b"")
    with pytest.raises(kvi.Unavailable, match="-shm was deleted"):
        store.store("k", "w")
    with kvi.open(uri) as other, pytest.raises(kvi.Unavailable, match="restart the process"):
        other.store("k", "w")
    shm(path).unlink()  # or closing the handle would find it torn


@pytest.mark.parametrize("ends", [["-wal"], ["-shm"], ["-wal", "-shm"]], ids="".join)
def test_close_leaves_alone_what_another_program_made_anew(path: Path, ends: list[str]) -> None:
    """A log is not copied into the file by an index that belongs to another log."""
    program = """
        import os, subprocess, sys, kvi
        path, another, *removed = sys.argv[1:]
        with kvi.open("sqlite:" + path) as store:
            for number in range(300):
                store.store(f"k{number:03}", "v" * 500)
            list(store.range())
            subprocess.run([sys.executable, "-c", "import sqlite3, sys; sqlite3.connect("
                "sys.argv[1]).execute('PRAGMA wal_checkpoint')", path], check=True)
            for file in removed:
                os.unlink(file)
            subprocess.run([sys.executable, "-c", another, path], check=True)
    """
    another = """
        import os, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        for number in range(20):
            connection.execute("UPDATE entries SET value = ?", (b"w" * 500,))
        os._exit(0)  # without copying its log
    """
    run(program, path, textwrap.dedent(another), *(f"{path}{end}" for end in ends))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    values = connection.execute("SELECT value, count(*) FROM entries GROUP BY value").fetchall()
    connection.close()
    assert values == [(b"w" * 500, 300)]


def test_what_is_not_a_store_is_said_at_once(path: Path, uri: str) -> None:
    """Nothing is retried where somebody has to mend the file first."""
    somebodys(path, "CREATE TABLE notes (text)")
    with kvi.open(uri) as store, pytest.raises(kvi.Unavailable) as caught:
        store.store("k", "v")
    assert not caught.value.passing
    path.unlink()
    with kvi.open(uri) as store:
        store.store("k", "v")
    somebodys(path, f"PRAGMA user_version = {schema.VERSION + 1}")
    with kvi.open(uri) as store, pytest.raises(kvi.Unavailable) as caught:
        store.store("k", "v")
    assert not caught.value.passing


@pytest.mark.slow
def test_log_is_bounded_beside_readers(path: Path, store: kvi.Kvi) -> None:
    """Readers that take turns do not let the write-ahead log grow for ever."""
    value = b"v" * 256 * 1024
    stop = threading.Event()
    for number in range(8):
        store.store(f"k{number}", value)

    def read() -> None:
        with kvi.open(f"sqlite:{path}") as own:
            while not stop.is_set():
                list(own.range(limit=4))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    longest = 0
    try:
        with kvi.open(f"sqlite:{path}?history=10") as writer:
            began = time.monotonic()
            written = 0
            while written < 8 * schema.WAL_KEPT or time.monotonic() - began < 2.5:
                writer.store(f"k{written % 8}", value)
                written += 2 * len(value)
                longest = max(longest, wal(path).stat().st_size)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert longest < 4 * schema.WAL_KEPT  # half of it, however late a busy machine looks


WITHOUT_TEMPORARY_FOLDER = """
    import kvi
    from kvi import Put
    with kvi.open("sqlite:/mnt/store.db", timeout=60) as store:
        for _ in range(2):
            with store.lease(60) as lease:
                store.txn(then=[Put(f"l/{n:0300}", b"v", lease) for n in range(20_000)])
            store.txn(then=[Put(f"k/{n:0300}", b"v") for n in range(20_000)])
            assert store.delete_range(prefix="") == 20_000
        assert store.count() == 0
"""


def test_no_temporary_folder_is_needed(path: Path) -> None:
    """Leases end, and ranges are deleted, of whatever size, where no folder can be written to."""
    program = textwrap.dedent(WITHOUT_TEMPORARY_FOLDER)
    mounts = [f"mount --bind {path.parent} /mnt"]
    mounts += [
        f"{{ test ! -d {folder} || mount -t tmpfs -o ro none {folder}; }}"
        for folder in ("/var/tmp", "/usr/tmp", "/tmp")  # where SQLite looks
    ]
    command = ["unshare", "--mount", "sh", "-c"]
    try:
        subprocess.run([*command, " && ".join(mounts)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount: needs root on Linux")
    done = subprocess.run(
        [
            *command,
            " && ".join([*mounts, 'cd /proc && exec "$0" -c "$1"']),
            sys.executable,
            program,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.endswith("TMPDIR")},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE notes (text)"],
        [f"PRAGMA application_id = {schema.APPLICATION_ID}", "PRAGMA user_version = 1000"],
        [
            f"PRAGMA application_id = {schema.APPLICATION_ID}",
            f"PRAGMA user_version = {schema.VERSION}",
        ],
    ],
    ids=["another program's", "newer", "without tables"],
)
def test_nothing_is_tried_again_on_what_is_no_store(
    path: Path, uri: str, statements: list[str]
) -> None:
    """A call on a file that somebody has to mend first is told so at once, not at its time-out."""
    somebodys(path, *statements)
    calls: list[Callable[[kvi.Kvi], object]] = [
        lambda store: store.get("k", timeout=60),
        lambda store: store.store("k", "v", timeout=60),
        lambda store: store.lease(1, timeout=60),
        lambda store: store.watch("k", timeout=60),
        lambda store: store.ping(timeout=60),
    ]
    for call in calls:
        before = time.monotonic()
        with kvi.open(uri) as store, pytest.raises(kvi.Unavailable) as caught:
            call(store)
        assert not caught.value.passing
        assert time.monotonic() - before < 20


def test_late_cancellation_means_who_has_gone() -> None:
    """Whoever borrows a connection next is not ended by what was meant for the one before."""
    deadline = Deadline(threading.Event())
    deadline.begin(inf)
    deadline.left = threading.get_ident()
    assert deadline.passed()
    deadline.end()
    assert not deadline.passed()
    thread = threading.Thread(target=deadline.begin, args=(inf,))
    thread.start()
    thread.join()
    deadline.left = threading.get_ident()  # late
    assert not deadline.passed()


def test_no_statement_that_a_python_warns_of() -> None:
    """CPython 3.12.0 to 3.12.3, as on Ubuntu 24.04, take ``?1`` for a name, and warn of it."""
    source = Path(schema.__file__).read_text()
    assert re.findall(r"[^`]\?[0-9]", source) == []
