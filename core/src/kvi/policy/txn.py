"""Transactions decided on plain data: which branch runs, and what it does.

The memory and SQLite stores run these functions under their write lock; a store that cannot
compare values by itself (Consul) runs them on what it has read and commits on the condition that
nothing of it has changed. So the semantics of contract exist once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvi.capabilities import Capabilities
from kvi.errors import InvalidArgument, LeaseLost, NotSupported, is_whole, shown
from kvi.model import (
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
    Target,
    Txn,
    checked,
)
from kvi.text import check_key, check_value

Read = Callable[[str], KeyValue | None]

_RELATIONS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.GREATER: operator.gt,
}


def check_txn(
    when: Iterable[Compare],
    then: Iterable[Operation],
    otherwise: Iterable[Operation],
    limits: Capabilities,
    operation: str = "txn",
) -> Txn:
    """Check a caller's transaction whole and return it normalised; nothing has been sent yet."""
    compares = tuple(_check_compare(compare, limits) for compare in check_items("when", when))
    branches = [
        tuple(_check_operation(name, op, limits) for op in check_items(name, operations))
        for name, operations in (("then", then), ("otherwise", otherwise))
    ]
    for name, branch in zip(("then", "otherwise"), branches, strict=True):
        _check_single_writes(name, branch)
    compared = {compare.key for compare in compares}
    size = len(compares) + max(_weight(branch, compared, limits) for branch in branches)
    if limits.max_txn_ops is not None and size > limits.max_txn_ops:
        raise InvalidArgument(
            f"the transaction has {size} compares and operations (of the longer branch), "
            f"the store takes at most {limits.max_txn_ops}"
            + (
                f" and counts a Delete of a key without compare as {limits.txn_delete_ops}"
                if limits.txn_delete_ops > 1
                else ""
            )
            + "; split it"
        )
    return Txn(compares, branches[0], branches[1], operation)


def _weight(branch: Sequence[Operation], compared: Set[str], limits: Capabilities) -> int:
    extra = limits.txn_delete_ops - 1
    return len(branch) + extra * sum(
        isinstance(op, Delete) and op.key not in compared for op in branch
    )


def check_items(name: str, given: Iterable[Any]) -> Iterable[Any]:
    """Return what a caller gave as a list, if it is one; raises `InvalidArgument`."""
    if isinstance(given, (Compare, Put, Get, Delete, str, bytes)) or not isinstance(
        given, Iterable
    ):
        raise InvalidArgument(f"{name}= is a list, not a single {type(given).__name__}")
    return given


def _check_compare(compare: object, limits: Capabilities) -> Compare:
    if not isinstance(compare, Compare):
        raise InvalidArgument(
            f"when= takes compares such as Key('k').value == b'v', not {type(compare).__name__}"
        )
    check_key(compare.key, limits.max_key)
    if compare.target is Target.VERSION and not limits.key_version:
        raise NotSupported(
            "this store keeps no versions of keys (capabilities.key_version is false); "
            "compare the revision",
            key=compare.key,
        )
    return checked(compare)


def _check_operation(name: str, op: object, limits: Capabilities) -> Operation:
    if not isinstance(op, (Put, Get, Delete)):
        raise InvalidArgument(f"{name}= takes Put, Get and Delete, not {type(op).__name__}")
    check_key(op.key, limits.max_key)
    if isinstance(op, Put):
        lease = check_lease(op.lease)
        value = check_value(op.value, limits.max_value)
        same = value is op.value and lease is op.lease
        return op if same else Put(op.key, value, lease)
    return op


def check_lease(lease: object) -> int | None:
    """Return a lease id, or ``None``.

    Raises `LeaseLost` for a `kvi.Lease` that is surely not alive, `InvalidArgument` for what is
    neither a lease nor an id.
    """
    if lease is None or (is_whole(lease) and lease > 0):
        return lease
    if isinstance(lease, LeaseRef):
        if not lease.alive:
            raise LeaseLost("the lease is no longer alive, nothing was written; grant a new one")
        return lease.id
    raise InvalidArgument(f"lease= is a lease or its id, a positive integer, not {shown(lease)}")


def _check_single_writes(name: str, branch: Sequence[Operation]) -> None:
    written: set[str] = set()
    for op in branch:
        if isinstance(op, Get):
            continue
        if op.key in written:
            raise InvalidArgument(
                f"{name}= writes one key twice; keep the last of the two", key=op.key
            )
        written.add(op.key)


def holds(compare: Compare, entry: KeyValue | None) -> bool:
    """Whether ``compare`` is true of ``entry``, the state of its key (``None``: missing)."""
    stored: bytes | int | None
    if compare.target is Target.VALUE:
        if entry is None:
            return False
        stored = entry.value
    else:
        stored = 0 if entry is None else getattr(entry, compare.target.value) or 0
    return _RELATIONS[compare.operator](stored, compare.operand)


class Change(NamedTuple):
    """One key's change by a transaction: from ``old`` to ``new``, ``None`` being absence."""

    key: str
    old: KeyValue | None
    new: KeyValue | None

    def event(self, revision: int) -> Event:
        """What a watch tells of it, if it was made at ``revision``."""
        key, old, new = self
        if new is None:
            return Event(EventType.DELETE, key, None, revision, old)
        return Event(EventType.PUT, key, new.value, revision, old)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a branch does: its results, and the changes in the order of the operations.

    ``changes`` is empty if nothing is written: then no revision is used up.
    """

    results: tuple[KeyValue | int | bool | None, ...]
    changes: tuple[Change, ...]


def choose(txn: Txn, read: Read) -> tuple[bool, tuple[Operation, ...]]:
    """Decide the branch: ``(succeeded, operations)``."""
    succeeded = all(holds(compare, read(compare.key)) for compare in txn.when)
    return succeeded, txn.then if succeeded else txn.otherwise


def perform(branch: Sequence[Operation], read: Read, revision: int) -> Effect:
    """Work out ``branch`` on the present state; what it writes gets ``revision``."""
    written: dict[str, KeyValue | None] = {}
    results: list[KeyValue | int | bool | None] = []
    changes: list[Change] = []
    for op in branch:
        if isinstance(op, Get):
            results.append(written[op.key] if op.key in written else read(op.key))
            continue
        old = read(op.key)
        if isinstance(op, Delete):
            results.append(old is not None)
            if old is None:
                continue
            new = None
        else:
            assert isinstance(op.value, bytes)  # check_txn encoded it
            results.append(revision)
            assert not isinstance(op.lease, LeaseRef)  # check_txn took its id
            new = put(old, op.key, op.value, revision, op.lease)
        written[op.key] = new
        changes.append(Change(op.key, old, new))
    return Effect(tuple(results), tuple(changes))


def put(old: KeyValue | None, key: str, value: bytes, revision: int, lease: int | None) -> KeyValue:
    """The entry that a write at ``revision`` makes out of ``old``."""
    if old is None:
        return KeyValue(key, value, revision, revision, 1, lease)
    version = None if old.version is None else old.version + 1
    return KeyValue(key, value, revision, old.create_revision, version, lease)
