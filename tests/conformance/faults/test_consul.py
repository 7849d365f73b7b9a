"""The Consul store keeps the contract while its server is killed, stopped, paused and cut off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance.faults import *  # noqa: F403
from kvi.conformance.proxy import ProxiedProcess
from kvi.conformance.server import Server

from tests.servers import ConsulServer

pytestmark = [
    pytest.mark.consul,
    pytest.mark.slow,
    pytest.mark.xdist_group("consul-suite-faults"),
]


@pytest.fixture(scope="module")
def kvi_server() -> Iterator[Server]:
    """A server of these tests alone, behind a proxy."""
    with ProxiedProcess(ConsulServer()) as server:
        yield server
