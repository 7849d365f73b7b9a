"""`update edit mv cp`, `put --ttl`, `put KEY @FILE`, `del` of many: on every store."""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi.cli import renaming

from tests.cli.conftest import Command, Inside
from tests.cli.terminal import OnTerminal
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def script(folder: Path, name: str, text: str) -> str:
    """A program of Python's, as a word for a shell."""
    path = folder / f"{name}.py"
    path.write_text(text)
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(path))}"


def test_update(cli: Command, store: kvi.Kvi) -> None:
    """The value goes in and comes out byte by byte; a key that is absent is empty."""
    assert cli("update", "k", "--", "printf", "a\\nb\\n") == ""
    assert store.get("k").value == b"a\nb\n"  # type: ignore[union-attr]
    store.store("k", bytes(range(256)))
    told = cli.json("update", "k", "--", "cat")
    entry = store.get("k")
    assert entry is not None
    assert entry.value == bytes(range(256))
    assert told == {"key": "k", "revision": entry.revision}
    cli("update", "new", "--", "sh", "-c", 'printf \'[%s] %s\' "$(cat)" "$KVI_KEY"')
    assert store.get("new").value == b"[] new"  # type: ignore[union-attr]


def test_update_that_fails(cli: Command, store: kvi.Kvi) -> None:
    """Nothing is written, and the exit code is the command's; without one it is a usage error."""
    store.store("k", "v")
    cli("update", "k", "--", "sh", "-c", "echo half; exit 7", code=7)
    cli("update", "k", "--", "sh", "-c", "echo half; kill -9 $$", code=137)
    cli("update", "k", "--", "no such command", code=127)
    assert "no such command" in cli.errors
    cli("update", "k", code=2)
    assert "kvi update KEY -- CMD" in cli.errors
    assert store.get("k").value == b"v"  # type: ignore[union-attr]


ENDED_WELL = "trap 'exit 0' TERM; echo ready >&2; while true; do sleep 0.05; done"


def test_update_that_is_ended(cli: Command, store: kvi.Kvi) -> None:
    """Who asks kvi to end has nothing written, also if the command takes that for its own end."""
    store.store("k", "v")
    with cli.start("update", "k", "--", "sh", "-c", f"echo half; {ENDED_WELL}") as it:
        assert it.stderr is not None
        assert it.stderr.readline() == "ready\n"
        it.terminate()
        assert it.wait(60) == 128 + signal.SIGTERM
    cli.env["EDITOR"] = f"f() {{ echo half >$1; {ENDED_WELL}; }}; f"
    with cli.start("edit", "k") as it:
        assert it.stderr is not None
        assert it.stderr.readline() == "ready\n"
        it.terminate()
        _, errors = it.communicate(timeout=60)
    assert it.returncode == 128 + signal.SIGTERM
    kept = Path(errors.split("the edited value is in ")[1].strip())
    assert kept.read_text() == "half\n"
    kept.unlink()
    assert store.get("k").value == b"v"  # type: ignore[union-attr]


def test_updates_meet(cli: Command, store: kvi.Kvi) -> None:
    """A command runs again if another has changed the key meanwhile; none of them is lost."""
    add = script(
        cli.folder,
        "add",
        "import sys, time\ntime.sleep(0.2)\nprint(int(sys.stdin.read() or 0) + 1, end='')\n",
    )
    running = [cli.start("update", "k", "--", *shlex.split(add)) for _ in range(4)]
    for process in running:
        assert process.wait(60) == 0
        process.communicate()
    assert store.get("k").value == b"4"  # type: ignore[union-attr]


def test_update_that_is_in_its_own_way(local: Command) -> None:
    """A command that changes the key itself runs again and again, which is told."""
    put = shlex.join([sys.executable, "-m", "kvi.cli", "put", "k", "-"])
    with local.start("update", "k", "--", "sh", "-c", f"echo x$$ | {put}") as running:
        assert running.stderr is not None
        told = running.stderr.readline()
        running.terminate()
        assert running.wait(60) == 128 + signal.SIGTERM
    assert told == "kvi: 'k' was changed 10 times while 'sh' ran, which runs again\n"
    assert local("get", "k").startswith("x")


