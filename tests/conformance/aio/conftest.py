"""What of the suite on `kvi.aio` is not run again, or in part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_PART = {HERE / f"test_{name}.py" for name in ("etcd", "consul", "directory")}
"""Of each test one row and one way are run; the other face has them all, and so has `make soak`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`TestAsyncio` is the same on both faces, and runs on the other."""
    items[:] = [item for item in items if not (item.path.parent == HERE and _is_of_both(item))]
    seen = set[str]()
    for item in items:
        if item.path in IN_PART:
            test = item.nodeid.partition("[")[0]
            if test in seen:
                item.add_marker(pytest.mark.soak)
            seen.add(test)


def _is_of_both(item: pytest.Item) -> bool:
    group = getattr(item, "cls", None)
    return group is not None and group.__name__ == "TestAsyncio"


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the random programs a quarter: on the other face all of them run."""
    if "KVI_CONFORMANCE_EXAMPLES" not in os.environ:
        monkeypatch.setenv("KVI_CONFORMANCE_EXAMPLES", "0.25")
