"""etcd that is away, paused, restarted, behind a login, behind TLS: real servers, real faults."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import kvi
import pytest

from tests.servers import EtcdServer, find_etcdctl
from tests.support.inside import inmost
from tests.support.tls import Certificates, TlsProxy
from tests.support.waiting import until

pytestmark = [pytest.mark.etcd, pytest.mark.slow]


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """An etcd of this test alone."""
    with EtcdServer() as running:
        yield running


def etcdctl(server: EtcdServer, *arguments: str) -> str:
    """Run etcdctl against the server and return what it prints."""
    command = [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def outcome(action: Callable[[], object]) -> object:
    """What it returns, or the error of kvi that it raises."""
    try:
        return action()
    except kvi.KviError as error:
        return error


def eventually(action: Callable[[], object], *, within: float = 15) -> object:
    """Repeat a read until the server is back; the last error if it does not come back."""
    deadline = time.monotonic() + within
    while True:
        try:
            return action()
        except (kvi.Unavailable, kvi.Timeout):
            if time.monotonic() > deadline:
                raise


def test_etcdctl_sees_the_same_keys(server: EtcdServer) -> None:
    """Keys and values are plain on the wire: etcdctl reads what kvi wrote and the reverse."""
    with kvi.open(f"{server.uri}/app") as store:
        store.store("greeting", "hello")
        assert etcdctl(server, "get", "app/greeting").split() == ["app/greeting", "hello"]
        etcdctl(server, "put", "app/reply", "hi")
        assert [(e.key, e.text) for e in store.range()] == [("greeting", "hello"), ("reply", "hi")]
        assert store.client.get("app/reply")[0] == b"hi"


def test_refused_connection() -> None:
    """Nobody listens: every call is Unavailable at once, and opening did not block."""
    store = kvi.open("etcd://127.0.0.1:1", timeout=3, retry=None)
    for call in (
        lambda: store.get("k"),
        lambda: store.store("k", b""),
        lambda: store.txn(then=[kvi.Delete("k")]),
        lambda: store.range(),
        lambda: store.ping(),
    ):
        begin = time.monotonic()
        with pytest.raises(kvi.Unavailable, match="running"):
            call()
        assert time.monotonic() - begin < 4
    store.close()


def test_paused_server(server: EtcdServer) -> None:
    """No answer in time: a read is Timeout, a write OutcomeUnknown, both within timeout + 1 s.

    Afterwards the same handle works again, and shows that "unknown" was the truth.
    """
    with kvi.open(server.uri) as store:
        store.store("k", b"before")
        server.pause()
        for call, error in (
            (lambda: store.get("k", timeout=0.5), kvi.Timeout),
            (lambda: store.range(timeout=0.5), kvi.Timeout),
            (lambda: store.store("k", b"after", timeout=0.5), kvi.OutcomeUnknown),
            (lambda: store.delete("other", timeout=0.5), kvi.OutcomeUnknown),
        ):
            begin = time.monotonic()
            with pytest.raises(error):
                call()
            assert time.monotonic() - begin < 1.5
        server.resume()
        entry = eventually(partial(store.get, "k"))
        assert isinstance(entry, kvi.KeyValue)
        assert entry.value in (b"before", b"after")


def test_killed_and_restarted(server: EtcdServer) -> None:
    """A handle finds the server again by itself, with all that was acknowledged."""
    with kvi.open(server.uri) as store:
        revision = store.store("k", b"v")
        server.kill()
        with pytest.raises((kvi.Unavailable, kvi.Timeout)):
            store.get("k", timeout=2)
        server.start()
        entry = eventually(partial(store.get, "k"))
        assert isinstance(entry, kvi.KeyValue)
        assert (entry.value, entry.revision) == (b"v", revision)
        assert store.store("k", b"w") > revision


def test_close_wakes_a_blocked_call(server: EtcdServer) -> None:
    """A call that waits for a paused server ends with Closed when the handle is closed."""
    store = kvi.open(server.uri, timeout=60)
    store.ping()
    server.pause()
    caught: list[BaseException] = []

    def call(operation: Callable[[], object]) -> None:
        try:
            operation()
        except kvi.KviError as error:
            caught.append(error)

    threads = [
        threading.Thread(target=call, args=(operation,))
        for operation in (lambda: store.get("k"), lambda: store.store("k", b""))
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and all(thread.is_alive() for thread in threads):
        threads[0].join(0.1)  # let both get to their wait; either way they must end with Closed
    store.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert [type(error) for error in caught] == [kvi.Closed, kvi.Closed]
    server.resume()


def test_second_endpoint(server: EtcdServer) -> None:
    """With several hosts, one that is away does not matter."""
    with kvi.open(f"etcd://127.0.0.1:1,{server.host}:{server.port},127.0.0.1:2") as store:
        store.store("k", b"v")
        assert store.get("k").value == b"v"  # type: ignore[union-attr]
        assert store.tas("k", b"v", None)


def test_host_that_does_not_resolve(server: EtcdServer) -> None:
    """A name without an address: nothing was sent, and another host may do."""
    with kvi.open("etcd://no-such-host.invalid:2379") as store, pytest.raises(kvi.Unavailable):
        store.store("k", b"")
    with kvi.open(f"etcd://no-such-host.invalid,{server.host}:{server.port}") as store:
        store.store("k", b"")


def test_close_does_not_wait_for_a_login(server: EtcdServer) -> None:
    """close() returns at once while another thread's login waits for a paused server."""
    store = kvi.open(f"etcd://ada:pw@{server.host}:{server.port}", timeout=60)
    server.pause()
    caught: list[kvi.KviError] = []

    def call() -> None:
        try:
            store.get("k")
        except kvi.KviError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    deadline = time.monotonic() + 10
    connection = inmost(store)._connection
    while connection._endpoint is None and time.monotonic() < deadline:
        thread.join(0.01)
    begin = time.monotonic()
    store.close()
    assert time.monotonic() - begin < 5
    thread.join(10)
    assert [type(error) for error in caught] == [kvi.Closed]
    server.resume()


