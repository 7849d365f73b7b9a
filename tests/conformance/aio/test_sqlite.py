"""`kvi.aio` on the SQLite store keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kvi.conformance import *  # noqa: F403
from kvi.conformance.on_loop import opening_on_loop

del TestInterrupts  # type: ignore[name-defined]  # noqa: F821  (of the main thread's calls, and in processes of their own)

pytestmark = pytest.mark.slow


@pytest.fixture
def kvi_uri(tmp_path: Path) -> Iterator[str]:
    """A file of this test alone."""
    with opening_on_loop():
        yield f"sqlite:{tmp_path}/store.db"
