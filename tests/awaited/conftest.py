"""Tests of calls that are awaited over `grpc.aio`: in a process of their own, which never forks.

Beside gRPC's poller a fork ends the child now and then, and the process of a test run forks in
other tests. So nothing here is collected but by `tests/faults/test_etcd_awaited.py`, which runs
pytest on this folder.
"""

from __future__ import annotations

import os

import pytest

collect_ignore_glob = [] if os.environ.get("KVI_TEST_AWAITED") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what forks."""
    items[:] = [item for item in items if "fork" not in item.name]
