"""The etcd store keeps the contract as a `Backend` too; for `make soak`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import *  # noqa: F403

from tests.support.wrapped import opening_backends

pytestmark = [pytest.mark.soak, pytest.mark.etcd, pytest.mark.xdist_group("etcd")]


@pytest.fixture
def kvi_uri(etcd_uri: str) -> Iterator[str]:
    """The store, opened as a backend."""
    with opening_backends():
        yield etcd_uri
