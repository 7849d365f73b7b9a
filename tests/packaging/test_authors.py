"""The way of docs/authors.md, walked: from what docs/backends.md prints to a wheel that works.

The lines of the page's shell blocks run as they stand, in this order, in one folder; only the suite
is asked for fewer rules, and kvi comes from the wheels of this tree.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.test_wheels import ROOT, run

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(toml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
FAULTS = """
import pytest
from kvi.conformance.faults import *
from kvi.conformance.server import Server


class AcmeServer(Server):
    uri = "acme://127.0.0.1:7000"


@pytest.fixture(scope="module")
def kvi_server():
    return AcmeServer()
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The two files that the page prints, and those that are empty or short."""
    folder = tmp_path / "kvi-acme"
    package = folder / "src" / "kvi_acme"
    package.mkdir(parents=True)
    blocks = BLOCK.findall((DOCS / "backends.md").read_text(encoding="utf-8"))
    (folder / "pyproject.toml").write_text(next(text for kind, text in blocks if kind == "toml"))
    (package / "plugin.py").write_text(next(text for kind, text in blocks if kind == "python"))
    for empty in ("__init__.py", "py.typed"):
        (package / empty).touch()
    tests = folder / "tests"
    tests.mkdir()
    (tests / "test_faults.py").write_text(FAULTS)
    return folder


def test_lines(project: Path, tmp_path: Path) -> None:
    """Each line of the page succeeds and the wheel serves the command in a fresh environment."""
    wheels = tmp_path / "wheels"
    for part in ("core", "plugins/memory"):
        run(
            sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels,
            ROOT / part,
        )  # fmt: skip
    bin_ = Path(sys.executable).parent
    env = {
        **os.environ,
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    shown = SHELL.findall((DOCS / "authors.md").read_text(encoding="utf-8"))
    lines = [line.strip() for block in shown for line in block.splitlines()]
    assert len(lines) >= 9
    said = {}
    for line in lines:
        whole = f"{line} --rule get" if "-m kvi.conformance" in line else line
        done = subprocess.run(
            ["sh", "-c", whole], cwd=project, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[line] = done.stdout
    assert "acme" in said[".venv/bin/kvi backends"]
    assert (project / "report.html").exists()
    assert len(list((project / "dist").glob("*.whl"))) == 1
    assert "acme" in run(project / "fresh" / "bin" / "kvi", "backends")
