"""The SQLite store keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvi.conformance import *  # noqa: F403
from kvi.conformance.suite import TestInterrupts as Interrupts


@pytest.mark.slow
class TestInterrupts(Interrupts):
    """As the suite has them; a process for each."""


@pytest.fixture
def kvi_uri(tmp_path: Path) -> str:
    """A file of this test alone."""
    return f"sqlite:{tmp_path}/store.db"
