"""The etcd store keeps the contract, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import *  # noqa: F403

from tests.servers import EtcdServer

pytestmark = [pytest.mark.etcd, pytest.mark.xdist_group("etcd-suite")]


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    """A server of its own: the suite deletes all that is in its store."""
    with EtcdServer() as running:
        yield running


@pytest.fixture
def kvi_uri(server: EtcdServer) -> str:
    """The store, which the tests of this group have one after another."""
    return server.uri
