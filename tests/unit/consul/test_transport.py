"""HTTP against scripted servers: every way an answer can come, or not."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import kvi
import pytest
from kvi.backend.pool import Lent
from kvi_consul.client import ConsulClient
from kvi_consul.connection import Connection
from kvi_consul.errors import Broken
from kvi_consul.store import ConsulKvi
from kvi_consul.transport import CONNECTIONS, Answer, Call, Transport

from tests.support.backends import opened
from tests.support.waiting import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def after(seconds: float) -> Callable[[int, bytes], bytes]:
    """Answers late."""

    def serve(number: int, request: bytes) -> bytes:
        time.sleep(seconds)
        return OK

    return serve


class Server:
    """Listens, and lets ``serve(connection, request)`` answer each request of each connection.

    ``serve`` returns the bytes to answer, or ``None`` to close the connection.

    Attributes:
        welcome: what a greeting is answered with.

    """

    welcome = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    def __init__(self, serve: Callable[[int, bytes], bytes | None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.greetings = 0
        self.connections: list[socket.socket] = []
        self._serve = serve
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            number = len(self.connections)
            threading.Thread(target=self._run, args=(number, connection), daemon=True).start()

    def _run(self, number: int, connection: socket.socket) -> None:
        with connection:
            try:
                while request := self._request(connection):
                    if request.startswith(b"OPTIONS "):
                        self.greetings += 1
                        connection.sendall(self.welcome)
                        if b"close" in self.welcome:
                            return
                        continue
                    self.requests.append(request)
                    answer = self._serve(number, request)
                    if answer is None:
                        return
                    connection.sendall(answer)
            except OSError:
                pass  # the client has left

    @staticmethod
    def _request(connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := connection.recv(65536)):
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def servers() -> Iterator[Callable[[Callable[[int, bytes], bytes | None]], Server]]:
    """Makes servers that end with the test."""
    made: list[Server] = []

    def make(serve: Callable[[int, bytes], bytes | None]) -> Server:
        made.append(Server(serve))
        return made[-1]

    yield make
    for server in made:
        server.close()


Make = Callable[[Callable[[int, bytes], bytes | None]], Server]


def ask(
    transport: Transport, body: bytes = b"", *, read_only: bool = True, seconds: float = 5
) -> Answer:
    """One exchange."""
    head = transport.head("PUT", "/x")
    return transport.exchange(head, body, monotonic() + seconds, read_only=read_only)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\nX: y\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"1\r\no\r\n1;x=y\r\nk\r\n0\r\n\r\n"
            ),
            b"ok",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", b""),
    ],
)
@pytest.mark.parametrize("piecewise", [False, True])
def test_answers_are_read_whole_and_the_connection_kept(
    servers: Make, answer: bytes, body: bytes, piecewise: bool
) -> None:
    """Each form of an answer is read to its end, however it arrives, and no byte further."""

    def serve(number: int, request: bytes) -> bytes:
        if not piecewise:
            return answer
        for at in range(len(answer) - 1):
            server.connections[0].sendall(answer[at : at + 1])
        return answer[-1:]

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    for _ in range(3):
        assert ask(transport, b"body").body == body
    assert len(server.connections) == 1
    transport.close()


@pytest.mark.parametrize(
    ("head", "lasts"),
    [
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: X, close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: X\r\n", True),
    ],
)
def test_a_connection_that_ends_is_not_used_again(servers: Make, head: bytes, lasts: bool) -> None:
    """What a server or a proxy closes behind its answer would lose the next request."""
    server = servers(lambda *_: head + b"Content-Length: 2\r\n\r\nok")
    transport = Transport("127.0.0.1", server.port)
    assert [ask(transport).body for _ in range(2)] == [b"ok", b"ok"]
    assert len(server.connections) == (1 if lasts else 2)
    transport.close()


def test_an_answer_until_the_end_of_the_connection(servers: Make) -> None:
    """Without a length the answer ends with its connection, which is not used again."""

    def serve(number: int, request: bytes) -> None:
        server.connections[number - 1].sendall(b"HTTP/1.0 200 OK\r\n\r\nall")

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    assert [ask(transport).body for _ in range(2)] == [b"all", b"all"]
    assert len(server.connections) == 2
    transport.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\no\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nokay\r\n0\r\n\r\n",
        b"x" * 100_000,
    ],
)
def test_what_is_not_http_is_an_error(servers: Make, answer: bytes) -> None:
    """Nonsense is never taken for an answer."""
    transport = Transport("127.0.0.1", servers(lambda *_: answer).port)
    with pytest.raises(Broken) as caught:
        ask(transport)
    assert caught.value.sent
    transport.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nContent-",
    ],
)
def test_an_answer_cut_short_is_an_error(servers: Make, answer: bytes) -> None:
    """Half an answer is none, also for a read, and is not asked for again."""

    def serve(number: int, request: bytes) -> None:
        server.connections[number - 1].sendall(answer)

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    with pytest.raises(Broken):
        ask(transport)
    assert len(server.requests) == 1
    transport.close()


def test_bytes_behind_an_answer_end_the_connection(servers: Make) -> None:
    """A server that says more than was asked cannot answer the next question with it."""
    server = servers(lambda *_: OK + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
    transport = Transport("127.0.0.1", server.port)
    assert [ask(transport).body for _ in range(3)] == [b"ok"] * 3
    assert len(server.connections) == 3
    transport.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_connection_closed_while_idle_is_noticed(servers: Make, read_only: bool) -> None:
    """A connection that the server closed between two calls costs neither of them anything."""
    server = servers(lambda *_: OK)
    transport = Transport("127.0.0.1", server.port)
    for _ in range(3):
        assert ask(transport, read_only=read_only).body == b"ok"
        server.connections[-1].shutdown(socket.SHUT_RDWR)
        until(lambda: not transport._pool._idle[-1].idle())
    assert len(server.requests) == len(server.connections) == 3
    transport.close()


def test_a_read_is_sent_again_if_its_connection_was_stale(servers: Make) -> None:
    """A reused connection that ends without an answer is replaced, for a read."""
    server = servers(lambda n, r: OK if n > 1 or len(server.requests) == 1 else None)
    transport = Transport("127.0.0.1", server.port)
    assert [ask(transport).body for _ in range(2)] == [b"ok"] * 2
    assert len(server.requests) == 3
    transport.close()


def test_a_write_is_never_sent_twice(servers: Make) -> None:
    """The same for a write is an error that says that it may have happened."""
    server = servers(lambda n, r: OK if n > 1 or len(server.requests) == 1 else None)
    transport = Transport("127.0.0.1", server.port)
    ask(transport, read_only=False)
    with pytest.raises(Broken) as caught:
        ask(transport, read_only=False)
    assert caught.value.sent
    assert len(server.requests) == 2
    transport.close()


def test_a_new_connection_is_greeted_before_it_carries_a_write(servers: Make) -> None:
    """An agent that accepts it and closes it has surely not been sent the write."""
    server = servers(lambda *_: OK)
    transport = Transport("127.0.0.1", server.port)
    assert [ask(transport, read_only=False).body for _ in range(3)] == [b"ok"] * 3
    assert (server.greetings, len(server.requests)) == (1, 3)
    transport.close()
    with socket.create_server(("127.0.0.1", 0)) as full:

        def dismiss() -> None:
            for _ in range(2):
                full.accept()[0].close()

        threading.Thread(target=dismiss).start()
        transport = Transport("127.0.0.1", full.getsockname()[1])
        for read_only in (False, True):
            with pytest.raises(Broken) as caught:
                ask(transport, read_only=read_only)
            assert caught.value.sent is read_only
        transport.close()


def test_an_agent_that_ends_is_sent_no_write(servers: Make) -> None:
    """It answers a greeting, and closes the connection with that: the write goes to the next."""
    ending, server = servers(lambda *_: OK), servers(lambda *_: OK)
    ending.welcome = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    for others in ((), (("127.0.0.1", server.port),)):
        transport = Transport("127.0.0.1", ending.port, *others)
        if others:
            assert ask(transport, read_only=False).body == b"ok"
        else:
            with pytest.raises(Broken) as caught:
                ask(transport, read_only=False)
            assert not caught.value.sent
        transport.close()
    assert (ending.greetings, ending.requests, len(server.requests)) == (2, [], 1)


def test_an_agent_that_says_nothing_is_passed_over_by_a_write(servers: Make) -> None:
    """It accepts the connection and never answers: the write goes to the next, and there only."""
    server = servers(lambda *_: OK)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = silent.getsockname()[1]
        transport = Transport("127.0.0.1", where, ("127.0.0.1", server.port))
        assert ask(transport, b"once", read_only=False, seconds=2).body == b"ok"
        peer, _ = silent.accept()
        with peer:
            assert b"once" not in peer.recv(65536)
        transport.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize("where", ["send", "read_head", "read_body"])
@pytest.mark.parametrize("error", [OSError("mine"), TimeoutError("mine"), ConnectionError("mine")])
def test_what_no_socket_raised_is_not_the_networks(
    servers: Make, monkeypatch: pytest.MonkeyPatch, where: str, error: OSError
) -> None:
    """It comes out as it is, nothing is sent again for it, and the connection's place is free."""
    server = servers(lambda *_: OK)
    transport = Transport("127.0.0.1", server.port, connections=1)
    ask(transport, read_only=False)
    real = getattr(Connection, where)

    def fails(self: Connection, *args: Any) -> Any:
        real(self, *args)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Connection, where, fails)
        with pytest.raises(OSError, match="mine") as caught:
            ask(transport, read_only=False)
    assert caught.value is error
    until(lambda: len(server.requests) == 2)
    assert ask(transport, read_only=False, seconds=1).body == b"ok"
    assert len(server.requests) == 3
    assert not transport._pool.busy
    transport.close()


