"""The command `kvi` as a process, on a part of each store of its own.

A memory store is its process's own. So there, and where it makes no difference, the command runs
within the test's process, with streams, variables and a folder of its own; what it starts are
processes.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kvi
import pytest
from kvi.cli import app

if hasattr(signal, "SIGQUIT"):  # what a shell has in the background ignores it, and so would all
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


class Started(subprocess.Popen[str]):
    """A process whose block does not wait for it once something has failed in there."""

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


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
            "TMPDIR": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def __call__(
        self,
        *words: str,
        code: int | None = 0,
        given: str | bytes = b"",
        env: dict[str, str] | None = None,
    ) -> str:
        """Run it to its end, which has this code, or any; its output.

        What it says of errors is in ``.errors``.
        """
        data = given.encode() if isinstance(given, str) else given
        self.code, self.raw, errors = self._run(words, data, self.env if env is None else env)
        self.errors = errors.decode()
        output = self.raw.decode(errors="surrogateescape")
        assert code in {None, self.code}, f"{words}: {self.code}\n{output}{self.errors}"
        assert "Traceback" not in self.errors
        return output

    def _run(
        self, words: Sequence[str], given: bytes, env: dict[str, str]
    ) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "kvi.cli", *words],
            input=given,
            capture_output=True,
            env=env,
            cwd=self.folder,
            timeout=120,
            check=False,
            start_new_session=True,
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str, **options: Any) -> Any:
        """Run it with ``--json``; what its only line says."""
        (line,) = self.lines(*words, **options)
        return line

    def lines(self, *words: str, **options: Any) -> list[Any]:
        """Run it with ``--json``; what its lines say."""
        output = self(words[0], "--json", *words[1:], **options)
        return [json.loads(line) for line in output.splitlines()]

    def start(self, *words: str, **options: Any) -> Started:
        """Start it, without a terminal wherever the tests have one."""
        return Started(
            [sys.executable, "-m", "kvi.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            cwd=self.folder,
            start_new_session=True,
            **options,
        )


class Inside(Command):
    """Runs `kvi` in this process."""

    def _run(
        self, words: Sequence[str], given: bytes, env: dict[str, str]
    ) -> tuple[int, bytes, bytes]:
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(given)
            files[0].seek(0)
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name in os.environ.keys() - env.keys():
                patch.delenv(name)
            for name, value in env.items():
                patch.setenv(name, value)
            stack.enter_context(chdir(self.folder))
            stack.enter_context(_handlers())
            for fd, name in enumerate(("stdin", "stdout", "stderr")):
                stack.enter_context(_replaced(fd, files[fd].fileno()))
                stream = stack.enter_context(open(fd, "r" if fd == 0 else "w", closefd=False))
                patch.setattr(sys, name, stream)
            code = app.run(list(words))
            sys.stdout.flush()
            sys.stderr.flush()
            for file in files[1:]:
                file.seek(0)
            return code, files[1].read(), files[2].read()

    def start(self, *words: str, **options: Any) -> Started:
        """Nothing is started: a memory store is this process's own."""
        raise NotImplementedError


@contextmanager
def _replaced(fd: int, other: int) -> Iterator[None]:
    """For the block, this descriptor is another file's."""
    before = os.dup(fd)
    os.dup2(other, fd)
    try:
        yield
    finally:
        os.dup2(before, fd)
        os.close(before)


@contextmanager
def _handlers() -> Iterator[None]:
    """What the command does with signals ends with it."""
    numbers = (*app.ENDING, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


STORES = [
    "memory",
    "sqlite",
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
    pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
]


ALIKE = {
    "test_bytes",
    "test_conformance",
    "test_copy",
    "test_dry_run_writes_nothing",
    "test_exact_to_the_byte",
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
    "test_words_that_are_odd",
}
"""What the command itself does, whatever the store: with servers in `make soak`."""


WITHIN = {
    "test_bytes",
    "test_codes_are_told_apart",
    "test_edit",
    "test_exact_to_the_byte",
    "test_export_and_import",
    "test_history",
    "test_job_that_is_held",
    "test_job_that_is_held_too_long",
    "test_leases",
    "test_leases_are_only_read",
    "test_leases_in_a_namespace",
    "test_locks",
    "test_no_such_past",
    "test_no_time",
    "test_nothing_is_written",
    "test_once",
    "test_one_word_means_the_same_keys",
    "test_past",
    "test_pipe_into_put_copies",
    "test_put_a_file",
    "test_put_with_a_ttl",
    "test_queue",
    "test_ranges_and_levels",
    "test_rename",
    "test_rename_a_tree",
    "test_rename_a_tree_with_leases",
    "test_rename_many",
    "test_rename_meets_others",
    "test_revoke",
    "test_revoke_many_in_a_script",
    "test_revoking_a_lock",
    "test_semaphore",
    "test_single_keys",
    "test_transactions",
    "test_update",
    "test_update_that_fails",
    "test_what_reads_works",
    "test_who_waits",
    "test_words_that_are_odd",
}
"""What one process does after another, so that it may be done within one.

A memory store can only be a part of it so. It spares Consul, and SQLite unless it stands for all
stores, a Python for each command; on etcd, with threads that are not Python's, each has its own.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the soak what SQLite shows as well, and to stores that are shared what needs it."""
    items[:] = [item for item in items if not _needs_a_shared_store(item)]
    for item in items:
        mine = item.path.parent == Path(__file__).parent
        alike = mine and getattr(item, "originalname", None) in ALIKE
        if alike and (item.get_closest_marker("etcd") or item.get_closest_marker("consul")):
            item.add_marker(pytest.mark.soak)


def _needs_a_shared_store(item: pytest.Item) -> bool:
    spec = getattr(item, "callspec", None)
    if spec is None or item.path.parent != Path(__file__).parent:
        return False
    return spec.params.get("uri") == "memory" and getattr(item, "originalname", "") not in WITHIN


@pytest.fixture(params=STORES)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of this test's own."""
    if request.param == "memory":
        return f"mem:{secrets.token_hex(6)}"
    if request.param == "sqlite":
        return "sqlite:" + quote(f"{tmp_path}/a store.db")
    server: str = request.getfixturevalue(f"{request.param}_uri")
    return f"{server}/cli-{secrets.token_hex(6)}"


@pytest.fixture
def cli(request: pytest.FixtureRequest, uri: str, tmp_path: Path) -> Command:
    """The command on that store."""
    scheme, name = uri.partition(":")[0], getattr(request.node, "originalname", "")
    spared = scheme == "consul" or (scheme == "sqlite" and name not in ALIKE)
    inside = scheme == "mem" or (spared and name in WITHIN)
    return (Inside if inside else Command)(uri, tmp_path)


@pytest.fixture
def store(uri: str) -> Iterator[kvi.Kvi]:
    """The same store, to look at what the command did."""
    with kvi.open(uri, timeout=20) as store:
        yield store


@pytest.fixture
def local(tmp_path: Path) -> Command:
    """The command on an SQLite file, where the store does not matter."""
    return Command("sqlite:" + quote(f"{tmp_path}/local.db"), tmp_path)
