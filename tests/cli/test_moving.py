"""`export import copy`: what comes out goes in again, from any store to any other."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import kvi
import pytest

from tests.cli.conftest import Command
from tests.servers import ConsulServer, EtcdServer
from tests.support.waiting import until

pytestmark = pytest.mark.slow

ODD = {
    "": b"\0\xff",
    " ": b"",
    "/a//b/": "größer".encode(),
    "..": b'{"json": 1}',
    "new\nline\0": b"a\r\nb",
    "🙂%41?#": bytes(range(256)),
}


def fill(store: kvi.Kvi, prefix: str = "") -> dict[str, bytes]:
    made = {f"{prefix}k{key}": value for key, value in ODD.items()}
    for key, value in made.items():
        store.store(key, value)
    return made


def contents(store: kvi.Kvi, prefix: str = "") -> dict[str, bytes | None]:
    return {entry.key: entry.value for entry in store.range(prefix=prefix)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a FIFO is of POSIX")
def test_export_into_a_pipe(local: Command) -> None:
    """One that has a name, as a shell's ``>(…)`` has, is no file that is there already."""
    local("put", "k", "v")
    os.mkfifo(local.folder / "pipe")
    with subprocess.Popen(["cat", local.folder / "pipe"], stdout=subprocess.PIPE) as reader:
        local("export", "pipe")
        assert reader.communicate(timeout=60)[0].decode() == local("export", "-")


def test_export_and_import(cli: Command, store: kvi.Kvi) -> None:
    """Odd keys and any bytes come back as they were; leased keys only if asked for."""
    made = fill(store)
    lease = store.lease(60)
    store.store("leased", b"x", lease=lease)
    cli("export", "all.jsonl")
    assert "exported 6 entries, 1 leased keys left out" in cli.errors
    assert cli("export", "-") == (cli.folder / "all.jsonl").read_text()
    cli("export", "all.jsonl", code=2)
    assert "is there already" in cli.errors
    assert cli.json("export", "leased.jsonl", "--leased") == {"exported": 7, "left_out": 0}
    store.delete_range(prefix="")
    assert cli.json("import", "all.jsonl") == {"imported": 6, "left_out": 0}
    assert contents(store) == made
    cli("import", "leased.jsonl")
    assert "imported 6 entries, 1 leased ones left out" in cli.errors
    cli("import", "-", "--leased", given=(cli.folder / "leased.jsonl").read_bytes())
    entry = store.get("leased")
    assert entry is not None
    assert entry.lease is None
    cli("export", "some.jsonl", "--prefix", "k.")
    assert '"key": "k.."' in (cli.folder / "some.jsonl").read_text()
    assert "exported 1 entries" in cli.errors


def test_export_goes_on(local: Command) -> None:
    """An export that was broken off, even amid a line, goes on where it was."""
    with kvi.open(local.uri) as store:
        made = fill(store)
    local("export", "whole.jsonl")
    whole = (local.folder / "whole.jsonl").read_bytes()
    part = local.folder / "part.jsonl"
    for size in range(0, len(whole) - 1, 37):
        part.write_bytes(whole[:size])
        local("export", "--resume", "part.jsonl")
        lines = [json.loads(line) for line in part.read_text().splitlines()]
        assert [line["key"] for line in lines if "key" in line] == sorted(made)
        assert lines[-1] == {"end": True, "entries": 6}
    local("export", "--resume", "part.jsonl", code=2)
    assert "is whole" in local.errors
    part.write_bytes(whole[: whole.index(b"\n") + 5])
    local("export", "--resume", "part.jsonl", "--leased", code=2)
    local("export", "--resume", "part.jsonl", "--prefix", "k", code=2)
    assert "ask for the same" in local.errors


def lines(count: int, broken: int | None = None) -> str:
    made = ['{"format": "kvi-export", "version": 1, "prefix": ""}']
    made += [json.dumps({"key": f"k{n:06}", "value": "v"}) for n in range(count)]
    if broken is not None:
        made[broken - 1] = '{"key": "k", "val'
    return "\n".join([*made, json.dumps({"end": True, "entries": count})]) + "\n"


def test_export_that_cannot_begin_leaves_no_file(local: Command) -> None:
    """A dead server: nothing is in the way of the next attempt."""
    local("export", "f", "--uri", "etcd://127.0.0.1:1", "--timeout", "0.3", code=3)
    assert not (local.folder / "f").exists()


def test_pipe_that_is_cut_short(local: Command) -> None:
    """Its end is missing: what is stored is told, and the exit code is no success."""
    local("import", "-", given="\n".join(lines(10).split("\n")[:4]) + "\n", code=2)
    assert "was cut short" in local.errors
    assert "3 entries are stored" in local.errors
    local("import", "-", "--from-line", "99", given=lines(10), code=2)
    assert "there is no line 99" in local.errors