def test_a_silence_condemns_the_idle_connections(servers: Make) -> None:
    """Whatever swallowed one swallows the others: at most one call suffers."""
    silent: list[int] = []

    def serve(number: int, request: bytes) -> bytes:
        if number in silent:
            time.sleep(5)
        return after(0.05)(number, request)

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    threads = [threading.Thread(target=ask, args=(transport,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    silent += range(1, len(server.connections) + 1)
    with pytest.raises(Broken):
        ask(transport, seconds=0.2)
    assert ask(transport, read_only=False, seconds=1).body == b"ok"
    transport.close()


def test_a_fresh_connection_that_ends_is_not_tried_again(servers: Make) -> None:
    """Only staleness is mended here; a server that hangs up is the retry policy's business."""
    server = servers(lambda *_: None)
    transport = Transport("127.0.0.1", server.port)
    with pytest.raises(Broken):
        ask(transport)
    assert len(server.requests) == 1
    transport.close()


def test_a_server_that_trickles_cannot_outstay_the_deadline(servers: Make) -> None:
    """The deadline bounds the whole exchange, not each wait of it."""

    def serve(number: int, request: bytes) -> None:
        for byte in OK * 100:
            server.connections[0].sendall(bytes([byte]))
            time.sleep(0.05)

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    began = monotonic()
    with pytest.raises(Broken) as caught:
        ask(transport, seconds=0.3)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert monotonic() - began < 5
    transport.close()


def test_a_server_that_does_not_read_cannot_either() -> None:
    """The same while the request is being sent; then it is not known what arrived."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def greet() -> None:
            taken.append(listener.accept()[0])
            taken[0].recv(65536)
            taken[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=greet).start()
        transport = Transport("127.0.0.1", listener.getsockname()[1])
        began = monotonic()
        with pytest.raises(Broken) as caught:
            ask(transport, bytes(20_000_000), read_only=False, seconds=1)
        assert caught.value.sent
        assert monotonic() - began < 5
        transport.close()
        taken[0].close()


def test_the_longest_time_out_is_a_time_out(servers: Make) -> None:
    """A year, the most that a caller may ask for, is taken by every wait."""
    transport = Transport("localhost", servers(lambda *_: OK).port)
    assert ask(transport, seconds=31_536_000).body == b"ok"
    transport.close()


def test_no_connection_is_surely_not_applied() -> None:
    """Where nobody listens, nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    transport = Transport("127.0.0.1", port)
    with pytest.raises(Broken) as caught:
        ask(transport, read_only=False)
    assert not caught.value.sent
    transport.close()


@pytest.fixture
def unanswering() -> Iterator[int]:
    """A port where connecting neither succeeds nor fails: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = []
        for _ in range(8):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            waiting.append(sock)
        yield listener.getsockname()[1]
        for sock in waiting:
            sock.close()


def test_connecting_ends_by_the_deadline(unanswering: int) -> None:
    """A connect time-out is surely not applied."""
    transport = Transport("127.0.0.1", unanswering)
    began = monotonic()
    with pytest.raises(Broken) as caught:
        ask(transport, read_only=False, seconds=0.3)
    assert not caught.value.sent
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert monotonic() - began < 1
    transport.close()


def test_resolving_ends_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs does not make a call hang."""
    real = socket.getaddrinfo

    def slow(host: str, port: int, **options: int) -> object:
        if not options.get("flags"):
            time.sleep(2)
        return real(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    transport = Transport("localhost", 1)
    began = monotonic()
    with pytest.raises(Broken) as caught:
        ask(transport, seconds=0.3)
    assert not caught.value.sent
    assert monotonic() - began < 1.8  # before the resolver is done
    transport.close()


def blocked_calls_wake(port: int, calls: int = 3, host: str = "127.0.0.1") -> None:
    """Assert that `close` wakes calls that hang on this port."""
    transport = Transport(host, port)
    store = opened(ConsulKvi("consul://x", transport, timeout=30))
    ends: list[BaseException] = []

    def call(write: bool) -> None:
        try:
            store.store("k", b"v") if write else store.get("k")
        except kvi.KviError as error:
            ends.append(error)

    threads = [threading.Thread(target=call, args=(n % 2 == 0,)) for n in range(calls)]
    for thread in threads:
        thread.start()
    until(lambda: transport._pool.busy == min(calls, CONNECTIONS))
    began = monotonic()
    store.close()
    for thread in threads:
        thread.join(20)
    assert monotonic() - began < 5
    assert [type(end) for end in ends] == [kvi.Closed] * calls
    assert not transport._pool.busy
    assert not transport._pool.idle


def test_a_resolver_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look-up of a host serves all who want it, however often they try, in all handles."""
    real, go = socket.getaddrinfo, threading.Event()

    def hanging(host: str, port: int, **options: int) -> object:
        if not options.get("flags"):
            go.wait(20)
        return real(host, port, **options)

    def look_ups() -> int:
        return sum(thread.name == "kvi-consul-resolve" for thread in threading.enumerate())

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    transports = [Transport("localhost", 1) for _ in range(3)]
    for _ in range(5):
        for transport in transports:
            with pytest.raises(Broken) as caught:
                ask(transport, seconds=0.01)
            assert isinstance(caught.value.__cause__, TimeoutError)
    assert look_ups() == 1
    blocked_calls_wake(1, host="localhost")
    go.set()
    until(lambda: look_ups() == 0)
    with pytest.raises(Broken) as caught:  # resolved, and nobody listens
        ask(transports[0])
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    for transport in transports:
        transport.close()


def test_closing_wakes_calls_that_wait_for_an_answer(servers: Make) -> None:
    """Calls blocked in a request end with `Closed` at once, and their sockets are gone."""
    blocked_calls_wake(servers(after(10)).port)


def test_closing_wakes_calls_that_connect(unanswering: int) -> None:
    """The same while the connection is being made."""
    blocked_calls_wake(unanswering)


def test_aborting_just_before_connecting(unanswering: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An abort that finds a socket which has not begun to connect yet is not lost."""
    connection = Connection()

    class Late(socket.socket):
        def connect_ex(self, address: Any, /) -> int:
            connection.abort()
            return super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", Late)
    with pytest.raises(Broken) as caught:
        connection.connect("127.0.0.1", unanswering, None, time.monotonic() + 20)
    assert isinstance(caught.value.__cause__, ConnectionAbortedError)
    connection.close()


def test_closing_wakes_calls_that_wait_for_a_connection(servers: Make) -> None:
    """The same for calls beyond the number of connections."""
    server = servers(after(10))
    blocked_calls_wake(server.port, CONNECTIONS + 5)
    assert len(server.connections) <= CONNECTIONS


def test_answer_is_taken_before_its_connection_is_anothers(
    servers: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that the next thread already uses changes nothing of the answer before."""
    end = Lent.end

    def taken_over(self: Lent[Connection], *, whole: bool) -> None:
        end(self, whole=whole)
        self.connection.status, self.connection.headers = 599, {}

    monkeypatch.setattr(Lent, "end", taken_over)
    answer = ask(Transport("127.0.0.1", servers(after(0)).port))
    assert answer.status == 200
    assert answer.headers
    assert answer.body == b"ok"


def test_the_number_of_connections_is_bounded(servers: Make) -> None:
    """Many threads share a bounded number of connections."""
    server = servers(after(0.01))
    transport = Transport("127.0.0.1", server.port)
    bodies: list[bytes] = []

    def call() -> None:
        for _ in range(3):
            bodies.append(ask(transport).body)  # noqa: PERF401

    threads = [threading.Thread(target=call) for _ in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bodies == [b"ok"] * 450
    assert len(server.connections) <= CONNECTIONS
    transport.close()


def test_too_few_connections_end_in_time(servers: Make) -> None:
    """A call that gets no connection until its deadline has sent nothing."""
    server = servers(after(1))
    transport = Transport("127.0.0.1", server.port)
    threads = [threading.Thread(target=ask, args=(transport,)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    until(lambda: transport._pool.busy == CONNECTIONS)
    with pytest.raises(Broken) as caught:
        ask(transport, read_only=False, seconds=0.1)
    assert not caught.value.sent
    for thread in threads:
        thread.join()
    transport.close()


def test_redirects_are_errors(servers: Make) -> None:
    """A redirect names another key, or another server; it is never followed."""
    elsewhere = b"HTTP/1.1 301 Moved\r\nLocation: /v1/kv/a/b\r\nContent-Length: 0\r\n\r\n"
    server = servers(lambda *_: elsewhere)
    transport = Transport("127.0.0.1", server.port)
    with opened(ConsulKvi("consul://x", transport, timeout=5)) as store:
        for call in (lambda: store.get("k"), lambda: store.store("k", b"v"), store.count):
            with pytest.raises(kvi.Unavailable, match="301"):
                call()
    assert not any(b"/v1/kv/a/b" in request for request in server.requests)


def test_the_token_is_sent_as_a_header_only(servers: Make) -> None:
    """Neither the handle nor python-consul's client puts a token into a URL."""
    answer = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 5\r\nContent-Length: 2\r\n\r\n[]"
    server = servers(lambda *_: answer)
    transport = Transport("127.0.0.1", server.port, token="s3cret")
    client = ConsulClient(transport, dc=None, timeout=5)
    client.kv.get("k")
    client.kv.get("k", token="0ther")
    for request, token in zip(server.requests, (b"s3cret", b"0ther"), strict=True):
        line, _, rest = request.partition(b"\r\n")
        assert line == b"GET /v1/kv/k HTTP/1.1"
        assert rest.count(b"X-Consul-Token: ") == 1
        assert b"X-Consul-Token: " + token + b"\r\n" in rest
    transport.close()


def test_python_consul_gets_time_outs_and_no_redirects(servers: Make) -> None:
    """Its client ends in time and raises its own errors."""
    import consul

    slow = servers(after(3))
    transport = Transport("127.0.0.1", slow.port)
    with pytest.raises(consul.Timeout):
        ConsulClient(transport, dc=None, timeout=0.2).kv.get("k")
    transport.close()
    moved = servers(lambda *_: b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n")
    transport = Transport("127.0.0.1", moved.port)
    with pytest.raises(consul.ConsulException, match="redirects"):
        ConsulClient(transport, dc=None, timeout=5).kv.put("a//b", "v")
    transport.close()
    with pytest.raises(consul.ConsulException, match="closed"):
        ConsulClient(transport, dc=None, timeout=5).kv.get("k")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_drops_the_connections_of_its_parent(servers: Make) -> None:
    """After a fork the parent's connection goes on, whatever the child does with its handle."""
    server = servers(lambda *_: b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"Results":[]}')
    transport = Transport("127.0.0.1", server.port)
    with opened(ConsulKvi("consul://x", transport, timeout=5)) as store:
        assert store.delete("k")
        child = os.fork()
        if child == 0:
            try:
                store.get("k")
            except kvi.UsedAfterFork:
                store.close()
                os._exit(0 if not transport._pool.idle else 2)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(kvi.PermissionDenied):  # an answer without the result
            store.get("k")
    assert len(server.connections) == 1


def test_a_call_that_another_thread_ends_fails_at_once(servers: Make) -> None:
    """Waiting for its answer or not begun yet; it is not sent again, and no other is touched."""
    server = servers(lambda number, request: OK if b"quick" in request else None)
    slow = servers(after(30))
    for where, began_before in ((slow, True), (server, False)):
        transport = Transport("127.0.0.1", where.port)
        call = Call()
        if not began_before:
            call.end()
        ended: list[Broken] = []

        def wait(transport: Transport = transport, call: Call = call, ended: Any = ended) -> None:
            try:
                head = transport.head("GET", "/slow")
                end = monotonic() + 20
                with transport.begin(head, b"", end, read_only=True, call=call) as exchange:
                    exchange.read()
            except Broken as broken:
                ended.append(broken)

        thread = threading.Thread(target=wait)
        thread.start()
        if began_before:
            until(lambda where=where: where.requests)  # type: ignore[misc]
            call.end()
        thread.join(5)
        assert len(ended) == 1
        assert not transport._pool.busy
        transport.close()
    assert server.requests == []


def test_a_call_that_is_over_cannot_be_ended(servers: Make) -> None:
    """Its connection may be another's by then, and stays as it is."""
    server = servers(lambda *_: OK)
    transport = Transport("127.0.0.1", server.port)
    call = Call()
    head, end = transport.head("GET", "/"), monotonic() + 5
    with transport.begin(head, b"", end, read_only=True, call=call) as exchange:
        assert exchange.read() == b"ok"
    call.end()
    assert ask(transport).body == b"ok"
    assert len(server.connections) == 1
    transport.close()


# -- the main thread ------------------------------------------------------------------------------


def strike(transport: Transport, *, write: bool = False, seconds: float = 5) -> Answer | None:
    """One exchange of the main thread."""
    return transport.stroke(transport.head("PUT", "/x"), b"", seconds, write=write)


def test_stroke_is_on_an_idle_connection(servers: Make) -> None:
    """It makes none, takes one that is there, and lays it down for the next."""
    server = servers(lambda *_: OK)
    transport = Transport("127.0.0.1", server.port)
    assert strike(transport) is None
    ask(transport)
    for write in (False, True, False):
        answer = strike(transport, write=write)
        assert answer is not None
        assert answer.body == b"ok"
    assert ask(transport).body == b"ok"
    assert (len(server.connections), len(server.requests)) == (1, 5)
    transport.close()
    assert strike(transport) is None


def test_stroke_on_a_connection_that_was_closed(servers: Make) -> None:
    """Nothing is sent on it, and the long way makes another."""
    server = servers(lambda *_: OK)
    transport = Transport("127.0.0.1", server.port)
    ask(transport)
    server.connections[0].shutdown(socket.SHUT_RDWR)
    assert transport._pool._idle[0]._sock is not None
    until(lambda: not transport._pool._idle[0].idle())
    assert strike(transport, write=True) is None
    assert ask(transport, read_only=False).body == b"ok"
    transport.close()


def test_stroke_of_a_slow_agent(servers: Make) -> None:
    """A read is left to who may wait, and those after it at once; a write is waited for."""
    go, slow = threading.Event(), threading.Event()

    def serve(number: int, request: bytes) -> bytes:
        if slow.is_set():
            assert go.wait(30)
        return OK

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    ask(transport)
    slow.set()
    assert strike(transport, seconds=60) is None
    slow.clear()
    go.set()
    assert ask(transport).body == b"ok"
    asked = len(server.requests)
    assert strike(transport) is None
    assert len(server.requests) == asked, "not even tried"
    transport._slow = 0.0
    go.clear()
    slow.set()
    threading.Timer(0.3, go.set).start()
    answer = strike(transport, write=True, seconds=60)
    assert answer is not None
    assert answer.body == b"ok"
    transport.close()


@pytest.mark.parametrize("write", [False, True])
def test_stroke_whose_answer_is_lost(servers: Make, write: bool) -> None:
    """A read is asked again; a write is told: it may have been done."""
    server = servers(
        lambda number, request: None if number == 1 and len(server.requests) > 1 else OK
    )
    transport = Transport("127.0.0.1", server.port)
    ask(transport)
    if write:
        with pytest.raises(Broken) as caught:
            strike(transport, write=True)
        assert caught.value.sent
    else:
        assert strike(transport) is None
    assert ask(transport).body == b"ok"
    assert len(server.connections) == 2
    transport.close()


def test_stroke_that_the_handle_closes(servers: Make) -> None:
    """Closing wakes it."""
    asked = threading.Event()

    def serve(number: int, request: bytes) -> bytes | None:
        if len(server.requests) == 1:
            return OK
        asked.set()
        time.sleep(30)
        return None

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    ask(transport)

    def close() -> None:
        assert asked.wait(20)
        transport.close()

    closer = threading.Thread(target=close)
    closer.start()
    before = monotonic()
    with pytest.raises(Broken):
        strike(transport, write=True, seconds=60)
    assert monotonic() - before < 20
    closer.join()


def test_stroke_that_is_interrupted(servers: Make) -> None:
    """Its connection is closed, and nobody gets its answer."""
    late = threading.Event()

    def serve(number: int, request: bytes) -> bytes:
        if len(server.requests) == 2:
            os.kill(os.getpid(), signal.SIGALRM)
            assert late.wait(30)
            return OK.replace(b"ok", b"no")
        return OK

    server = servers(serve)
    transport = Transport("127.0.0.1", server.port)
    ask(transport)

    def handler(number: int, frame: object) -> None:
        raise TimeoutError("of the program's own")

    former = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(TimeoutError, match="own"):
            strike(transport, write=True, seconds=60)
    finally:
        signal.signal(signal.SIGALRM, former)
    late.set()
    assert transport._pool.idle == 0
    assert ask(transport).body == b"ok"
    answer = strike(transport)
    assert answer is not None
    assert answer.body == b"ok"
    transport.close()
