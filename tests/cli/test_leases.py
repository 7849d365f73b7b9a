"""`leases` and `lease revoke`, as processes, on every store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import kvi
import pytest

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def fill(store: kvi.Kvi, lease: kvi.Lease, count: int) -> None:
    """Give a lease so many keys."""
    size = min(500, store.capabilities.max_txn_ops or 500)
    for first in range(0, count, size):
        numbers = range(first, min(first + size, count))
        store.txn(then=[kvi.Put(f"k/{number:04}", b"", lease) for number in numbers])


def elsewhere_of(store: kvi.Kvi) -> str:
    """What a question adds about keys that cannot be seen from a namespace."""
    return " here (and those in other namespaces)" if store._scope.prefix else ""


def told(cli: Command, lease: int, *words: str) -> dict[str, Any]:
    """What is shown of a lease; a server may have others, of other tests."""
    found: dict[int, dict[str, Any]] = {one["id"]: one for one in cli.lines("leases", *words)}
    return found[lease]


def row(cli: Command, lease: int, *words: str) -> list[str]:
    """The same as text, without the id."""
    (found,) = re.findall(rf"^{lease}\t(.*)$", cli("leases", *words), re.MULTILINE)
    return str(found).split("\t")


def test_leases(cli: Command, store: kvi.Kvi) -> None:
    """Each has its id, its ttl, what is left of that where the store tells, and all its keys."""
    tells = not store.uri.startswith("consul")
    with store.lease(60, keep_alive=False) as lease:
        store.store("permanent", "v")
        assert row(cli, lease.id)[-2:] == ["0", ""]
        for key in ("d", "b\n", "a", "c"):
            store.store(key, "v", lease=lease)
        found = told(cli, lease.id)
        assert list(found) == ["id", "ttl", "left", "keys"]
        assert found["ttl"] == lease.ttl
        assert found["keys"] == ["a", "b\n", "c", "d"]
        ttl, left, count, first = row(cli, lease.id)
        assert (ttl, count, first) == ("60", "4", "a, b\\n, c, …")
        if tells:
            assert 0 < found["left"] <= 60
            assert 0 < int(left) <= 60
        else:
            assert found["left"] is None
            assert left == "-"
        store.store("a", "permanent from now on")
        store.delete("c")
        assert told(cli, lease.id)["keys"] == ["b\n", "d"]
        assert row(cli, lease.id)[-1] == "b\\n, d"
        ids = [one["id"] for one in cli.lines("leases")]
        assert ids == sorted(ids)
    assert lease.id not in [one["id"] for one in cli.lines("leases")]


def test_leases_in_a_namespace(cli: Command, store: kvi.Kvi) -> None:
    """Leases are the whole store's; keys are the namespace's, without its prefix."""
    with store.lease(60) as lease, store.lease(60) as other:
        store.store("app/a", "v", lease=lease)
        store.store("apple", "v", lease=lease)
        store.store("b", "v", lease=other)
        assert told(cli, lease.id, "--namespace", "app")["keys"] == ["a"]
        assert told(cli, other.id, "--namespace", "app")["keys"] == []
        assert row(cli, other.id, "--namespace", "app")[-2:] == ["0", ""]


def test_leases_are_only_read(cli: Command, store: kvi.Kvi) -> None:
    """They can be looked at with --read-only."""
    with store.lease(60) as lease:
        store.store("k", "v", lease=lease)
        assert told(cli, lease.id, "--read-only")["keys"] == ["k"]


def test_leases_on_a_terminal(local: Command) -> None:
    """A table, in which no key steers the terminal."""
    with kvi.open(local.uri) as store, store.lease(60) as lease:
        store.store("\x1b]0;pwn\x07", "v", lease=lease)
        words = [sys.executable, "-m", "kvi.cli", "leases"]
        with OnTerminal({**local.env, "NO_COLOR": "1"}, local.folder, *words) as terminal:
            seen = terminal.end().decode()
        assert terminal.process.returncode == 0
        titles, shown = re.sub("\x1b\\[[01]m", "", seen).splitlines()
        assert titles.split() == ["id", "ttl", "left", "keys", "first", "keys"]
        id, ttl, left, count, first = shown.split()
        assert (id, ttl, count, first) == (str(lease.id), "60", "1", "\\x1b]0;pwn\\x07")
        assert 0 < int(left) <= 60


def test_no_leases(local: Command) -> None:
    """Nothing is shown, and nothing is wrong."""
    assert local("leases") == local("leases", "--json") == ""


def test_ended_leases_are_not_shown(local: Command) -> None:
    """Neither one whose time is up nor one with many keys that are still in the file."""
    with kvi.open(local.uri) as store:
        short = store.lease(1, keep_alive=False)
        store.store("k", "v", lease=short)
        with store.lease(60) as revoked:
            fill(store, revoked, 2000)
        until(lambda: not short.alive)
        for words in (["leases"], ["leases", "--read-only"]):
            assert local(*words) == ""


def test_store_that_nobody_else_has_open(local: Command) -> None:
    """A file that is only read shows what has not ended, and stays as it is."""
    local("put", "k", "v", "--ttl", "60")
    local("put", "gone", "v", "--ttl", "0.2")
    (file,) = local.folder.glob("local.db")
    with kvi.open(local.uri, read_only=True) as store:
        until(lambda: store.get("gone") is None)
    before = file.read_bytes()
    (found,) = local.lines("leases", "--read-only")
    assert found["keys"] == ["k"]
    assert [one.name for one in local.folder.glob("local.db*")] == ["local.db"]
    assert file.read_bytes() == before


def test_revoke(cli: Command, store: kvi.Kvi) -> None:
    """The keys go with it; the exit code is 1 if there is no such lease, as text and as JSON."""
    store.store("permanent", "v")
    for form in (str, hex, lambda id: f"0X{id:X}"):
        lease = store.lease(60, keep_alive=False)
        store.store("k", "v", lease=lease)
        assert cli("lease", "revoke", form(lease.id)) == "revoked\n"
        assert [entry.key for entry in store.range()] == ["permanent"]
        with pytest.raises(kvi.LeaseLost):
            lease.renew()
        assert cli("lease", "revoke", form(lease.id), code=1) == ""
        assert cli.errors == f"kvi: no lease with the id {form(lease.id)} is alive\n"
    with store.lease(60, keep_alive=False) as lease:
        id = str(lease.id)
        done = {"id": lease.id, "revoked": True}
        assert cli.json("lease", "revoke", id) == done
        assert cli.json("lease", "revoke", id, code=1) == done | {"revoked": False}
        assert cli.errors == ""
    for id in ("1", "0x1", str(2**64), str(2**128 - 1), "0x" + "f" * 32):
        cli("lease", "revoke", id, code=1)


@pytest.mark.consul
@pytest.mark.xdist_group("consul")
def test_revoke_a_session(consul_uri: str, tmp_path: Path) -> None:
    """On Consul the id may be the session's own; a session that has no ttl is no lease."""
    cli = Command(consul_uri, tmp_path)
    with kvi.open(consul_uri) as store:
        lease = store.lease(60, keep_alive=False)
        assert cli("lease", "revoke", str(UUID(int=lease.id))) == "revoked\n"
        session = store.client.session.create(behavior="delete", lock_delay=0)
        try:
            cli("lease", "revoke", session, code=1)
            assert session in [one["ID"] for one in store.client.session.list()[1]]
            assert UUID(session).int not in [one["id"] for one in cli.lines("leases")]
        finally:
            store.client.session.destroy(session)


