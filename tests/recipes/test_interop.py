"""Elections of kvi and of the stores' own tools are the same elections, on real servers."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import kvi
import pytest
from kvi.recipes import Election

from tests.servers import ConsulServer, EtcdServer, find_etcdctl
from tests.support.waiting import until

WITHIN = 20.0


class Campaign:
    """A candidate of ours that waits on a thread."""

    def __init__(self, election: Election) -> None:
        self.won: bool | None = None
        self._election = election
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.won = self._election.campaign(WITHIN)

    def ended(self) -> bool | None:
        """Whether it won."""
        self._thread.join(WITHIN)
        return self.won


# -- etcd ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    """An etcd of this module alone."""
    with EtcdServer() as running:
        yield running


@contextmanager
def etcdctl_elect(server: EtcdServer, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``etcdctl elect``; ended, with its lease, at the end of the block."""
    command = [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", "elect"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(WITHIN)
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a command prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.etcd
@pytest.mark.slow
def test_etcdctl_follows_ours(etcd: EtcdServer) -> None:
    """``etcdctl elect`` sees our leader, waits for it, and leads after it; we see theirs."""
    with kvi.open(etcd.uri) as store:
        ours = Election(store, "boss", "ours")
        assert ours.campaign(WITHIN)
        with etcdctl_elect(etcd, "--listen", "boss") as listening:
            assert line(listening) == f"boss/{ours.leader().id}"  # type: ignore[union-attr]
            assert line(listening) == "ours"
            with etcdctl_elect(etcd, "boss", "theirs") as other:
                until(lambda: len(ours.contenders()) == 2)
                ours.resign()
                assert line(other).startswith("boss/")
                assert line(other) == "theirs"
                leader = ours.leader()
                assert leader is not None
                assert leader.value == b"theirs"
                assert not ours.campaign(0.3)
                again = Campaign(ours)
                until(lambda: len(ours.contenders()) == 2)
                other.send_signal(signal.SIGINT)
                assert again.ended()
                assert ours.fence > leader.fence
        ours.resign()
        assert store.count(prefix="boss") == 0


# -- Consul --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def consul() -> Iterator[ConsulServer]:
    """A Consul of this module alone."""
    with ConsulServer() as running:
        yield running


def ask(server: ConsulServer, path: str, body: bytes = b"") -> bytes:
    """PUT as the guide to leader election does."""
    url = f"http://{server.host}:{server.port}/v1/{path}"
    request = urllib.request.Request(url, data=body, method="PUT")
    with urllib.request.urlopen(request, timeout=WITHIN) as answer:
        return bytes(answer.read())


@pytest.mark.consul
@pytest.mark.slow
def test_guide_of_consul(consul: ConsulServer) -> None:
    """Whoever follows Consul's guide and ours exclude each other by the key, and see each other."""
    theirs = json.loads(ask(consul, "session/create", b'{"Name": "boss", "LockDelay": "0s"}'))["ID"]
    with kvi.open(consul.uri) as store:
        ours = Election(store, "boss", "ours")
        assert ours.campaign(WITHIN)
        entry = store.get("boss")
        assert entry is not None
        assert entry.text == "ours"
        assert f"{entry.lease:x}" == ours.leader().id  # type: ignore[union-attr]
        assert ask(consul, f"kv/boss?acquire={theirs}", b"theirs").strip() == b"false"
        ours.resign()
        assert ask(consul, f"kv/boss?acquire={theirs}", b"theirs").strip() == b"true"
        leader = ours.leader()
        assert leader is not None
        assert leader.value == b"theirs"
        assert not ours.campaign(0.3)
        waiting = Campaign(ours)
        until(lambda: len(ours.contenders()) == 2)
        assert ask(consul, f"kv/boss?release={theirs}", b"").strip() == b"true"
        assert waiting.ended()
        assert store.get("boss").text == "ours"  # type: ignore[union-attr]
        ours.resign()
        assert ours.leader() is None


@pytest.mark.consul
@pytest.mark.slow
def test_key_that_another_takes(consul: ConsulServer) -> None:
    """If somebody deletes the key, and another leads by it, ours does not, nor ends their term."""
    theirs = json.loads(ask(consul, "session/create", b'{"Name": "boss", "LockDelay": "0s"}'))["ID"]
    with kvi.open(consul.uri) as store:
        ours = Election(store, "taken", "ours", ttl=10)
        assert ours.campaign(WITHIN)
        guard = ours.guard
        ours.proclaim("present")
        assert store.txn([guard], [kvi.Put("x", "1")])
        assert store.delete("taken")
        assert ask(consul, f"kv/taken?acquire={theirs}", b"theirs").strip() == b"true"
        assert not store.txn([guard], [kvi.Put("x", "2")])
        assert ours.lost.wait(WITHIN)
        assert not ours.held
        with pytest.raises(kvi.LeaseLost):
            ours.resign()
        leader = ours.leader()
        assert leader is not None
        assert leader.value == b"theirs"