def test_edit(cli: Command, store: kvi.Kvi) -> None:
    """What is saved is stored, under the same lease; what the editor leaves alone is not."""
    with store.lease(60) as lease:
        before = store.store("k", "one\n", lease=lease)
        append = script(
            cli.folder, "append", "import sys\nopen(sys.argv[1], 'ab').write(b'two\\n')\n"
        )
        cli.env["EDITOR"] = append
        told = cli.json("edit", "k")
        entry = store.get("k")
        assert entry is not None
        assert (entry.value, entry.lease) == (b"one\ntwo\n", lease.id)
        assert told == {"key": "k", "revision": entry.revision}
        assert entry.revision > before
        cli("edit", "k", env={**cli.env, "VISUAL": "true"})
        assert "nothing was changed" in cli.errors
        assert cli.json("edit", "k", env={**cli.env, "VISUAL": "true"}) == told
        cli("edit", "k", code=1, env={**cli.env, "EDITOR": "false"})
        assert "the editor" in cli.errors
        assert store.get("k") == entry
    cli("edit", "new")
    assert store.get("new").value == b"two\n"  # type: ignore[union-attr]


def test_nothing_is_left_of_an_edit(local: Command) -> None:
    """Neither what was edited nor what the editor has put beside it, if it is in the store."""
    for end, told in (("echo two >>$1", ""), ("true", "nothing was changed"), ("rm $1", "No such")):
        edit = local.folder / "edit"
        edit.write_text(f"#!/bin/sh\ncp $1 $1.bak\n{end}\n")
        edit.chmod(0o700)
        local(
            "edit", "k", code=2 if told == "No such" else 0, env={**local.env, "EDITOR": str(edit)}
        )
        assert told in local.errors
        assert [one.name for one in local.folder.glob("kvi-edit-*")] == []
    assert local("get", "k") == "two\n"


def test_edit_in_conflict(cli: Command, store: kvi.Kvi) -> None:
    """The difference is shown, the edited value stays in a file, and theirs in the store."""
    store.store("k", "one\n")
    here, go = cli.folder / "here", cli.folder / "go"
    edit = script(
        cli.folder,
        "wait",
        "import pathlib, sys, time\n"
        f"pathlib.Path({str(here)!r}).touch()\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "open(sys.argv[1], 'ab').write(b'ours\\n')\n",
    )
    cli.env["EDITOR"] = edit
    ended = threading.Thread(target=lambda: cli("edit", "k", code=1))
    ended.start()
    until(here.exists, within=60)
    store.store("k", "theirs\n")
    go.touch()
    ended.join(60)
    assert "-theirs" in cli.errors
    assert "+ours" in cli.errors
    assert store.get("k").value == b"theirs\n"  # type: ignore[union-attr]
    kept = Path(cli.errors.split("the edited value is in ")[1].strip())
    assert kept.read_bytes() == b"one\nours\n"
    kept.unlink()


@pytest.mark.parametrize(
    ("theirs", "ours", "shown"),
    [
        ("one\n", "one", ["-one", "+one (without a newline)"]),
        ("one\n", "one\r\n", ["-one", "+one\\r"]),
        ("one\n", "", ["-one"]),
        ("one\n", "one\0\x1b[31m\n", ["-one", "+one\\x00\\x1b[31m"]),
        ("same", "same", ["kvi: both values are the same"]),
        (None, "one\n", ["kvi: somebody else has changed the key meanwhile (it was deleted):",
                         "+one"]),
    ],
)  # fmt: skip
def test_differences_of_a_conflict(
    local: Command, theirs: str | None, ours: str, shown: list[str]
) -> None:
    """Each difference can be seen, also that of what is not printable."""
    local("put", "k", "as it was")
    meanwhile = ["del", "k"] if theirs is None else ["put", "k", theirs]
    local.env["EDITOR"] = script(
        local.folder,
        "meanwhile",
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-m', 'kvi.cli', *{meanwhile!r}], check=True)\n"
        f"open(sys.argv[1], 'wb').write({ours.encode()!r})\n",
    )
    assert local("edit", "k", code=1).splitlines() == ([] if theirs else ["1"])
    told = local.errors.splitlines()
    assert [line for line in shown if line not in told] == []
    Path(local.errors.split("the edited value is in ")[1].strip()).unlink()


def test_edited_text_is_never_thrown_away(local: Command) -> None:
    """However the editor or kvi ends: what was saved is in a file that is named."""
    edit = script(
        local.folder,
        "save",
        "import sys, time\n"
        "with open(sys.argv[1], 'w') as file: file.write('precious')\n"
        "print('saved', flush=True)\n"
        "if 'fail' in sys.argv[0]: sys.exit(3)\n"
        "time.sleep(60)\n",
    )
    (local.folder / "fail.py").write_text((local.folder / "save.py").read_text())
    failing = edit.replace("save.py", "fail.py")
    local("edit", "k", code=3, env={**local.env, "EDITOR": failing})
    told = [local.errors]
    local.env["EDITOR"] = edit
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        process = local.start("edit", "k")
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        process.send_signal(number)
        told.append(process.communicate(timeout=60)[1])
        assert process.returncode != 0
    for text in told:
        kept = Path(text.split("the edited value is in ")[1].split("\n")[0])
        assert kept.read_bytes() == b"precious"
        kept.unlink()
    assert local("count") == "0\n"


