"""`get --revision`, `range --revision` and `history`: on every store, refused where it cannot."""

from __future__ import annotations

import sys

import kvi
import pytest

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal

pytestmark = pytest.mark.slow


def test_past(cli: Command, store: kvi.Kvi) -> None:
    """What was is printed as it was, exactly; what was not there ends with 1."""
    if not store.capabilities.read_at_revision:
        for words in (("get", "k"), ("range",)):
            cli(*words, "--revision", "1", code=2)
            assert "NotSupported" in cli.errors
        return
    first = store.store("k", bytes(range(256)))
    store.store("other", "o")
    last = store.store("k", "now")
    cli("get", "k", "--revision", str(first))
    assert cli.raw == bytes(range(256))
    told = cli.json("get", "k", "--revision", str(last - 1))
    assert (told["revision"], told["version"]) == (first, 1)
    assert cli("get", "k", "--revision", str(last)) == "now"
    assert cli("get", "k", "--revision", "0", code=1) == ""
    store.delete("k")
    assert cli("range", "--revision", str(last)) == "k\tnow\nother\to\n"
    assert cli("range", "k", "--revision", str(last)) == "k\tnow\n"
    assert cli("range", "--revision", "0", code=1) == ""


def test_no_such_past(cli: Command, store: kvi.Kvi) -> None:
    """A revision to come, and what is none, are wrong input."""
    store.store("k", "v")
    cli("get", "k", "--revision", "99999999", code=2)
    assert "Traceback" not in cli.errors
    for word in ("-1", "x", "1.5"):
        cli("get", "k", "--revision", word, code=2)
        assert "--revision" in cli.errors


def test_history(cli: Command, store: kvi.Kvi) -> None:
    """A line for each change, newest first; in JSON as those of `watch`."""
    if not store.capabilities.watch_history:
        cli("history", "k", code=2)
        assert "NotSupported" in cli.errors
        return
    first = store.store("k", "1")
    second = store.store("k", b"\xff\n")
    store.delete("k")
    last = store.store("k", "")
    deleted = store.history("k")[1].revision
    assert cli("history", "k") == (
        f"PUT\t{last}\t\nDELETE\t{deleted}\nPUT\t{second}\t\\xff\\n\nPUT\t{first}\t1\n"
    )
    assert cli("history", "k", "--as", "hex", "-n", "3").splitlines()[2] == f"PUT\t{second}\tff0a"
    assert cli.lines("history", "k") == [
        {"type": "PUT", "key": "k", "value": "", "revision": last},
        {"type": "DELETE", "key": "k", "revision": deleted},
        {"type": "PUT", "key": "k", "value_base64": "/wo=", "revision": second},
        {"type": "PUT", "key": "k", "value": "1", "revision": first},
    ]
    assert cli("history", "k", "--limit", "0", code=1) == ""
    assert cli("history", "never", code=1) == ""
    cli("history", "", code=2)
    assert "InvalidKey" in cli.errors


def test_history_on_a_terminal(local: Command) -> None:
    """There it is a table, and no value steers it."""
    with kvi.open(local.uri) as store:
        store.store("k", "\x1b[31mred")
    words = (sys.executable, "-m", "kvi.cli", "history", "k")
    with OnTerminal(local.env, local.folder, *words) as terminal:
        shown = terminal.end()
        assert terminal.process.returncode == 0
    assert b"revision" in shown
    assert b"\\x1b[31mred" in shown
