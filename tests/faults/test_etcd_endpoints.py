"""Endpoints of etcd that fail by themselves: never the store's fault, and never an untruth."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import kvi
import pytest
from kvi.conformance.proxy import TcpProxy
from kvi_etcd import driver
from kvi_etcd.channel import Endpoint
from kvi_etcd.client import Pems, Tls

from tests.servers import EtcdServer, find_etcdctl
from tests.support.gateway import Gateway
from tests.support.grpc_proxy import GrpcProxy
from tests.support.inside import inmost
from tests.support.learner import Learner
from tests.support.names import NameServer
from tests.support.tls import Certificates, TlsProxy
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.etcd, pytest.mark.timeout(180)]

SLOW_LOGINS = ["--bcrypt-cost=13"]  # half a second each, or more


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    """One etcd for the tests that leave it as it is."""
    with EtcdServer(fast=True) as running:
        yield running


def etcdctl(server: EtcdServer, *args: str) -> None:
    """Run a command."""
    subprocess.run(
        [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", *args],
        check=True,
        capture_output=True,
        env={"ETCDCTL_API": "3"},
    )


def guard(server: EtcdServer) -> None:
    """Have users: root, and ada who may do all below app/."""
    for command in (
        "user add root:rootpw",
        "user grant-role root root",
        "user add ada:pw",
        "role add app",
        "role grant-permission app --prefix=true readwrite app/",
        "user grant-role ada app",
        "auth enable",
    ):
        etcdctl(server, *command.split())


def works(store: kvi.Kvi, key: str, timeout: float) -> bool:
    """Whether it can be read; a wrong password may never be the reason why not."""
    try:
        store.get(key, timeout=timeout)
    except (kvi.Timeout, kvi.Unavailable):
        return False
    return True


def distrusts(store: kvi.Kvi) -> bool:
    """Whether the certificate is why it cannot be read."""
    try:
        store.get("k")
    except kvi.AuthenticationFailed:
        return True
    except kvi.Unavailable:  # the old connection's end
        return False
    return False


@contextmanager
def noticing(channel: grpc.Channel) -> Iterator[list[grpc.ChannelConnectivity]]:
    """What gRPC knows of its connection: a write goes out for as long as it takes it for whole."""
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append)
    try:
        until(lambda: states)
        yield states
    finally:
        channel.unsubscribe(states.append)


# -- calls ----------------------------------------------------------------------------------------


def test_learner_first() -> None:
    """A member that may not vote refuses all: it did nothing, and the voter serves."""
    with EtcdServer(fast=True) as voter, Learner(voter) as learner:
        hosts = f"{learner.host}:{learner.port},{voter.host}:{voter.port}"
        with kvi.open(f"etcd://{hosts}", retry=None) as store:
            assert store.store("k", "1") > 0
            found = store.get("k")
            assert found is not None
            assert found.text == "1"
        with (
            kvi.open(f"etcd://{learner.host}:{learner.port}", retry=None) as store,
            pytest.raises(kvi.Unavailable),
        ):
            store.store("k", "2")


def test_peer_that_says_nothing(server: EtcdServer) -> None:
    """Not a byte of the write was sent: surely not applied, and a healthy endpoint is tried."""
    with TcpProxy(server.port) as mute:
        mute.stall()
        with kvi.open(f"etcd://127.0.0.1:{mute.port}", timeout=1, retry=None) as store:
            for _ in range(2):
                with pytest.raises(kvi.Unavailable):
                    store.store("mute", "1")
        hosts = f"127.0.0.1:{mute.port},{server.host}:{server.port}"
        with kvi.open(f"etcd://{hosts}", timeout=6, retry=None) as store:
            assert store.store("mute", "2") > 0
            assert store.get("mute") is not None


@pytest.mark.parametrize("write", [True, False])
def test_connection_dies_silently(server: EtcdServer, write: bool) -> None:
    """One endpoint, whose idle connection is dead and nobody has said so: one call suffers."""
    with (
        TcpProxy(server.port) as proxy,
        kvi.open(f"etcd://127.0.0.1:{proxy.port}", timeout=1, retry=None) as store,
    ):
        store.store("k", "1")
        proxy.abandon()
        with pytest.raises(kvi.OutcomeUnknown if write else kvi.Timeout):
            store.store("k", "2") if write else store.get("k")
        for _ in range(3):
            store.get("k", timeout=10)
            store.store("k", "3", timeout=10)


def test_others_finish_over_a_replaced_channel(server: EtcdServer) -> None:
    """A call that waits is not ended because another one's time was up."""
    ended: list[object] = []
    with (
        TcpProxy(server.port) as proxy,
        kvi.open(f"etcd://127.0.0.1:{proxy.port}", retry=None) as store,
    ):
        store.store("k", "1")
        proxy.stall()
        patient = threading.Thread(target=lambda: ended.append(store.store("k", "2", timeout=30)))
        patient.start()
        with pytest.raises(kvi.OutcomeUnknown):
            store.store("k", "3", timeout=1)
        proxy.flow()
        patient.join(30)
        assert len(ended) == 1


