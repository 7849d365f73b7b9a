"""Requests to etcd and its answers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import kvi
import pytest
from google.protobuf import descriptor_pb2
from kvi.model import Event, EventType, KeyValue, Scan, Span, Txn, TxnResult
from kvi_etcd import wire
from kvi_etcd import wire_pb2 as pb

FOLDER = Path(str(importlib.util.find_spec("kvi_etcd").submodule_search_locations[0]))  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(), (b"\0", b"\0")),
        (Span("a", "b"), (b"a", b"b")),
        (Span("a"), (b"a", b"\0")),
        (Span("", "b"), (b"\0", b"b")),
        (Span.of_prefix("ü/"), ("ü/".encode(), "ü0".encode())),
        (Span.of_prefix("\U0010ffff"), ("\U0010ffff".encode(), b"\0")),
    ],
)
def test_key_range(span: Span, expected: tuple[bytes, bytes]) -> None:
    """An open start is the smallest key; an open end is a single NUL byte, and nothing else is."""
    assert wire.key_range(span) == expected


def test_request_that_only_compares() -> None:
    """It reads as well, as if it had asked, so that a member that is behind does not answer it."""
    txn = Txn((kvi.Key("a").revision == 7, kvi.Key("b").absent))
    request = wire.txn_request(txn)
    (looked,) = request.success
    assert (looked.request_range.key, looked.request_range.serializable) == (b"a", False)
    answer = pb.TxnResponse(succeeded=True, responses=[pb.ResponseOp()])
    answer.header.revision = 9
    assert wire.txn_result(txn, answer) == TxnResult(True, 9, ())


def test_request_of_a_transaction() -> None:
    """Compares and operations keep their order and become the protocol's fields."""
    request = wire.txn_request(
        Txn(
            (
                kvi.Key("a").value != b"x",
                kvi.Key("a").revision == 7,
                kvi.Key("a").create_revision > 6,
                kvi.Key("a").version < 5,
                kvi.Key("a").lease == 4,
            ),
            (kvi.Put("b", b"1", 9), kvi.Get("b"), kvi.Delete("c")),
            (kvi.Get("d"),),
        )
    )
    kinds = [(c.target, c.result, c.WhichOneof("target_union")) for c in request.compare]
    assert kinds == [
        (pb.Compare.VALUE, pb.Compare.NOT_EQUAL, "value"),
        (pb.Compare.MOD, pb.Compare.EQUAL, "mod_revision"),
        (pb.Compare.CREATE, pb.Compare.GREATER, "create_revision"),
        (pb.Compare.VERSION, pb.Compare.LESS, "version"),
        (pb.Compare.LEASE, pb.Compare.EQUAL, "lease"),
    ]
    assert [op.WhichOneof("request") for op in request.success] == [
        "request_put",
        "request_range",
        "request_delete_range",
    ]
    assert request.success[0].request_put == pb.PutRequest(key=b"b", value=b"1", lease=9)
    assert request.failure[0].request_range.key == b"d"


def test_result_of_a_transaction() -> None:
    """Answers become one result per operation of the branch that ran."""
    found = pb.KeyValue(key=b"b", value=b"1", mod_revision=8, create_revision=3, version=2, lease=9)
    answer = pb.TxnResponse(
        header=pb.ResponseHeader(revision=8),
        succeeded=False,
        responses=[
            pb.ResponseOp(response_put=pb.PutResponse()),
            pb.ResponseOp(response_range=pb.RangeResponse(kvs=[found])),
            pb.ResponseOp(response_range=pb.RangeResponse()),
            pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse(deleted=1)),
            pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse()),
        ],
    )
    branch = (kvi.Put("b", b"1"), kvi.Get("b"), kvi.Get("x"), kvi.Delete("y"), kvi.Delete("z"))
    result = wire.txn_result(Txn(otherwise=branch), answer)
    assert (result.succeeded, result.revision) == (False, 8)
    assert result.results == (8, KeyValue("b", b"1", 8, 3, 2, 9), None, True, False)


