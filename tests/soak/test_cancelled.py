"""Every call of `kvi.aio` on every store, cancelled hundreds of times at random awaits."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from kvi.conformance.cancelling import storm

HITS = int(os.environ.get("KVI_SOAK_HITS", "300"))
SEED = int(os.environ.get("KVI_SOAK_SEED", "1"))
ROUNDS = 5  # a handle each

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def cancel(uri: str) -> None:
    """Cancel the calls of several handles, one after the other."""
    for number in range(ROUNDS):
        asyncio.run(storm(uri, seed=SEED + number, hits=HITS // ROUNDS))


def test_memory() -> None:
    """The memory store, whose calls run in the loop."""
    cancel("mem:soak-cancelled")


def test_sqlite(tmp_path: Path) -> None:
    """A file, which is asked on threads."""
    cancel(f"sqlite:{tmp_path}/store.db")


@pytest.mark.etcd
@pytest.mark.xdist_group("etcd")
def test_etcd(etcd_uri: str) -> None:
    """A real etcd server."""
    cancel(etcd_uri)


@pytest.mark.consul
@pytest.mark.xdist_group("consul")
def test_consul(consul_uri: str) -> None:
    """A real Consul agent."""
    cancel(consul_uri)
