"""The etcd store keeps the contract, on a real server."""

from __future__ import annotations

import pytest
from kvi.conformance import *  # noqa: F403

pytestmark = [pytest.mark.etcd, pytest.mark.xdist_group("etcd")]


@pytest.fixture
def kvi_uri(etcd_uri: str) -> str:
    """The run's etcd, which the tests of this group have for themselves, one after another."""
    return etcd_uri
