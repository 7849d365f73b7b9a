"""`import` of what `consul kv export` and `etcdctl get -w json` write, by the real tools."""

from __future__ import annotations

import base64
import codecs
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi.cli.foreign import Entries, Format, NoValues, recognised
from kvi.cli.records import Entry

from tests.cli.conftest import Command
from tests.servers import ConsulServer, EtcdServer, find_consul, find_etcdctl

VALUES = {
    "app/": b"",
    "app/größe": "ü\n".encode(),
    "app/<&>": bytes(range(256)),
    "app/ü/🙂 %41": b'{"json": 1}',
}


@dataclass
class Tools:
    """The tools of other projects, with servers that nobody else uses."""

    etcd: str
    consul: str

    def run(self, *words: str | Path, given: bytes = b"") -> bytes:
        """Run one of them; its output."""
        env = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(words, input=given, capture_output=True, env=env, check=True).stdout

    def etcdctl(self, *words: str, given: bytes = b"") -> bytes:
        """Run `etcdctl`."""
        server = ["--endpoints", self.etcd.removeprefix("etcd://")]
        return self.run(find_etcdctl().path, *server, *words, given=given)

    def consul_kv(self, action: str, *words: str, given: bytes = b"") -> bytes:
        """Run `consul kv`."""
        server = f"-http-addr={self.consul.removeprefix('consul://')}"
        return self.run(find_consul().path, "kv", action, server, *words, given=given)


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    """Both tools, beside stores that hold `VALUES`."""
    with EtcdServer() as etcd, ConsulServer() as consul:
        made = Tools(etcd.uri, consul.uri)
        for key, value in VALUES.items():
            made.etcdctl("put", "--", key, *([] if value else [""]), given=value)
            made.consul_kv("put", "-flags=42", key, "-", given=value)
        yield made


real = [
    pytest.mark.slow,
    pytest.mark.etcd,
    pytest.mark.consul,
    pytest.mark.xdist_group("foreign"),
]


def marked(function: Any) -> Any:
    """A test with the real tools."""
    for mark in real:
        function = mark(function)
    return function


def contents(uri: str) -> dict[str, bytes | None]:
    with kvi.open(uri, timeout=20) as store:
        return {entry.key: entry.value for entry in store.range()}


@marked
def test_what_the_tools_write(tools: Tools, local: Command) -> None:
    """It is stored as it was, in every store, from a file and from a pipe, whatever its layout."""
    etcd = tools.etcdctl("get", "--prefix", "-w", "json", "app/")
    consul = tools.consul_kv("export", "app/")
    outputs = {
        "etcd": etcd,
        "consul": consul,
        "etcd on many lines": json.dumps(json.loads(etcd), indent=4).encode(),
        "consul on one line": json.dumps(json.loads(consul)).encode(),
    }
    for name, output in outputs.items():
        (local.folder / name).write_bytes(output)
        local("import", name, "--dry-run")
        assert "every entry is right; nothing was stored" in local.errors
        for number, target in enumerate(
            [f"sqlite:{local.folder}/{name.replace(' ', '')}.db", tools.etcd, tools.consul]
        ):
            uri = target if number == 0 else f"{target}/{name.replace(' ', '')}"
            assert local.json("import", "--uri", uri, name) == {"imported": 4, "left_out": 0}
            assert contents(uri) == VALUES
            with kvi.open(uri, timeout=20) as store:
                store.delete_range(prefix="")
            local("import", "--uri", uri, "-", given=output)
            assert "imported 4 entries" in local.errors
            assert contents(uri) == VALUES
        assert local.json("import", name, "--uri", "mem:")["imported"] == 4
    assert "missing" not in local("copy", tools.etcd, tools.consul, "--prefix", "app/", "--verify",
                                  "--dry-run").replace("0 missing", "")  # fmt: skip


@marked
def test_nothing_of_it(tools: Tools, local: Command) -> None:
    """An export without entries is one."""
    for output in (
        tools.etcdctl("get", "--prefix", "-w", "json", "none"),
        tools.consul_kv("export", "none"),
    ):
        local("import", "-", given=output)
        assert "imported 0 entries" in local.errors


