"""The program of `make demo`, run small, as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "store",
    [
        "sqlite",
        pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
        pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
    ],
)
def test_program(request: pytest.FixtureRequest, store: str, tmp_path: Path) -> None:
    """It counts and moves without a loss on every store, and says so; only the URI differs."""
    if store == "sqlite":
        uri = "sqlite:" + quote(f"{tmp_path}/a name with spaces.db")
    else:
        uri = request.getfixturevalue(f"{store}_uri")
    small = ["--processes", "2", "--increments", "20", "--transfers", "10"]
    command = [sys.executable, "-m", "docs.examples.shared_settings", "--uri", uri, *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hits: 40 in the store, 2 processes × 20 wanted" in done.stdout
    assert "WRONG" not in done.stdout
