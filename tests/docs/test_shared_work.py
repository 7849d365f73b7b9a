"""The second program of `make demo`, run small, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "store",
    [
        "sqlite",
        pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
        pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
    ],
)
def test_program(request: pytest.FixtureRequest, store: str, tmp_path: Path) -> None:
    """Locks go on from the killed and the stopped, late writes are refused, a watch misses none."""
    if store == "sqlite":
        uri = "sqlite:" + quote(f"{tmp_path}/a name with spaces.db")
    else:
        uri = request.getfixturevalue(f"{store}_uri")
    figures = tmp_path / "figures.json"
    small = ["--processes", "4", "--target", "10", "--json", str(figures)]
    command = [sys.executable, "-m", "docs.examples.shared_work", "--uri", uri, *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the write it still made was refused" in done.stdout
    assert "WRONG" not in done.stdout
    told = json.loads(figures.read_text())
    assert told["counted"] == 20
    assert set(told["after"]) == {"killed", "stopped"}