def test_import_that_is_interrupted_says_how_far_it_came(local: Command) -> None:
    """Ctrl-C and SIGTERM tell with which line to go on."""
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with local.start("import", "-", stdin=subprocess.PIPE) as running:
            assert running.stdin is not None
            running.stdin.write("\n".join(lines(1000).split("\n")[:500]) + "\n")
            running.stdin.flush()
            until(lambda: has_more_than(local.uri, 399), within=60)
            running.send_signal(number)
            _, errors = running.communicate(timeout=60)
        assert running.returncode == code
        assert "go on with --from-line" in errors
        local("del", "--prefix", "")


def test_copy_leaves_what_is_at_work(local: Command, tmp_path: Path) -> None:
    """Locks and members of the target are no leftovers, also for --delete."""
    source = f"sqlite:{tmp_path}/source.db"
    with kvi.open(source) as here, kvi.open(local.uri) as there:
        here.store("a", "1")
        here.store("member", "ours")
        with there.lock("jobs") as lock, there.temp_key("member", "theirs"):
            there.store("old", "")
            told = local.json("copy", source, local.uri, "--delete", "--verify")
            assert (told["extra"], told["left_out"], told["verified"]) == (1, 2, True)
            assert lock.held
            assert there.txn([lock.guard], [kvi.Get("member")]).results[0].text == "theirs"  # type: ignore[union-attr]


def test_bad_line_stores_nothing(local: Command) -> None:
    """A file is read to its end before: the line is told, and nothing was stored."""
    file = local.folder / "bad.jsonl"
    file.write_text(lines(20_000, broken=12_345))
    for words in (["import", "bad.jsonl"], ["import", "bad.jsonl", "--dry-run"]):
        local(*words, code=2)
        assert "bad.jsonl, line 12,345: not JSON" in local.errors
        assert local("count") == "0\n"
    for text, told in {
        lines(10).rsplit("\n", 2)[0] + "\n": "without the line that says that it is whole",
        lines(10) + "{}": "line 13: this stands behind the export's end",
        lines(10).replace('"entries": 10', '"entries": 11'): "its last line says 11",
    }.items():
        file.write_text(text)
        local("import", "bad.jsonl", code=2)
        assert told in local.errors
        assert local("count") == "0\n"


def test_bad_line_of_a_pipe_says_how_far_it_came(local: Command) -> None:
    """Standard input cannot be read twice: what is stored is told, and how to go on."""
    local("import", "-", given=lines(20_000, broken=12_345), code=2)
    assert "-, line 12,345: not JSON" in local.errors
    assert "12,343 entries are stored" in local.errors
    assert "--from-line 12345" in local.errors
    assert local("count") == "12343\n"
    local("import", "-", "--from-line", "12345", given=lines(20_000))
    assert local("count") == "20000\n"


def test_key_that_stands_there_twice(local: Command) -> None:
    """The later line counts, as if each were stored alone."""
    twice = lines(3).replace("k000002", "k000000").replace('"v"}', '"new"}')
    (local.folder / "twice.jsonl").write_text(twice.replace('"new"', '"old"', 1))
    local("import", "twice.jsonl")
    assert local("range") == "k000000\tnew\nk000001\tnew\n"


def test_unreadable_files(local: Command) -> None:
    """A folder, a file without permission: the name, and why."""
    (local.folder / "folder").mkdir()
    local("import", "folder", code=2)
    assert "folder" in local.errors
    (local.folder / "binary").write_bytes(bytes(range(128, 256)))
    local("import", "binary", code=2)
    assert "binary, line 1: not UTF-8" in local.errors


def test_copy(cli: Command, store: kvi.Kvi, tmp_path: Path) -> None:
    """What differs is written, and only that; a dry run writes nothing; leased keys stay."""
    source = "sqlite:" + quote(f"{tmp_path}/source.db")
    with kvi.open(source) as here:
        made = fill(here, "x/")
        here.store("leased", b"", lease=here.lease(60))
        here.store("other", b"")
        store.store("x/k..", b"old")
        store.store("x/extra", b"")
        told = cli.json("copy", source, cli.uri, "--prefix", "x/", "--dry-run")
        assert (told["missing"], told["different"], told["extra"], told["written"]) == (5, 1, 1, 0)
        assert store.get("x/k..").value == b"old"  # type: ignore[union-attr]
        output = cli("copy", source, cli.uri, "--prefix", "x/", "--verify")
        assert "verified   equal, 6 entries" in output
        assert contents(store) == made | {"x/extra": b""}
        told = cli.json("copy", source, cli.uri, "--verify")
        assert (told["written"], told["equal"], told["left_out"]) == (1, 6, 1)
        told = cli.json("copy", source, cli.uri, "--delete", "--verify")
        assert (told["extra"], told["verified"]) == (1, True)
        assert contents(store) == made | {"other": b""}
        here.store("x/k..", b"newer")
        assert cli("copy", source, cli.uri, "--delete", "--dry-run").splitlines()[1] == (
            "to write   1 (0 missing, 1 different)"
        )