def test_put_a_file(cli: Command, store: kvi.Kvi) -> None:
    """`@FILE` is stored exactly, `@@` is a literal one; a file that is not there is told."""
    data = bytes(range(256))
    (cli.folder / "a file").write_bytes(data)
    cli("put", "k", "@a file")
    assert store.get("k").value == data  # type: ignore[union-attr]
    (cli.folder / "hex").write_text("00 ff\n")
    cli("put", "k", "@hex", "--as", "hex")
    assert store.get("k").value == b"\0\xff"  # type: ignore[union-attr]
    cli("put", "k", "@@a file")
    assert store.get("k").value == b"@a file"  # type: ignore[union-attr]
    revision = store.get("k").revision  # type: ignore[union-attr]
    cli("cas", "k", str(revision), "@hex")
    assert store.get("k").value == b"00 ff\n"  # type: ignore[union-attr]
    cli("put", "k", "@", code=2)
    assert "@ names a file" in cli.errors
    cli("put", "k", "@none", code=2)
    assert "'none'" in cli.errors
    assert "@@" in cli.errors


def test_put_with_a_ttl(cli: Command, store: kvi.Kvi) -> None:
    """The key vanishes though the command has ended; bad ones are told."""
    limits = store.capabilities
    ttl = max(1.0, limits.lease_min_ttl)
    cli("put", "k", "v", "--ttl", f"{ttl:g}")
    assert store.get("k") is not None
    cli("put", "k2", "v", "--ttl", "0", code=2)
    assert "ttl" in cli.errors
    cli("put", "k2", "v", "--ttl", "5", "--lease", "1", code=2)
    until(lambda: store.get("k") is None, within=limits.lease_expiry_factor * ttl + 10)
    assert store.count() == 0


def tree(store: kvi.Kvi) -> dict[str, str]:
    """All that is there."""
    return {entry.key: entry.text for entry in store.range()}


def test_rename(cli: Command, store: kvi.Kvi) -> None:
    """One key: its value and its lease go with it; nothing is replaced without being forced."""
    with store.lease(60) as lease:
        store.store("a", "1", lease=lease)
        store.store("there", "x")
        assert cli("mv", "a", "b") == "1\n"
        assert store.get("b").lease == lease.id  # type: ignore[union-attr]
        assert cli.json("cp", "b", "c") == {"copied": 1}
        assert store.get("c").lease is None  # type: ignore[union-attr]
        cli("mv", "b", "there", code=1)
        assert "--force" in cli.errors
        assert "nothing was touched" in cli.errors
        assert tree(store) == {"b": "1", "c": "1", "there": "x"}
        cli("mv", "b", "there", "--force")
        cli("mv", "none", "new", code=1)
        cli("mv", "c", "c", code=2)
        assert tree(store) == {"c": "1", "there": "1"}


def test_rename_a_tree(cli: Command, store: kvi.Kvi) -> None:
    """With --prefix: whole, or not at all if something is in the way; nested ones are refused."""
    for number in range(5):
        store.store(f"old/{number}", f"{number}")
    before = tree(store)
    assert cli("mv", "--prefix", "old/", "new/", "--dry-run").splitlines()[0] == "old/0\tnew/0"
    assert cli.lines("cp", "--prefix", "old/", "new/", "--dry-run")[4] == {
        "key": "old/4", "to": "new/4",
    }  # fmt: skip
    for source, target in (("old/", "old/er/"), ("old/", "o"), ("old/", "old/")):
        cli("mv", "--prefix", source, target, code=2)
        assert "third name" in cli.errors
    store.store("new/3", "in the way")
    cli("mv", "--prefix", "old/", "new/", code=1)
    assert "'new/3'" in cli.errors
    assert tree(store) == {**before, "new/3": "in the way"}
    store.delete("new/3")
    assert cli("cp", "--prefix", "old/", "copy/") == "5\n"
    copied = {entry.revision for entry in store.range(prefix="copy/")}
    assert len(copied) == 1, "it is one step"
    assert cli("mv", "--prefix", "old/", "new/") == "5\n"
    assert sorted(tree(store)) == [f"{where}/{n}" for where in ("copy", "new") for n in range(5)]