def test_long_keys_backwards(server: EtcdServer) -> None:
    """A reversed range over keys of 12 KB comes through, with and without a limit."""
    with kvi.open(server.uri) as store:
        names = [f"{number:05}" + "k" * 12_000 for number in range(3400)]
        for first in range(0, len(names), 100):
            store.txn(then=[kvi.Put(name, b"") for name in names[first : first + 100]])
        assert [e.key[:5] for e in store.range(reverse=True)] == [n[:5] for n in names[::-1]]
        few = [e.key[:5] for e in store.range(reverse=True, limit=200)]
        assert few == [n[:5] for n in names[::-1][:200]]


def test_full_database() -> None:
    """A write into a full database is never told to be surely not applied when it was."""
    with (
        EtcdServer(fast=True, extra_args=["--quota-backend-bytes=20000000"]) as server,
        kvi.open(server.uri) as store,
    ):
        outcomes: dict[str, type[kvi.KviError]] = {}

        tried: list[str] = []

        def fill(number: int) -> None:
            turn = 0
            while len(outcomes) < 16 and turn < 100:  # far more than fits
                key = f"{number}/{turn}"
                tried.append(key)
                try:
                    store.store(key, b"x" * 300_000)
                except kvi.KviError as error:
                    outcomes[key] = type(error)
                turn += 1

        threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        there = {entry.key for entry in store.range(keys_only=True)}
        assert outcomes, "the database did not fill up"
        assert set(outcomes.values()) == {kvi.OutcomeUnknown}
        assert len(there) >= len(tried) - len(outcomes)


def test_no_lease_of_a_full_database() -> None:
    """Whoever needs one is told why, at once: trying again mends nothing."""
    with (
        EtcdServer(fast=True, extra_args=["--quota-backend-bytes=2000000"]) as server,
        kvi.open(server.uri, timeout=30) as store,
    ):
        held, lease = store.lock("held"), store.lease(10, keep_alive=False)
        assert held.acquire()
        numbers = itertools.count()

        def fill() -> object:
            return store.store(f"{next(numbers)}", b"x" * 400_000)

        until(lambda: isinstance(outcome(fill), kvi.OutcomeUnknown))
        for call in (
            lambda: store.lease(10),
            lambda: store.temp_key("t", "v"),
            lambda: store.lock("l").acquire(),
            lambda: store.store("k", "v", ttl=10),
        ):
            begin = time.monotonic()
            with pytest.raises(kvi.Unavailable, match="database is full") as caught:
                call()
            assert not caught.value.passing
            assert time.monotonic() - begin < 10
        assert lease.renew() == lease.ttl, "what is there is kept"
        held.release()


def test_compaction_under_a_range(server: EtcdServer) -> None:
    """A range whose revision is compacted away raises Compacted; it never ends early."""
    with kvi.open(server.uri) as store:
        for first in range(0, 1000, 100):
            store.txn(then=[kvi.Put(f"k{i:04}", b"") for i in range(first, first + 100)])
        entries = iter(store.range())
        next(entries)
        last = store.store("other", b"")
        etcdctl(server, "compact", str(last))
        with pytest.raises(kvi.Compacted) as caught:
            list(entries)
        assert caught.value.operation == "range"
        assert len(list(store.range())) == 1001


