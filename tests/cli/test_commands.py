"""Each command as a process, on every store, as text and as JSON."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import kvi
import pytest
from kvi.conformance.__main__ import options_of

from tests.cli.conftest import Command, Inside
from tests.support.inside import revoke
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def test_single_keys(cli: Command) -> None:
    """`put get del cas tas count`: what they print, and their exit codes."""
    assert cli("get", "k", code=1) == ""
    assert cli.json("get", "k", code=1) is None
    assert cli("put", "k", "hello") == ""
    assert cli("get", "k") == "hello"
    entry = cli.json("get", "k")
    assert (entry["key"], entry["value"]) == ("k", "hello")
    assert cli.json("put", "k", "again")["revision"] > entry["revision"]
    assert cli("cas", "k", str(entry["revision"]), "late", code=1) == ""
    assert cli.json("cas", "new", "0", "first")["set"] is True
    assert cli.json("cas", "new", "0", "second", code=1) == {
        "key": "new", "set": False, "revision": None,
    }  # fmt: skip
    assert cli("tas", "k", "wrong", "x", code=1) == ""
    assert cli.json("tas", "k", "again", "x") == {"key": "k", "set": True}
    assert cli("tas", "other", "--absent", "y") == ""
    assert cli("tas", "other", "y", "--delete") == ""
    assert cli("count") == "2\n"
    assert cli.json("count", "n") == {"count": 1}
    assert cli("del", "k", "nothing") == "1\n"
    assert cli("del", "k", code=1) == "0\n"
    assert cli.json("del", "--prefix", "") == {"deleted": 1}
    assert cli("range", code=1) == ""


def test_ranges_and_levels(cli: Command, store: kvi.Kvi) -> None:
    """`range ls`: order, bounds, what a level is."""
    for key in ("a", "app/db/host", "app/db/port", "app/rate", "b\nc", "z"):
        store.store(key, key.upper())
    assert cli("range", "--start", "a", "--end", "b") == (
        "a\tA\napp/db/host\tAPP/DB/HOST\napp/db/port\tAPP/DB/PORT\napp/rate\tAPP/RATE\n"
    )
    assert cli("range", "--reverse", "--limit", "2") == "z\tZ\nb\\nc\tB\\nC\n"
    assert cli("range", "app/", "--keys-only") == "app/db/host\napp/db/port\napp/rate\n"
    assert [(one["key"], one["value"]) for one in cli.lines("range", "--start", "b")] == [
        ("b\nc", "B\nC"), ("z", "Z"),
    ]  # fmt: skip
    assert cli("ls") == "a\napp/\nb\\nc\nz\n"
    assert cli("ls", "app/") == "app/db/\napp/rate\n"
    assert cli("ls", "-r", "app/d") == "app/db/host\napp/db/port\n"
    assert cli.lines("ls", "app/") == [{"level": "app/db/"}, {"key": "app/rate"}]
    assert cli("ls", "nothing/", code=1) == ""
    assert cli("--namespace", "app", "ls") == "db/\nrate\n"
    store.store("app//deep", "")
    assert cli.lines("ls", "app") == [{"level": "app/"}]
    assert cli.lines("ls", "app/")[0] == {"level": "app//"}
    store.store("/registry/pods/a", "")
    assert cli("ls").splitlines()[:2] == ["/", "a"]
    assert cli("ls", "/") == "/registry/\n"
    store.delete("/registry/pods/a")
    store.store("app/", "of the level itself")
    assert cli.lines("ls", "app") == [{"level": "app/"}]
    assert cli.lines("ls", "app/")[0] == {"key": "app/"}
    assert cli("ls").splitlines()[:2] == ["a", "app/"]


def test_one_word_means_the_same_keys(cli: Command, store: kvi.Kvi) -> None:
    """For each command that lists: those that begin so, also where levels are listed.

    So does the word of --prefix, for each command that has it; `get` gives what `range` does.
    """
    for key in ("app", "app/a", "app/b/c", "apple", "b"):
        store.store(key, "")
    for word in ("app", "app/", "appl", "x", ""):
        keys = cli("range", word, "--keys-only", code=word == "x").splitlines()
        assert keys == [entry.key for entry in store.range(prefix=word)]
        assert cli("ls", "-r", word, code=word == "x").splitlines() == keys
        assert cli("count", word) == f"{len(keys)}\n"
        for form in ([], ["--as", "hex"], ["--json"]):
            shown = cli("range", word, *form, code=word == "x")
            assert cli("get", "--prefix", word, *form, code=word == "x") == shown
        assert cli("del", "--prefix", word, "--dry-run", code=word == "x") == f"{len(keys)}\n"
        if keys:
            most = ["-n", str(len(keys))]
            seen = cli("watch", "--prefix", word, "--initial", *most).splitlines()
            assert [line.split("\t")[2] for line in seen] == keys
        levels = cli("ls", word, code=word == "x").splitlines()
        assert all(any(key.startswith(level) for level in levels) for key in keys)
        assert all(level.startswith(word) for level in levels)
    assert cli("count", "--start", "app/", "--end", "apple") == "2\n"
    assert cli("del", "--start", "app/", "--end", "apple") == "2\n"


def test_bytes(cli: Command, store: kvi.Kvi) -> None:
    """Any value comes through: as it is, as hex, as base64, from standard input."""
    value = bytes(range(256))
    cli("put", "k", "-", given=value)
    assert store.get("k").value == value  # type: ignore[union-attr]
    cli("get", "k")
    assert cli.raw == value
    assert cli("get", "k", "--as", "hex") == value.hex()
    assert cli("get", "k", "--as", "base64") == base64.b64encode(value).decode()
    assert base64.b64decode(cli.json("get", "k")["value_base64"]) == value
    cli("put", "h", value.hex(), "--as", "hex")
    cli("put", "b", "-", "--as", "base64", given=base64.b64encode(value))
    assert store.get("h").value == store.get("b").value == value  # type: ignore[union-attr]
    cli("put", "--", "-key", "-value")
    assert cli("get", "--", "-key") == "-value"


def test_transactions(cli: Command) -> None:
    """The readable form, from a file and from standard input."""
    text = """
        if absent rate          # not there yet
        then put rate "1 00"
        then get rate
        else get rate
        else get 'no such'
    """
    assert cli("txn", "-", given=text) == "then\nput\trate\ngot\trate\t1 00\n"
    (cli.folder / "file.txt").write_text(text)
    assert cli("txn", "file.txt", code=1) == "else\ngot\trate\t1 00\nnot there\tno such\n"
    found = cli.json("txn", "-", given="if value rate = '1 00'\nthen delete rate\nthen delete no")
    assert (found["succeeded"], found["results"]) == (True, [True, False])
    assert cli("txn", "-", given="then delete rate") == "then\nnot there\trate\n"
    cli("txn", "-", given="then put a 1\nif bogus a", code=2)
    assert "line 2: this is no condition" in cli.errors


def test_watch(cli: Command, store: kvi.Kvi) -> None:
    """What is there, then changes, as they happen; a command for each of them."""
    store.store("w/a", "1")
    with cli.start("watch", "--prefix", "w/", "--initial", "-n", "3") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().split("\t")[::2] == ["PUT", "w/a"]
        store.store("w/b", "two\nlines")
        assert watch.stdout.readline().split("\t")[2:] == ["w/b", "two\\nlines\n"]
        store.delete("w/a")
        assert watch.stdout.readline().split("\t")[0] == "DELETE"
        assert watch.wait(60) == 0
    script = "printf '%s %s ' $KVI_EVENT $KVI_KEY >>seen; cat >>seen; echo >>seen"
    words = ["watch", "--prefix", "w/", "--initial", "--json", "-n", "1", "--exec", script]
    with cli.start(*words) as watch:
        assert watch.stdout is not None
        event = json.loads(watch.stdout.readline())
        assert (event["type"], event["key"], event["initial"]) == ("PUT", "w/b", True)
        assert watch.wait(60) == 0
    assert (cli.folder / "seen").read_text() == "PUT w/b two\nlines\n"


def test_any_key_for_what_watch_runs(local: Command) -> None:
    """One too long for an environment is left empty, and told; one that no locale has is UTF-8."""
    keys = ["a", "k" * 200_000, "z", "日本"]
    with kvi.open(local.uri) as store:
        for key in keys:
            store.store(key, "v")
    script = "printf '%s %s\n' $KVI_EVENT \"$KVI_KEY\" >>seen"
    words = ["watch", "--prefix", "", "--initial", "-n", "4", "--exec", script]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    local(*words, env=local.env | ascii_only | {"KVI_KEY": "of somebody else"})
    assert (local.folder / "seen").read_text("utf-8") == "PUT a\nPUT \nPUT z\nPUT 日本\n"
    assert "KVI_KEY is left empty" in local.errors
    assert "200,000 bytes" in local.errors
    local("shell", given="lock l -- echo 日本\n", env=local.env | ascii_only)
    assert local.raw.decode() == "日本\n"
    local("shell", given=f"lock {'l' * 200_000} -- echo hello", code=126)
    assert "cannot run 'echo': Argument list too long" in local.errors


def test_watch_piped_into_head_ends(cli: Command, store: kvi.Kvi) -> None:
    """Who reads no further ends it, without a word and without another change."""
    store.store("k", "v")
    done = subprocess.run(
        f"{cli_line('watch', 'k', '--initial')} | head -1",
        shell=True, capture_output=True, text=True, env=cli.env, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split("\t")[2:] == ["k", "v\n"]
    assert done.stderr == ""


def cli_words(*words: str) -> list[str]:
    return [sys.executable, "-m", "kvi.cli", *words]


def cli_line(*words: str) -> str:
    return shlex.join(cli_words(*words))


def test_lock(cli: Command, store: kvi.Kvi) -> None:
    """The command runs while the lock is held, with its fence; its exit code is told."""
    with cli.start("lock", "jobs", "--", "sh", "-c", "echo $KVI_LOCK_FENCE; read x; exit 7",
                   stdin=subprocess.PIPE) as first:  # fmt: skip
        assert first.stdout is not None
        fence = int(first.stdout.readline())
        cli("lock", "jobs", "--wait", "0", "--", "true", code=75)
        cli("lock", "jobs", "--wait", "0", "--conflict-exit-code", "9", "--", "true", code=9)
        assert "somebody else holds the lock" in cli.errors
        with cli.start("lock", "jobs", "--", "sh", "-c", "echo $KVI_LOCK_FENCE") as second:
            first.communicate("\n", timeout=60)
            assert first.returncode == 7
            assert int(second.communicate(timeout=120)[0]) > fence
            assert second.returncode == 0
    assert store.lock("jobs").acquire(0)


def test_lock_of_a_killed_holder(cli: Command, store: kvi.Kvi) -> None:
    """If `kvi` is killed the next one has the lock once the ttl is over."""
    alive = "echo $$ >pid; while true; do sleep 0.1; done"
    with cli.start("lock", "jobs", "--ttl", "1", "--", "sh", "-c", alive) as first:
        until((cli.folder / "pid").exists, within=60)
        assert leases(store, "jobs/")
        assert not store.lock("jobs").acquire(0)
        first.kill()
    assert cli("lock", "jobs", "--ttl", "1", "--wait", "60", "--", "echo", "mine") == "mine\n"
    os.kill(int((cli.folder / "pid").read_text()), signal.SIGKILL)


def test_lost_lock_ends_the_command(cli: Command, store: kvi.Kvi) -> None:
    """When its lease is taken away the command is ended, and the exit code is 3."""
    with cli.start("lock", "jobs", "--ttl", "1", "--", "sleep", "1000") as running:
        until(lambda: leases(store, "jobs/"), within=60)
        for lease in leases(store, "jobs/"):
            revoke(store, lease)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert "the lock 'jobs' was lost" in errors


def test_lost_lock_that_nobody_can_be_told_of(local: Command) -> None:
    """Where standard error has no reader the command is ended all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    words = cli_words("lock", "jobs", "--ttl", "1", "--", "sleep", "1000")
    with (
        kvi.open(local.uri) as store,
        subprocess.Popen(words, env=local.env, stdout=subprocess.PIPE, stderr=writer,
                         start_new_session=True) as running,
    ):  # fmt: skip
        os.close(writer)
        until(lambda: leases(store, "jobs/"), within=60)
        for lease in leases(store, "jobs/"):
            revoke(store, lease)
        assert running.stdout is not None
        assert running.stdout.read() == b""  # which both have, until they end
        assert running.wait(60) == 3


