"""Fixtures that the whole test tree shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

SOAK = ("soak", "conformance/wrapped")
"""Folders in which all tests are of `make soak`."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not read thousands of tests of `make soak` in a run without them."""
    here = Path(__file__).parent
    soak = [here / part for part in SOAK]
    if config.option.markexpr == "not soak" and collection_path in soak:
        return True
    return None


def pytest_collection_finish() -> None:
    """Spare the collector of garbage the tests: they are many, and stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fail if tests that share a server would run side by side: one empties it under the other."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            raise pytest.UsageError("pytest-xdist does not keep its groups with this pytest")


def _server(variable: str, name: str) -> str:
    uri = os.environ.get(variable)
    if not uri:
        pytest.fail(
            f"no {name} for this test: {variable} is not set; "
            "run through: python -m tests.servers -- pytest …",
            pytrace=False,
        )
    return uri


@pytest.fixture(scope="session")
def etcd_uri() -> str:
    """The URI of the run's real etcd; a run without one fails."""
    return _server("KVI_TEST_ETCD", "etcd server")


@pytest.fixture(scope="session")
def consul_uri() -> str:
    """The URI of the run's real Consul; a run without one fails."""
    return _server("KVI_TEST_CONSUL", "Consul server")
