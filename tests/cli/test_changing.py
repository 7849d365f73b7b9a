"""`update edit mv cp`, `put --ttl`, `put KEY @FILE`, `del` of many: on every store."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path

import kvi
import pytest

from tests.cli.conftest import Command
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
        cli("edit", "k", code=1, env={**cli.env, "EDITOR": "false"})
        assert "the editor" in cli.errors
        assert store.get("k") == entry
    cli("edit", "new")
    assert store.get("new").value == b"two\n"  # type: ignore[union-attr]


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


def test_rename_many(cli: Command, store: kvi.Kvi) -> None:
    """More than a transaction takes, in number or size, goes in steps, which is told."""
    limit = store.capabilities.max_txn_ops
    most = limit or 200
    for number in range(most):
        store.store(f"old/{number:03}", "v")
    assert cli("mv", "--prefix", "old/", "new/") == f"{most}\n"
    assert store.count(prefix="new/") == store.count() == most
    if limit is None:  # then it is one step, and nothing is told
        assert len({entry.revision for entry in store.range()}) == 1
        assert cli.errors == ""
        return
    assert "steps, each of them atomic" in cli.errors
    store.delete_range(prefix="")
    largest = store.capabilities.max_value
    assert largest is not None
    for number in range(4):
        store.store(f"old/{number}", bytes(largest // 2))
    assert cli("mv", "--prefix", "old/", "new/") == "4\n"
    assert store.count(prefix="new/") == store.count() == 4


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
