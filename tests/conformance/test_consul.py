"""The Consul store keeps the contract, on a real server."""

from __future__ import annotations

import pytest
from kvi.conformance import *  # noqa: F403

pytestmark = [pytest.mark.consul, pytest.mark.xdist_group("consul")]


@pytest.fixture
def kvi_uri(consul_uri: str) -> str:
    """The run's Consul, which the tests of this group have for themselves, one after another."""
    return consul_uri
