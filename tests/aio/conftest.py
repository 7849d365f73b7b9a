"""Stores for the tests of `kvi.aio`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.uris import uri

__all__ = ["sqlite_uri", "ttl", "uri"]


@pytest.fixture
def ttl(uri: str) -> float:
    """A short ttl, as the store takes it."""
    return {"etcd": 2.0, "consul": 10.0}.get(uri.partition(":")[0], 1.0)


@pytest.fixture
def sqlite_uri(tmp_path: Path) -> str:
    """A file, which is asked on threads."""
    return f"sqlite:{tmp_path}/store.db"