@marked
def test_leased_keys_of_etcd(tools: Tools, local: Command) -> None:
    """They are left out, or become permanent with --leased, as those of an export of kvi."""
    lease = tools.etcdctl("lease", "grant", "600").split()[1].decode()
    tools.etcdctl("put", f"--lease={lease}", "leased/a", "1")
    tools.etcdctl("put", "leased/b", "2")
    output = tools.etcdctl("get", "--prefix", "-w", "json", "leased/")
    local("import", "-", given=output)
    assert "imported 1 entries, 1 leased ones left out" in local.errors
    assert contents(local.uri) == {"leased/b": b"2"}
    local("import", "--leased", "-", given=output)
    with kvi.open(local.uri) as store:
        entry = store.get("leased/a")
    assert entry is not None
    assert (entry.value, entry.lease) == (b"1", None)


@marked
def test_what_etcdctl_leaves_out(tools: Tools, local: Command) -> None:
    """A part of the entries, or keys without values, is refused before anything is stored."""
    part = tools.etcdctl("get", "--prefix", "--limit", "2", "-w", "json", "app/")
    keys = tools.etcdctl("get", "--prefix", "--keys-only", "-w", "json", "app/")
    (local.folder / "part").write_bytes(part)
    local("import", "part", code=2)
    assert "it has 2 of 4 entries: it was cut short, as by --limit" in local.errors
    for words, given in ((["keys"], b""), (["-"], keys)):
        (local.folder / "keys").write_bytes(keys)
        local("import", *words, given=given, code=2)
        assert "no entry has a value, as with --keys-only" in local.errors
    assert local("count") == "0\n"
    local("import", "keys", "--empty-values")
    assert contents(local.uri) == dict.fromkeys(VALUES, b"")


@marked
def test_keys_that_are_no_text(tools: Tools, local: Command) -> None:
    """A key of etcd that is not UTF-8 is named."""
    raw = b"odd/\xff".decode(errors="surrogateescape")
    tools.etcdctl("put", raw, "v")
    local("import", "-", given=tools.etcdctl("get", "-w", "json", raw), code=2)
    assert "entry 1: \"key\" is not UTF-8: b'odd/\\xff'" in local.errors


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def consul(number: int, **other: object) -> bytes:
    """An export of so many entries."""
    made = [{"key": f"k{n:06}", "flags": 0, "value": coded("v")} for n in range(1, number + 1)]
    for place, change in other.items():
        made[int(place.removeprefix("at"))].update(change)  # type: ignore[call-overload]
    return json.dumps(made).encode()


@pytest.mark.slow
def test_bad_entry_stores_nothing(local: Command) -> None:
    """A file is read to its end before: what is wrong is named, and nothing was stored."""
    whole = consul(3000)
    for text, told in {
        consul(3000, at1999={"value": "?"}): "entry 2,000: \"value\" of 'k002000' is not base64",
        consul(3000, at2999={"key": ""}): 'entry 3,000: "key" is missing',
        whole[:-1]: "it was cut short behind entry 3,000",
        whole[:-2]: "entry 3,000: not JSON, or cut short",
        whole + b"[]": "'[' stands behind its end",
    }.items():
        (local.folder / "bad").write_bytes(text)
        for words in (["bad"], ["bad", "--dry-run"]):
            local("import", *words, code=2)
            assert "bad, read as `consul kv export`" in local.errors
            assert told in local.errors
            assert local("count") == "0\n"
    (local.folder / "bad").write_bytes(b"")
    local("import", "bad", code=2)


@pytest.mark.slow
def test_bad_entry_of_a_pipe_says_how_far_it_came(local: Command) -> None:
    """Standard input cannot be read twice; nor can a pipe that has a name."""
    broken = consul(1000, at699={"value": "?"})
    local("import", "-", given=broken, code=2)
    assert "699 entries are stored, those before entry 700: begin anew" in local.errors
    assert local("count") == "699\n"
    local("import", "-", "--from-line", "700", given=broken, code=2)
    assert "--from-line is for what `kvi export` wrote" in local.errors
    os.mkfifo(local.folder / "pipe")
    with local.start("import", "pipe") as running:
        (local.folder / "pipe").write_bytes(consul(1000))
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, "imported 1,000 entries" in errors) == (0, True)


