"""The health app, driven as ASGI and through a real server, with stores that go away."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import kvi
import kvi.aio
import pytest
import uvicorn
from kvi.conformance.proxy import TcpProxy
from kvi.health import Health, health
from kvi.testing import Faults

from tests.support.waiting import until


class Response(NamedTuple):
    """What the app answers."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        """The body, read."""
        found: dict[str, Any] = json.loads(self.body)
        return found


async def ask(app: Health, path: str, method: str = "GET", root: str = "") -> Response:
    """One request."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": root, "headers": []}
    await app(scope, receive, send)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert start["type"] == "http.response.start"
    return Response(start["status"], headers, body["body"])


def asked(app: Health, path: str, method: str = "GET", root: str = "") -> Response:
    """One request, in a loop of its own."""
    return asyncio.run(ask(app, path, method, root))


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Faults that are on."""
    with Faults() as on:
        yield on


@pytest.fixture
def store(faults: Faults) -> Iterator[kvi.Kvi]:
    """A store that has them."""
    with kvi.open("mem:health") as opened:
        yield opened


def test_well(store: kvi.Kvi) -> None:
    """Both paths answer 200, as JSON that nobody may keep."""
    app = health(store)
    assert asked(app, "/livez").told == {"status": "ok"}
    ready = asked(app, "/readyz")
    assert (ready.status, ready.told["status"], ready.told["store"]) == (200, "ok", "mem:health")
    assert ready.headers == {
        "content-type": "application/json",
        "content-length": str(len(ready.body)),
        "cache-control": "no-store",
    }


def test_away(store: kvi.Kvi, faults: Faults) -> None:
    """While the store is away a program is unready, and never dead; then it is ready again."""
    app = health(store, keep=0)
    away = faults.unavailable("ping", times=None)
    for _ in range(2):
        ready = asked(app, "/readyz")
        assert (ready.status, ready.told["status"]) == (503, "unavailable")
        assert ready.told["error"] == "Unavailable"
        assert "the test has made" in ready.told["message"]
        assert asked(app, "/livez").status == 200
    assert away.hits == 2
    away.end()
    assert asked(app, "/readyz").status == 200


def test_other_requests(store: kvi.Kvi) -> None:
    """HEAD has no body, but its length; other methods and paths are refused."""
    app = health(store)
    for path in ("/livez", "/readyz"):
        head = asked(app, path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        post = asked(app, path, "POST")
        assert (post.status, post.headers["allow"]) == (405, "GET, HEAD")
    for path in ("/", "/livez/", "/other", "/readyz/x", ""):
        assert asked(app, path).status == 404
        assert asked(app, path, "POST").status == 404


def test_mounted(store: kvi.Kvi) -> None:
    """It can be mounted, in the way of ASGI and in that of older frameworks."""
    app = health(store)
    assert asked(app, "/health/livez", root="/health").status == 200
    assert asked(app, "/livez", root="/health").status == 200
    assert asked(app, "/healthlivez", root="/health").status == 404


def test_storm(store: kvi.Kvi, faults: Faults) -> None:
    """Any number of probes at once, and soon after one another, are one ping."""
    count = faults.delay(0.1, "ping", times=None)

    async def main() -> None:
        app = health(store, keep=30)
        answers = await asyncio.gather(*(ask(app, "/readyz") for _ in range(200)))
        assert {one.status for one in answers} == {200}
        assert (await ask(app, "/readyz")).status == 200
        assert count.hits == 1
        app = health(store, keep=0)
        await asyncio.gather(*(ask(app, "/readyz") for _ in range(200)))
        await ask(app, "/readyz")
        assert count.hits == 3

    asyncio.run(main())


def test_slow(store: kvi.Kvi, faults: Faults) -> None:
    """A store that is slow is not ready, after the time-out; the loop goes on meanwhile."""
    faults.delay(30, "ping", times=None)

    async def main() -> None:
        app = health(store, timeout=0.3)
        began = time.monotonic()
        asking = asyncio.ensure_future(ask(app, "/readyz"))
        await asyncio.sleep(0)
        assert (await ask(app, "/livez")).status == 200
        assert not asking.done()
        ready = await asking
        assert (ready.status, ready.told["error"]) == (503, "Timeout")
        assert time.monotonic() - began < 20

    asyncio.run(main())


def test_hanging(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping that does not come back at all is told, and no other is sent until it does."""
    free, calls = threading.Event(), []

    def hang(**_: object) -> None:
        calls.append(1)
        free.wait(60)

    monkeypatch.setattr(store, "ping", hang)

    async def main() -> None:
        app = health(store, timeout=0.1, keep=0)
        for _ in range(3):
            ready = await ask(app, "/readyz")
            assert (ready.status, ready.told["error"]) == (503, "Timeout")
            assert "not come back" in ready.told["message"]
        assert len(calls) == 1
        free.set()
        async with asyncio.timeout(20):
            while (await ask(app, "/readyz")).status != 200:
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_cancelled(store: kvi.Kvi, faults: Faults) -> None:
    """A probe that hangs up leaves the ping to the others."""
    faults.delay(0.3, "ping")

    async def main() -> None:
        app = health(store)
        first = asyncio.ensure_future(ask(app, "/readyz"))
        second = asyncio.ensure_future(ask(app, "/readyz"))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second).status == 200
        assert first.cancelled()

    asyncio.run(main())


