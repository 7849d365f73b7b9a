"""How much of the suite the stores of these tests run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_PART = {
    HERE / "test_directory.py",
    HERE / "test_documented.py",
    HERE / "test_documented_log.py",
    *(HERE / "aio").glob("test_*.py"),
}
"""Of each test one row and one way are run; `make soak` has them all.

What these stores consist of runs all of them elsewhere: on the other face, or below another store.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave rows to the soak; and `TestAsyncio`, the same on both faces, to the other face."""
    items[:] = [item for item in items if not (item.path.parent == HERE / "aio" and _awaits(item))]
    seen = set[str]()
    for item in items:
        if item.path in IN_PART:
            test = item.nodeid.partition("[")[0]
            if test in seen:
                item.add_marker(pytest.mark.soak)
            seen.add(test)


def _awaits(item: pytest.Item) -> bool:
    group = getattr(item, "cls", None)
    return group is not None and group.__name__ == "TestAsyncio"


@pytest.fixture(autouse=True)
def fewer_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the random programs a part, the same each time; wrong stores need all to be caught."""
    if "KVI_CONFORMANCE_EXAMPLES" not in os.environ and "broken" not in request.path.parts:
        monkeypatch.setenv("KVI_CONFORMANCE_EXAMPLES", "0.1" if request.path in IN_PART else "0.2")