@marked
def test_key_that_the_store_does_not_take(tools: Tools, local: Command) -> None:
    """One that is too long is told by its place; what stands before it is stored."""
    (local.folder / "long").write_bytes(consul(3, at1={"key": "k" * 10_000}))
    local("import", "long", "--uri", f"{tools.consul}/long", code=2)
    assert "InvalidKey: this key has 10,000 bytes" in local.errors
    assert "1 entries are stored, those before entry 2" in local.errors


@pytest.mark.slow
def test_mark_before_the_beginning(local: Command) -> None:
    """A file that begins with the mark of UTF-8, as Windows writes it, is what it is without."""
    lines = b'{"format": "kvi-export", "version": 1}\n{"key": "a", "value": "v"}\n'
    for output in (
        b'[{"key": "a", "flags": 0, "value": "dg=="}]\r\n',
        b'{"header": {}, "kvs": [{"key": "YQ==", "value": "dg=="}], "count": 1}',
        lines + b'{"end": true, "entries": 1}\n',
    ):
        (local.folder / "file").write_bytes(codecs.BOM_UTF8 + output)
        for words in (["file"], ["-"]):
            local("import", *words, given=(local.folder / "file").read_bytes())
            assert local("range") == "a\tv\n"
            local("del", "a")
    (local.folder / "uri").write_bytes(codecs.BOM_UTF8 + local.uri.encode() + b"\r\n")
    assert local("count", "--uri-file", "uri") == "0\n"


@pytest.mark.slow
def test_empty_input(local: Command) -> None:
    """Nothing at all is no export."""
    for words in (["-"], ["-", "--dry-run"], ["/dev/null"]):
        local("import", *words, code=2)
        assert "no line" not in local.errors


@pytest.mark.slow
def test_none_of_the_three(local: Command) -> None:
    """What is no export of anybody says what is one."""
    for text in (b"a: 1\n", b'"text"', b'{"a": 1}', b"\xff\xfe[", b"<html>"):
        local("import", "-", given=text, code=2)
        assert (
            "what is imported is the output of `kvi export`, or of `consul kv export`, or of "
            "`etcdctl get -w json`" in local.errors
        )
    local("import", "-", given=b'{"header": {}, "responses": []}', code=2)
    assert "'responses' is nothing that `etcdctl get -w json` writes" in local.errors


def test_recognised() -> None:
    """As soon as it can be told, and not before."""
    for text, kind in {
        b"": None, b" \n": None, b"{": None,
        b'{ "head': None, b'{"header"': None, b'{\n"kvs" ': None,
        b"[": Format.CONSUL, b"\n\t[{": Format.CONSUL,
        b'{"header":': Format.ETCD, b'{\n  "kvs" : [': Format.ETCD, b'{"count":0': Format.ETCD,
        b'{"format":': Format.LINES, b'{"key": "a"': Format.LINES, b"{}": Format.LINES,
        b"x": Format.LINES, b"\xff": Format.LINES, b'{"headers':  Format.LINES,
    }.items():  # fmt: skip
        assert recognised(text) is kind, text


def entries(text: bytes, size: int = 7, kind: Format | None = None, **options: Any) -> list[Entry]:
    """What is read of it, in pieces of so many bytes."""
    pieces = iter([text[at : at + size] for at in range(0, len(text), size)])
    kind = recognised(text) if kind is None else kind
    assert kind is not None
    return list(Entries(kind, lambda: next(pieces, b""), **options))