def fill(store: kvi.Kvi, prefix: str, count: int, lease: kvi.Lease | None = None) -> None:
    """So many keys, in order."""
    most = store.capabilities.max_txn_ops or count
    keys = [f"{prefix}{number:04}" for number in range(count)]
    for at in range(0, count, most):
        store.txn(then=[kvi.Put(key, key, lease) for key in keys[at : at + most]])


def test_rename_many(cli: Command, store: kvi.Kvi) -> None:
    """As much as a transaction takes is one step; more, in number or size, is several, told."""
    limit = store.capabilities.max_txn_ops
    # For each key: compares of both names, a put, a delete; less if one of them is not needed.
    for words, each in (
        (["mv"], 4), (["mv", "--force"], 3), (["cp"], 3), (["cp", "--force"], 2),
    ):  # fmt: skip
        most = 1500 if limit is None else limit // each
        fill(store, "old/", most)
        done = f"{most}\n"
        assert cli(*words, "--prefix", "old/", "new/") == done
        assert cli.errors == ""
        assert len({entry.revision for entry in store.range(prefix="new/")}) == 1
        assert [entry.text for entry in store.range(prefix="new/")] == [
            f"old/{number:04}" for number in range(most)
        ]
        assert store.count() == most * (1 if words[0] == "mv" else 2)
        store.delete_range(prefix="")
        if limit is not None:
            fill(store, "old/", most + 1)
            assert cli(*words, "--prefix", "old/", "new/") == f"{most + 1}\n"
            assert "they go in 2 steps, each of them atomic" in cli.errors
            store.delete_range(prefix="")
    largest = store.capabilities.max_value
    if limit is None or largest is None:
        return
    for number in range(4):
        store.store(f"old/{number}", bytes(largest // 2))
    assert cli("mv", "--prefix", "old/", "new/") == "4\n"
    assert "the values are too large for one transaction" in cli.errors
    assert store.count(prefix="new/") == store.count() == 4


def test_rename_a_tree_with_leases(cli: Command, store: kvi.Kvi) -> None:
    """Keys that vanish with a lease do so under their new names; copies of them stay."""
    with store.lease(60) as lease:
        fill(store, "old/", 40, lease)
        assert cli("cp", "--prefix", "old/", "copy/") == "40\n"
        assert cli("mv", "--prefix", "old/", "new/") == "40\n"
        assert {entry.lease for entry in store.range(prefix="new/")} == {lease.id}
    assert store.count(prefix="copy/") == store.count() == 40


def test_rename_that_is_interrupted(cli: Command, store: kvi.Kvi) -> None:
    """It ends there and then, and says how far it came; each key is there once, old or new."""
    if store.capabilities.max_txn_ops is None:
        return  # it is one step
    for number in (signal.SIGINT, signal.SIGTERM):
        fill(store, "old/", 3000)
        with cli.start("mv", "--prefix", "old/", "new/") as running:
            until(lambda: store.count(prefix="new/") > 100, within=60)
            running.send_signal(number)
            _, errors = running.communicate(timeout=60)
        moved = store.count(prefix="new/")
        assert store.count() == 3000
        if moved < 3000:  # else it was through before
            assert running.returncode == 128 + number
            assert re.search(r"broken off; [\d,]+ of 3,000 keys are done\n$", errors)
        assert int(cli("mv", "--prefix", "old/", "new/", code=moved == 3000) or 0) == 3000 - moved
        assert store.count(prefix="new/") == 3000
        store.delete_range(prefix="")


def test_rename_meets_others(cli: Command, store: kvi.Kvi) -> None:
    """What others write to a key meanwhile goes with it, under its old name or its new one."""
    fill(store, "old/", 200)
    ended = threading.Event()
    told: list[int] = []

    def write() -> None:
        number = 0
        while not ended.wait(0.05):  # without a pause nobody else would come to anything
            number += 1
            if not store.txn([kvi.Key("old/0150").exists], [kvi.Put("old/0150", f"{number}")]):
                break
            told.append(number)

    other = threading.Thread(target=write)
    other.start()
    try:
        assert cli("mv", "--prefix", "old/", "new/", "--timeout", "60") == "200\n"
    finally:
        ended.set()
        other.join(60)
    assert store.get("new/0150").text == f"{told[-1]}" if told else "old/0150"  # type: ignore[union-attr]
    assert store.count() == 200


def test_rename_that_fails_on_its_way(cli: Command, store: kvi.Kvi) -> None:
    """New names that cannot be are told before anything is done; later failures, how far it got."""
    most = store.capabilities.max_txn_ops
    longest = store.capabilities.max_key
    store.store("a/1", "v")
    if longest is not None:
        store.store("a/" + "k" * (longest - 2), "v")
        cli("mv", "--prefix", "a/", "longer/", "--dry-run", code=2)
        cli("mv", "--prefix", "a/", "longer/", code=2)
        assert "this key has" in cli.errors
        assert store.count(prefix="a/") == 2
        store.delete_range(prefix="")
    if most is None:
        return
    for number in range(most):
        store.store(f"old/{number:03}", "v")
    last = f"new/{most - 1:03}"
    with store.lease(60) as lease:
        done = threading.Event()

        def get_in_the_way() -> None:
            with store.watch(prefix="new/") as watch:
                ready.set()
                while watch.next(60).type is not kvi.EventType.PUT:
                    pass
                store.store(last, "in the way", lease=lease)
                done.set()

        ready = threading.Event()
        other = threading.Thread(target=get_in_the_way)
        other.start()
        assert ready.wait(60)
        process = cli.start("mv", "--prefix", "old/", "new/")
        output, errors = process.communicate(timeout=120)
        assert done.wait(60)
        other.join(60)
        if process.returncode == 0:  # it was through before
            assert output == f"{most}\n"
        else:
            assert "keys were done before" in errors
            assert store.count(prefix="old/") > 0


def test_rename_of_what_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have taken away meanwhile is not there; what has come in the way is left."""
    cli = Inside("mem:goes-away", tmp_path)
    look = renaming._keys
    with kvi.open(cli.uri) as store:

        def then(change: Callable[[], object]) -> None:
            def keys(*given: Any) -> list[str]:
                found = look(*given)
                if given[1] == "new/":  # the last look
                    change()
                return found

            monkeypatch.setattr(renaming, "_keys", keys)

        fill(store, "old/", 3)
        then(lambda: store.delete_range(prefix="old/"))
        for words in (["mv"], ["cp", "--json"]):
            assert cli(*words, "--prefix", "old/", "new/", code=1) == ""
            assert "nothing is there" in cli.errors
            fill(store, "old/", 3)
        then(lambda: store.store("new/0001", "theirs"))
        cli("mv", "--prefix", "old/", "new/", code=1)
        assert "'new/0001' is there already" in cli.errors
        assert "nothing was touched" in cli.errors
        assert store.count(prefix="old/") == 3
        store.delete("new/0001")
        then(lambda: store.delete("old/0001"))
        assert cli("mv", "--prefix", "old/", "new/") == "2\n"
        assert [entry.key for entry in store.range()] == ["new/0000", "new/0002"]


def test_delete_many(cli: Command, store: kvi.Kvi) -> None:
    """More than a thousand want a word in a script, and can be counted before."""
    size = min(500, store.capabilities.max_txn_ops or 500)
    for first in range(0, 1001, size):
        numbers = range(first, min(first + size, 1001))
        store.txn(then=[kvi.Put(f"k/{number:04}", b"") for number in numbers])
    assert cli("del", "--prefix", "k/", "--dry-run") == "1001\n"
    assert cli.json("del", "k/0000", "k/0001", "none", "--dry-run") == {"deleted": 2}
    cli("del", "--prefix", "k/", code=2)
    assert "1,001 keys; --yes" in cli.errors
    assert store.count() == 1001
    words = [sys.executable, "-m", "kvi.cli", "del", "--prefix", "k/"]
    with OnTerminal(cli.env, cli.folder, *words) as asked:
        asked.shows("Delete 1,001 keys?")
        asked.type("n\n")
        assert b"nothing was deleted" in asked.end()
        assert asked.process.returncode == 1
    assert store.count() == 1001
    for typed, code in (("\x03", 130), ("\x04", 1)):
        with OnTerminal(cli.env, cli.folder, *words) as asked:
            asked.shows("Delete 1,001 keys?")
            asked.type(typed)
            assert b"mistake" not in asked.end()
            assert asked.process.returncode == code
    assert store.count() == 1001
    with OnTerminal(cli.env, cli.folder, *words) as asked:
        asked.shows("Delete 1,001 keys?")
        asked.type("y\n")
        assert b"1001" in asked.end()
    assert store.count() == 0
    for number in range(1001):
        store.store(f"k/{number:04}", b"")
    assert cli("del", "--prefix", "k/", "--yes") == "1001\n"
    assert store.count() == 0
