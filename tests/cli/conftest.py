"""The command `kvi` as a process, on a part of each store of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kvi
import pytest


class Command:
    """Runs `kvi` with the store of a test."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self.folder = folder
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KVI_")},
            "KVI_URI": uri,
            "XDG_DATA_HOME": str(folder / "data"),
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def __call__(
        self,
        *words: str,
        code: int = 0,
        given: str | bytes = b"",
        env: dict[str, str] | None = None,
    ) -> str:
        """Run it to its end; its output. What it says of errors is in ``.errors``."""
        done = subprocess.run(
            [sys.executable, "-m", "kvi.cli", *words],
            input=given.encode() if isinstance(given, str) else given,
            capture_output=True,
            env=self.env if env is None else env,
            cwd=self.folder,
            timeout=120,
            check=False,
            start_new_session=True,
        )
        self.raw = done.stdout
        self.errors = done.stderr.decode()
        output = done.stdout.decode(errors="surrogateescape")
        assert done.returncode == code, f"{words}: {done.returncode}\n{output}{self.errors}"
        assert "Traceback" not in self.errors
        return output

    def json(self, *words: str, **options: Any) -> Any:
        """Run it with ``--json``; what its only line says."""
        (line,) = self.lines(*words, **options)
        return line

    def lines(self, *words: str, **options: Any) -> list[Any]:
        """Run it with ``--json``; what its lines say."""
        output = self(words[0], "--json", *words[1:], **options)
        return [json.loads(line) for line in output.splitlines()]

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start it, without a terminal wherever the tests have one."""
        return subprocess.Popen(
            [sys.executable, "-m", "kvi.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            cwd=self.folder,
            start_new_session=True,
            **options,
        )


STORES = [
    "sqlite",
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
    pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
]


ALIKE = {
    "test_bytes",
    "test_conformance",
    "test_copy",
    "test_dry_run_writes_nothing",
    "test_export_and_import",
    "test_nothing_is_written",
    "test_one_word_means_the_same_keys",
    "test_parts_of_one_store_that_are_apart",
    "test_pipe_into_put_copies",
    "test_ranges_and_levels",
    "test_script",
    "test_single_keys",
    "test_source_is_only_read",
    "test_transactions",
    "test_what_reads_works",
}
"""What the command itself does, whatever the store: with servers in `make soak`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the soak what SQLite shows as well."""
    for item in items:
        mine = item.path.parent == Path(__file__).parent
        alike = mine and getattr(item, "originalname", None) in ALIKE
        if alike and (item.get_closest_marker("etcd") or item.get_closest_marker("consul")):
            item.add_marker(pytest.mark.soak)


@pytest.fixture(params=STORES)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A shared store of this test's own."""
    if request.param == "sqlite":
        return "sqlite:" + quote(f"{tmp_path}/a store.db")
    server: str = request.getfixturevalue(f"{request.param}_uri")
    return f"{server}/cli-{secrets.token_hex(6)}"


@pytest.fixture
def cli(uri: str, tmp_path: Path) -> Command:
    """The command on that store."""
    return Command(uri, tmp_path)


@pytest.fixture
def store(uri: str) -> Iterator[kvi.Kvi]:
    """The same store, to look at what the command did."""
    with kvi.open(uri, timeout=20) as store:
        yield store


@pytest.fixture
def local(tmp_path: Path) -> Command:
    """The command on an SQLite file, where the store does not matter."""
    return Command("sqlite:" + quote(f"{tmp_path}/local.db"), tmp_path)