def test_leases_beyond_64_bits() -> None:
    """An id that etcd cannot have is no lease of etcd's, and above all of them; no overflow."""
    with pytest.raises(kvi.LeaseLost):
        wire.txn_request(Txn(then=(kvi.Put("a", b"", 2**63),)))
    request = wire.txn_request(Txn((kvi.Key("a").lease < 2**100,)))
    assert request.compare[0].lease == 2**63 - 1


def test_transaction_too_large() -> None:
    """A transaction above etcd's request limit is refused before it is sent."""
    puts = tuple(kvi.Put(f"k{i}", b"x" * 800_000) for i in range(2))
    with pytest.raises(kvi.ValueTooLarge, match="split"):
        wire.txn_request(Txn(then=puts))


@pytest.mark.parametrize("keys_only", [False, True])
def test_key_that_is_not_utf8(keys_only: bool) -> None:
    """A key of another program that is not UTF-8 is an error that shows it, never a wrong key."""
    kvs = [pb.KeyValue(key=b"fine"), pb.KeyValue(key=b"\xff\xfe")]
    with pytest.raises(kvi.InvalidKey, match=r"\\xff\\xfe"):
        wire.entries(kvs, keys_only=keys_only)


def test_page_request() -> None:
    """A page asks for keys only if the caller does, and sorts only downwards."""
    scan = Scan(Span(), reverse=True, keys_only=True)
    request = wire.range_request(scan, b"a", b"b", limit=5, revision=7)
    assert request == pb.RangeRequest(
        key=b"a",
        range_end=b"b",
        limit=5,
        revision=7,
        sort_order=pb.RangeRequest.DESCEND,
        keys_only=True,
    )


def _messages(
    given: Iterable[descriptor_pb2.DescriptorProto],
) -> Iterator[descriptor_pb2.DescriptorProto]:
    for message in given:
        yield message
        yield from _messages(message.nested_type)


def test_messages_are_made_from_the_proto(tmp_path: Path) -> None:
    """wire_pb2.py is what today's compiler makes of wire.proto."""
    out = tmp_path / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER.parent}"]
    subprocess.run(
        [*command, f"--descriptor_set_out={out}", str(FOLDER / "wire.proto")], check=True
    )
    compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(committed)
    for message in _messages(compiled.message_type):
        for field in message.field:
            field.ClearField("json_name")  # derived; only descriptor sets spell it out
    assert committed == compiled, "run: make proto"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            pb.Event(kv=pb.KeyValue(key=b"k", value=b"v", mod_revision=7, version=1)),
            Event(EventType.PUT, "k", b"v", 7),
        ),
        (
            pb.Event(
                kv=pb.KeyValue(key=b"k", value=b"w", mod_revision=8, version=2),
                prev_kv=pb.KeyValue(
                    key=b"k", value=b"v", create_revision=7, mod_revision=7, version=1, lease=5
                ),
            ),
            Event(EventType.PUT, "k", b"w", 8, KeyValue("k", b"v", 7, 7, 1, 5)),
        ),
        (  # what was before has been compacted
            pb.Event(kv=pb.KeyValue(key=b"k", value=b"w", mod_revision=8, version=2)),
            Event(EventType.PUT, "k", b"w", 8),
        ),
        (
            pb.Event(
                type=pb.Event.DELETE,
                kv=pb.KeyValue(key=b"k", mod_revision=9),
                prev_kv=pb.KeyValue(key=b"k", create_revision=7, mod_revision=7, version=1),
            ),
            Event(EventType.DELETE, "k", None, 9, KeyValue("k", b"", 7, 7, 1)),
        ),
        (
            pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"k", mod_revision=9)),
            Event(EventType.DELETE, "k", None, 9),
        ),
    ],
)
def test_events(change: pb.Event, expected: Event) -> None:
    """A change of etcd is an event of kvi, of all its fields."""
    skipped: list[bytes] = []
    (event,) = wire.events([change], skipped.append)
    assert event == expected
    assert skipped == []
    assert type(event) is Event


def test_event_of_a_foreign_key() -> None:
    """A key that is not UTF-8 is skipped and named; the others are told."""
    changes = [
        pb.Event(kv=pb.KeyValue(key=key, mod_revision=7, version=1))
        for key in (b"a", b"\xff", b"b")
    ]
    skipped: list[bytes] = []
    assert [event.key for event in wire.events(changes, skipped.append)] == ["a", "b"]
    assert skipped == [b"\xff"]


