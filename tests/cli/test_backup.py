"""`kvi backup`: a copy of a SQLite store that others use meanwhile."""

from __future__ import annotations

import subprocess
import sys

import kvi
import pytest

from tests.cli.conftest import Command
from tests.support.waiting import until

pytestmark = pytest.mark.slow

WRITER = """
import itertools, sys, kvi
with kvi.open(sys.argv[1]) as store:
    for number in itertools.count():
        store.txn(then=[kvi.Put(key, str(number)) for key in "ab"])
"""


def test_copy_while_others_write(local: Command) -> None:
    """Each copy is of one moment and a store; what was written before is in it."""
    with subprocess.Popen([sys.executable, "-c", WRITER, local.uri], env=local.env) as writer:
        try:
            until(lambda: local("count") == "2\n")
            last = -1
            for number in range(5):
                before = int(local("get", "a"))
                local("backup", f"copy{number}.db")
                with kvi.open(f"sqlite:{local.folder}/copy{number}.db") as copy:
                    values = {entry.value for entry in copy.range()}
                assert len(values) == 1, "half a transaction"
                (value,) = values
                assert value is not None
                assert int(value) >= before > last
                last = before
            assert writer.poll() is None, "it was held up"
        finally:
            writer.kill()
    assert not list(local.folder.glob(".*.part"))


def test_an_existing_file_is_kept(local: Command) -> None:
    """It is replaced with --force only, once the copy is whole."""
    local("put", "k", "v")
    found = local.json("backup", "copy.db")
    copy = local.folder / "copy.db"
    assert found == {"file": "copy.db", "bytes": copy.stat().st_size}
    copy.write_text("something else")
    local("backup", "copy.db", code=2)
    assert "copy.db exists: choose another name, or --force" in local.errors
    local("backup", "--force", "copy.db", "--uri", "sqlite:missing.db", code=3)
    assert copy.read_text() == "something else"
    local("backup", "--force", "copy.db")
    assert local("get", "k", "--uri", "sqlite:copy.db") == "v"


def test_a_store_in_use_is_never_replaced(local: Command) -> None:
    """Neither the store itself nor another one that is open, by whatever name."""
    local("put", "k", "v")
    (local.folder / "link.db").symlink_to("local.db")
    for name in ("local.db", "link.db"):
        local("backup", "--force", name, code=2)
        assert "is the store itself" in local.errors
    with kvi.open(f"sqlite:{local.folder}/other.db") as other:
        other.store("k", "of the other")
        local("backup", "--force", "other.db", code=2)
        assert "other.db-wal is there" in local.errors
        assert other.get("k").value == b"of the other"  # type: ignore[union-attr]
    local("backup", "--force", "other.db")
    assert local("get", "k", "--uri", "sqlite:other.db") == "v"


def test_other_stores_are_refused(cli: Command) -> None:
    """They are no files; the message says what does it for them."""
    uri = "mem:" if cli.uri.startswith("sqlite") else cli.uri
    cli("backup", "copy.db", "--uri", uri, code=2)
    assert "NotSupported" in cli.errors
    assert "kvi export" in cli.errors
    assert not (cli.folder / "copy.db").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["copy.db", "--namespace", "a"], "whole store"),
        (["copy.db", "--timeout", "3"], "whole store"),
        (["copy.db", "--uri", "sqlite:local.db?namespace=a"], "whole store"),
        (["-"], "kvi export"),
        (["no/such/copy.db"], "directory"),
        ([".", "--force"], "is no file"),
        ([], "Missing argument 'FILE'"),
    ],
    ids=str,
)
def test_mistakes(local: Command, words: list[str], told: str) -> None:
    """Each says what is wrong; nothing is written."""
    local("put", "k", "v")
    before = sorted(local.folder.iterdir())
    local("backup", *words, code=2)
    assert told in local.errors
    assert sorted(local.folder.iterdir()) == before


def test_a_backup_of_what_may_only_be_read(local: Command) -> None:
    """With --read-only it works as ever: the store is only read."""
    local("put", "k", "v")
    local("backup", "copy.db", "--read-only")
    assert local("get", "k", "--uri", "sqlite:copy.db", "--read-only") == "v"
