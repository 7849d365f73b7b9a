"""`--read-only`, on every store: what reads works, and nothing can be written."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable

import kvi
import pytest

from tests.cli.conftest import Command

pytestmark = pytest.mark.slow

Words = list[str]

WRITING: dict[str, Words] = {
    "put": ["put", "k", "w"],
    "del": ["del", "k"],
    "del of a missing key": ["del", "none"],
    "del of a prefix": ["del", "--prefix", ""],
    "del of nothing": ["del", "--start", "b", "--end", "a"],
    "put with a ttl": ["put", "k", "w", "--ttl", "60"],
    "update": ["update", "k", "--", "touch", "ran"],
    "edit": ["edit", "k"],
    "mv": ["mv", "k", "l"],
    "mv of a missing key": ["mv", "none", "l"],
    "cp of a prefix": ["cp", "--prefix", "k", "l"],
    "tas": ["tas", "k", "other", "w"],
    "cas": ["cas", "none", "0", "w"],
    "txn": ["txn", "program"],
    "lock": ["lock", "jobs", "--wait", "0", "--", "touch", "ran"],
    "lease": ["lease", "--", "touch", "ran"],
    "lease revoke": ["lease", "revoke", "1"],
    "temp": ["temp", "t", "w", "--", "touch", "ran"],
    "import": ["import", "export.jsonl"],
    "copy": ["copy", "sqlite:other.db", "TARGET"],
    "mv of a prefix": ["mv", "--prefix", "k", "l", "--force"],
    "put of a file": ["put", "k", "@program"],
    "elect": ["elect", "boss", "--wait", "0", "--", "touch", "ran"],
    "semaphore": ["semaphore", "s", "--limit", "1", "--wait", "0", "--", "touch", "ran"],
    "once": ["once", "o", "--wait", "0", "--", "touch", "ran"],
    "once --reset": ["once", "o", "--reset"],
    "every": ["every", "e", "0.1", "--times", "1", "--", "touch", "ran"],
    "queue put": ["queue", "put", "q", "job"],
    "queue get": ["queue", "get", "q", "--wait", "0", "--", "touch", "ran"],
    "queue get --hold": ["queue", "get", "q", "--wait", "0", "--hold", "60"],
    "queue ack": ["queue", "ack", "q", "7fffffff-000000000001-1"],
    "queue nack": ["queue", "nack", "q", "7fffffff-000000000001-1"],
    "queue retry": ["queue", "retry", "q", "7fffffff-000000000001"],
    "queue discard": ["queue", "discard", "q", "7fffffff-000000000001"],
    "bench": ["bench", "--seconds", "0.01"],
    "conformance": ["conformance", "TARGET", "--erase"],
}


@pytest.fixture
def filled(cli: Command, store: kvi.Kvi) -> Command:
    """The command, on a store with a key, beside files that it can be given."""
    store.store("k", "v")
    with kvi.open(f"sqlite:{cli.folder}/other.db") as other:
        other.store("k", "of the other")
    (cli.folder / "program").write_text("if exists k\nthen get k\nelse put k w\n")
    (cli.folder / "reading").write_text("if exists k\nthen get k\n")
    (cli.folder / "export.jsonl").write_text(
        '{"format": "kvi-export", "version": 1, "store": "x", "prefix": "", "leased": false}\n'
        '{"key": "k", "value": "w"}\n{"end": true, "entries": 1}\n'
    )
    return cli


def test_nothing_is_written(filled: Command, store: kvi.Kvi) -> None:
    """Each command that could write ends with 3, says why in a line, and does nothing."""
    before = store.get("k")
    filled.env["KVI_READ_ONLY"] = "yes"
    filled.env["EDITOR"] = "touch ran"
    for name, words in WRITING.items():
        words = [filled.uri if word == "TARGET" else word for word in words]
        filled(*words, code=3)
        assert "PermissionDenied" in filled.errors, name
        assert "kvi-bench" not in filled.errors.split("[")[0], "nothing is left to be deleted"
        assert not (filled.folder / "ran").exists(), name
    del filled.env["KVI_READ_ONLY"]
    filled("put", "k", "w", "--read-only", code=3)
    filled("--read-only", "put", "k", "w", code=3)
    assert "PermissionDenied: the store was opened with read_only" in filled.errors
    assert list(store.range()) == [before]
    filled("put", "k", "w")


def test_what_reads_works(filled: Command) -> None:
    """Each command that only reads gives what it gives without."""
    filled.env["KVI_READ_ONLY"] = "1"
    assert filled("get", "k") == "v"
    assert filled("get", "none", code=1) == ""
    assert filled("get", "--prefix", "k") == "k\tv\n"
    assert filled("ls") == "k\n"
    assert filled("mv", "k", "l", "--dry-run") == "k\tl\n"
    assert filled("del", "k", "--dry-run") == "1\n"
    assert filled("range", "k") == "k\tv\n"
    assert filled("count") == "1\n"
    assert filled("txn", "reading") == "then\ngot\tk\tv\n"
    assert filled("watch", "k", "--initial", "--limit", "1").split("\t")[2:] == ["k", "v\n"]
    assert json.loads(filled("export", "-").splitlines()[1]) == {"key": "k", "value": "v"}
    assert filled("ping")
    filled("import", "--dry-run", "export.jsonl")
    assert "1 different" in filled("copy", "sqlite:other.db", filled.uri, "--dry-run")


def test_doctor_only_reads(filled: Command, store: kvi.Kvi) -> None:
    """It tries what can be done without writing, and all of that works."""
    steps = [one["step"] for one in filled.lines("doctor", "--read-only")]
    assert steps == ["open", "connect", "read", "list", "watch"]
    assert store.count() == 1


def test_it_wins_over_the_uri(local: Command) -> None:
    """What is typed counts; a URI that says so itself is enough."""
    local("put", "k", "v")
    no, yes = f"{local.uri}?read_only=no", f"{local.uri}?history=50&read_only=yes"
    local("put", "k", "w", "--uri", no, "--read-only", code=3)
    local("put", "k", "w", "--uri", yes, code=3)
    local("bench", "--uri", yes, code=3)
    assert "keys are left" not in local.errors
    local("conformance", yes, "--erase", code=3)
    assert "PermissionDenied" in local.errors
    assert local("get", "k", "--uri", yes, "--read-only") == "v"


@pytest.mark.parametrize(("value", "code"), [("", 0), ("no", 0), ("0", 0), ("on", 3), ("maybe", 2)])
def test_the_variable(local: Command, value: str, code: int) -> None:
    """It is yes or no, and nothing is no."""
    local.env["KVI_READ_ONLY"] = value
    local("put", "k", "v", code=code)
    assert ("KVI_READ_ONLY" in local.errors) == (code == 2)  # the mistake is there


def test_a_command_that_is_run_may_not_write_either(local: Command) -> None:
    """It uses the same store, in the same way."""
    local("put", "k", "v")
    put = shlex.join([sys.executable, "-m", "kvi.cli", "put", "k", "w"])
    local("--read-only", "watch", "--initial", "k", "-n", "1", "--exec", f"{put} || true")
    assert "read_only" in local.errors
    assert local("get", "k") == "v"


def test_nothing_is_made(local: Command) -> None:
    """No folder and no file for a store that is not there, named or one's own."""
    without = {name: value for name, value in local.env.items() if name != "KVI_URI"}
    looks: list[Callable[[], str]] = [
        lambda: local("get", "k", "--read-only", code=3),
        lambda: local("get", "k", "--read-only", code=3, env=without),
        lambda: local("backup", "copy.db", code=3),
        lambda: local("backup", "copy.db", code=3, env=without),
    ]
    for look in looks:
        look()
        assert "does not exist" in local.errors
        assert list(local.folder.iterdir()) == []
