"""What a day brings, on every store: odd words, exact bytes, who waits, too little time."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import kvi
import pytest
from kvi.recipes import Semaphore

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal
from tests.cli.test_shell import Shell
from tests.servers import ConsulServer, EtcdServer
from tests.support.waiting import until

pytestmark = pytest.mark.slow

ODD = [
    "@", "@k", "@@k", " ", "a b", "a\tb", "a\nb", "/", "//", "/a", "a//b", ".", "..", "-", "--",
    "-k", "--prefix", "--help", "#", "?", "%41", "é🙂", "\x1b[31m", "'", '"', "\\", "*",
]  # fmt: skip
TYPED = ["@k", "--prefix", "a\nb", "é🙂"]
VALUES = [b"", b"a\n", bytes(range(256)) + b"\r\n\n"]


def test_words_that_are_odd(cli: Command, store: kvi.Kvi) -> None:
    """A key is a key, whatever it looks like, and for each command the same one."""
    for key in ODD:
        if key not in TYPED:
            store.store(key, f"@{key}")
    for key in TYPED:
        cli("put", "--", key, f"@@{key}")
        assert store.get(key).text == f"@{key}"  # type: ignore[union-attr]
        assert cli("get", "--", key) == f"@{key}"
    listed = [entry.key for entry in store.range()]
    assert listed == sorted(ODD, key=str.encode)
    assert [one["key"] for one in cli.lines("range")] == listed
    assert [one["key"] for one in cli.lines("ls", "-r")] == listed
    assert cli("count") == f"{len(ODD)}\n"
    for key in TYPED:
        below = [entry.key for entry in store.range(prefix=key)]
        assert [one["key"] for one in cli.lines("get", f"--prefix={key}")] == below
        assert cli("count", "--", key) == f"{len(below)}\n"
        cli("update", "--", key, "--", "cat")
        cli("cp", "--", key, f"copy/{key}")
        assert store.get(f"copy/{key}").text == f"@{key}"  # type: ignore[union-attr]
        cli("mv", "--", f"copy/{key}", f"moved/{key}")
        if store.capabilities.watch_history:
            assert [one["key"] for one in cli.lines("history", "--", key)] == [key, key]
    assert [entry.key for entry in store.range(prefix="moved/")] == [
        "moved/--prefix", "moved/@k", "moved/a\nb", "moved/é🙂",
    ]  # fmt: skip
    assert cli("del", "--", *ODD) == f"{len(ODD)}\n"
    for words in (["put", "", "v"], ["get", ""], ["del", ""], ["cp", "moved/@k", ""]):
        cli(*words, code=2)
        assert "InvalidKey" in cli.errors
    cli("put", b"\xff".decode(errors="surrogateescape"), "v", code=2)
    assert "must encode as UTF-8" in cli.errors
    assert store.count() == 4


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_exact_to_the_byte(cli: Command, store: kvi.Kvi, value: bytes) -> None:
    """From standard input, from a file and back, by a command, an editor, another key, a file."""

    def has(key: str) -> None:
        assert store.get(key).value == value  # type: ignore[union-attr]
        cli("get", key)
        assert cli.raw == value

    (cli.folder / "file").write_bytes(value)
    cli("put", "a", "-", given=value)
    cli("put", "b", "@file")
    cli("update", "c", "--", "cat", str(cli.folder / "file"))
    cli("update", "c", "--", "cat")
    copying = f"cp {shlex.quote(str(cli.folder / 'file'))}"
    if value:  # else there is nothing to be saved
        cli("edit", "d", env={**cli.env, "EDITOR": copying})
    else:
        cli("cas", "d", "0", "")
    cli("cp", "a", "e")
    cli("mv", "e", "f")
    cli("export", "exported")
    cli("del", "a")
    cli("import", "exported")
    for key in ("a", "b", "c", "d", "f"):
        has(key)
    assert store.count() == 5


def test_codes_are_told_apart(cli: Command, store: kvi.Kvi) -> None:
    """A lock that is not had has a code of its own, whatever the command ends with."""
    with store.lock("jobs"):
        own = ["--conflict-exit-code", "9", "--", "sh", "-c", "exit 75"]
        cli("lock", "jobs", "--wait", "0", *own, code=9)
        assert "somebody else holds the lock" in cli.errors
        cli("lock", "jobs", "--wait", "0", "--", "sh", "-c", "exit 9", code=75)
        cli("lock", "jobs", "--wait", "0", "--conflict-exit-code", "0", "--", "false", code=0)
    cli("lock", "jobs", *own, code=75)
    assert cli.errors == ""
    cli("lock", "jobs", "--", "sh", "-c", "exit 9", code=9)
    for number in ("-1", "256", "x"):
        cli("lock", "jobs", "--conflict-exit-code", number, "--", "true", code=2)
        assert "--conflict-exit-code" in cli.errors


def test_who_waits(cli: Command, store: kvi.Kvi) -> None:
    """`locks` counts those who wait, in their order; nobody is left of one who has given up."""
    held = Semaphore(store, "s", 1)
    waits = Semaphore(store, "s", 1, timeout=60)
    got: list[bool] = []
    with held:
        waiting = threading.Thread(target=lambda: got.append(waits.acquire()))
        waiting.start()
        until(lambda: store.count(prefix="s/") > 2 and waits.waiters(), within=60)
        (found,) = cli.lines("locks")
        assert [one["id"] for one in found["holders"]] == held.holders()
        assert [one["id"] for one in found["waiters"]] == held.waiters()
        assert len(found["waiters"]) == 1
        assert re.match(r"semaphore s: [0-9a-f]+ \(fence \d+.*\), 1 waiting\n", cli("locks", "s"))
        assert cli("locks", "other") == ""
    waiting.join(60)
    assert got == [True]
    (found,) = cli.lines("locks")
    assert (len(found["holders"]), found["waiters"]) == (1, [])
    waits.release()
    assert cli("locks") == ""


SHORT = [
    ["get", "k"], ["range"], ["ls"], ["count"], ["leases"], ["locks"], ["ping"], ["history", "k"],
    ["get", "--prefix", ""], ["watch", "k", "--initial", "-n", "1"], ["export", "-"],
    ["put", "k", "new"], ["put", "k", "new", "--ttl", "60"], ["del", "none"],
    ["del", "--prefix", "x"], ["mv", "k", "l"], ["mv", "l", "k"], ["cp", "--prefix", "k", "l"],
    ["cas", "n", "0", "new"], ["tas", "k", "v", "new"], ["edit", "k"], ["lease", "revoke", "1"],
    ["update", "k", "--", "cat"], ["lock", "jobs", "--wait", "0", "--", "true"],
    ["temp", "t", "here", "--", "true"],
]  # fmt: skip


def test_no_time(cli: Command, store: kvi.Kvi) -> None:
    """A time-out that is too short for anything is told, and never as a mistake of kvi."""
    store.store("k", "v")
    cli.env["EDITOR"] = "true"
    for words in SHORT:
        at = words.index("--") if "--" in words else len(words)
        cli(*words[:at], "--timeout", "0.001", *words[at:], code=None)
        assert cli.code in {0, 1, 2, 3, 4}, words
        assert "mistake" not in cli.errors
        if cli.code in {3, 4}:
            assert re.search("Timeout|Unavailable|OutcomeUnknown|Contention", cli.errors), words
        if cli.code == 2:
            assert "NotSupported" in cli.errors, words


def test_uri_that_no_list_of_processes_shows(cli: Command, store: kvi.Kvi) -> None:
    """The store is named by a file; the line of the process does not tell it."""
    (cli.folder / "uri").write_text(f"{cli.uri}\n")
    del cli.env["KVI_URI"]
    store.store("k", "v")
    with cli.start("watch", "k", "--initial", "--uri-file", "uri") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().split("\t")[2:] == ["k", "v\n"]
        line = Path(f"/proc/{watch.pid}/cmdline").read_bytes().decode()
        assert "uri-file" in line
        assert cli.uri not in line
        watch.kill()
    (cli.folder / "to").write_text(f"sqlite:{cli.folder}/copy.db")
    cli("copy", "--uri-file", "uri", "--to-uri-file", "to", "--verify")
    assert cli("get", "k", "--uri-file", "to") == "v"
    env = {**cli.env, "KVI_TO_URI": f"sqlite:{cli.folder}/third.db"}
    assert "verified" in cli.json("copy", "--uri-file", "uri", "--verify", env=env)


@pytest.mark.etcd
@pytest.mark.consul
@pytest.mark.xdist_group("away")
@pytest.mark.parametrize("kind", [EtcdServer, ConsulServer])
def test_store_that_goes_away(kind: type[EtcdServer | ConsulServer], tmp_path: Path) -> None:
    """`mv` says how far it came, and each key is there once; `edit` and `update` lose nothing."""
    with kind() as server, kvi.open(server.uri, timeout=60) as store:
        cli = Command(server.uri, tmp_path)
        for at in range(0, 3000, 50):
            store.txn(then=[kvi.Put(f"old/{number:04}", "v") for number in range(at, at + 50)])
        with cli.start("mv", "--prefix", "old/", "new/", "--timeout", "1") as running:
            until(lambda: store.count(prefix="new/") > 100, within=60)
            server.pause()
            _, errors = running.communicate(timeout=60)
        server.resume()
        if running.returncode:  # else it was through before
            assert running.returncode in {3, 4}
            assert re.search(r"broken off; [\d,]+ of 3,000 keys are done", errors)
        assert store.count() == 3000
        cli("mv", "--prefix", "old/", "new/", code=store.count(prefix="old/") == 0)
        assert store.count(prefix="new/") == 3000
        wait = "until [ -e away ]; do sleep 0.05; done"
        cli.env["EDITOR"] = f"sh -c 'echo there; {wait}; echo edited >$0'"
        change = f"echo there >&2; {wait}; echo new"
        for words in (["edit", "k"], ["update", "k", "--", "sh", "-c", change]):
            words[1:1] = ["--timeout", "1"]
            with cli.start(*words) as running:
                told = running.stdout if words[0] == "edit" else running.stderr
                assert told is not None
                assert told.readline() == "there\n"
                server.pause()
                (cli.folder / "away").touch()
                _, errors = running.communicate(timeout=60)
            server.resume()
            (cli.folder / "away").unlink()
            assert running.returncode in {3, 4}
            if words[0] == "edit":
                kept = Path(errors.split("the edited value is in ")[1].split("\n")[0])
                assert kept.read_text() == "edited\n"
                kept.unlink()
            store.ping()
            store.delete("k")


def bare(text: str) -> str:
    """A table without its styles."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def test_memory_at_a_prompt(tmp_path: Path) -> None:
    """A memory store, from a terminal: tables, questions, differences, as on any other."""
    cli = Command("mem:", tmp_path)
    cli.env["EDITOR"] = "sh -c 'printf edited >\"$0\"'"
    with Shell(cli) as shell:
        shell.ready()
        shell.run("put app/rate 100")
        shell.run("update app/rate -- sh -c 'printf 2; cat'")
        assert shell.run("get app/rate") == "2100\n"
        history = bare(shell.run("history app/rate")).splitlines()
        assert [line.split() for line in history] == [
            ["change", "revision", "value"], ["PUT", "2", "2100"], ["PUT", "1", "100"],
        ]  # fmt: skip
        assert shell.run("get app/rate --revision 1") == "100\n"
        shell.run("edit app/rate")
        assert shell.run("get app/rate") == "edited\n"
        assert shell.run("cp app/rate app/burst") == "1\n"
        assert "--force replaces what is there" in shell.run("cp app/rate app/burst")
        shell.asks("[1] ")
        assert shell.run("mv --prefix app/ service/") == "2\n"
        assert "third name" in shell.run("mv --prefix service/ service/a/")
        assert shell.run("put session/ada here --ttl 600") == ""
        leases = bare(shell.run("leases")).splitlines()
        assert leases[0].split() == ["id", "ttl", "left", "keys", "first", "keys"]
        id, *_, key = leases[1].split()
        assert key == "session/ada"
        shell.type(f"lease revoke {id}\r")
        shell.shows("Revoke the lease, and delete its 1 keys?")
        shell.type("y\r")
        shell.ready()
        assert "session" not in shell.run("ls")
        assert shell.run("del --prefix service/ --dry-run") == "2\n"
        for typed, left in (("n", "2\n"), ("y", "0\n")):
            shell.type("del --prefix service/\r")
            shell.shows("Delete 2 keys?")
            shell.seen = shell.seen.replace(b"Delete 2 keys?", b"")
            shell.type(f"{typed}\r")
            shell.ready()
            assert shell.run("count") == left
        assert "PermissionDenied" in shell.run("put k v --read-only")
        assert "explain PermissionDenied" in shell.seen.decode()
        assert "PermissionDenied" in shell.run("explain permissiondenied")


