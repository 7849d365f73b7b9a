"""Whatever a store, a server or a file says reaches a terminal as text, and a pipe as it is."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import kvi
import pytest

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal

pytestmark = pytest.mark.slow

EVIL = "\x1b]0;pwn\x07\x9b31m\x7f\u202e"
RAW = [piece.encode() for piece in ("\x1b]", "\x07", "\x9b", "\x7f", "\u202e")]


def shown(local: Command, *words: str, code: int = 0, program: str = "kvi.cli") -> bytes:
    """What it shows on a terminal, output and errors; nothing of it steers the terminal."""
    line = [sys.executable, "-m", program, *words]
    with OnTerminal({**local.env, "NO_COLOR": "1"}, local.folder, *line) as terminal:
        seen = terminal.end()
        assert terminal.process.returncode == code, seen
    assert not [piece for piece in RAW if piece in seen], seen
    return seen


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_what_is_stored(local: Command, form: list[str]) -> None:
    """Keys and values, by each command that shows them, as text and as JSON."""
    key = f"{EVIL}/x"
    with kvi.open(local.uri) as store:
        store.store(key, f"{EVIL}\nnext\ttab")
    told = b"\\u001b]0;pwn\\u0007\\u009b31m\\u007f\\u202e" if form else b"\\x1b]0;pwn\\x07"
    commands: list[tuple[list[str], int]] = [
        (["ls"], 0), (["ls", "-r"], 0), (["range"], 0), (["range", "--keys-only"], 0),
        (["get", key], 0), (["get", "--prefix", ""], 0),
        (["watch", "--prefix", "", "--initial", "-n", "1"], 0),
    ]  # fmt: skip
    for words, code in commands:
        assert told in shown(local, *words, *form, code=code), words
    (local.folder / "txn").write_text(f"then get '{key}'")
    assert told in shown(local, "txn", "txn", *form)
    assert b"\\u001b]0;pwn\\u0007\\u009b31m\\u007f\\u202e" in shown(local, "export", "-")
    if not form:
        assert b"\r\nnext\ttab\r\n" in shown(local, "get", key)
        assert b"there" in shown(local, "get", f"{key}!", code=1)
        with kvi.open(local.uri) as store, store.lock(EVIL):
            words = ["lock", EVIL, "--wait", "0", "--", "true"]
            assert b"somebody else holds the lock" in shown(local, *words, code=75)


def test_what_is_stored_in_a_pipe(local: Command) -> None:
    """Exactly the value; JSON says exactly the same."""
    value = f"{EVIL}\r\n".encode() + b"\xff\0"
    with kvi.open(local.uri) as store:
        store.store("a", value)
        store.store(EVIL, EVIL)
    local("get", "a")
    assert local.raw == value
    local("put", "b", "-", given=local.raw)
    local("get", "b")
    assert local.raw == value
    assert local.json("get", EVIL)["value"] == EVIL
    assert [one["key"] for one in local.lines("range")] == [EVIL, "a", "b"]
    local("export", "file")
    local("del", "--prefix", "")
    local("import", "file")
    assert [one["key"] for one in local.lines("range")] == [EVIL, "a", "b"]
    assert [json.loads(line) for line in (local.folder / "file").read_text().splitlines()]


def test_pipe_into_put_copies(cli: Command, store: kvi.Kvi) -> None:
    """`kvi get a | kvi put b -` on every store, in each encoding."""
    value = b"\0\xff no newline at the end"
    store.store("a", value)
    for encoding in ("text", "hex", "base64"):
        cli("get", "a", "--as", encoding)
        assert not cli.raw.endswith(b"\n")
        cli("put", "b", "-", "--as", encoding, given=cli.raw)
        assert store.get("b").value == value  # type: ignore[union-attr]
        store.delete("b")


def test_levels_on_a_terminal(local: Command) -> None:
    """They are bold; the escapes of kvi's own come through."""
    local("put", f"{EVIL}/x", "")
    local("put", "app/x", "")
    assert b"\x1b[1mapp/\x1b[0m\r\n" in shown(local, "ls")


def test_no_colours(local: Command) -> None:
    """Who sets NO_COLOR, as `shown` does, gets none of kvi's."""
    for words in (["doctor"], ["conformance", "mem:x", "--rule", "tas.atomic"]):
        assert b"\x1b[3" not in shown(local, *words)


def test_newline_behind_a_value_on_a_terminal(local: Command) -> None:
    """So that the prompt stands on a line of its own."""
    local("put", "k", "v")
    assert shown(local, "get", "k") == b"v\r\n"


@contextmanager
def server(text: str) -> Iterator[str]:
    """A Consul of somebody malicious; its URI."""

    class Answer(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = text.encode()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_DELETE = _answer  # noqa: N815  (the library's names)

        def log_message(self, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"consul://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def test_errors_of_a_server(local: Command) -> None:
    """Its words, in errors, in what goes on after one, and in tracebacks."""
    with server(f"denied {EVIL}\x1b[2J") as uri:
        commands = [
            ["get", "k"], ["get", "k", "--debug"], ["doctor"], ["doctor", "--json"], ["ls"],
            ["ping"], ["ping", "--watch", "-c", "1"], ["ping", "--watch", "-c", "1", "--json"],
            ["lock", "jobs", "--", "true"], ["watch", "k"], ["export", "-"], ["leases"],
        ]  # fmt: skip
        told = False
        for words in commands:
            seen = shown(local, "--uri", uri, "--timeout", "2", *words, code=3)
            assert b"\x1b[2J" not in seen, words
            told = told or b"]0;pwn" in seen
        assert told  # else this shows nothing
        seen = shown(local, "conformance", uri, "--rule", "tas.atomic", code=3)
        assert b"\\x1b[2J" in seen
        seen = shown(local, uri, "--rule", "tas.atomic", code=2, program="kvi.conformance")
        assert b"\\x1b[2J" in seen


def test_what_files_say(local: Command) -> None:
    """The header of an export, a broken line, a transaction, a URI; and names of files."""
    header = json.dumps({"format": "kvi-export", "version": 1, "store": EVIL, "prefix": EVIL})
    (local.folder / "header").write_text(header + "\n")
    assert b"is an export of \\x1b]0;pwn" in shown(local, "export", "--resume", "header", code=2)
    (local.folder / EVIL.replace("/", "")).write_text("{")
    assert b"\\x1b]0;pwn" in shown(local, "import", EVIL, code=2)
    (local.folder / "txn").write_text(f"if '{EVIL}' k = 1\nthen {EVIL}")
    shown(local, "txn", "txn", code=2)
    (local.folder / "uri").write_text(f"{EVIL}:x")
    shown(local, "get", "k", "--uri-file", "uri", code=2)
    assert b"No such command" in shown(local, EVIL, code=2)
