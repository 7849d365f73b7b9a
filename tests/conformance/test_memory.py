"""The memory store keeps the contract."""

from __future__ import annotations

import pytest
from kvi.conformance import *  # noqa: F403


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> str:
    """A memory store of this test alone."""
    return f"mem:{abs(hash(request.node.nodeid)):x}"