def test_two_editors(local: Command) -> None:
    """Of two who edit one key at once, each on a terminal, one is told what the other has saved."""
    local("put", "k", "as it was\n")
    edit = "until [ -e go-$0 ]; do sleep 0.05; done; echo $0 >>$1"
    terminals = {}
    for name in ("first", "second"):
        env = {**local.env, "EDITOR": f"echo begun; sh -c {shlex.quote(edit)} {name}"}
        words = (sys.executable, "-m", "kvi.cli", "edit", "k")
        terminals[name] = OnTerminal(env, local.folder, *words)
    with terminals["first"] as first, terminals["second"] as second:
        for terminal in (first, second):
            terminal.shows("begun")
        (local.folder / "go-first").touch()
        first.end()
        assert first.process.returncode == 0
        (local.folder / "go-second").touch()
        shown = second.end().decode()
        assert second.process.returncode == 1
    assert "-first\r\n+second\r\n" in shown
    assert local("get", "k") == "as it was\nfirst\n"
    kept = Path(shown.split("the edited value is in ")[1].strip())
    assert kept.read_text() == "as it was\nsecond\n"
    kept.unlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have one")
def test_full_disk(local: Command) -> None:
    """What cannot be written is told, and ends with 3, whatever the command."""
    local("put", "k", "v")
    (local.folder / "txn").write_text("then get k")
    for words in (
        ["get", "k"], ["get", "k", "--json"], ["range"], ["ls"], ["count"], ["history", "k"],
        ["put", "k", "v", "--json"], ["del", "none"], ["cp", "k", "l"], ["export", "-"],
        ["update", "k", "--json", "--", "cat"], ["txn", "txn"], ["explain", "Timeout"],
        ["backends"], ["ping"], ["watch", "k", "--initial", "-n", "1"], ["--help"],
    ):  # fmt: skip
        line = f"{shlex.join([sys.executable, '-m', 'kvi.cli', *words])} >/dev/full"
        done = subprocess.run(
            line, shell=True, env=local.env, cwd=local.folder, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (3, b"kvi: No space left on device\n"), words
