"""The memory store keeps the contract as a `Backend` too; for `make soak`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import *  # noqa: F403

from tests.support.wrapped import opening_backends

pytestmark = pytest.mark.soak


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A memory store of this test alone, opened as a backend."""
    with opening_backends():
        yield f"mem:wrapped-{abs(hash(request.node.nodeid)):x}"
