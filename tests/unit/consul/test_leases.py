"""Which sessions are leases, and what an agent says of those that a token may not see."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import kvi
import pytest
from kvi.model import LeaseInfo, Span
from kvi_consul import sessions, wire

from tests.support.inside import inmost

ONE, OTHER = (f"dc36ce9f-e620-f930-af49-31031{number}d1c24c" for number in (1, 2))


def test_sessions_with_a_ttl_are_leases() -> None:
    """Whatever their behavior is; a session without a TTL ends by other means."""
    body = json.dumps(
        [
            {"ID": ONE, "TTL": "1m0s", "Behavior": "release", "LockDelay": 15_000_000_000},
            {"ID": OTHER, "TTL": "", "Behavior": "delete"},
            {"ID": OTHER, "Behavior": "delete"},
        ]
    ).encode()
    assert sessions.decode_sessions(body) == [LeaseInfo(wire.lease_of(ONE), 60, None, None)]
    assert sessions.decode_sessions(b"[]") == []


@contextmanager
def agent(body: object, headers: dict[str, str]) -> Iterator[str]:
    """The URI of an agent that gives this answer to any question."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = json.dumps(body).encode()
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(told))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"consul://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


@pytest.mark.parametrize("ids", [None, (1,)])
def test_sessions_that_the_token_may_not_see(ids: tuple[int, ...] | None) -> None:
    """An agent that left some out says so, and then nobody is told that there are none."""
    with (
        agent([], {"X-Consul-Results-Filtered-By-ACLs": "true"}) as uri,
        kvi.open(uri) as store,
        pytest.raises(kvi.PermissionDenied),
    ):
        inmost(store)._leases(ids, Span(), 5)
    with agent([], {}) as uri, kvi.open(uri) as store:
        assert inmost(store)._leases(ids, Span(), 5) == []


@pytest.mark.parametrize("body", [{}, {"a": 1}, [1], [{"TTL": "10s"}], [{"ID": 1, "TTL": "10s"}]])
def test_what_is_no_list_of_sessions(body: object) -> None:
    """Something else listens there."""
    with (
        agent(body, {}) as uri,
        kvi.open(uri) as store,
        pytest.raises(kvi.Unavailable, match="not Consul's"),
    ):
        inmost(store)._leases(None, None, 5)
