r"""Requests out of kvi's values and kvi's values out of answers: pure, without I/O.

Two traps of the protocol end here. A key must not be empty, so that an open start is the smallest
key, ``\0``; and a ``range_end`` of ``\0`` means "to the end", which is how an open end is written
(no span of kvi ends at ``\0`` otherwise, for it would be empty).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvi.errors import InvalidKey, LeaseLost, ValueTooLarge
from kvi.model import (
    MAX_NUMBER,
    Claim,
    Compare,
    Delete,
    Event,
    EventType,
    Get,
    KeyValue,
    LeaseRef,
    Operation,
    Operator,
    Put,
    Scan,
    Span,
    Target,
    Txn,
    TxnResult,
)
from kvi.policy.lock import CLAIM, is_contender, place, queue_key, queue_span

from kvi_etcd import wire_pb2 as pb

NOTHING = pb.RangeRequest(key=b"\0", count_only=True)  # a linearizable read of no value
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


def keys_within(span: Span, raw: Iterable[bytes]) -> list[str]:
    """Keys as etcd lists them, for people to look at: those in ``span``, in order."""
    low, high = span.start.encode(), None if span.end is None else span.end.encode()
    return [
        key.decode(errors="replace")
        for key in sorted(raw)
        if low <= key and (high is None or key < high)
    ]


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
    return pb.PutRequest(
        key=key.encode(), value=value, lease=0 if lease is None else lease_id(lease)
    )


def lease_id(lease: int) -> int:
    """``lease``, if it can be the id of one; raises `LeaseLost`."""
    if not 0 < lease <= MAX_NUMBER:
        raise LeaseLost("no lease with this id is alive; grant a new one")
    return lease


def txn_request(txn: Txn) -> pb.TxnRequest:
    """A whole transaction; raises `ValueTooLarge` if etcd would not take it."""
    request = pb.TxnRequest(
        compare=map(_compare, txn.when),
        success=map(_operation, txn.then),
        failure=map(_operation, txn.otherwise),
    )
    if txn.when and not (txn.then or txn.otherwise):
        # Of one that only compares, etcd takes all operations to be content with what the member
        # knows, as there are none, and a member that is behind would answer by itself.
        looked = pb.RangeRequest(key=txn.when[0].key.encode(), count_only=True)
        request.success.append(pb.RequestOp(request_range=looked))
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
            assert not isinstance(lease, LeaseRef)  # core took its id
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
    answers = answer.responses if branch else ()  # see `txn_request`
    for op, result in zip(branch, answers, strict=True):
        match op:
            case Put():
                results.append(revision)
            case Get():
                kvs = result.response_range.kvs
                results.append(entry(kvs[0]) if kvs else None)
            case Delete():
                results.append(result.response_delete_range.deleted > 0)
    return TxnResult(answer.succeeded, revision, tuple(results))


def claim_request(name: str, lease: int) -> pb.TxnRequest:
    """Create the key of a contender for a lock, and read who is before it; or find it.

    The newest key is its own, so that the next is of whoever came before. If it is there already,
    and is the oldest, nobody is before it any more. So no answer grows with the queue.
    """
    key = queue_key(name, lease).encode()
    put = pb.PutRequest(key=key, value=CLAIM, lease=lease_id(lease))
    newest = _queue(name, pb.RangeRequest.DESCEND, limit=2)
    oldest = _queue(name, pb.RangeRequest.ASCEND, limit=1)
    return pb.TxnRequest(
        compare=[pb.Compare(target=pb.Compare.CREATE, key=key, create_revision=0)],
        success=[pb.RequestOp(request_put=put), pb.RequestOp(request_range=newest)],
        failure=[
            pb.RequestOp(request_range=pb.RangeRequest(key=key)),
            pb.RequestOp(request_range=oldest),
        ],
    )


def claim(name: str, lease: int, answer: pb.TxnResponse) -> Claim | None:
    """Where the claim stands that `claim_request` asked for; ``None`` if that does not say."""
    first, listing = answer.responses
    found, revision = _contenders(name, listing.response_range.kvs), answer.header.revision
    if found is None:
        return None
    if answer.succeeded:
        return place(name, lease, revision, found, revision)
    created = first.response_range.kvs[0].create_revision
    if found[0].create_revision < created:
        return None
    return place(name, lease, created, (), revision)


def before_request(name: str, answer: pb.TxnResponse) -> pb.RangeRequest:
    """Read who is before the claim that was there already, as `claim_request` was answered."""
    created = answer.responses[0].response_range.kvs[0].create_revision
    request = _queue(name, pb.RangeRequest.DESCEND, limit=1)
    request.max_create_revision = created - 1
    return request


def claim_behind(name: str, lease: int, created: int, answer: pb.RangeResponse) -> Claim | None:
    """Where a claim of that create revision stands, by the answer to `before_request`."""
    found = _contenders(name, answer.kvs)
    return None if found is None else place(name, lease, created, found, answer.header.revision)


def _queue(name: str, order: pb.RangeRequest.SortOrder, *, limit: int) -> pb.RangeRequest:
    low, high = key_range(queue_span(name))
    return pb.RangeRequest(
        key=low,
        range_end=high,
        keys_only=True,
        sort_target=pb.RangeRequest.CREATE,
        sort_order=order,
        limit=limit,
    )


def _contenders(name: str, kvs: Iterable[pb.KeyValue]) -> list[KeyValue] | None:
    """Those of a queue; ``None`` if a key of somebody else's is among them."""
    found = []
    for kv in kvs:
        try:
            contender = entry(kv, keys_only=True)
        except InvalidKey:  # no text
            return None
        if not is_contender(name, contender):
            return None
        found.append(contender)
    return found


def create_request(
    watch: int, low: bytes, high: bytes, start: int, *, fragment: bool
) -> pb.WatchRequest:
    """Begin to watch ``[low, high)`` from revision ``start`` on, under the id ``watch``."""
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=low,
            range_end=b"" if high == low + b"\0" else high,
            start_revision=start,
            watch_id=watch,
            prev_kv=True,
            progress_notify=True,
            fragment=fragment,
        )
    )


def cancel_request(watch: int) -> pb.WatchRequest:
    """End the watch with this id."""
    return pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch))


def events(changes: Iterable[pb.Event], skip: Callable[[bytes], object]) -> list[Event]:
    """The events of kvi for changes that a watch told; keys that are not UTF-8 go to ``skip``."""
    # Spelled out, past Event's own constructor: this is most of what a change costs.
    new, put, delete = tuple.__new__, EventType.PUT, EventType.DELETE
    found: list[Event] = []
    for change in changes:
        kv = change.kv
        version = kv.version
        try:
            key = kv.key.decode()
        except UnicodeDecodeError:
            skip(kv.key)
            continue
        previous = None
        if version != 1:  # else it was created
            old = change.prev_kv
            revision = old.mod_revision
            if revision:  # else it has been compacted
                lease = old.lease or None
                of_old = (key, old.value, revision, old.create_revision, old.version, lease)
                previous = new(KeyValue, of_old)
        # a delete is the one change that leaves no version
        fields = (put, key, kv.value) if version else (delete, key, None)
        found.append(new(Event, (*fields, kv.mod_revision, previous, False, None, None)))
    return found
