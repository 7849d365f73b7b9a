"""Who reads and must not, or may not, write: read_only, other users, read-only media."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import kvi
import pytest
from kvi import Get, Key, Put
from kvi_sqlite import readers, schema

from tests.support.forking import in_child
from tests.support.inside import inmost
from tests.support.waiting import until

OWNER, READER = 61_001, 61_002  # users
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes other users: needs root"
)
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def names(path: Path) -> list[str]:
    """The files beside the store."""
    return sorted(file.name for file in path.parent.iterdir())


def value_of(store: kvi.Kvi, key: str = "k") -> str | None:
    entry = store.get(key)
    return None if entry is None else entry.text


# -- read_only ------------------------------------------------------------------------------------


def test_nothing_is_created(path: Path, uri: str) -> None:
    """A handle that only reads leaves the file and its folder as they are, byte by byte."""
    with kvi.open(uri) as store:
        store.txn(then=[Put(f"k{n:04d}", "v") for n in range(2000)])
    before = path.read_bytes(), path.stat().st_mtime_ns
    with kvi.open(uri, read_only=True) as store:
        seen: list[list[str]] = []
        assert value_of(store, "k0001") == "v"
        for number, _ in enumerate(store.range()):
            if number == 1000:
                seen.append(names(path))
        assert store.count() == 2000
        assert store.txn([Key("none").absent], [Get("k0000")]).succeeded
        store.watch("k0001", initial=True).next(10)
        assert store.range().revision == 1
        assert store.client.execute("SELECT count(*) FROM entries").fetchone() == (2000,)
        seen.append(names(path))
        with pytest.raises(kvi.PermissionDenied):
            store.store("k", "v")
    assert seen == [["store.db"]] * 2
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert names(path) == ["store.db"]


def test_missing_file_is_an_error(path: Path, uri: str) -> None:
    """A store that is not there is said so at once, and is not made."""
    with (
        kvi.open(uri, read_only=True) as store,
        pytest.raises(kvi.Unavailable, match="does not exist") as caught,
    ):
        store.get("k", timeout=60)
    assert not caught.value.passing
    assert names(path) == []


def test_what_is_no_store_stays_as_it_is(path: Path, uri: str) -> None:
    """An empty file, another program's and an older one are refused and not changed."""
    for statements in ([], ["CREATE TABLE notes (x)"], [*schema._FIRST, *schema._MARKS[:1]]):
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        if len(statements) > 1:
            connection.execute("PRAGMA user_version = 1")
        connection.close()
        path.touch()
        before = path.read_bytes()
        with kvi.open(uri, read_only=True) as store, pytest.raises(kvi.Unavailable) as caught:
            store.get("k", timeout=60)
        assert not caught.value.passing
        assert path.read_bytes() == before
        assert names(path) == ["store.db"]


def test_older_layout_that_has_what_reading_needs(path: Path, uri: str) -> None:
    """A file that lacks only what writers need is read, and not changed."""
    connection = sqlite3.connect(path, isolation_level=None)
    for part in schema._PARTS[: schema.READABLE]:
        for statement in part:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {schema.READABLE}")
    connection.execute(schema.UPSERT, (b"k", 1, 1, None, b"v"))
    connection.execute(schema.EVENT_OF_UPSERT, (1 << schema.SEQ_BITS, b"k"))
    connection.close()
    before = path.read_bytes()
    with kvi.open(uri, read_only=True) as reader:
        assert value_of(reader) == "v"
        assert [entry.key for entry in reader.range(revision=1)] == ["k"]
        assert [event.value for event in reader.history("k")] == [b"v"]
        assert reader.count() == 1
        assert inmost(reader)._leases(None, None, 5) == []
        assert reader.watch("k", from_revision=1).next(20).value == b"v"
    assert path.read_bytes() == before
    assert names(path) == ["store.db"]


def test_reader_sees_every_commit(path: Path, uri: str) -> None:
    """Whoever writes meanwhile, opens the file and closes it: a read sees what was acknowledged."""
    with kvi.open(uri) as store:
        store.store("k", "0")
    with kvi.open(uri, read_only=True) as reader:
        watch = reader.watch("k")
        for number in range(1, 6):
            with kvi.open(uri) as store:
                assert value_of(reader) == str(number - 1)
                store.store("k", str(number))
                assert value_of(reader) == str(number)
                assert [entry.text for entry in reader.range()] == [str(number)]
            assert value_of(reader) == str(number)
            event = watch.next(20)
            assert event is not None
            assert event.value == str(number).encode()
        with kvi.open(uri) as store:
            inmost(store)._pool.read(lambda c: c.execute("SELECT 1"), 1e12)
            assert value_of(reader) == "5"


