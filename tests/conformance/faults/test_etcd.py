"""The etcd store keeps the contract while its server is killed, stopped, paused and cut off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance.faults import *  # noqa: F403
from kvi.conformance.server import Server

from tests.servers import EtcdServer
from tests.support.faulty_servers import ProxiedEtcd

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.slow,
    pytest.mark.xdist_group("etcd-suite-faults"),
]


# A node that is alone need not wait long for others before it elects itself.
HASTE = ["--heartbeat-interval=20", "--election-timeout=200"]


@pytest.fixture(scope="module")
def kvi_server() -> Iterator[Server]:
    """A server of these tests alone, behind a proxy."""
    with ProxiedEtcd(EtcdServer(fast=True, extra_args=HASTE)) as server:
        yield server
