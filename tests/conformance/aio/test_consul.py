"""`kvi.aio` on the Consul store keeps the contract; all rows of its tables in `make soak`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import *  # noqa: F403
from kvi.conformance.on_loop import opening_on_loop

from tests.servers import ConsulServer

del TestInterrupts  # type: ignore[name-defined]  # noqa: F821  (of the main thread's calls, and in processes of their own)

pytestmark = [pytest.mark.slow, pytest.mark.consul, pytest.mark.xdist_group("consul-aio")]


@pytest.fixture(scope="module")
def server() -> Iterator[ConsulServer]:
    """The server, which the other tests of the run do not wait for."""
    with ConsulServer() as running:
        yield running


@pytest.fixture
def kvi_uri(server: ConsulServer) -> Iterator[str]:
    """The store of the run."""
    with opening_on_loop():
        yield server.uri
