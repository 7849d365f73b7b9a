"""Consul's agents by themselves: what one of them cannot serve, or is no agent, another serves."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi.conformance.proxy import TcpProxy
from kvi_consul import watches

from tests.servers import ConsulServer
from tests.support.tls import Certificates, TlsProxy
from tests.support.waiting import until

pytestmark = [pytest.mark.consul, pytest.mark.slow, pytest.mark.timeout(180)]


class Agent(ConsulServer):
    """An agent that is no server; without a server to join it knows none."""

    def __init__(self, server: ConsulServer | None = None) -> None:
        join = [] if server is None else [f"{server.host}:{server.ports['serf_lan']}"]
        super().__init__(config={"server": False, "retry_join": join, "retry_interval": "1s"})
        self._joins = bool(join)

    def _merged(self) -> dict[str, Any]:
        config = super()._merged()
        del config["bootstrap_expect"]
        return config

    def probe(self, timeout: float) -> None:
        """Ask whether it runs, and knows a leader if it joins somebody."""
        self._expect("GET", "/v1/agent/self", timeout=timeout)
        if self._joins and not json.loads(
            self._expect("GET", "/v1/status/leader", timeout=timeout)
        ):
            raise ConnectionError("no leader yet")


@pytest.fixture(scope="module")
def server() -> Iterator[ConsulServer]:
    """A server of this file's own."""
    with ConsulServer() as server:
        yield server


@contextmanager
def web(status: int) -> Iterator[int]:
    """An HTTP server that answers every request with ``status`` and a page; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(status)
            page = b"<html>not here</html>"
            self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_GET = do_PUT = do_OPTIONS = answer  # noqa: N815  (as the library wants them)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield made.server_port
        finally:
            made.shutdown()
            thread.join()


def serves(uri: str, other: kvi.Kvi) -> None:
    """Whatever a new handle is asked first is done, at once."""
    other.store("k", "0")
    with kvi.open(uri, timeout=20, retry=None) as store:
        assert store.get("k") is not None
    with kvi.open(uri, timeout=20, retry=None) as store:
        assert store.store("k", "1") > 0
    with kvi.open(uri, timeout=20, retry=None) as store:
        assert [entry.text for entry in store.range(prefix="k")] == ["1"]
    with kvi.open(uri, timeout=20, retry=None) as store, store.watch("k") as watch:
        other.store("k", "2")
        assert watch.next(20).value == b"2"
    with kvi.open(uri, timeout=20, retry=None) as store, store.lock("jobs", timeout=20) as held:
        assert held.held
    with kvi.open(uri, timeout=20, retry=None) as store:
        store.ping()


def test_agent_that_knows_no_servers(server: ConsulServer) -> None:
    """It surely does nothing, and the next one is asked."""
    with Agent() as alone, Agent(server) as agent, kvi.open(agent.uri) as other:
        serves(f"consul://127.0.0.1:{alone.port},127.0.0.1:{agent.port}", other)
        with kvi.open(alone.uri, retry=None) as store:
            for call in (
                lambda: store.get("k"),
                lambda: store.store("k", "3"),
                lambda: store.delete_range(prefix="k"),
                lambda: store.lease(10),
            ):
                with pytest.raises(kvi.Unavailable):
                    call()


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 405, 408, 429, 501, 502, 503])
def test_what_is_no_agent(server: ConsulServer, status: int) -> None:
    """It is left for the next one; alone, it is told that nothing was done."""
    with web(status) as port, kvi.open(server.uri) as other:
        serves(f"consul://127.0.0.1:{port},127.0.0.1:{server.port}", other)
        alone = f"consul://127.0.0.1:{port}"
        with kvi.open(alone, retry=None) as store, pytest.raises(kvi.Unavailable):
            store.get("k")
        with kvi.open(alone, retry=None) as store, pytest.raises(kvi.Unavailable):
            store.store("k", "3")


def test_what_breaks_off(server: ConsulServer) -> None:
    """Whatever it has read, a new connection's reads and writes go on to the next agent."""
    with TcpProxy(1) as nothing, kvi.open(server.uri) as other:
        serves(f"consul://127.0.0.1:{nothing.port},127.0.0.1:{server.port}", other)
        assert nothing.accepted


def test_agent_that_ends_behind_a_gateway(server: ConsulServer) -> None:
    """A write learns of it before it is sent; it goes elsewhere, and so do the next calls."""
    with (
        web(502) as port,
        TcpProxy(server.port) as gateway,
        kvi.open(f"consul://127.0.0.1:{gateway.port},127.0.0.1:{server.port}", timeout=20) as store,
    ):
        store.store("k", "1")
        before = gateway.accepted
        gateway.target = port
        gateway.cut()
        until(lambda: not gateway.open)
        assert store.store("k", "2") > 0
        assert store.get("k").text == "2"  # type: ignore[union-attr]
        assert gateway.accepted == before + 1


def test_page_amid_a_watch(server: ConsulServer) -> None:
    """What a gateway lets nobody see for a while is no word about the token: the watch goes on."""
    with (
        web(403) as port,
        TcpProxy(server.port) as gateway,
        kvi.open(server.uri) as writer,
        kvi.open(f"consul://127.0.0.1:{gateway.port}") as store,
        store.watch("k") as watch,
    ):
        before = gateway.accepted
        gateway.target = port
        gateway.cut()
        until(lambda: gateway.accepted > before)
        writer.store("k", "1")
        gateway.target = server.port
        gateway.cut()
        assert watch.next(30).value == b"1"


def test_one_away_and_one_with_a_bad_certificate(
    server: ConsulServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls wait for the one that is away, and a watch goes on once it is back."""
    for name in ("good", "other"):
        (tmp_path / name).mkdir()
    good, other = (Certificates.make(tmp_path / name) for name in ("good", "other"))
    target = (server.host, server.port)
    with (
        TlsProxy(target, good, mutual=False) as tls,
        TlsProxy(target, other, mutual=False) as bad,
        TcpProxy(tls.port) as away,
        TcpProxy(bad.port) as distrusted,
        kvi.open(server.uri) as writer,
    ):
        hosts = f"127.0.0.1:{away.port},127.0.0.1:{distrusted.port}"
        with kvi.open(f"consul+tls://{hosts}?ca={good.ca}", timeout=20) as store:
            monkeypatch.setattr(watches, "_DOUBT", 0.1)
            with store.watch("k") as watch:
                away.refuse()
                away.cut()
                before = distrusted.accepted
                until(lambda: distrusted.accepted > before + 12)
                with pytest.raises((kvi.Unavailable, kvi.Timeout)):
                    store.get("k", timeout=1)
                writer.store("k", "1")
                threading.Timer(0.5, away.refuse, (False,)).start()
                assert store.store("k", "2") > 0
                until(lambda: watch.next(30).value == b"2")
