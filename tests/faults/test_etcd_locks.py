"""Locks of kvi and of ``etcdctl lock`` exclude each other, on a real server."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import kvi
import pytest

from tests.servers import EtcdServer, find_etcdctl
from tests.support.waiting import until

pytestmark = [pytest.mark.etcd, pytest.mark.slow]


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    """An etcd of this module alone."""
    with EtcdServer() as running:
        yield running


@pytest.fixture
def store(server: EtcdServer) -> Iterator[kvi.Kvi]:
    """A handle on the empty store."""
    with kvi.open(server.uri) as handle:
        handle.delete_range(prefix="")
        yield handle


@contextmanager
def etcdctl_lock(server: EtcdServer, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``etcdctl lock``; ended, with its lease, at the end of the block."""
    command = [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", "lock"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def test_etcdctl_waits_for_ours(server: EtcdServer, store: kvi.Kvi) -> None:
    """While ours is held ``etcdctl lock`` of the same name waits; then it gets the lock."""
    with store.lock("jobs") as lock, etcdctl_lock(server, "jobs", "echo", "entered") as other:
        until(lambda: store.count(prefix="jobs/") == 2)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        assert lock.held
        lock.release()
        assert other.wait(20) == 0
        assert other.stdout is not None
        assert other.stdout.read() == "entered\n"


def test_ours_waits_for_etcdctl(server: EtcdServer, store: kvi.Kvi) -> None:
    """While ``etcdctl lock`` holds it ours waits, leaves nothing behind, and gets it afterwards."""
    with etcdctl_lock(server, "jobs") as other:
        assert other.stdout is not None
        key = other.stdout.readline().strip()
        assert key.startswith("jobs/")
        assert not store.lock("jobs").acquire(0)
        assert not store.lock("jobs").acquire(0.3)
        assert [entry.key for entry in store.range(prefix="jobs/")] == [key]
        lock = store.lock("jobs")
        got: list[bool] = []
        thread = threading.Thread(target=lambda: got.append(lock.acquire(30)))
        thread.start()
        until(lambda: store.count(prefix="jobs/") == 2)
        assert not got
        other.send_signal(signal.SIGINT)
        thread.join(20)
        assert got == [True]
        lock.release()
    assert store.count() == 0


def test_one_queue(server: EtcdServer, store: kvi.Kvi) -> None:
    """Ours and etcdctl's stand in one queue: first come, first served."""
    with store.lock("jobs") as lock, etcdctl_lock(server, "jobs") as other:
        until(lambda: store.count(prefix="jobs/") == 2)
        last = store.lock("jobs")
        got: list[bool] = []
        thread = threading.Thread(target=lambda: got.append(last.acquire(30)))
        thread.start()
        until(lambda: store.count(prefix="jobs/") == 3)
        lock.release()
        assert other.stdout is not None
        assert other.stdout.readline().startswith("jobs/")
        assert not got
        other.send_signal(signal.SIGINT)
        thread.join(20)
        assert got == [True]
        assert last.fence > 0
        last.release()


def test_layout(store: kvi.Kvi) -> None:
    """The key is the name, a slash and the lease in hexadecimal, as etcd has it."""
    with store.lock("jobs") as lock:
        (entry,) = store.range(prefix="jobs/")
        assert entry.lease is not None
        assert entry.key == f"jobs/{entry.lease:x}"
        assert entry.value == b"lock"
        assert lock.fence == entry.create_revision


def test_names_below(server: EtcdServer, store: kvi.Kvi) -> None:
    """Neither ``etcdctl lock a/b`` nor ``etcdctl lock a`` holds up ours of the other name."""
    for theirs, ours in (("a/b", "a"), ("a", "a/b")):
        with etcdctl_lock(server, theirs) as other:
            assert other.stdout is not None
            assert other.stdout.readline().startswith(f"{theirs}/")
            with store.lock(ours, timeout=0) as lock:
                assert lock.held
