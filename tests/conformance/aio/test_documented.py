"""The backend that docs/backends.md prints, with the asyncio form it shows, keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from kvi.conformance import TestHandles, TestLeases, TestLocks, TestRange, TestStore
from kvi.conformance.on_loop import opening_on_loop

from tests.conformance.test_documented import installed

__all__ = ["TestHandles", "TestLeases", "TestLocks", "TestRange", "TestStore"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin with both forms."""
    with installed(tmp_path_factory.mktemp("site"), 2):
        yield


@pytest.fixture
def kvi_uri(tmp_path: Path) -> Iterator[str]:
    """A store of this test alone."""
    with opening_on_loop():
        yield "acme:" + quote(str(tmp_path))
