r"""Requests out of kvi's values and kvi's values out of answers: pure, without I/O.

Two traps of the protocol end here. A key must not be empty, so that an open start is the smallest
key, ``\0``; and a ``range_end`` of ``\0`` means "to the end", which is how an open end is written
(no span of kvi ends at ``\0`` otherwise, for it would be empty).
"""

from __future__ import annotations

from collections.abc import Iterable

from kvi.errors import InvalidKey, LeaseLost, ValueTooLarge
from kvi.model import (
    MAX_NUMBER,
    Compare,
    Delete,
    Get,
    KeyValue,
    Operation,
    Operator,
    Put,
    Scan,
    Span,
    Target,
    Txn,
    TxnResult,
)

from kvi_etcd import wire_pb2 as pb

MAX_REQUEST = 1_572_864  # bytes: etcd's default --max-request-bytes, 1.5 MiB

_OPERATORS = {
    Operator.EQUAL: pb.Compare.EQUAL,
    Operator.NOT_EQUAL: pb.Compare.NOT_EQUAL,
    Operator.LESS: pb.Compare.LESS,
    Operator.GREATER: pb.Compare.GREATER,
}
# target → the enum's value, and the field of the oneof that holds the operand
_TARGETS = {
    Target.VALUE: (pb.Compare.VALUE, "value"),
    Target.REVISION: (pb.Compare.MOD, "mod_revision"),
    Target.CREATE_REVISION: (pb.Compare.CREATE, "create_revision"),
    Target.VERSION: (pb.Compare.VERSION, "version"),
    Target.LEASE: (pb.Compare.LEASE, "lease"),
}


def key_range(span: Span) -> tuple[bytes, bytes]:
    """The ``key`` and ``range_end`` of a span that is not empty."""
    return span.start.encode() or b"\0", b"\0" if span.end is None else span.end.encode()


def entry(kv: pb.KeyValue, *, keys_only: bool = False) -> KeyValue:
    """One entry of an answer."""
    return KeyValue(
        _key(kv.key),
        None if keys_only else kv.value,
        kv.mod_revision,
        kv.create_revision,
        kv.version,
        kv.lease or None,
    )


def entries(kvs: Iterable[pb.KeyValue], *, keys_only: bool = False) -> list[KeyValue]:
    """The entries of an answer, in its order."""
    if keys_only:
        return [entry(kv, keys_only=True) for kv in kvs]
    try:
        # spelled out, past KeyValue's own constructor: this is most of what a large range costs
        new = tuple.__new__
        return [
            new(
                KeyValue,
                (
                    kv.key.decode(),
                    kv.value,
                    kv.mod_revision,
                    kv.create_revision,
                    kv.version,
                    kv.lease or None,
                ),
            )
            for kv in kvs
        ]
    except UnicodeDecodeError:
        return [entry(kv) for kv in kvs]  # finds the key and names it


def _key(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidKey(
            f"another program stored a key that is not UTF-8: {raw!r}; read around it, "
            "or remove it through the native client"
        ) from None


def range_request(
    scan: Scan, low: bytes, high: bytes, *, limit: int, revision: int
) -> pb.RangeRequest:
    """One page of ``scan``: the first of ``[low, high)``, at ``revision`` (0: the latest)."""
    return pb.RangeRequest(
        key=low,
        range_end=high,
        limit=limit,
        revision=revision,
        sort_order=pb.RangeRequest.DESCEND if scan.reverse else pb.RangeRequest.NONE,
        keys_only=scan.keys_only,
    )


def put_request(key: str, value: bytes, lease: int | None) -> pb.PutRequest:
    """A write of one entry."""
    if lease is not None and lease > MAX_NUMBER:  # etcd's ids have 64 bits
        raise LeaseLost("no lease with this id is alive; grant a new one")
    return pb.PutRequest(key=key.encode(), value=value, lease=lease or 0)


def txn_request(txn: Txn) -> pb.TxnRequest:
    """A whole transaction; raises `ValueTooLarge` if etcd would not take it."""
    request = pb.TxnRequest(
        compare=map(_compare, txn.when),
        success=map(_operation, txn.then),
        failure=map(_operation, txn.otherwise),
    )
    size = request.ByteSize()
    if size > MAX_REQUEST:
        raise ValueTooLarge(
            f"the transaction has {size:,} bytes, etcd takes at most {MAX_REQUEST:,}; split it"
        )
    return request


def _compare(compare: Compare) -> pb.Compare:
    target, field = _TARGETS[compare.target]
    operand = compare.operand
    if isinstance(operand, int):
        operand = min(operand, MAX_NUMBER)  # above every id there is, as the operand was
    message = pb.Compare(
        result=_OPERATORS[compare.operator], target=target, key=compare.key.encode()
    )
    setattr(message, field, operand)
    return message


def _operation(op: Operation) -> pb.RequestOp:
    match op:
        case Put(key, value, lease):
            assert isinstance(value, bytes)  # core encoded it
            return pb.RequestOp(request_put=put_request(key, value, lease))
        case Get(key):
            return pb.RequestOp(request_range=pb.RangeRequest(key=key.encode()))
        case Delete(key):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key.encode()))


def txn_result(txn: Txn, answer: pb.TxnResponse) -> TxnResult:
    """What the transaction did."""
    revision = answer.header.revision
    branch = txn.then if answer.succeeded else txn.otherwise
    results: list[KeyValue | int | bool | None] = []
    for op, result in zip(branch, answer.responses, strict=True):
        match op:
            case Put():
                results.append(revision)
            case Get():
                kvs = result.response_range.kvs
                results.append(entry(kvs[0]) if kvs else None)
            case Delete():
                results.append(result.response_delete_range.deleted > 0)
    return TxnResult(answer.succeeded, revision, tuple(results))
