"""`kvi.aio` on the example of a third-party backend; all rows of its tables in `make soak`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from kvi.conformance import *  # noqa: F403
from kvi.conformance.on_loop import opening_on_loop

from tests.conformance.test_directory import plugin

__all__ = ["plugin"]  # the fixture

del TestInterrupts  # type: ignore[name-defined]  # noqa: F821  (of the main thread's calls, and in processes of their own)

pytestmark = pytest.mark.slow


@pytest.fixture
def kvi_uri(tmp_path: Path) -> Iterator[str]:
    """A store of this test alone."""
    with opening_on_loop():
        yield "directory:" + quote(str(tmp_path))