def test_login_has_its_own_time() -> None:
    """Calls shorter than a login find it done sooner or later, at whichever endpoint is left."""
    with EtcdServer(fast=True, extra_args=SLOW_LOGINS) as server, ExitStack() as stack:
        guard(server)
        proxies = [stack.enter_context(TcpProxy(server.port)) for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
        with kvi.open(f"etcd://ada:pw@{hosts}", retry=None) as store:
            until(lambda: works(store, "app/k", 0.2), within=30)
            proxies[0].refuse()
            proxies[0].cut()
            until(lambda: works(store, "app/k", 0.2), within=30)


def test_users_are_added_meanwhile() -> None:
    """Each change of the users makes all logins old: that passes, and no call tells of it."""
    with EtcdServer(fast=True, extra_args=["--bcrypt-cost=4"]) as server:
        guard(server)
        over = threading.Event()

        def add() -> None:
            for number in range(25):
                etcdctl(server, "--user=root:rootpw", "user", "add", f"u{number}:pw")
            over.set()

        with kvi.open(
            f"etcd://ada:pw@{server.host}:{server.port}", timeout=20, retry=None
        ) as store:
            adding = threading.Thread(target=add)
            adding.start()
            while not over.is_set():
                store.store("app/k", "1")
                store.get("app/k")
            adding.join(60)


def test_users_are_not_in_use(server: EtcdServer) -> None:
    """A password in the URI does no harm where authentication is not enabled, as in etcdctl."""
    with kvi.open(f"etcd://ada:pw@{server.host}:{server.port}", retry=None) as store:
        assert store.store("k", "1") > 0


def test_lease_of_a_user_who_may_read_little() -> None:
    """It is renewed as anybody's is, though the read behind the renewal is refused."""
    with EtcdServer(fast=True, extra_args=["--bcrypt-cost=4"]) as server:
        guard(server)
        with kvi.open(f"etcd://ada:pw@{server.host}:{server.port}", retry=None) as store:
            with pytest.raises(kvi.PermissionDenied):
                store.get("k")
            lease = store.lease(10, keep_alive=False)
            store.store("app/k", "1", lease=lease)
            assert lease.renew() == lease.ttl
            lease.revoke()
            assert store.get("app/k") is None


# -- certificates ---------------------------------------------------------------------------------


def test_bad_certificate_of_one_endpoint(server: EtcdServer, tmp_path: Path) -> None:
    """It is left for the next; a watch that comes by it lives on."""
    for name in ("good", "other"):
        (tmp_path / name).mkdir()
    good, other = (Certificates.make(tmp_path / name) for name in ("good", "other"))
    target = (server.host, server.port)
    with TlsProxy(target, other, mutual=False) as bad, TcpProxy(0) as between:
        hosts = f"127.0.0.1:{bad.port},127.0.0.1:{between.port}"
        with TlsProxy(target, good, mutual=False) as tls:
            between.target = tls.port
            with kvi.open(f"etcd+tls://{hosts}?ca={good.ca}", timeout=10, retry=None) as store:
                assert store.store("k", "1") > 0
                with store.watch("k") as watch:
                    for turn in range(3):
                        between.refuse()
                        between.cut()
                        with kvi.open(server.uri) as writer:
                            writer.store("k", str(turn))
                        time.sleep(0.5)  # by then the watch has come by the bad one
                        between.refuse(False)
                        assert watch.next(30).value == str(turn).encode()
        with (
            kvi.open(f"etcd+tls://{hosts}?ca={good.ca}", timeout=5, retry=None) as store,
            pytest.raises(kvi.Unavailable),
        ):
            store.store("k", "3")
    with TlsProxy(target, other, mutual=False) as bad:
        uri = f"etcd+tls://127.0.0.1:{bad.port}?ca={good.ca}"
        with kvi.open(uri, retry=None) as store, pytest.raises(kvi.AuthenticationFailed):
            store.store("k", "4")


def test_alert_that_passes(server: EtcdServer, tmp_path: Path) -> None:
    """The only endpoint shows a wrong certificate for a while: watches go on afterwards."""
    for name in ("good", "other"):
        (tmp_path / name).mkdir()
    good, other = (Certificates.make(tmp_path / name) for name in ("good", "other"))
    target = (server.host, server.port)
    with (
        TlsProxy(target, good, mutual=False) as tls,
        TlsProxy(target, other, mutual=False) as bad,
        TcpProxy(tls.port) as between,
        kvi.open(f"etcd+tls://127.0.0.1:{between.port}?ca={good.ca}") as store,
        kvi.open(server.uri) as writer,
        store.watch("k") as watch,
    ):
        before = between.accepted
        between.target = bad.port
        between.cut()
        until(lambda: between.accepted >= before + 2)
        writer.store("k", "2")
        between.target = tls.port
        between.cut()
        assert watch.next(30).value == b"2"


def test_certificates_are_renewed_on_disk(server: EtcdServer, tmp_path: Path) -> None:
    """Both sides have new ones of a new authority: calls and watches go on with them."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = (Certificates.make(tmp_path / name) for name in ("first", "second"))
    parts = {"ca": "ca", "cert": "client_cert", "key": "client_key"}

    def install(files: Certificates) -> None:
        for option, name in parts.items():
            (tmp_path / option).write_bytes(getattr(files, name).read_bytes())

    install(first)
    options = {option: str(tmp_path / option) for option in parts}
    target = (server.host, server.port)
    with (
        TlsProxy(target, first, mutual=True) as old,
        TlsProxy(target, second, mutual=True) as new,
        TcpProxy(old.port) as between,
        kvi.open(f"etcd+tls://127.0.0.1:{between.port}", retry=None, **options) as store,
        store.watch("k") as watch,
    ):
        store.store("k", "1")
        assert watch.next(10).value == b"1"
        between.target = new.port
        (tmp_path / "key").write_bytes(b"half written")
        between.cut()
        until(lambda: distrusts(store))
        install(second)
        store.store("k", "2")
        assert watch.next(30).value == b"2"


@pytest.mark.parametrize("another", [False, True])
def test_renewed_while_the_endpoint_is_away(
    server: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """It is back then, but says nothing: the write was not sent, and another endpoint takes it."""
    files = Certificates.make(tmp_path)
    with (
        TlsProxy((server.host, server.port), files, mutual=False) as tls,
        TcpProxy(tls.port) as between,
    ):
        hosts = f"127.0.0.1:{between.port}" + (f",127.0.0.1:{tls.port}" if another else "")
        with kvi.open(f"etcd+tls://{hosts}?ca={files.ca}", timeout=4, retry=None) as store:
            store.delete("renewed")
            connection = inmost(store)._connection
            read = connection._read_files

            async def renewed(tls: Tls) -> Pems:
                files.ca.write_bytes(files.ca.read_bytes() + b"\n")
                between.stall()
                between.refuse(False)
                pems: Pems = await read(tls)
                return pems

            monkeypatch.setattr(connection, "_read_files", renewed)
            between.refuse()
            with noticing(connection._endpoint.channel.channel) as states:
                between.cut()
                until(lambda: states and states[-1] is not grpc.ChannelConnectivity.READY)
            if another:
                assert store.store("renewed", "1") > 0
            else:
                with pytest.raises(kvi.Unavailable, match="not sent"):
                    store.store("renewed", "1")
            between.flow()


def test_restart_behind_a_balancer(server: EtcdServer, tmp_path: Path) -> None:
    """One that accepts, and then ends the connection, while its TLS server is away: bridged."""
    files = Certificates.make(tmp_path)
    with (
        TlsProxy((server.host, server.port), files, mutual=False) as tls,
        TcpProxy(tls.port) as between,
        kvi.open(f"etcd+tls://127.0.0.1:{between.port}?ca={files.ca}", timeout=20) as store,
    ):
        store.get("k")
        between.target = 1
        between.cut()
        before = between.accepted

        def back() -> None:
            until(lambda: between.accepted >= before + 2)
            between.target = tls.port

        restart = threading.Thread(target=back)
        restart.start()
        store.get("k", timeout=20)  # a write may have gone out before gRPC has seen the cut
        store.store("k", "1", timeout=20)
        restart.join(20)


def test_proxies_of_the_environment(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for other programs: the password is for etcd alone."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with TcpProxy(server.port) as proxy:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        with kvi.open(f"etcd://{server.host}:{server.port}", timeout=5, retry=None) as store:
            store.store("k", "1")
        assert proxy.accepted == 0


# -- watches --------------------------------------------------------------------------------------


def test_no_thread_for_a_moment(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is refused its threads is tried again; the watches live."""
    refused = threading.Event()

    def refuse(*_: object) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    with (
        TcpProxy(server.port) as proxy,
        kvi.open(f"etcd://127.0.0.1:{proxy.port}") as store,
        kvi.open(server.uri) as writer,
        store.watch("k") as watch,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(driver, "Stream", refuse)
            proxy.cut()
            assert refused.wait(20)
        writer.store("k", "1")
        assert watch.next(30).value == b"1"


def test_right_taken_away_from_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One verdict for all watches: few logins, and each watch is told."""
    logins: list[float] = []
    with EtcdServer(fast=True, extra_args=["--bcrypt-cost=4"]) as server:
        guard(server)
        with (
            TcpProxy(server.port) as proxy,
            kvi.open(f"etcd://ada:pw@127.0.0.1:{proxy.port}") as store,
        ):
            feeds = [store.watch(f"app/{number}") for number in range(200)]
            connection = inmost(store)._connection
            log_in = connection._log_in

            def counted(endpoint: Endpoint, way: object) -> object:
                logins.append(time.monotonic())
                return log_in(endpoint, way)

            monkeypatch.setattr(connection, "_log_in", counted)
            revoke = "--user=root:rootpw role revoke-permission app --prefix=true app/"
            etcdctl(server, *revoke.split())
            proxy.cut()
            for feed in feeds:
                with pytest.raises(kvi.PermissionDenied):
                    feed.next(30)
            assert len(logins) < 10


# -- names -----------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """The name server that knows ``etcd.test``; no address yet."""
    real = grpc.insecure_channel

    with NameServer(None) as server:

        def by_name(target: str, *options: Any, **named: Any) -> Any:
            return real(f"dns://127.0.0.1:{server.port}/{target}", *options, **named)

        monkeypatch.setattr(grpc, "insecure_channel", by_name)
        yield server


def test_name_that_resolves_late(server: EtcdServer, names: NameServer) -> None:
    """It is found within 2 seconds of being there, however long it was not."""
    with kvi.open(f"etcd://etcd.test:{server.port}", timeout=1) as store:
        for _ in range(12):
            with pytest.raises((kvi.Unavailable, kvi.Timeout)):
                store.get("k")
        names.address = server.host
        there = time.monotonic()
        until(lambda: works(store, "k", 1), within=20)
        assert time.monotonic() - there < 2 + 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs more than one loopback address")
def test_address_that_moves(server: EtcdServer, names: NameServer) -> None:
    """Calls, a lock and a watch go on within 2 seconds at the new address."""
    names.address = "127.0.0.2"
    with (
        TcpProxy(server.port, host="127.0.0.2") as old,
        TcpProxy(server.port, host="127.0.0.3", port=old.port),
        kvi.open(f"etcd://etcd.test:{old.port}", timeout=2) as store,
        kvi.open(server.uri) as other,
        store.watch("k") as watch,
        store.lock("jobs", ttl=10) as lock,
    ):
        store.store("k", "1")
        assert watch.next(5).value == b"1"
        old.close()
        for _ in range(3):
            works(store, "k", 0.5)
        names.address = "127.0.0.3"
        moved = time.monotonic()
        until(lambda: works(store, "k", 1), within=20)
        assert time.monotonic() - moved < 2 + 1
        other.store("k", "2")
        assert watch.next(3).value == b"2"
        assert lock.held
        assert store.txn([lock.guard], [kvi.Put("k", "3")])


# -- what is no member -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, 401, 403, 404])
def test_what_is_no_etcd(server: EtcdServer, status: int | None) -> None:
    """A gateway that lets nobody through, or another program's gRPC, is left for the next."""
    with ExitStack() as stack:
        if status is None:
            other = grpc.server(ThreadPoolExecutor(1))
            stack.callback(lambda: other.stop(None).wait(10))
            port = other.add_insecure_port("127.0.0.1:0")
            other.start()
        else:
            port = stack.enter_context(Gateway(status)).port
        uri = f"etcd://127.0.0.1:{port},{server.host}:{server.port}"
        with kvi.open(uri, timeout=20, retry=None) as store:
            assert store.store("k", "1") > 0
        with kvi.open(uri, timeout=20, retry=None) as store:
            assert store.get("k") is not None
        with kvi.open(uri, timeout=20, retry=None) as store, store.watch("k") as watch:
            store.store("k", "2")
            assert watch.next(20).value == b"2"
        with kvi.open(uri, timeout=20, retry=None) as store:
            assert store.lease(10).alive
        with kvi.open(f"etcd://127.0.0.1:{port}", retry=None) as store:
            for call in (lambda: store.get("k"), lambda: store.store("k", "3")):
                with pytest.raises(kvi.Unavailable, match="no etcd"):
                    call()


def test_grpc_proxy_is_named(server: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    """Reads, writes and transactions work; a watch or a renewal that does not says why."""
    with GrpcProxy(server) as proxy, kvi.open(proxy.uri, timeout=3) as store:
        store.store("k", "1")
        assert store.txn([kvi.Key("k").value == "1"], [kvi.Put("k", "2")])
        assert store.get("k").text == "2"  # type: ignore[union-attr]
        assert [entry.key for entry in store.range(prefix="k")] == ["k"]
        with pytest.raises(kvi.Unavailable, match="grpc-proxy"):
            store.watch("k")
        lease = store.lease(3)
        with pytest.raises(kvi.Unavailable, match="grpc-proxy"):
            lease.renew()
        assert lease.lost.wait(10)
    assert "grpc-proxy" in caplog.text