def test_log_that_goes_while_a_reader_opens_the_file(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last to have the file open may close it just then; the file itself has all by then."""
    writer = kvi.open(uri)
    writer.store("k", "v")
    prepare = readers.Reading.prepare

    def close_and_prepare(reading: readers.Reading, connection: sqlite3.Connection) -> None:
        if reading.shares:
            writer.close()
        prepare(reading, connection)

    monkeypatch.setattr(readers.Reading, "prepare", close_and_prepare)
    monkeypatch.setattr(readers, "may_write", lambda _: False)
    with kvi.open(uri, read_only=True, retry=None) as reader:
        assert value_of(reader) == "v"


@pytest.mark.parametrize("goes", [True, False], ids=["closes", "died"])
def test_log_without_its_index(path: Path, uri: str, goes: bool) -> None:
    """So it is for a moment while the last to have the file open closes it; else it is told."""
    log, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    with kvi.open(uri) as store:
        store.store("k", "v")
        commits = log.read_bytes()
    log.write_bytes(commits)
    if goes:
        threading.Timer(0.1, log.unlink).start()
    with kvi.open(uri, read_only=True, retry=None, timeout=60) as reader:
        if goes:
            assert value_of(reader) == "v"
        else:
            with pytest.raises(kvi.Unavailable, match="once where it may") as caught:
                reader.get("k")
            assert not caught.value.passing
    assert not index.exists()


def test_store_whose_maker_died(path: Path, uri: str) -> None:
    """What is in the file may be torn: it is not read, nor called damaged; a writer mends it."""
    maker = sqlite3.connect(path, isolation_level=None)
    maker.execute("PRAGMA cache_size = 1")  # pages come into the file before the commit
    maker.execute("BEGIN IMMEDIATE")
    for statement in schema.TABLES:
        maker.execute(statement)
    died = path.parent / "died"
    died.mkdir()
    for name in names(path):
        if name != "died":
            shutil.copy(path.parent / name, died)
    maker.close()
    assert names(died / "store.db") == ["store.db", "store.db-journal"]
    assert (died / "store.db").stat().st_size > 4096
    store = f"sqlite:{died / 'store.db'}"
    with (
        kvi.open(store, read_only=True) as reader,
        pytest.raises(kvi.Unavailable, match="not made to its end") as caught,
    ):
        reader.get("k", timeout=60)
    assert not caught.value.passing
    with kvi.open(store) as writer:
        writer.store("k", "v")
    with kvi.open(store, read_only=True) as reader:
        assert value_of(reader) == "v"


def test_reads_beside_a_busy_writer(path: Path, uri: str) -> None:
    """Numbers that only grow never fall for a reader without locks, nor do pairs come apart."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with kvi.open(uri, timeout=60) as store:  # the file is quiet in between
                for _ in range(3):
                    number += 1
                    store.txn(then=[Put("a", f"{number:06d}"), Put("b", f"{number:06d}")])

    with kvi.open(uri) as store:
        store.txn(then=[Put("a", "000000"), Put("b", "000000")])
    writer = threading.Thread(target=write)
    writer.start()
    last, reads = "", itertools.count()
    try:
        with kvi.open(uri, read_only=True, timeout=60) as reader:

            def has_read_enough() -> bool:
                nonlocal last
                a, b = reader.range()
                assert a.text == b.text >= last
                last = a.text
                assert (value_of(reader, "a") or "") >= last
                return next(reads) >= 300 and last > "000000"

            until(has_read_enough, within=60)
    finally:
        stop.set()
        writer.join()


def test_writer_in_the_process_of_a_reader(path: Path, uri: str) -> None:
    """A reader of a file that another process writes to keeps no writer of its own process out."""
    program = f"""
        import kvi, sys
        with kvi.open({uri!r}) as store:
            store.store("k", "v")
            print("written", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "written\n"
        with kvi.open(uri, read_only=True) as reader, reader.watch("k") as watch:
            assert value_of(reader) == "v"
            with kvi.open(uri) as writer:
                writer.store("k", "w")
            assert watch.next(30).value == b"w"
            assert value_of(reader) == "w"
        other.stdin.close()
        assert other.wait(30) == 0
    with kvi.open(uri, read_only=True) as reader:
        assert value_of(reader) == "w"


def test_long_range_is_of_one_state(path: Path, uri: str) -> None:
    """A range that is read without locks ends with an error once the file is written to."""
    with kvi.open(uri) as store:
        store.txn(then=[Put(f"k{n:04d}", "v") for n in range(2000)])
    with kvi.open(uri, read_only=True, retry=None) as reader:
        found = reader.range()
        entries = iter(found)
        next(entries)
        with kvi.open(uri) as store:
            store.store("k1999", "new")
            assert sum(entry.text == "v" for entry in found) == 2000  # it is in the log only
        with pytest.raises(kvi.Unavailable, match="written to meanwhile"):
            list(entries)
        assert [e.text for e in reader.range(start="k1999")] == ["new"]


def test_expired_keys_are_not_there(path: Path, uri: str) -> None:
    """A reader sees no key after its lease has ended, though it cannot end it."""
    with kvi.open(uri) as store:
        lease = inmost(store)._lease_grant(3600, 5).id
        store.store("k", "v", lease=lease)
        store.store("other", "v")
    for _ in range(2):
        with kvi.open(uri, read_only=True) as reader:
            assert value_of(reader) == "v"
            watch = reader.watch(prefix="")
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("UPDATE leases SET deadline = deadline - 3600")
            connection.close()
            assert reader.get("k") is None
            assert reader.count() == 1
            assert [entry.key for entry in reader.range()] == ["other"]
            assert not reader.txn([Key("k").exists]).succeeded
            with pytest.raises(kvi.Timeout):
                watch.next(0.1)
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("UPDATE leases SET deadline = deadline + 3600")
            connection.execute("UPDATE clock SET boot = 'earlier'")
            connection.close()
            assert value_of(reader) == "v"
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("UPDATE leases SET deadline = deadline - 1e9")
            connection.close()
        with kvi.open(uri, read_only=True) as reader:
            assert value_of(reader) == "v"
        with kvi.open(uri) as store:
            assert value_of(store) == "v"


# -- other users ----------------------------------------------------------------------------------


@pytest.fixture
def shared(store: kvi.Kvi) -> Iterator[Path]:
    """A store in a folder that everybody may write to; made by `OWNER`."""
    store.store("k", "v")  # other users may not be allowed to import what that needs
    with pytest.raises(kvi.Timeout), store.watch("k") as watch:
        watch.next(0)
    folder = Path(tempfile.mkdtemp(prefix="kvi-"))
    folder.chmod(0o777)
    path = folder / "store.db"

    def make() -> None:
        with kvi.open(f"sqlite:{path}") as store:
            store.store("k", "v")
            list(store.range())

    try:
        assert as_user(OWNER, make) == 0
        assert path.stat().st_uid == OWNER
        yield path
    finally:
        shutil.rmtree(folder)


def as_user(user: int, work: Callable[[], object]) -> int:
    """The exit code of a child that works as another user."""

    def child() -> None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        os.umask(0o022)
        work()

    return in_child(child)


def write_as_owner(path: Path) -> None:
    """The owner writes."""

    def write() -> None:
        with kvi.open(f"sqlite:{path}") as store:
            store.store("k", "by the owner")
            assert value_of(store) == "by the owner"

    assert as_user(OWNER, write) == 0


@as_root
@forks
def test_reader_of_another_user_leaves_nothing(shared: Path) -> None:
    """A user who may not write reads, is told that writing is denied, and leaves no file behind."""

    def read() -> None:
        with kvi.open(f"sqlite:{shared}") as store:
            assert value_of(store) == "v"
            assert [entry.key for entry in store.range()] == ["k"]
            with pytest.raises(kvi.PermissionDenied):
                store.store("k", "w")
            assert names(shared) == ["store.db"]
            os._exit(0)  # without closing anything

    assert as_user(READER, read) == 0
    assert names(shared) == ["store.db"]
    write_as_owner(shared)


@as_root
@forks
def test_owner_writes_beside_a_reader_of_another_user(shared: Path) -> None:
    """A reader who may not write and the owner have the file open at the same time."""
    told, go = os.pipe(), os.pipe()

    def read() -> None:
        with kvi.open(f"sqlite:{shared}") as store:
            assert value_of(store) == "v"
            os.write(told[1], b"x")
            until(lambda: value_of(store) == "by the owner")
            os.read(go[0], 1)
            assert value_of(store) == "by the owner"

    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(READER)
            os.setuid(READER)
            read()
            code = 0
        os._exit(code)
    assert os.read(told[0], 1) == b"x"
    write_as_owner(shared)
    write_as_owner(shared)
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (*told, *go):
        os.close(end)
    write_as_owner(shared)


@as_root
@forks
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_file_may_be_written_to_and_its_folder_not(shared: Path, is_open: bool) -> None:
    """It is read, while nobody has it open and while somebody has; to write is denied."""

    def read() -> None:
        with kvi.open(f"sqlite:{shared}") as store:
            assert value_of(store) == "v"
            assert [entry.key for entry in store.range()] == ["k"]
            with pytest.raises(kvi.PermissionDenied, match="its directory"):
                store.store("k", "w")
            assert value_of(store) == "v"

    program = """
        import kvi, sys
        with kvi.open(sys.argv[1]) as store:
            store.store("k", "v")
            print("written", flush=True)
            sys.stdin.read()
            store.store("k", "w")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), f"sqlite:{shared}"]
    with ExitStack() as stack:
        other: subprocess.Popen[str] | None = None
        if is_open:
            other = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert other.stdout is not None
            assert other.stdout.readline() == "written\n"
        shared.chmod(0o666)
        shared.parent.chmod(0o755)
        before = names(shared)
        assert len(before) == (3 if is_open else 1)
        assert as_user(READER, read) == 0
        assert names(shared) == before
        if other is not None:
            other.communicate("", timeout=30)
            assert other.returncode == 0


