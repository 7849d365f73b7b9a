"""The memory store keeps what of the contract under faults can concern it."""

from __future__ import annotations

import pytest
from kvi.conformance.faults import *  # noqa: F403
from kvi.conformance.server import Server

from tests.support.faulty_servers import MemoryStore


@pytest.fixture(scope="module")
def kvi_server() -> Server:
    """A store of these tests alone."""
    return MemoryStore()
