"""What of the suite on `kvi.aio` is left to the soak, and what is not run again."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent

# They ask much of a server, and nothing of the face: which of them calls it makes no difference.
OF_THE_STORE = {
    "TestCompares",
    "TestConcurrency",
    "TestHistories",
    "TestKeys",
    "TestModel",
    "TestRevisions",
    "TestValues",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is of the store goes to the soak on servers; `TestAsyncio` is the same on both faces."""
    mine = [item for item in items if item.path.parent == HERE]
    for item in mine:
        group = getattr(item, "cls", None)
        name = "" if group is None else group.__name__
        if name in OF_THE_STORE and item.path.stem in ("test_etcd", "test_consul"):
            item.add_marker(pytest.mark.soak)
        elif name == "TestAsyncio":
            items.remove(item)