def test_asyncio(faults: Faults) -> None:
    """A handle of `kvi.aio`, a view and a backend are asked in the loop."""

    async def main() -> None:
        async with kvi.aio.open("mem:health-aio") as store:
            app = health(store, keep=0)
            for one in (store, store.namespace("a"), kvi.aio.Backend(store, "b")):
                app = health(one, keep=0)
                assert (await ask(app, "/readyz")).status == 200
                with faults.unavailable("ping"):
                    assert (await ask(app, "/readyz")).status == 503
            faults.delay(30, "ping")
            assert (await ask(health(store, timeout=0.1), "/readyz")).told["error"] == "Timeout"
        closed = await ask(app, "/readyz")
        assert (closed.status, closed.told["error"]) == (503, "Closed")

    asyncio.run(main())


def test_wrapped(store: kvi.Kvi, faults: Faults) -> None:
    """A view and a backend are asked too, and a backend learns from it."""
    with kvi.Backend(store, "b") as backend:
        for one in (store.namespace("a"), backend):
            app = health(one, keep=0)
            assert asked(app, "/readyz").status == 200
            with faults.unavailable("ping"):
                assert asked(app, "/readyz").status == 503
        assert not backend.alive


def test_unexpected(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an error that is not kvi's only the class is told: nobody knows what it says."""

    def ping(**_: object) -> None:
        raise RuntimeError("s3cret")

    monkeypatch.setattr(store, "ping", ping)
    ready = asked(health(store), "/readyz")
    assert (ready.status, ready.told["error"]) == (503, "RuntimeError")
    assert b"s3cret" not in ready.body


def test_secrets() -> None:
    """A token of the URI is not told."""
    with kvi.open("consul://s3cret@127.0.0.1:1?retry=off") as store:
        ready = asked(health(store), "/readyz")
    assert (ready.status, ready.told["error"]) == (503, "Unavailable")
    assert b"s3cret" not in ready.body


def test_protocols(store: kvi.Kvi) -> None:
    """The lifespan protocol is answered, a websocket is refused, anything else is no business."""
    app = health(store)

    async def talk(kind: str, *messages: str) -> list[str]:
        left, sent = list(messages), []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": left.pop(0)}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message["type"])

        await app({"type": kind}, receive, send)
        return sent

    assert asyncio.run(talk("lifespan", "lifespan.startup", "lifespan.shutdown")) == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert asyncio.run(talk("websocket", "websocket.connect")) == ["websocket.close"]
    with pytest.raises(NotImplementedError):
        asyncio.run(talk("other"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: health(s.uri), "takes a handle of kvi or kvi.aio, not 'mem:health'"),
        (lambda s: health(s, timeout=0), "timeout= is a number of seconds above 0"),
        (lambda s: health(s, keep=-1), "keep= is a number of seconds, 0 or more, not -1"),
        (lambda s: health(s, keep=True), "keep= is"),
    ],
)
def test_mistakes(store: kvi.Kvi, make: Callable[[Any], Health], words: str) -> None:
    """What makes no sense is refused, with what to do."""
    with pytest.raises(kvi.InvalidArgument) as raised:
        make(store)
    assert words in str(raised.value)


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """A real server for the block, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=lambda: server.run(sockets=[free]))
        thread.start()
        try:
            until(lambda: server.started)
            yield free.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def fetch(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    """What a client over HTTP gets."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("face", ["sync", "aio"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
        pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
    ],
)
def test_real_servers(request: pytest.FixtureRequest, name: str, face: str) -> None:
    """Over HTTP: ready, unready while the store is cut off or silent, and ready again."""
    uri: str = request.getfixturevalue(f"{name}_uri")
    host, _, port = uri.partition("//")[2].partition("/")[0].rpartition(":")
    with TcpProxy(int(port), host) as proxy:
        opening = kvi.open if face == "sync" else kvi.aio.open
        store: Any = opening(f"{name}://127.0.0.1:{proxy.port}")
        app = health(store, timeout=0.5, keep=0)
        with serving(app) as at:
            until(lambda: fetch(at, "/readyz")[0] == 200)
            proxy.refuse()
            proxy.cut()
            status, body = fetch(at, "/readyz")
            assert status == 503
            assert json.loads(body)["error"] in ("Unavailable", "Timeout")
            assert fetch(at, "/livez")[0] == 200
            proxy.refuse(False)
            until(lambda: fetch(at, "/readyz")[0] == 200)
            proxy.stall()
            began = time.monotonic()
            assert fetch(at, "/readyz")[0] == 503
            assert time.monotonic() - began < 20
            assert fetch(at, "/livez", "HEAD") == (200, b"")
            proxy.flow()
            until(lambda: fetch(at, "/readyz")[0] == 200)
            assert fetch(at, "/nothing")[0] == 404
        if face == "sync":
            store.close()
        else:
            asyncio.run(store.close())


def test_served() -> None:
    """A server of ASGI serves it as it is, with its lifespan."""
    with kvi.open("mem:health-served") as store, serving(health(store)) as at:
        assert fetch(at, "/livez") == (200, b'{"status": "ok"}\n')
        status, body = fetch(at, "/readyz")
        assert (status, json.loads(body)["status"]) == (200, "ok")
        assert fetch(at, "/readyz", "HEAD") == (200, b"")
        assert fetch(at, "/readyz", "DELETE")[0] == 405


def test_lean() -> None:
    """It needs no library."""
    code = """if True:
        import sys, kvi
        before = set(sys.modules)
        import kvi.health
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(sorted(new - set(sys.stdlib_module_names) - {"kvi"}))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
