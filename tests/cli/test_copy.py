"""`copy`: one store by two names is found out; who is interrupted deletes nothing more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import quote

import kvi
import pytest

from tests.cli.conftest import Command
from tests.servers import ConsulServer
from tests.support.waiting import until

pytestmark = pytest.mark.slow

MASTER = "11111111-2222-3333-4444-555555555555"


def contents(uri: str) -> dict[str, bytes | None]:
    with kvi.open(uri, timeout=20) as store:
        return {entry.key: entry.value for entry in store.range()}


def at(uri: str, part: str) -> str:
    """A part of a store."""
    if not part:
        return uri
    return f"{uri}?namespace={part}" if uri.startswith("sqlite") else f"{uri}/{part}"


def by_another_name(uri: str) -> str:
    """The same store, as nobody sees from the URIs."""
    if not uri.startswith("sqlite"):
        return uri.replace("127.0.0.1", "localhost")
    # Links of the other kind have a test of their own.
    file = Path(kvi.uri.StoreUri.parse(uri).path)
    link = file.with_name("link.db")
    if not link.exists():
        link.symlink_to(file.name)
    return f"sqlite:{quote(str(link))}"


@pytest.mark.parametrize(("here", "there"), [("", ""), ("", "in"), ("in", ""), ("in/side", "in")])
def test_store_is_not_copied_into_itself(
    cli: Command, store: kvi.Kvi, uri: str, here: str, there: str
) -> None:
    """By whatever name, in whole or in part: it is refused before anything is deleted."""
    for key in ("k", "in/x", "in/side/y", "inside"):
        store.store(key, key)
    before = contents(uri)
    for words in (["--delete"], [], ["--delete", "--prefix", "k"]):
        if words[-1:] == ["k"] and here != there:
            continue  # these parts are apart
        cli("copy", at(uri, here), at(by_another_name(uri), there), *words, code=2)
        assert "SameStore" in cli.errors
        assert contents(uri) == before
    if here == there == "":  # nor with the same namespace on both sides
        cli("copy", uri, by_another_name(uri), "--delete", "--namespace", "in", code=2)
        assert contents(uri) == before


def test_parts_of_one_store_that_are_apart(cli: Command, store: kvi.Kvi, uri: str) -> None:
    """Two namespaces, or a prefix that leads out of the other: such a copy is right."""
    for key in ("a", "app/k", "bak/old", "bakery"):
        store.store(key, key)
    told = cli.json("copy", at(uri, "app"), at(uri, "bak"), "--delete", "--verify")
    assert (told["written"], told["extra"], told["verified"]) == (2, 1, True)
    told = cli.json("copy", uri, at(uri, "bak"), "--prefix", "app/", "--delete", "--verify")
    assert told["verified"] is True
    assert sorted(contents(uri)) == ["a", "app/k", "bak/app/k", "bak/k", "bakery"]


def test_link_to_the_same_file(local: Command) -> None:
    """It is refused before it is opened: by two names a database can be damaged."""
    local("put", "k", "v")
    file = local.folder / "local.db"
    os.link(file, local.folder / "link.db")
    for words in (["--delete"], ["--dry-run"], ["--namespace", "x"]):
        local("copy", "sqlite:local.db", "sqlite:link.db", *words, code=2)
        assert "SameStore: local.db and link.db are the same file" in local.errors
        assert not (local.folder / "link.db-wal").exists()
    assert local("get", "k") == "v"


def test_source_is_only_read(cli: Command, store: kvi.Kvi, uri: str, tmp_path: Path) -> None:
    """A copy writes nothing to it, and leaves nothing in the target."""
    target = f"sqlite:{tmp_path}/target.db"
    at_first = store.store("k", "v")
    cli("copy", uri, target, "--delete")
    entry = store.get("k")
    assert entry is not None
    assert entry.revision == at_first
    if store.capabilities.watch_history:
        with store.watch(prefix="", from_revision=at_first) as changes:
            assert changes.next(20).key == "k"
            with pytest.raises(kvi.Timeout):
                changes.next(0.1)
    cli("copy", target, uri, "--delete")
    assert contents(target) == contents(uri) == {"k": b"v"}


def test_dry_run_writes_nothing(cli: Command, store: kvi.Kvi, uri: str, tmp_path: Path) -> None:
    """Not even to ask whether the stores are one."""
    with kvi.open(f"sqlite:{tmp_path}/source.db") as source:
        source.store("k", "v")
    at_first = store.store("other", "")
    cli("copy", f"sqlite:{tmp_path}/source.db", uri, "--delete", "--dry-run")
    assert store.store("other", "") - at_first == 1 or not store.capabilities.watch_history


@pytest.mark.consul
def test_token_for_keys_alone(local: Command) -> None:
    """Who may have no session can copy, and the same store is found out all the same."""
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}
    with ConsulServer(config={"primary_datacenter": "dc1", "acl": acl}) as server:
        address = f"{server.host}:{server.port}"

        def ask(path: str, body: dict[str, object]) -> str:
            request = urllib.request.Request(
                f"http://{address}/v1/acl/{path}",
                json.dumps(body).encode(),
                {"X-Consul-Token": MASTER},
                method="PUT",
            )
            with urllib.request.urlopen(request, timeout=20) as answer:
                return str(json.load(answer).get("SecretID", ""))

        with kvi.open(f"consul://{MASTER}@{address}", timeout=60) as root:
            until(lambda: works(root), within=60)
        ask("policy", {"Name": "app", "Rules": 'key_prefix "app/" { policy = "write" }'})
        token = ask("token", {"Policies": [{"Name": "app"}]})
        local("put", "k", "v")
        local("copy", local.uri, f"consul://{token}@{address}/app", "--delete")
        assert contents(f"consul://{MASTER}@{address}") == {"app/k": b"v", "probe": b""}
        other = f"consul://{MASTER}@localhost:{server.port}/app/in"
        local("copy", other, f"consul://{token}@{address}/app", "--delete", code=2)
        assert "SameStore" in local.errors
        assert token not in local.errors
        assert contents(f"consul://{MASTER}@{address}") == {"app/k": b"v", "probe": b""}


def works(store: kvi.Kvi) -> bool:
    try:
        store.store("probe", "")
    except kvi.KviError:
        return False
    return True


# -- secrets ---------------------------------------------------------------------------------------


def test_stores_named_by_files_and_variables(local: Command) -> None:
    """Each of both, so that no list of processes shows their secrets."""
    folder = local.folder
    source, target = f"sqlite:{folder}/source.db", f"sqlite:{folder}/target.db"
    (folder / "source.uri").write_text(f"{source}\n")
    (folder / "target.uri").write_text(target)
    local("put", "k", "v", "--uri-file", "source.uri")
    assert local("--uri-file", "source.uri", "get", "k") == "v"
    variables = local.env | {"KVI_URI": source, "KVI_TO_URI": target}
    neither = {name: value for name, value in local.env.items() if name != "KVI_URI"}
    for words, env in (
        (["--uri-file", "source.uri", "--to-uri-file", "target.uri"], local.env),
        (["--uri-file", "source.uri", target], neither),
        (["--uri", source, target], variables),
        ([source, "--to-uri-file", "target.uri"], local.env),
        ([source], variables),
        ([], variables),
        (["--uri-file", "source.uri"], variables),
        (["--to-uri-file", "target.uri"], variables),
        ([source, target], variables | {"KVI_TO_URI": "mem:other"}),
    ):
        (folder / "target.db").unlink(missing_ok=True)
        local("copy", *words, "--delete", env=env)
        assert contents(target) == {"k": b"v"}, words
    local("copy", source, env=local.env, code=2)
    assert "KVI_TO_URI" in local.errors
    local("copy", "--to-uri-file", "target.uri", env=neither, code=2)
    assert "Name the source" in local.errors
    local("copy", source, target, "--to-uri-file", "target.uri", code=2)
    assert "takes two stores" in local.errors
    local("get", "k", "--uri", source, "--uri-file", "source.uri", code=2)
    assert "keep one" in local.errors
    seen = local("lock", "jobs", "--uri-file", "source.uri", "--", sys.executable, "-m", "kvi.cli",
                 "get", "k", env=neither)  # fmt: skip
    assert seen == "v"


def test_file_that_holds_no_uri(local: Command) -> None:
    """It is told, and not what the file holds."""
    for text in (b"", b"s3cret\nline", b"\xff s3cret", b"no scheme s3cret"):
        (local.folder / "uri").write_bytes(text)
        for words in (["get", "k", "--uri-file", "uri"], ["copy", "mem:", "--to-uri-file", "uri"]):
            local(*words, code=2)
            assert local.errors
            assert "s3cret" not in local.errors


# -- interrupts ------------------------------------------------------------------------------------

SWALLOWED = """
import os, signal, sys, kvi, kvi.cli.app as app

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.{signal})
        for _ in range(100):
            pass