def test_login(server: EtcdServer) -> None:
    """A user and password in the URI log in; wrong or missing ones, or rights, are told apart."""
    etcdctl(server, "user", "add", "root:rootpw")
    etcdctl(server, "user", "grant-role", "root", "root")
    etcdctl(server, "user", "add", "ada:s3cret")
    etcdctl(server, "role", "add", "app")
    etcdctl(server, "role", "grant-permission", "app", "--prefix=true", "readwrite", "app/")
    etcdctl(server, "user", "grant-role", "ada", "app")
    etcdctl(server, "auth", "enable")
    address = f"{server.host}:{server.port}"
    with kvi.open(f"etcd://ada:s3cret@{address}") as store:
        store.store("app/k", b"v")
        assert store.get("app/k").value == b"v"  # type: ignore[union-attr]
        assert store.client.get("app/k")[0] == b"v"
        with pytest.raises(kvi.PermissionDenied):
            store.store("other", b"")
        server.restart()  # tokens die with it; the next call logs in again
        entry = eventually(lambda: store.get("app/k"))
        assert isinstance(entry, kvi.KeyValue)
        assert "s3cret" not in repr(store) + store.uri
        store.ping()  # answers, although the rights end beside what it asks for
        assert list(store.range(prefix="app/", limit=0)) == []
    with kvi.open(f"etcd://ada:s3cret@127.0.0.1:1,{address}") as store:  # the first one is away
        assert store.get("app/k") is not None
    for userinfo in ("ada:wrong@", "nobody:s3cret@", ""):
        with kvi.open(f"etcd://{userinfo}{address}") as store:
            with pytest.raises(kvi.AuthenticationFailed) as caught:
                store.get("app/k")
            assert "s3cret" not in str(caught.value)
            assert "wrong" not in str(caught.value)


def test_tls(server: EtcdServer, tmp_path: Path) -> None:
    """etcd+tls:// and https:// verify the server and show a client certificate if asked."""
    files = Certificates.make(tmp_path)
    with TlsProxy((server.host, server.port), files, mutual=True) as proxy:
        client = f"&cert={files.client_cert}&key={files.client_key}"
        for scheme in ("etcd+tls", "https"):
            with kvi.open(f"{scheme}://127.0.0.1:{proxy.port}?ca={files.ca}{client}") as store:
                store.store(scheme, b"v")
                assert store.get(scheme).value == b"v"  # type: ignore[union-attr]
        for options in (
            f"?ca={files.stranger_ca}{client}",  # we do not trust the server
            f"?ca={files.ca}",  # the server does not trust us
        ):
            with (
                kvi.open(f"etcd+tls://127.0.0.1:{proxy.port}{options}", timeout=3) as store,
                pytest.raises((kvi.AuthenticationFailed, kvi.Unavailable, kvi.Timeout)),
            ):
                store.get("k")


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("etcd:", "host"),
        ("etcd:///ns", "host"),
        ("etcd://ada@h:1", "password"),
        ("etcd://h:1?ca=/nowhere", "TLS"),
        ("etcd+tls://h:1?ca=/nowhere/ca.pem", "'ca'"),
        ("etcd+tls://h:1?cert=/x", "both"),
        ("etcd+tcp://h:1", "schemes are"),
        ("etcd://h:1/a/?namespace=b", "keep one"),
        ("etcd://h:1/a/", "slash"),
    ],
)
def test_bad_uri(uri: str, text: str) -> None:
    """A URI that etcd cannot use is refused at open, with the mend."""
    with pytest.raises(kvi.KviError, match=text):
        kvi.open(uri)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_while_handles_open_and_close(server: EtcdServer) -> None:
    """Children live, and the parent's calls succeed, whatever other threads do at the fork."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def come_and_go() -> None:
        while not stop.is_set():
            try:
                with kvi.open(server.uri) as store:
                    store.store("o", b"x")
            except BaseException as error:  # noqa: BLE001  (shown by the main thread)
                failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in threads:
        thread.start()
    ends = []
    for turn in range(30):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(30)
                if turn % 2:
                    with kvi.open(server.uri) as own:
                        own.store("child", b"x")
                status = 0
            finally:
                os._exit(status)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join(20)
    assert ends == [0] * 30
    assert failures == []


def test_nothing_of_grpc_outlives_a_handle(server: EtcdServer) -> None:
    """Streams and pending calls of gRPC's take a lock as they are freed; so that is done in time.

    One that is freed as Python shuts down waits for ever, if a daemon thread of gRPC's was stopped
    with that lock.
    """
    etcdctl(server, "user", "add", "root:pass")
    etcdctl(server, "user", "grant-role", "root", "root")
    etcdctl(server, "auth", "enable")
    host = f"{server.host}:{server.port}"
    before = calls_of_grpc()
    gc.collect()
    gc.disable()
    try:
        with kvi.open(f"etcd://root:wrong@{host}") as store, suppress(kvi.AuthenticationFailed):
            store.get("k")
        del store
        with kvi.open(f"etcd://root:pass@{host}") as store, store.watch("k") as watch:
            lease = store.lease(30, keep_alive=False)
            for number in range(2):
                store.store("k", str(number))
                assert watch.next(30)
                server.stop()  # ends the stream
                server.start()
                eventually(partial(store.get, "k"))
            assert len(store.history("k")) == 2
            with store.lock("l", ttl=30):
                lease.revoke()
        del store, watch, lease
        assert [call for call in calls_of_grpc() if not any(call is old for old in before)] == []
    finally:
        gc.enable()


def calls_of_grpc() -> list[grpc.Call]:
    """Those that do something when they are freed."""
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, grpc.Call) and hasattr(type(one), "__del__")
    ]
