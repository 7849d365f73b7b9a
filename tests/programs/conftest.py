"""Which programs run on which store."""

from __future__ import annotations

from pathlib import Path

import pytest

ALIKE = {f"test_{name}.py" for name in ("locks", "totals", "watchers")}
"""Programs for which a server is a server: with Consul only in `make soak`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the soak what another server shows as well."""
    for item in items:
        mine = item.path.parent == Path(__file__).parent and item.path.name in ALIKE
        if mine and item.get_closest_marker("consul"):
            item.add_marker(pytest.mark.soak)
