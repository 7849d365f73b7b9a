"""Stores in files of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kvi
import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store of the test is, or will be."""
    return tmp_path / "store.db"


@pytest.fixture
def uri(path: Path) -> str:
    """The URI of the test's store."""
    return f"sqlite:{path}"


@pytest.fixture
def store(uri: str) -> Iterator[kvi.Kvi]:
    """An open handle on the test's store."""
    with kvi.open(uri) as handle:
        yield handle
