"""What of the suite on `kvi.aio` is not run again, or in part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`TestAsyncio` is the same on both faces, and runs on the other."""
    for item in [one for one in items if one.path.parent == HERE]:
        group = getattr(item, "cls", None)
        if group is not None and group.__name__ == "TestAsyncio":
            items.remove(item)


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the random programs a quarter: on the other face all of them run."""
    if "KVI_CONFORMANCE_EXAMPLES" not in os.environ:
        monkeypatch.setenv("KVI_CONFORMANCE_EXAMPLES", "0.25")
