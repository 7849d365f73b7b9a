"""Temporary keys and leases while servers restart, and when their owners are killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import kvi
import pytest
from kvi.clock import now

from tests.servers import ConsulServer, EtcdServer, Server
from tests.support.inside import revoke
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STORES = [
    "sqlite",
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
    pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
]


@pytest.fixture(params=STORES)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Server | None]]:
    """An empty store's URI, and its own server if it has one."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/leases.db", None
        return
    with EtcdServer() if request.param == "etcd" else ConsulServer() as server:
        yield server.uri, server


def own(uri: str, ttl: float, folder: str) -> None:
    """Hold a temporary key until killed; says when it was sure of it, again and again."""
    with kvi.open(uri, timeout=2) as store, Path(folder, "alive").open("w", buffering=1) as notes:
        key = store.temp_key("member", ttl=ttl)
        while True:
            moment = now()
            if key.alive:
                notes.write(f"{moment!r}\n")
            if key.lost.wait(0.02):
                Path(folder, "lost").touch()
                return


def test_temporary_key(served: tuple[str, Server | None], tmp_path: Path) -> None:
    """It outlives restarts of the server, and is gone within the bound once its owner is killed."""
    uri, server = served
    ttl = 10.0 if uri.startswith("consul") else 6.0
    context = multiprocessing.get_context("spawn")
    owner = context.Process(target=own, args=(uri, ttl, str(tmp_path)), daemon=True)
    with kvi.open(uri, timeout=20) as store, store.watch("member") as watch:
        owner.start()
        try:
            assert watch.next(30).type is kvi.EventType.PUT
            begin = now()
            for _ in range(2):
                if server is not None:
                    server.kill()
                    server.restart()
                until(lambda: _read(store, "member") is not None, within=30)
            # Longer than the ttl: only renewals can have kept it.
            until(lambda: now() > begin + ttl * 1.5, within=ttl * 2)
            assert store.get("member") is not None
            assert owner.is_alive(), "its owner says that it was lost"
        finally:
            owner.kill()
            owner.join(30)
        killed = now()
        while watch.next(60).type is not kvi.EventType.DELETE:
            pass
        gone = now()
        assert store.get("member") is None
        sure = float((tmp_path / "alive").read_text().split()[-1])
        assert gone > sure, "the key went while its owner was sure of it"
        bound = store.capabilities.lease_expiry_factor * ttl + 1
        assert gone - killed <= bound + 1  # beside the bound, the watch may need its moment
    assert not (tmp_path / "lost").exists()


def test_lost_lease_says_so(served: tuple[str, Server | None]) -> None:
    """A server that is away for longer than the ttl: the loss is told, and stays, and is final."""
    uri, server = served
    if server is None:  # a file is never away; its leases are lost when they are taken away
        with kvi.open(uri) as store:
            key = store.temp_key("member", ttl=0.6)
            revoke(store, key.lease.id)
            assert key.lost.wait(20)
            assert not key.alive
            assert store.get("member") is None, "what was lost must not come back by itself"
        return
    with kvi.open(uri, timeout=1) as store:
        key = store.temp_key("member", ttl=3)
        lock = store.lock("jobs", ttl=3)
        assert lock.acquire(5)
        server.pause()
        assert key.lost.wait(40)
        assert lock.lost.wait(40)
        assert not key.alive
        assert not lock.held
        server.resume()
        until(lambda: _read(store, "fresh", missing=True), within=30)
        assert not key.alive, "a lease that was lost never comes back to life"
        assert key.lost.is_set()
        with pytest.raises(kvi.LeaseLost):
            lock.release()
        with pytest.raises(kvi.LeaseLost):
            store.store("k", b"", lease=key.lease)
        # The store finds out as well, in its own time.
        until(lambda: store.get("member") is None, within=60)
        with store.lock("jobs", timeout=60) as again:
            assert again.held


def _read(store: kvi.Kvi, key: str, *, missing: bool = False) -> object:
    """The entry, or whether it is known to be missing; ``None`` while the server is away."""
    try:
        entry = store.get(key)
    except (kvi.Unavailable, kvi.Timeout):
        return None
    return entry is None if missing else entry