ETCD = (
    b'{"header":{"revision":"6"},"kvs":[{"key":"YQ==","version":1},{"key":"w7w=","value":"/wB4",'
    b'"lease":"7587"},{"key":"Yg==","value":"","lease":"0"}],"count":"3"}'
)
CONSUL = '[\n\t{"key": "ü\\u00fc\\"\\n", "value": null},{"key":"a","value":"/wB4","flags":1.5}\n]\n'


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_pieces(size: int) -> None:
    """Wherever a piece of the input ends, also within a character: the same entries."""
    assert entries(ETCD, size) == [
        Entry("a", b"", leased=False), Entry("ü", b"\xff\0x", leased=True),
        Entry("b", b"", leased=False),
    ]  # fmt: skip
    assert entries(CONSUL.encode(), size) == [
        Entry('üü"\n', b"", leased=False), Entry("a", b"\xff\0x", leased=False),
    ]  # fmt: skip
    assert entries(b" [ ] ", size) == []
    assert entries(b'{"header":{"revision":12345}}', size) == []
    assert entries(b'{"kvs": null, "count": 0, "more": false}', size) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[1]", "entry 1: not a JSON object"),
        (b"[{]", "entry 1: not JSON"),
        (b"[", "entry 1: not JSON"),
        (b'[{"key": "a"}', "it was cut short behind entry 1"),
        (b'[{"key": "a"};', "not JSON: ';' stands where ',' belongs"),
        (b'[{"key": "a"},', "entry 2: not JSON"),
        (b'[{"key": "a"}] x', "'x' stands behind its end"),
        (b'[{"key": 5}]', 'entry 1: "key" is missing'),
        (b'[{"key": "\\ud800"}]', 'entry 1: "key" is not Unicode'),
        (b'[{"key": "a", "value": 5}]', "entry 1: \"value\" of 'a' is not text"),
        (b'[{"key": "a\xff"}]', 'entry 1: "key" is not Unicode'),
        (b"[" + b"[" * 200_000, "entry 1: not JSON: it is nested too deeply"),
        (b'{"kvs": [{"key": ""}]}', 'entry 1: "key" is missing, or empty'),
        (b'{"kvs": [{"value": "YQ=="}]}', 'entry 1: "key" is missing, or empty'),
        (b'{"kvs": [{"key": "?"}]}', 'entry 1: "key" is not base64'),
        (b'{"kvs": [{"key": "/w=="}]}', "entry 1: \"key\" is not UTF-8: b'\\xff'"),
        (b'{"kvs": [{"key": "YQ==", "lease": "x"}]}', "entry 1: not a number"),
        (b'{"kvs": [{"key": "YQ==", "value": "YQ=="}], "count": 2}', "it has 1 of 2 entries"),
        (b'{"kvs": [{"key": "YQ==", "value": "YQ=="}], "more": true}', "it was cut short"),
        (b'{"kvs": [{"key": "YQ==", "value": "YQ=="}]', "it was cut short behind entry 1"),
        (b'{"count": 5, "header": {}}', "it has 0 of 5 entries"),
        (b'{"header": {}', "it was cut short before its first entry"),
        (b'{"header": {}, "Events": []}', "'Events' is nothing that"),
        (b'{"header"', "not JSON: the end stands where ':' belongs"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_is_wrong(text: bytes, told: str) -> None:
    """It is named, with the entry and its key, however the input comes in pieces."""
    kind = Format.ETCD if text.startswith(b"{") else Format.CONSUL
    for size in (7, 100_000) if len(text) < 1000 else (100_000,):
        with pytest.raises(kvi.InvalidArgument, match=re.escape(told)):
            entries(text, size, kind)


def test_keys_without_values() -> None:
    """No entry is given out before one has a value; then all are, in order."""
    text = b'{"kvs": [{"key": "YQ=="}, {"key": "Yg=="}%s], "header": {}}'
    with pytest.raises(NoValues):
        entries(text % b"")
    assert [one.key for one in entries(text % b"", empty_values=True)] == ["a", "b"]
    found = entries(text % b', {"key": "Yw==", "value": "YQ=="}, {"key": "ZA=="}')
    assert [one.key for one in found] == ["a", "b", "c", "d"]


def test_little_is_in_memory() -> None:
    """No more is read than the next entry needs, whatever the size of the input."""
    size, pieces = 0, count()

    def read() -> bytes:
        nonlocal size
        start = b'[{"key": "first"}' if next(pieces) == 0 else b""
        data = start + b',{"key": "k", "value": "YWFh"}' * 1000
        size += len(data)
        return data

    given = 0
    for number, entry in enumerate(Entries(Format.CONSUL, read)):
        given += 30
        assert entry.key in {"first", "k"}
        assert size - given < 100_000
        if number == 50_000:
            break
