"""What kvi's suite cannot know: what the files of this store do in crashes, damage and reboots."""

import errno
import fcntl
import threading
import time
from pathlib import Path
from urllib.parse import quote

import kvi
import kvi_directory.journal
import kvi_directory.state
import pytest
from kvi.clock import now


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A store of this test alone."""
    return "directory:" + quote(str(tmp_path / "store"))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The file that is the store."""
    return tmp_path / "store" / "journal"


def test_a_torn_record_never_was(uri: str, journal: Path) -> None:
    """Wherever a killed writer broke off, the store is as before, and goes on."""
    with kvi.open(uri) as store:
        store.store("k", "old")
        before = journal.stat().st_size
        store.store("k", "new\n")
    whole = journal.read_bytes()
    for length in range(before, len(whole)):
        journal.write_bytes(whole[:length])
        with kvi.open(uri) as store, kvi.open(uri) as other:
            entry = store.get("k")
            assert entry is not None
            assert entry.text == "old"
            assert store.cas("k", entry.revision, "next")
            assert other.get("k") == store.get("k")


def test_damage_is_refused(uri: str, journal: Path) -> None:
    """A bad record before good ones is no torn end: nothing is served, and nothing cut off."""
    with kvi.open(uri) as store:
        for value in "abc":
            store.store("k", value)
    damaged = journal.read_bytes().replace(b"YQ==", b"ZZ==", 1)
    journal.write_bytes(damaged)
    with kvi.open(uri) as store:
        with pytest.raises(kvi.Unavailable, match="damaged"):
            store.get("k")
        with pytest.raises(kvi.Unavailable, match="damaged"):
            store.store("k", "d")
    assert journal.read_bytes() == damaged


@pytest.mark.parametrize("content", [b"", b"somebody's diary\n"])
def test_a_foreign_file_is_left_alone(uri: str, journal: Path, content: bytes) -> None:
    """A directory in which ``journal`` is another program's is no store."""
    journal.parent.mkdir()
    journal.write_bytes(content)
    with kvi.open(uri) as store, pytest.raises(kvi.Unavailable, match="not one of kvi-directory"):
        store.store("k", "v")
    assert journal.read_bytes() == content


def test_the_journal_stays_short(uri: str, journal: Path) -> None:
    """It is rewritten when it has grown; only the past that is too old is lost."""
    with kvi.open(uri, history=5) as store, kvi.open(uri) as other:
        first = store.store("count", "1")
        with other.watch("count") as watch, store.lease(60) as lease:
            other.store("held", "by the lease", lease=lease)
            for i in range(2, 100):
                store.store("count", str(i))
                assert watch.next(5).value == str(i).encode()
            assert len(journal.read_bytes().splitlines()) < 20
            assert [entry.text for entry in other.range()] == ["99", "by the lease"]
            found = other.get("count")
            assert found is not None
            assert found.create_revision == first
            assert found.version == 99
            for _ in range(20):
                store.store("large", bytes(1024 * 1024))
            assert journal.stat().st_size < 15 * 1024 * 1024
            last = store.store("count", "last")
        with pytest.raises(kvi.Compacted):
            store.watch("count", from_revision=first)
        with store.watch("count", from_revision=last) as watch:
            assert watch.next(5).value == b"last"


def test_a_lease_outlives_a_reboot(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that began anew lets a lease begin anew: neither lost at once nor for ever."""
    with kvi.open(uri) as store:
        lease = store.lease(1000, keep_alive=False)
        store.store("k", "v", lease=lease)
        moment = now() - 500
        for module in (kvi_directory.journal, kvi_directory.state):
            monkeypatch.setattr(module, "now", lambda: moment)
        with kvi.open(uri) as after:
            assert after.get("k") is not None
            moment += 900
            assert after.get("k") is not None
            moment += 101
            assert after.get("k") is None


def test_a_full_disk_applies_nothing(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that cannot be synced is taken back; the store goes on afterwards."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with kvi.open(uri) as store, kvi.open(uri) as other:
        revision = store.store("k", "v")
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(kvi.Unavailable, match="No space left"):
                store.store("k", "w")
        for handle in (store, other):
            entry = handle.get("k")
            assert entry is not None
            assert (entry.text, entry.revision) == ("v", revision)
        assert other.store("k", "x") > revision


def test_a_locked_store(uri: str, journal: Path) -> None:
    """While others have the lock, a write ends with its time-out, or with the handle."""
    store = kvi.open(uri)
    store.store("k", "v")
    with (journal.parent / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begin = time.monotonic()
        with pytest.raises(kvi.Timeout):
            store.store("k", "w", timeout=0.2)
        assert 0.2 <= time.monotonic() - begin < 2
        entry = store.get("k")  # nothing has changed: reads need no lock
        assert entry is not None
        assert entry.text == "v"
        closing = threading.Timer(0.2, store.close)
        closing.start()
        with pytest.raises(kvi.Closed):
            store.store("k", "w", timeout=60)
        closing.join()
    with kvi.open(uri) as again:
        entry = again.get("k")
        assert entry is not None
        assert entry.text == "v"


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative and absolute paths name one store, also after a chdir; a host is refused."""
    monkeypatch.chdir(tmp_path)
    with (
        kvi.open("directory:a%20b") as relative,
        kvi.open(f"directory://{quote(str(tmp_path / 'a b'))}") as absolute,
    ):
        monkeypatch.chdir("/")
        relative.store("k", "v")
        assert absolute.get("k") == relative.get("k")
    for wrong in (
        "directory:",
        "directory://host/path",
        "directory:a%00b",
        "directory:x?history=0",
    ):
        with pytest.raises(kvi.InvalidOption):
            kvi.open(wrong)
