"""What a handle on Consul may cost, and how long: slow links, connections, wrong settings.

Each on a real server, through a proxy where the network is the fault.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from time import monotonic
from urllib.parse import urlsplit

import kvi
import pytest
from kvi import Put
from kvi.conformance.proxy import TcpProxy

from tests.servers import ConsulServer
from tests.support.waiting import until

pytestmark = [pytest.mark.consul, pytest.mark.xdist_group("consul")]


@pytest.fixture
def place(consul_uri: str) -> Iterator[str]:
    """The URI of a namespace of this test's own."""
    where = f"{consul_uri}/kvi-test-{secrets.token_hex(8)}"
    yield where
    with kvi.open(where, timeout=30) as store:
        store.delete_range(prefix="")


class Link:
    """Forwards connections to a server: slowly, and refusing tokens for a while. A context manager.

    Attributes:
        uri: what to open to come through it.
        rate: bytes a second that come from the server.
        refusals: how many of the next requests are answered by "ACL not found".
        received: bytes that came from the server.

    """

    def __init__(self, place: str) -> None:
        parts = urlsplit(place)
        self._server = parts.hostname, parts.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"consul://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self.rate = 1e9
        self.refusals = 0
        self.received = 0
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Link:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while request := client.recv(1 << 16):
                if self.refusals > 0 and not request.startswith(b"OPTIONS "):
                    self.refusals -= 1
                    client.sendall(
                        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 13\r\n\r\nACL not found"
                    )
                else:
                    server.sendall(request)
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while answer := server.recv(1 << 13):
                self.received += len(answer)
                time.sleep(len(answer) / self.rate)
                client.sendall(answer)
            client.shutdown(socket.SHUT_RDWR)


def test_no_call_takes_longer_than_it_may_over_a_slow_link(place: str) -> None:
    """The time-out is for the whole answer, however large: to count, delete and begin a watch."""
    with kvi.open(place, timeout=30) as direct, Link(place) as link:
        for number in range(150):
            direct.store(f"{number:03}" + "k" * 4000, bytes(4000))
        link.rate = 350_000
        calls: list[tuple[Callable[[kvi.Kvi], object], type[kvi.KviError]]] = [
            (lambda store: store.count(timeout=1), kvi.Timeout),
            (lambda store: store.watch(prefix="", timeout=1), kvi.Timeout),
            (lambda store: list(store.range(timeout=1)), kvi.Timeout),
            (lambda store: store.delete_range(prefix="", timeout=1), kvi.OutcomeUnknown),
        ]
        for call, error in calls:
            with kvi.open(link.uri, retry=None) as store:
                store.get("x")
                began = monotonic()
                with pytest.raises(error):
                    call(store)
                assert 0.9 < monotonic() - began < 1.8


def test_a_watch_gets_through_a_slow_link(place: str) -> None:
    """Nobody waits for its answers, so they may take as long as pieces of them come."""
    with kvi.open(place, timeout=30) as direct, Link(place) as link:
        for number in range(40):
            direct.store(f"k{number}", bytes(100_000))
        link.rate = 1e6
        with kvi.open(link.uri, timeout=30) as store, store.watch(prefix="k") as watch:
            direct.store("k0", b"new")
            assert watch.next(40).value == b"new"


def test_single_keys_and_locks_transfer_what_is_watched(place: str) -> None:
    """Other keys may change as they like: nothing of them comes over the wire."""
    with ExitStack() as stack:
        direct = stack.enter_context(kvi.open(place, timeout=30))
        link = stack.enter_context(Link(place))
        store = stack.enter_context(kvi.open(link.uri, timeout=30))
        for number in range(50):
            direct.store(f"bulk/{number}", bytes(20_000))
        holds = [stack.enter_context(direct.lock(f"lock{number}")) for number in range(2)]
        waiting = [
            threading.Thread(target=store.lock(f"lock{number}").acquire, kwargs={"timeout": 60})
            for number in range(2)
        ]
        for thread in waiting:
            thread.start()
        names = ("alone", "bulk", "bulk/", "zone/a", "zone/b")
        watches = [stack.enter_context(store.watch(name)) for name in names]
        time.sleep(1)
        before = link.received
        for number in range(100):
            direct.store(f"bulk/{number % 50}", bytes(20_000))
        assert link.received - before < 200_000  # the store has more than a million
        for name, watch in zip(names, watches, strict=True):
            direct.store(name, "told")
            assert watch.next(10).value == b"told"
        for hold in holds:
            hold.release()
        for thread in waiting:
            thread.join(20)
        assert not any(thread.is_alive() for thread in waiting)