sys.unraisablehook = lambda told: None
real = kvi.Kvi.{method}

def method(*args, **options):
    done = real(*args, **options)
    del globals()["dying"]  # an exception in here is lost
    globals()["dying"] = None
    return done

dying = Dying()
kvi.Kvi.{method} = method
sys.exit(app.run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_nothing_is_deleted_after_an_interrupt(local: Command, name: str, code: int) -> None:
    """Not even where Python could not raise it."""
    count = 1000
    source = f"sqlite:{local.folder}/source.db"
    local("put", "other", "", "--uri", source)
    for words, method in (
        (["del", *(f"k{n:04}" for n in range(count))], "delete"),
        (["copy", source, local.uri, "--delete"], "txn"),
    ):
        with kvi.open(local.uri) as store:
            store.txn(then=[kvi.Put(f"k{n:04}", "v") for n in range(count)])
            done = subprocess.run(
                [sys.executable, "-c", SWALLOWED.format(signal=name, method=method), *words],
                capture_output=True, env=local.env, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
            gone = count - store.count(prefix="k")
            assert gone in {1, 99, 100}, "one step was under way"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_delete_that_is_interrupted(
    cli: Command, store: kvi.Kvi, number: signal.Signals, tmp_path: Path
) -> None:
    """It ends there and then: what is left stays."""
    count = 2000
    source = f"sqlite:{tmp_path}/source.db"
    cli("put", "k", "", "--uri", source)
    for words in (
        ["del", *(f"k{n:04}" for n in range(count))],
        ["del", "--start", "k", "--end", "l", "--yes", "--timeout", "60"],
        ["copy", source, cli.uri, "--delete", "--timeout", "60"],
    ):
        for start in range(0, count, 50):
            store.txn(then=[kvi.Put(f"k{n:04}", "v") for n in range(start, start + 50)])
        with cli.start(*words) as running:
            until(lambda: store.count(prefix="k0") < count // 2, within=60)
            running.send_signal(number)
            running.wait(60)
        left = store.count(prefix="k0")
        # Else it had done all before, in one step, and was at its end.
        assert running.returncode == 128 + number or left == 0
        if words[-1] == "k1999" and not store.uri.startswith("sqlite"):
            assert left > 0
        store.delete_range(prefix="")


def test_conformance_that_is_interrupted(local: Command) -> None:
    """SIGTERM ends the suite, which would delete what comes into its store later."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with local.start("conformance") as running:
            with kvi.open(local.uri, timeout=20) as store:
                until(lambda: store.count() > 0, within=100)
            running.send_signal(number)
            running.communicate(timeout=60)
        assert running.returncode == 128 + number
        local("del", "--prefix", "", code=0 if local("count") != "0\n" else 1)


def test_leased_target_key_with_the_same_value(local: Command, tmp_path: Path) -> None:
    """With --leased it differs: after the copy it is permanent. So it is after cp and import."""
    target = f"sqlite:{quote(str(tmp_path / 'target.db'))}"
    with kvi.open(local.uri) as here, kvi.open(target) as there:
        here.store("m", "here")
        there.store("m", "here", ttl=600)
        told = local.json("copy", local.uri, target, "--leased", "--dry-run")
        assert (told["different"], told["equal"]) == (1, 0)
        told = local.json("copy", local.uri, target, "--leased", "--verify")
        assert (told["different"], told["written"], told["verified"]) == (1, 1, True)
        entry = there.get("m")
        assert entry is not None
        assert (entry.value, entry.lease) == (b"here", None)
        here.store("m", "here", ttl=600)
        here.store("n", "here", ttl=600)
        local("cp", "m", "n", "--force")
        local("export", "m.jsonl", "--prefix", "m", "--leased")
        local("import", "m.jsonl", "--leased")
        assert [entry.lease for entry in here.range()] == [None, None]