def leases(store: kvi.Kvi, prefix: str) -> list[int]:
    return [entry.lease for entry in store.range(prefix=prefix) if entry.lease is not None]


def test_lost_lock_kills_a_command_that_does_not_end(cli: Command, store: kvi.Kvi) -> None:
    """After the grace it is killed."""
    stubborn = "trap '' TERM; echo ready; while true; do sleep 0.05; done"
    words = ["lock", "jobs", "--ttl", "1", "--grace", "0.2", "--", "sh", "-c", stubborn]
    with cli.start(*words) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        for lease in leases(store, "jobs/"):
            revoke(store, lease)
        assert running.wait(60) == 3


def test_signals_go_to_the_command(cli: Command, store: kvi.Kvi) -> None:
    """A SIGTERM ends the command in its own way; then the lock is free."""
    trap = "trap 'echo ended well; exit 5' TERM; echo ready; while true; do sleep 0.05; done"
    with cli.start("lock", "jobs", "--", "sh", "-c", trap) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        output, _ = running.communicate(timeout=60)
    assert (output, running.returncode) == ("ended well\n", 5)
    assert store.lock("jobs").acquire(10)


def test_what_the_command_started_ends_with_it(cli: Command, store: kvi.Kvi) -> None:
    """Without a terminal a signal reaches its children too, before the lock is free."""
    script = "(trap 'echo child; exit' TERM; echo ready; while true; do sleep 0.05; done) & wait"
    with cli.start("lock", "jobs", "--", "sh", "-c", script, stdin=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        output, _ = running.communicate(timeout=60)
    assert output == "child\n"
    assert store.lock("jobs").acquire(10)


def test_waiting_is_ended_in_good_order(cli: Command, store: kvi.Kvi) -> None:
    """A SIGTERM while `kvi` waits for a lock leaves nothing of it in the queue."""
    with store.lock("jobs") as held:
        before = store.count(prefix="jobs/")
        with cli.start("lock", "jobs", "--", "true") as waiting:
            ended = {128 + signal.SIGTERM}
            if store.capabilities.lock_fair:
                until(lambda: store.count(prefix="jobs/") > before, within=60)
            else:  # nothing shows from outside that it waits: it may not have come so far
                ended.add(-signal.SIGTERM)
            waiting.terminate()
            assert waiting.wait(60) in ended
        assert held.held
    assert store.lock("jobs").acquire(0)


def test_one_reading_of_values(local: Command) -> None:
    """`-` is standard input and `@FILE` a file in each command that takes a value."""
    run = Inside(local.uri, local.folder)
    (run.folder / "file").write_bytes(b"of a file")
    get = cli_words("get", "k")
    for word, value in {"-": "given", "@file": "of a file", "@@ada": "@ada", "a": "a"}.items():
        run("put", "k", word, given="given")
        assert run("get", "k") == value
        run("tas", "k", word, "new", given="given")
        run("tas", "k", "new", word, given="given")
        assert run("get", "k") == value
        run("cas", "n", "0", word, given="given")
        assert run("get", "n") == value
        run("del", "n", "k")
        assert run("temp", "k", word, "--", *get, given="given") == value
        run("queue", "put", "q", word, given="given")
        assert run("queue", "get", "q", "--wait", "0", "--", "cat") == value
        leader = cli_words("range", "e", "--as", "hex")
        told = run("elect", "e", "--value", word, "--", *leader, given="given")
        assert value.encode().hex() in told
    for words in (
        ["temp", "k", "@none", "--", "true"],
        ["queue", "put", "q", "@none"],
        ["tas", "k", "@none", "v"],
        ["elect", "e", "--value", "@", "--", "true"],
    ):
        run(*words, code=2)
        assert "is written with @@" in run.errors
    run("tas", "k", "-", "-", code=2)
    assert "only once" in run.errors
    run("temp", "k", "-", "--as", "hex", "--", *get, given="6 869\n")
    assert run.raw == b"hi"
    for line in ("temp k - -- true", "queue put q -", "tas k - v", "elect e --value - -- true"):
        run("shell", given=line, code=2)
        assert "standard input holds the commands" in run.errors


def test_temporary_keys_and_leases(cli: Command, store: kvi.Kvi) -> None:
    """`temp lease`: a key is there while a command runs, or until a signal, and gone after it."""
    assert cli("temp", "member", "here", "--", "sh", "-c", cli_line("get", "member")) == "here"
    assert store.get("member") is None
    with cli.start("temp", "member") as running:
        until(lambda: store.get("member"), within=60)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert store.get("member") is None
    env = {name: value for name, value in cli.env.items() if name != "KVI_URI"}
    assert cli("temp", "k", "v", "--uri", cli.uri, "--", *cli_words("get", "k"), env=env) == "v"
    put = f"{cli_line('put', 'leased', 'here')} --lease $KVI_LEASE; {cli_line('get', 'leased')}"
    assert cli("lease", "--", "sh", "-c", put) == "here"
    until(lambda: store.get("leased") is None)


def test_kvi_within_a_command_uses_the_same_store(local: Command) -> None:
    """With the namespace and the file of the one around it, whatever folder the command is in."""
    inner = f"{cli_line('put', 'inner', '1')} && {cli_line('get', 'inner')}"
    uri = "sqlite:here.db"
    for words in (
        ["lock", "l"], ["lease"], ["temp", "t"], ["elect", "e"], ["once", "o"], ["update", "u"],
        ["semaphore", "s", "--limit", "1"], ["every", "v", "0.01", "--times", "1"],
    ):  # fmt: skip
        local("--uri", uri, "--namespace", "app", words[0], *words[1:], "--", "sh", "-c",
              f"cd / && {inner} >&2")  # fmt: skip
        assert local.errors == "1", words
        assert local("--uri", uri, "del", "app/inner") == "1\n", words
    env = local.env | {"KVI_URI": "sqlite:a%20b.db?namespace=x"}
    words = ["--namespace", "y", "watch", "--initial", "k", "-n", "1", "--exec", f"cd / && {inner}"]
    local("put", "x/y/k", "v", "--uri", "sqlite:a%20b.db")
    assert local(*words, env=env).endswith("\n1")
    assert local("ls", "-r", "x", "--uri", "sqlite:a%20b.db") == "x/y/inner\nx/y/k\n"
    assert local("--uri", "sqlite:b.db", "lock", "l", "--", "sh", "-c", f"cd / && {inner}") == "1"
    assert local("get", "inner", "--uri", "sqlite:b.db") == "1"


def test_doctor_ping_and_bench(cli: Command) -> None:
    """All steps work, and nothing is left behind."""
    steps = cli.lines("doctor")
    assert [step["ok"] for step in steps] == [True] * len(steps)
    assert len(steps) == 10
    assert "ok      transaction" in cli("doctor")
    assert "\talive\t" in cli("ping")
    pings = cli.lines("ping", "--watch", "-c", "2", "--interval", "0.01")
    assert [one["alive"] for one in pings] == [True, True]
    measured = cli.lines("bench", "--seconds", "0.05")
    assert [one["operation"] for one in measured] == ["ping", "get", "store", "tas", "txn", "lock"]
    assert all(one["per_second"] > 0 for one in measured)
    assert "lock\t" in cli("bench", "--seconds", "0.05")
    assert cli("count") == "0\n"


def test_conformance(cli: Command) -> None:
    """The suite, or a part of it; never on a store that somebody uses."""
    found = cli.json("conformance", "--rule", "tas.atomic")
    assert found["passed"]
    cli("put", "precious", "data")
    cli("conformance", "--rule", "tas.atomic", code=2)
    assert cli("get", "precious") == "data"


def test_conformance_as_text(local: Command) -> None:
    """A line a rule, and a page."""
    assert "tas.atomic" in local("conformance", "--rule", "tas.atomic", "--html", "report.html")
    assert "tas.atomic" in (local.folder / "report.html").read_text()


def test_conformance_has_the_options_of_the_module(local: Command) -> None:
    """Whatever `python -m kvi.conformance` takes, and it does the same."""
    theirs = {
        name for action in options_of()._actions for name in action.option_strings if name != "-h"
    }
    ours = local("conformance", "--help")
    assert [name for name in theirs if name not in ours] == []
    (local.folder / "test_also.py").write_text(
        "from kvi.conformance.contract import rule\n"
        "@rule('tas.atomic')\n"
        "def test_of_ours(kvi_uri):\n"
        "    raise AssertionError('seen')\n"
    )
    words = ("--rule", "tas.atomic", "--also", "test_also.py", "--aio")
    found = json.loads(local("conformance", "--json", *words, code=1))
    assert "seen" in json.dumps(found)
    first, *_, last = local.errors.splitlines()
    assert re.fullmatch(r"Test\w+: \d+ tests?; \d+ of \d+ in all", first)
    assert re.fullmatch(r"test_also.py: 1 test, 1 failed or unknown; (\d+) of \1 in all", last)


def test_command_with_a_separator_of_its_own(local: Command) -> None:
    """The first `--` stands before the command, unless the name stands behind it."""
    assert local("lock", "jobs", "--", "echo", "a", "--", "b") == "a -- b\n"
    assert local("lock", "--", "-jobs", "--", "echo", "a", "--", "b") == "a -- b\n"
    assert local("lease", "--", "echo", "a", "--", "b") == "a -- b\n"
    assert local("temp", "--", "-k", "-v", "--", *cli_words("get", "--", "-k")) == "-v"


def test_memory(tmp_path: Path) -> None:
    """A memory store lasts as long as the process: each command works on an empty one."""
    cli = Command("mem:", tmp_path)
    assert cli("get", "k", code=1) == ""
    assert cli.json("put", "k", "v") == {"key": "k", "revision": 1}
    assert cli("count") == "0\n"
    assert cli("tas", "k", "--absent", "v") == ""
    assert cli.json("cas", "k", "0", "v")["set"] is True
    assert cli("txn", "-", given="then put k v\nthen get k") == "then\nput\tk\ngot\tk\tv\n"
    assert cli("lock", "jobs", "--", "echo", "held") == "held\n"
    assert cli("temp", "k", "--", "echo", "there") == "there\n"
    assert cli("lease", "--", "sh", "-c", "test -n $KVI_LEASE && echo leased") == "leased\n"
    assert cli("export", "-").splitlines()[-1] == '{"end": true, "entries": 0}'
    assert all(step["ok"] for step in cli.lines("doctor"))
    assert cli("ls", code=1) == cli("range", code=1) == ""
    assert cli("del", "k", code=1) == "0\n"
    exported = '{"format": "kvi-export", "version": 1}\n{"key": "k", "value": "v"}\n'
    exported += '{"end": true, "entries": 1}\n'
    assert cli.json("import", "-", given=exported) == {"imported": 1, "left_out": 0}
    assert cli.json("copy", "mem:a", "mem:b", "--verify")["verified"] is True
    assert cli.json("ping")["alive"] is True
    assert len(cli.lines("bench", "--seconds", "0.01")) == 6
    line = f"{cli_line('watch', 'k')} | true"  # ends because nobody reads
    subprocess.run(line, shell=True, env=cli.env, timeout=60, check=True)
    found = {one["distribution"]: one for one in cli.lines("backends")}
    assert found["kvi-memory"]["schemes"] == ["mem"]
    assert found["kvi-etcd"]["capabilities"]["max_txn_ops"] == 128
    assert "kvi-sqlite\t" in cli("backends")
