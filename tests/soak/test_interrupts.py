"""Every call on every store, interrupted hundreds of times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kvi.conformance.interrupts.operations import OPERATIONS

HITS = int(os.environ.get("KVI_SOAK_HITS", "300"))
SEED = os.environ.get("KVI_SOAK_SEED", "1")
ENDS = 1800

pytestmark = [pytest.mark.soak, pytest.mark.timeout(ENDS + 60)]


def interrupt(uri: str, operation: str) -> None:
    """Interrupt the operation; fails with what it says, and the stacks of its threads."""
    options = ["--operation", operation, "--seed", SEED, "--hits", str(HITS)]
    command = [sys.executable, "-m", "kvi.conformance.interrupts", uri, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("operation", OPERATIONS)
def test_memory(operation: str) -> None:
    """The memory store, whose calls run where the signal comes."""
    interrupt("mem:", operation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_sqlite(operation: str, tmp_path: Path) -> None:
    """A file of this test alone."""
    interrupt(f"sqlite:{tmp_path}/store.db", operation)


@pytest.mark.etcd
@pytest.mark.xdist_group("etcd")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_etcd(operation: str, etcd_uri: str) -> None:
    """A real etcd server."""
    interrupt(etcd_uri, operation)


@pytest.mark.consul
@pytest.mark.xdist_group("consul")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_consul(operation: str, consul_uri: str) -> None:
    """A real Consul agent."""
    interrupt(consul_uri, operation)
