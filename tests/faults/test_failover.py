"""Several hosts in the URI: one that is away, or silent, costs little, and never an untruth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import kvi
import pytest
from kvi.conformance.proxy import TcpProxy
from kvi.conformance.server_process import free_ports

from tests.servers import ConsulServer, EtcdServer, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Ways(NamedTuple):
    """Two ways to one server."""

    server: Server
    first: TcpProxy
    second: TcpProxy

    @property
    def uri(self) -> str:
        """Both, in this order."""
        hosts = f"127.0.0.1:{self.first.port},127.0.0.1:{self.second.port}"
        return f"{self.server.scheme}://{hosts}"


@pytest.fixture(
    params=[
        pytest.param(EtcdServer, id="etcd", marks=[pytest.mark.etcd]),
        pytest.param(ConsulServer, id="consul", marks=[pytest.mark.consul]),
    ]
)
def ways(request: pytest.FixtureRequest) -> Iterator[Ways]:
    """A real server behind two proxies."""
    with ExitStack() as stack:
        server = stack.enter_context(request.param())
        proxies = [stack.enter_context(TcpProxy(server.port)) for _ in range(2)]
        yield Ways(server, *proxies)


def test_first_host_serves_until_it_is_away(ways: Ways) -> None:
    """While it works the others are left alone; then the next one serves, reads and writes."""
    with kvi.open(ways.uri, retry=None) as store:
        store.store("k", "1")
        assert (ways.first.accepted > 0, ways.second.accepted) == (True, 0)
        ways.first.refuse()
        ways.first.cut()
        for _ in range(2):  # the first may find its connection broken, which a read survives here
            try:
                store.get("k")
                break
            except kvi.Unavailable:
                continue
        assert store.store("k", "2") > 0
        assert ways.second.accepted > 0
        found = store.get("k")
        assert found is not None
        assert found.text == "2"


def test_hosts_that_never_were(ways: Ways) -> None:
    """A write that could not be sent is sent to the next one; that of all is surely not applied."""
    nowhere, neither = free_ports(2)
    scheme = ways.server.scheme
    dead = f"127.0.0.1:{nowhere},no-such-host.invalid:1"
    with kvi.open(f"{scheme}://{dead},127.0.0.1:{ways.second.port}", retry=None) as store:
        assert store.store("k", "1", timeout=20) > 0
    with (
        kvi.open(f"{scheme}://{dead},127.0.0.1:{neither}", retry=None) as store,
        pytest.raises(kvi.Unavailable),
    ):
        store.store("k", "2", timeout=20)
    with kvi.open(ways.server.uri) as store:
        found = store.get("k")
        assert found is not None
        assert found.text == "1"


def test_silent_host(ways: Ways) -> None:
    """A read goes on at the next one within its time-out; a write says that it may have applied."""
    with kvi.open(ways.uri, timeout=6, retry=None) as store:
        store.store("k", "1")
        ways.first.stall()
        found = store.get("k")
        assert found is not None
        assert found.text == "1"
        assert [entry.key for entry in store.range()] == ["k"]
        assert store.store("k", "2") > 0, "the silent one has been left"
        ways.first.flow()
    with kvi.open(ways.uri, timeout=2, retry=None) as store:
        store.get("k")
        ways.first.stall()
        with pytest.raises(kvi.OutcomeUnknown):
            store.store("k", "3")
        assert store.store("k", "4") > 0, "and so has this one"
        ways.first.flow()


def test_short_time_outs_leave_no_host(ways: Ways) -> None:
    """A caller who has no patience is no proof against a host."""
    with kvi.open(ways.uri, retry=None) as store:
        store.store("k", "1")
        ways.first.stall()
        for _ in range(3):
            with pytest.raises((kvi.Timeout, kvi.Unavailable)):
                store.get("k", timeout=0.05)
        ways.first.flow()
        assert ways.second.accepted == 0
        assert store.get("k", timeout=20) is not None


def test_watch_locks_and_leases_move_along(ways: Ways) -> None:
    """What was begun by way of one host goes on by way of the next."""
    with kvi.open(ways.uri, timeout=10) as store, kvi.open(ways.server.uri) as other:
        with store.watch("k") as watch, store.lock("jobs", ttl=30) as lock:
            other.store("k", "1")
            assert watch.next(30).value == b"1"
            ways.first.refuse()
            ways.first.cut()
            other.store("k", "2")
            assert watch.next(60).value == b"2"
            assert lock.held
            assert store.txn([lock.guard], [kvi.Put("k", "3")])
            assert watch.next(60).value == b"3"
        assert other.lock("jobs").acquire(20)


def test_store_that_is_watched_only_is_known_to_be_away(ways: Ways) -> None:
    """A watch that loses its connection makes a backend not alive, though nobody calls."""
    with kvi.Backend(ways.uri) as backend, backend.watch("k"):
        assert backend.perform_liveness_check(10)
        channel = backend.enable_liveness_channel()
        assert channel.get(0) is True
        for proxy in (ways.first, ways.second):
            proxy.refuse()
            proxy.cut()
        assert channel.get(60) is False
        assert not backend.alive
        for proxy in (ways.first, ways.second):
            proxy.refuse(False)
        while not backend.perform_liveness_check(5):
            pass
        assert channel.get(0) is True