def test_copy_is_verified(local: Command, tmp_path: Path) -> None:
    """A target that somebody changes meanwhile is found to be different."""
    target = f"sqlite:{tmp_path}/target.db"
    with kvi.open(local.uri) as here, kvi.open(target) as there:
        fill(here)
        lying = "import kvi.cli.moving as m; m.Batches.flush = lambda self: None"
        code = f"{lying}\nimport sys, kvi.cli.app as a\nsys.exit(a.run(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, "copy", local.uri, target, "--verify"],
            capture_output=True, text=True, env=local.env, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "verified   DIFFERENT" in done.stdout
        assert "missing: 'k'" in done.stdout
        assert there.count() == 0


def test_too_large_value_is_named(local: Command, tmp_path: Path) -> None:
    """A value that the target does not take: its key is told, the others before it are there."""
    with kvi.open(local.uri) as here:
        here.store("a", b"small")
        here.store("b", b"x" * 100)
    code = (
        "import kvi.cli.app as a, sys, kvi_memory.store as m, dataclasses\n"
        "m.CAPABILITIES = dataclasses.replace(m.CAPABILITIES, max_value=50)\n"
        "sys.exit(a.run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "copy", local.uri, "mem:small"],
        capture_output=True, text=True, env=local.env, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "ValueTooLarge" in done.stderr
    assert "'b'" in done.stderr
    assert "1 entries are written" in done.stderr


def make(uri: str, count: int, size: int) -> None:
    with kvi.open(uri, timeout=60) as store:
        for start in range(0, count, 1000):
            numbers = range(start, min(count, start + 1000))
            store.txn(then=[kvi.Put(f"key/{n:08}", os.urandom(size // 2).hex()) for n in numbers])


def measured(cli: Command, *words: str) -> float:
    """Run it, and return the most memory that it took, in MiB."""
    # Not ru_maxrss: that of a process that was forked begins with its parent's.
    code = (
        "import sys\nfrom pathlib import Path\nimport kvi.cli.app as a\n"
        "code = a.run(sys.argv[1:])\n"
        "lines = Path('/proc/self/status').read_text().splitlines()\n"
        "peak = next(line.split()[1] for line in lines if line.startswith('VmHWM'))\n"
        "print(peak, file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, env=cli.env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified   equal" in done.stdout
    return int(done.stderr.split()[-1]) / 1024


def has_more_than(uri: str, count: int) -> bool:
    with kvi.open(uri, timeout=20) as store:
        return store.count() > count


def circle(cli: Command, count: int) -> None:
    with EtcdServer() as etcd, ConsulServer() as consul:  # its own: others want theirs alone
        around(cli, etcd.uri, consul.uri, count)


def around(cli: Command, etcd: str, consul: str, count: int) -> None:
    folder = cli.folder
    uris = [
        f"sqlite:{folder}/first.db",
        f"{etcd}/moved",
        f"{consul}/moved",
        f"sqlite:{folder}/last.db",
    ]
    make(uris[0], count, 1000)
    for source, target in pairwise(uris):
        # Killed half-way, and begun again.
        with cli.start("copy", source, target, "--timeout", "60") as first:
            until(partial(has_more_than, target, count // 4), within=300)
            first.send_signal(signal.SIGKILL)
        peak = measured(cli, "copy", source, target, "--verify", "--timeout", "60")
        print(f"\n{source} to {target}: {peak:.0f} MiB at most")
        assert peak < 150
    with kvi.open(uris[0]) as here, kvi.open(uris[3]) as there:
        assert contents(here) == contents(there)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.etcd
@pytest.mark.consul
def test_copy_in_a_circle(local: Command) -> None:
    """SQLite to etcd to Consul to SQLite, each killed half-way and begun again: all is equal."""
    circle(local, 3000)


@needs_proc
@pytest.mark.soak
@pytest.mark.etcd
@pytest.mark.consul
@pytest.mark.timeout(3600)
def test_copy_of_hundred_thousand(local: Command) -> None:
    """The same with 100,000 keys of 1 KB, in bounded memory."""
    circle(local, 100_000)


def test_progress_on_a_terminal(local: Command, tmp_path: Path) -> None:
    """There is a bar on a terminal, and tables."""
    import pty

    make(local.uri, 500, 100)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvi.cli", "copy", local.uri, f"sqlite:{tmp_path}/copy.db"],
        stdin=follower, stdout=follower, stderr=follower,
        env={**local.env, "TERM": "xterm", "COLUMNS": "100"}, close_fds=True,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert "copying" in text
    assert "500/500" in text
    assert "read       500" in text
