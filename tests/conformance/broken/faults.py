"""The suite of faults for stores behind `tests.conformance.broken.servers.Network`."""

from __future__ import annotations

import pytest
from kvi.conformance.faults import *  # noqa: F403
from kvi.conformance.server import Server

from tests.conformance.broken.servers import Network


@pytest.fixture(scope="module")
def kvi_server(request: pytest.FixtureRequest) -> Server:
    """The network of the store of the command line."""
    return Network(request.config.getoption("--kvi-uri"))
