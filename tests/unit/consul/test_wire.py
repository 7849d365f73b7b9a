"""Consul's JSON, without a server."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from kvi.model import KeyValue
from kvi_consul import wire
from kvi_consul.wire import NotAList, Op, Parser

ODD = [
    "a",
    "/x",
    "a//b",
    "a/../b",
    "..",
    "p%41",
    "nul\0",
    "line\n",
    'quo"te\\',
    "😀",
    "\x7f",
    "é" * 99,
]


@pytest.mark.parametrize("key", ODD)
def test_every_key_survives_the_json(key: str) -> None:
    """A key is sent exactly as it is, whatever characters it has."""
    (op,) = json.loads(wire.encode([Op("get", key)]))
    assert op == {"KV": {"Verb": "get", "Key": key}}


def test_operations_carry_what_they_were_given() -> None:
    """Value, flags, index and session are sent if given and left out if not."""
    full = Op("cas", "k", b"\x00\xff", revision=0, session="s", flags=2**64 - 1)
    assert json.loads(wire.encode([full, Op("delete", "k")])) == [
        {
            "KV": {
                "Verb": "cas",
                "Key": "k",
                "Value": "AP8=",
                "Flags": 2**64 - 1,
                "Index": 0,
                "Session": "s",
            }
        },
        {"KV": {"Verb": "delete", "Key": "k"}},
    ]


@pytest.mark.parametrize("key", ODD)
def test_quick_forms_say_the_same(key: str) -> None:
    """The hand-written forms for the common operations equal the general one."""
    assert wire.encode_get(key) == wire.encode([Op("get", key)])
    assert wire.encode_set(key, b"v", 7) == wire.encode([Op("set", key, b"v", flags=7)])


def test_entries_are_read_back() -> None:
    """An empty value comes as null, a session as its 128 bits, and values only if wanted."""
    session = "adf4238a-882b-9ddc-4a9d-5b6758e4159e"
    kv = {"Key": "k", "Value": None, "CreateIndex": 3, "ModifyIndex": 5, "Flags": 1, "LockIndex": 0}
    assert wire.entry_of(kv) == KeyValue("k", b"", 5, 3)
    kv |= {"Value": "AP8=", "Session": session}
    assert wire.entry_of(kv) == KeyValue("k", b"\x00\xff", 5, 3, None, UUID(session).int)
    assert wire.entry_of(kv, keys_only=True).value is None


def test_leases_are_sessions() -> None:
    """A lease id and a session id name each other; too large an id names a session of nobody."""
    session = "00000000-0000-0000-0000-00000000002a"
    assert wire.lease_of(session) == 42
    assert wire.session_of(42) == session
    assert wire.session_of(1 << 200) == "ffffffff-ffff-ffff-ffff-ffffffffffff"


def test_a_nonce_is_never_a_mark_of_consul() -> None:
    """Flags never pretend that a key is a lock or a semaphore of Consul's own tools."""
    for mark in (0x2DDCCBC058A50C18, 0xE0F69A2BAA414DE0):
        assert wire.nonce(mark) not in (0x2DDCCBC058A50C18, 0xE0F69A2BAA414DE0)
    assert wire.nonce(5) == 5


@pytest.mark.parametrize(
    ("prefix", "safe"),
    [
        *[(prefix, True) for prefix in ("", "a", "a/", "a/b", "a.b/c-d_e~", "a/b..c", "...")],
        *[
            (p, False)
            for p in ("/", "/a", "a//", "a//b", ".", "..", "a/.", "a/../b", "./a", "a/..")
        ],
        *[(prefix, False) for prefix in ("%41", "a b", "é", "a?b", "a#b", "\0", "a\n")],
    ],
)
def test_paths_that_consul_would_change_are_not_used(prefix: str, safe: bool) -> None:
    """Only a prefix that Consul takes as it is written is read by its path."""
    assert wire.path_of(prefix) == (prefix if safe else None)


LISTS = {
    "prefix": b'[{"Key":"a]\\"}"},{"Key":"\xc3\xa9"}]',
    "transaction": b'{"Results":[{"Key":"a]\\"}"},{"Key":"\xc3\xa9"}],"Errors":null,"Index":0}',
    "spaced": b' { "Results" : [ {"Key":"a]\\"}"} ,\n {"Key":"\xc3\xa9"} ] }',
}


@pytest.mark.parametrize("answer", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lists_are_read_from_any_pieces(answer: bytes, size: int) -> None:
    """A list comes out the same wherever the network cuts its bytes, inside a character too."""
    parser = Parser()
    items: list[object] = []
    for at in range(0, len(answer), size):
        items += parser.feed(answer[at : at + size])
    parser.end()
    assert items == [{"Key": 'a]"}'}, {"Key": "é"}]


@pytest.mark.parametrize("answer", [b"[]", b'{"Results":[],"Errors":null}', b'{"Results":null}'])
def test_empty_lists(answer: bytes) -> None:
    """A list without items ends like any other."""
    parser = Parser()
    assert list(parser.feed(answer)) == []
    parser.end()


@pytest.mark.parametrize(
    "answer", [b"", b"[", b'[{"Key":"a"}', b'[{"Key":"a"},', b'{"Results":', b"<html>", b'["a" x']
)
def test_lists_cut_short_are_noticed(answer: bytes) -> None:
    """An answer that ends too early is an error, never a shorter list."""
    parser = Parser()
    list(parser.feed(answer))
    with pytest.raises(NotAList):
        parser.end()


@pytest.mark.parametrize("answer", [b"x" * 2000, b"[\xff"])
def test_answers_that_are_no_list_are_refused(answer: bytes) -> None:
    """What cannot become a list is refused, and not collected without end."""
    with pytest.raises(NotAList):
        list(Parser().feed(answer))
