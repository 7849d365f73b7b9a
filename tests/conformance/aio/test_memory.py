"""`kvi.aio` on the memory store keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import *  # noqa: F403
from kvi.conformance.on_loop import opening_on_loop

del TestInterrupts  # type: ignore[name-defined]  # noqa: F821  (of the main thread's calls, and in processes of their own)


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A memory store of this test alone."""
    with opening_on_loop():
        yield f"mem:aio-{abs(hash(request.node.nodeid)):x}"
