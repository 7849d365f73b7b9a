"""The SQLite store keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvi.conformance import *  # noqa: F403


@pytest.fixture
def kvi_uri(tmp_path: Path) -> str:
    """A file of this test alone."""
    return f"sqlite:{tmp_path}/store.db"