@pytest.mark.parametrize(
    ("span", "key", "end"),
    [
        (Span("k", "k\0"), b"k", b""),  # etcd finds watches of single keys by the key
        (Span("k", "l"), b"k", b"l"),
        (Span.of_prefix(""), b"\0", b"\0"),
    ],
)
def test_create_request(span: Span, key: bytes, end: bytes) -> None:
    """A watch has an id, says when it is alive, and tells what was before."""
    low, high = wire.key_range(span)
    create = wire.create_request(3, low, high, 7, fragment=False).create_request
    assert (create.key, create.range_end) == (key, end)
    assert (create.watch_id, create.start_revision) == (3, 7)
    assert create.progress_notify
    assert create.prev_kv


def claimed(*found: pb.KeyValue, own: pb.KeyValue, new: bool, revision: int = 9) -> pb.TxnResponse:
    """An answer to a claim: the newest two of the queue, or itself and the oldest."""
    first = pb.ResponseOp()
    if not new:
        first.response_range.kvs.append(own)
    listing = pb.ResponseOp(response_range=pb.RangeResponse(kvs=found))
    header = pb.ResponseHeader(revision=revision)
    return pb.TxnResponse(header=header, succeeded=new, responses=[first, listing])


OWN = pb.KeyValue(key=b"L/b", create_revision=9, lease=0xB)
BEFORE = pb.KeyValue(key=b"L/a", create_revision=5, lease=0xA)
OTHERS = [
    pb.KeyValue(key=b"L/c", create_revision=6),  # kept by no lease: no contender
    pb.KeyValue(key=b"L/c", create_revision=6, lease=0xD),  # nor under a lease's own name
    pb.KeyValue(key=b"L/\xff", create_revision=7, lease=0xC),
]


def test_claim() -> None:
    """A claim is read off one answer: a new key's create revision is the answer's own."""
    claim = wire.claim("L", 0xB, claimed(OWN, BEFORE, own=OWN, new=True))
    assert claim is not None
    assert (claim.key, claim.fence, claim.ahead, claim.revision) == ("L/b", 9, "L/a", 9)
    held = claim._replace(ahead=None)
    assert wire.claim("L", 0xB, claimed(OWN, own=OWN, new=True)) == held
    again = claimed(OWN, own=OWN, new=False, revision=20)
    assert wire.claim("L", 0xB, again) == held._replace(revision=20)


def test_claim_that_waits() -> None:
    """Who is neither new nor the first asks who is before it."""
    answer = claimed(BEFORE, own=OWN, new=False, revision=20)
    assert wire.claim("L", 0xB, answer) is None
    assert wire.before_request("L", answer).max_create_revision == 8
    found = pb.RangeResponse(header=pb.ResponseHeader(revision=21), kvs=[BEFORE])
    claim = wire.claim_behind("L", 0xB, 9, found)
    assert claim is not None
    assert (claim.key, claim.fence, claim.ahead, claim.revision) == ("L/b", 9, "L/a", 21)
    alone = pb.RangeResponse(header=pb.ResponseHeader(revision=21))
    assert wire.claim_behind("L", 0xB, 9, alone) == claim._replace(ahead=None)


@pytest.mark.parametrize("other", OTHERS, ids=["no lease", "another lease", "no text"])
def test_claim_beside_keys_of_others(other: pb.KeyValue) -> None:
    """Where a key that is none of the queue stands in the way, the whole queue has to say."""
    assert wire.claim("L", 0xB, claimed(OWN, other, own=OWN, new=True)) is None
    assert wire.claim("L", 0xB, claimed(other, own=OWN, new=False)) is None
    assert wire.claim_behind("L", 0xB, 9, pb.RangeResponse(kvs=[other])) is None


@pytest.mark.parametrize("lease", [0, -1, 2**63, 2**200])
def test_leases_that_cannot_be(lease: int) -> None:
    """What is no id of etcd's is a lease that is gone."""
    for request in (
        lambda: wire.put_request("k", b"", lease),
        lambda: wire.claim_request("L", lease),
    ):
        with pytest.raises(kvi.LeaseLost):
            request()
