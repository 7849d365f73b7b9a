"""`kvi.aio` on the etcd store keeps the contract; for `make soak`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import *  # noqa: F403
from kvi.conformance.on_loop import opening_on_loop

del TestInterrupts  # type: ignore[name-defined]  # noqa: F821  (of the main thread's calls, and in processes of their own)

pytestmark = [pytest.mark.soak, pytest.mark.etcd, pytest.mark.xdist_group("etcd")]


@pytest.fixture
def kvi_uri(etcd_uri: str) -> Iterator[str]:
    """The store of the run."""
    with opening_on_loop():
        yield etcd_uri