@as_root
@forks
def test_owner_can_write_whatever_a_reader_left(shared: Path) -> None:
    """Files that another program left beside the store, as another user, keep nobody out."""

    def read() -> None:
        connection = sqlite3.connect(shared)
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (1,)
        os._exit(0)

    assert as_user(READER, read) == 0
    left = [file for file in shared.parent.iterdir() if file.stat().st_uid == READER]
    if not left:  # SQLite of root's making gives them to the owner, a later one may not leave them
        pytest.skip("this SQLite leaves nothing")
    write_as_owner(shared)
    write_as_owner(shared)


@as_root
@forks
def test_owner_waits_for_a_reader_that_has_the_file_open(shared: Path) -> None:
    """While the other program has the file open, nothing is taken away from under it."""
    told, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(READER)
            os.setuid(READER)
            connection = sqlite3.connect(shared)
            connection.execute("SELECT count(*) FROM entries").fetchone()
            os.write(told[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    assert os.read(told[0], 1) == b"x"
    before = names(shared)

    def refused() -> None:
        with kvi.open(f"sqlite:{shared}") as store:
            for _ in range(2):
                assert value_of(store) == "v"
                with pytest.raises(kvi.PermissionDenied, match="-wal and -shm"):
                    store.store("k", "w")

    assert as_user(OWNER, refused) == 0
    assert names(shared) == before
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    for end in (*told, *go):
        os.close(end)
    write_as_owner(shared)


# -- read-only media ------------------------------------------------------------------------------

ON_MEDIA = """
    import sys
    import kvi
    with kvi.open("sqlite:/mnt/store.db" + sys.argv[1]) as store:
        assert store.get("k").text == "v"
        assert [entry.key for entry in store.range()] == ["k"]
        try:
            store.store("k", "w")
        except kvi.PermissionDenied:
            print("denied")
"""


@pytest.mark.parametrize("option", ["", "?read_only=yes"])
@pytest.mark.parametrize("state", ["closed", "open", "killed"])
def test_read_only_media(path: Path, uri: str, option: str, state: str) -> None:
    """A store on read-only media is read, also with a log that was left or is in use."""

    def write() -> None:
        store = kvi.open(uri)
        store.store("k", "v")
        if state == "killed":
            os._exit(0)
        store.close()

    assert in_child(write) == 0
    command = ["unshare", "--mount", "sh", "-c"]
    mount = f"mount --bind {path.parent} /mnt && mount -o remount,ro,bind /mnt"
    try:
        subprocess.run([*command, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount: needs root on Linux")
    with kvi.open(uri) as other:
        if state == "open":
            other.store("k", "v")
        run = [*command, f'{mount} && exec "$0" -c "$1" "$2"', sys.executable]
        done = subprocess.run(
            [*run, textwrap.dedent(ON_MEDIA), option],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "denied\n"