def test_a_datacenter_that_is_not_there_is_named(consul_uri: str) -> None:
    """What goes to it is surely not applied, also a write, and is not tried again."""
    with kvi.open(f"{consul_uri}?dc=nowhere") as store:
        for call in (
            lambda: store.store("k", "v"),
            lambda: store.delete("k"),
            lambda: store.delete_range(prefix="kvi-nothing"),
            lambda: store.get("k"),
            lambda: store.lease(10),
        ):
            began = monotonic()
            with pytest.raises(kvi.Unavailable, match="'nowhere'") as caught:
                call()
            assert not caught.value.passing
            assert monotonic() - began < 1


def test_a_token_is_unknown_only_if_it_stays_so(place: str) -> None:
    """A server that has just begun to lead may say so once: all calls and watches go on."""
    with Link(place) as link, kvi.open(link.uri, timeout=10, retry=None) as store:
        link.refusals = 1
        store.store("k", "1")
        with store.watch("k") as watch:
            link.refusals = 1
            assert store.get("k") is not None
            store.store("k", "2")
            assert watch.next(10).value == b"2"
            link.refusals = 3  # whoever asks, calls or the watch
            store.store("k", "3")
            assert watch.next(10).value == b"3"
        for call in (
            lambda: store.count(prefix="k"),
            lambda: list(store.range(prefix="k")),
            lambda: store.watch(prefix="k").cancel(),
            lambda: store.delete_range(prefix="k"),
        ):
            link.refusals = 1
            call()
            assert not link.refusals
        with store.watch("k") as watch:
            link.refusals = 1 << 30
            began = monotonic()
            with pytest.raises(kvi.AuthenticationFailed):
                store.get("k")
            assert monotonic() - began < 3
            with pytest.raises(kvi.AuthenticationFailed):
                watch.next(30)


def test_more_handles_than_the_agent_takes_connections() -> None:
    """What finds no room is surely not applied, and says which limit it is."""
    limit = ("-hcl", "limits { http_max_conns_per_client = 12 }")
    with ConsulServer(extra_args=limit) as server, ExitStack() as stack:
        handles = [
            stack.enter_context(kvi.open(server.uri, timeout=5, retry=None)) for _ in range(20)
        ]
        errors: list[kvi.KviError] = []

        def write(store: kvi.Kvi) -> None:
            for number in range(20):
                try:
                    store.store(f"k{number}", "v")
                except kvi.KviError as error:
                    errors.append(error)

        threads = [
            threading.Thread(target=write, args=(store,)) for store in handles for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors
        assert {type(error) for error in errors} == {kvi.Unavailable}
        assert all("http_max_conns_per_client" in str(error) for error in errors)


def test_a_resolver_that_hangs_holds_one_thread(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often and from however many handles it is asked; who waits ends in time."""
    real, go = socket.getaddrinfo, threading.Event()

    def hanging(host: str, port: int, **options: int) -> object:
        if not options.get("flags"):
            go.wait(30)
        return real(host, port, **options)

    def look_ups() -> int:
        return sum(thread.name == "kvi-consul-resolve" for thread in threading.enumerate())

    where = place.replace("127.0.0.1", "localhost")
    with monkeypatch.context() as patched, ExitStack() as stack:
        patched.setattr(socket, "getaddrinfo", hanging)
        stores = [stack.enter_context(kvi.open(where, timeout=0.2)) for _ in range(5)]
        for store in stores * 4:
            began = monotonic()
            with pytest.raises(kvi.Timeout):
                store.get("k")
            assert monotonic() - began < 1
        assert look_ups() == 1
        stack.close()
        assert look_ups() == 1
        go.set()
        until(lambda: look_ups() == 0)
    with kvi.open(where, timeout=10) as store:
        store.store("k", "v")


def test_a_handle_opens_few_connections(place: str) -> None:
    """Whatever the number of threads and watches: as many as the option says, twice."""
    server = urlsplit(place)
    assert server.port is not None
    with TcpProxy(server.port) as proxy:
        where = f"consul://127.0.0.1:{proxy.port}{server.path}"
        with kvi.open(where, timeout=30, connections=3) as store, ExitStack() as stack:
            watches = [stack.enter_context(store.watch(f"{n}/k")) for n in range(20)]

            def work() -> None:
                for number in range(10):
                    store.txn([], [Put(f"{number}/k", "v"), Put(f"{number + 10}/k", "v")])

            threads = [threading.Thread(target=work) for _ in range(20)]
            for thread in threads:
                thread.start()
            until(lambda: proxy.open >= 2)
            most = 0
            while any(thread.is_alive() for thread in threads):
                most = max(most, proxy.open)
            assert most <= 7  # one that is closing may still be counted
            assert all(watch.next(10).value == b"v" for watch in watches)
