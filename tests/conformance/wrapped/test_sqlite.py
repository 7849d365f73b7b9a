"""The SQLite store keeps the contract as a `Backend` too; for `make soak`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kvi.conformance import *  # noqa: F403

from tests.support.wrapped import opening_backends

pytestmark = pytest.mark.soak


@pytest.fixture
def kvi_uri(tmp_path: Path) -> Iterator[str]:
    """The store, opened as a backend."""
    with opening_backends():
        yield f"sqlite:{tmp_path}/store.db"