def test_revoking_a_lock(cli: Command, store: kvi.Kvi) -> None:
    """Whoever hangs can be put out: by the id that `kvi locks` shows, behind 0x."""
    holder = store.lock("jobs", ttl=10)
    assert holder.acquire(0)
    (found,) = cli.lines("locks", "jobs")
    (one,) = found["holders"]
    assert cli("lease", "revoke", f"0x{one['id']}") == "revoked\n"
    assert cli.lines("locks", "jobs") == []
    assert holder.lost.wait(60)
    with pytest.raises(kvi.LeaseLost):
        holder.release()


@pytest.mark.parametrize("behind", [("--", "revoke", "1"), ("--ttl", "20", "--", "revoke", "1")])
def test_command_called_revoke(local: Command, behind: tuple[str, ...]) -> None:
    """What stands behind -- is a command, whatever it is called."""
    program = local.folder / "bin" / "revoke"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "ran with $1 and a lease of ${#KVI_LEASE}"\n')
    program.chmod(0o700)
    local.env["PATH"] = f"{program.parent}:{local.env['PATH']}"
    assert "ran with 1 and a lease of " in local("lease", *behind)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["revoke"], "kvi lease revoke ID"),
        (["revoke", "1", "2"], "kvi lease revoke ID"),
        (["revok", "1"], "kvi lease revoke ID"),
        (["1"], "kvi lease revoke ID"),
        (["revoke", "1", "--", "true"], "kvi lease revoke ID"),
        (["revoke", "--", "1"], "kvi lease revoke ID"),
        ([], "What is to be run?"),
        (["revoke", "-5"], "No such option"),
        (["revoke", ""], "InvalidArgument: '' is not the id of a lease"),
        (["revoke", "0x"], "is not the id of a lease"),
        (["revoke", "beef"], "is not the id of a lease"),
        (["revoke", "+5"], "is not the id of a lease"),
        (["revoke", "5 "], "is not the id of a lease"),
        (["revoke", "٣"], "is not the id of a lease"),
        (["revoke", "9" * 5000], "is not the id of a lease"),
        (["revoke", "dc36ce9f-e620-f930-af49"], "is not the id of a lease"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_is_no_lease(local: Command, words: list[str], text: str) -> None:
    """It is told before any store is made or asked."""
    assert local("lease", *words, code=2) == ""
    assert text in local.errors
    assert list(local.folder.iterdir()) == []


def test_revoke_without_writing(cli: Command, store: kvi.Kvi) -> None:
    """--read-only refuses it, also of a lease that is not there, and nobody is asked before."""
    with store.lease(60) as lease:
        store.store("k", "v", lease=lease)
        for id in (str(lease.id), "1"):
            words = ["lease", "revoke", id, "--read-only"]
            cli(*words, code=3)
            assert "PermissionDenied" in cli.errors
            line = [sys.executable, "-m", "kvi.cli", *words]
            with OnTerminal(cli.env, cli.folder, *line) as terminal:
                assert b"PermissionDenied" in terminal.end()
            assert terminal.process.returncode == 3
        assert store.get("k") is not None


def test_revoke_on_a_terminal(cli: Command, store: kvi.Kvi) -> None:
    """Who sits there is asked, if there are keys; with --yes nobody is."""
    lease = store.lease(60, keep_alive=False)
    store.store("a", "v", lease=lease)
    store.store("b", "v", lease=lease)
    words = [sys.executable, "-m", "kvi.cli", "lease", "revoke", str(lease.id)]
    elsewhere = elsewhere_of(store)
    for typed, code in (("n\n", 1), ("\x04", 1), ("\x03", 130)):
        with OnTerminal(cli.env, cli.folder, *words) as asked:
            asked.shows(f"Revoke the lease, and delete its 2 keys{elsewhere}?")
            asked.type(typed)
            seen = asked.end()
        assert asked.process.returncode == code
        assert (b"nothing was revoked" in seen) is (code == 1)
        assert b"mistake" not in seen
    lease.renew()
    with OnTerminal(cli.env, cli.folder, *words, "--namespace", "other") as asked:
        asked.shows("its 0 keys here (and those in other namespaces)?")
        asked.type("n\n")
        asked.end()
    assert store.count() == 2
    with OnTerminal(cli.env, cli.folder, *words) as asked:
        asked.shows("Revoke the lease")
        asked.type("y\n")
        assert b"revoked" in asked.end()
    assert asked.process.returncode == 0
    assert store.count() == 0
    for yes in ([], ["--yes"]):
        with store.lease(60, keep_alive=False) as lease:
            if yes:
                store.store("a", "v", lease=lease)
            if elsewhere and not yes:  # it may have keys that cannot be seen from here
                continue
            with OnTerminal(cli.env, cli.folder, *words[:-1], str(lease.id), *yes) as unasked:
                assert b"?" not in unasked.end()
            assert unasked.process.returncode == 0
            assert store.count() == 0


def test_revoke_many_in_a_script(cli: Command, store: kvi.Kvi) -> None:
    """A lease of more than a thousand keys wants a word; all of its keys are counted."""
    with store.lease(60) as lease:
        fill(store, lease, 1001)
        assert len(told(cli, lease.id)["keys"]) == 1001
        assert row(cli, lease.id)[-2:] == ["1001", "k/0000, k/0001, k/0002, …"]
        cli("lease", "revoke", str(lease.id), code=2)
        keys = f"its 1,001 keys{elsewhere_of(store)}"
        assert f"with the lease {keys} are deleted; --yes revokes it" in cli.errors
        assert store.count() == 1001
        assert cli("lease", "revoke", str(lease.id), "--yes") == "revoked\n"
        assert store.count() == 0


def test_memory(tmp_path: Path) -> None:
    """A memory store is the process's own: no other process's leases are there to be seen."""
    cli = Command("mem:", tmp_path)
    assert cli("leases") == cli("leases", "--json") == ""
    cli("lease", "revoke", "1", code=1)
    assert cli.json("lease", "revoke", "1", code=1) == {"id": 1, "revoked": False}
    cli("lease", "revoke", "1", "--read-only", code=3)


def test_memory_within_a_process(tmp_path: Path) -> None:
    """The command, run where the store is, sees it as on any other store."""
    program = (
        "import sys, kvi, kvi.cli.app as app\n"
        "with kvi.open('mem:m') as store, store.lease(60) as lease:\n"
        "    store.store('k', 'v', lease=lease)\n"
        "    uri = ['--uri', 'mem:m']\n"
        "    codes = [app.run(['leases', '--json', *uri])]\n"
        "    codes += [app.run(['lease', 'revoke', str(lease.id), *uri]) for _ in range(2)]\n"
        "    assert store.get('k') is None\n"
        "sys.exit(codes != [0, 0, 1])\n"
    )
    env = Command("mem:", tmp_path).env
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    shown, revoked = done.stdout.splitlines()
    assert json.loads(shown)["keys"] == ["k"]
    assert 0 < json.loads(shown)["left"] <= 60
    assert revoked == "revoked"


def test_store_that_does_not_tell(tmp_path: Path) -> None:
    """Its leases cannot be listed, which is said; one can be revoked all the same."""
    program = (
        "import sys, kvi, kvi.cli.app as app\n"
        "from kvi.primitives import Primitives\n"
        "from kvi_memory.store import MemoryKvi\n"
        "del MemoryKvi._leases\n"
        "with kvi.open('mem:m') as store, store.lease(60) as lease, store.lock('jobs'):\n"
        "    store.store('k', 'v', lease=lease)\n"
        "    uri = ['--uri', 'mem:m']\n"
        "    codes = [app.run(['leases', *uri]), app.run(['locks', '--json', *uri])]\n"
        "    codes += [app.run(['lease', 'revoke', str(lease.id), *uri]) for _ in range(2)]\n"
        "    assert store.get('k') is None\n"
        "sys.exit(codes != [2, 0, 0, 0])\n"
    )
    env = Command("mem:", tmp_path).env
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    locks, *revoked = done.stdout.splitlines()
    assert json.loads(locks)["holders"][0]["left"] is None
    assert revoked == ["revoked", "revoked"]
    assert "NotSupported: the store does not tell which leases there are" in done.stderr
