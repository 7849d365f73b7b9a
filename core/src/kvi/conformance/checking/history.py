"""What concurrent clients did: one immutable record per call, and a text that shows them.

*Data layout.* A call is one of kvi's own operations where there is one (`kvi.Get`, `kvi.Put`,
`kvi.Delete`, `kvi.model.Txn`) or one of those made here (`Tas`, `Cas`, `Range`). Each call also
*is* a transaction (`as_txn`), and its result the transaction's (`as_answer`); the checkers know
nothing but transactions, so that the meaning of every call is written down once.

*Times* are of one monotonic clock that all clients share. An operation takes effect at one moment
between ``invoked`` and ``returned``, if it does at all; what is not known to have ended has
``returned`` infinite.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from kvi import Delete, Get, Key, KeyValue, Put, TxnResult
from kvi.errors import shown
from kvi.model import Compare, Operator, Target, Txn
from kvi.model import Operation as Action

__all__ = [
    "Call",
    "Cas",
    "Operation",
    "Outcome",
    "Range",
    "Result",
    "Tas",
    "as_answer",
    "as_txn",
    "changes_of",
    "keys_of",
    "observed",
    "possible_changes",
    "render",
    "text_of",
]


@dataclass(frozen=True, slots=True)
class Tas:
    """``tas(key, test, set)``: ``None`` stands for absence."""

    key: str
    test: bytes | None
    set: bytes | None


@dataclass(frozen=True, slots=True)
class Cas:
    """``cas(key, revision, value)``."""

    key: str
    revision: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Range:
    """``range(prefix=prefix)`` at one revision; ``keys`` are all that the history has there.

    Its result is that of a transaction which gets ``keys`` one after another.
    """

    prefix: str
    keys: tuple[str, ...]


Call = Get | Put | Delete | Tas | Cas | Range | Txn
Result = KeyValue | TxnResult | int | bool | None


class Outcome(enum.Enum):
    """What the client knows of its call."""

    OK = "ok"  # it took effect and gave a result
    UNKNOWN = "unknown"  # a write that took effect or did not, or still may
    DENIED = "denied"  # surely without effect, and without result


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of one client.

    Attributes:
        client: who called; a client has one call under way at a time.
        call: what was called. Every value to write is ``bytes``, leases are not recorded.
        outcome: what the client knows of it.
        result: what the method returned; `Range` has a `kvi.TxnResult`, one entry per key.
        invoked: when the call began.
        returned: when it ended; infinite if ``outcome`` is UNKNOWN.

    """

    client: int
    call: Call
    outcome: Outcome = Outcome.OK
    result: Result = None
    invoked: float
    returned: float = inf

    def __post_init__(self) -> None:
        if self.returned < self.invoked:
            raise ValueError("an operation cannot return before it was invoked")
        if (self.outcome is Outcome.UNKNOWN) != (self.returned == inf):
            raise ValueError("returned is infinite where the outcome is unknown, and only there")


def as_txn(call: Call) -> Txn:
    """The transaction that the call is."""
    match call:
        case Txn():
            return call
        case Get() | Put() | Delete():
            return Txn(then=(call,))
        case Tas(key, test, new):
            when = Key(key).absent if test is None else Key(key).value == test
            if new is not None:
                return Txn((when,), (Put(key, new),))
            return Txn((when,), () if test is None else (Delete(key),))
        case Cas(key, revision, value):
            return Txn((Key(key).revision == revision,), (Put(key, value),))
        case Range(_, keys):
            return Txn(then=tuple(Get(key) for key in keys))


def as_answer(call: Call, result: Result) -> TxnResult:
    """What the transaction gave, as far as the call's result tells."""
    match call, result:
        case (Txn() | Range(), TxnResult()):
            return result
        case (Get(), KeyValue() | None):
            return TxnResult(True, None, (result,))
        case (Put(), int()):
            return TxnResult(True, result, (result,))
        case (Delete(), bool()):
            return TxnResult(True, None, (result,))
        case (Tas(_, test, new), bool()):
            written = () if test is None and new is None else (True if new is None else None,)
            return TxnResult(result, None, written if result else ())
        case (Cas(), int() | None):
            return TxnResult(result is not None, result, () if result is None else (result,))
    raise TypeError(f"{text_of(call)} cannot result in {shown(result)}")


def keys_of(call: Call) -> frozenset[str]:
    """The keys that the call may read or write."""
    txn = as_txn(call)
    return frozenset(part.key for parts in (txn.when, txn.then, txn.otherwise) for part in parts)


def changes_of(operation: Operation) -> tuple[int | None, dict[str, bytes | None]]:
    """What an operation surely changed, by key (``None``: deleted), and at which revision.

    Nothing for operations of unknown outcome; the revision is ``None`` where it was not told.
    """
    if operation.outcome is not Outcome.OK:
        return None, {}
    txn, answer = as_txn(operation.call), as_answer(operation.call, operation.result)
    branch = txn.then if answer.succeeded else txn.otherwise
    changes: dict[str, bytes | None] = {}
    for action, result in zip(branch, answer.results, strict=True):
        if isinstance(action, Put):
            changes[action.key] = value_of(action)
        elif isinstance(action, Delete) and result:
            changes[action.key] = None
    return answer.revision if changes else None, changes


def possible_changes(operation: Operation) -> list[dict[str, bytes | None]]:
    """What an operation of unknown outcome changed if it took effect: one or two possibilities."""
    txn = as_txn(operation.call)
    branches = (txn.then, txn.otherwise) if txn.when else (txn.then,)
    return [
        {
            action.key: value_of(action) if isinstance(action, Put) else None
            for action in branch
            if not isinstance(action, Get)
        }
        for branch in branches
    ]


def observed(operation: Operation) -> Iterable[KeyValue]:
    """The entries that an operation read."""
    if operation.outcome is Outcome.OK:
        for result in as_answer(operation.call, operation.result).results:
            if isinstance(result, KeyValue):
                yield result


def value_of(put: Put) -> bytes:
    """The value of a recorded `kvi.Put`."""
    if not isinstance(put.value, bytes) or put.lease is not None:
        raise TypeError("a recorded Put has a value of bytes and no lease")
    return put.value


# -- as text --------------------------------------------------------------------------------------

_BAR = 60  # columns of the picture; a history of more moments is shown without


def render(operations: Iterable[Operation]) -> str:
    """Operations as an aligned text, in the order in which they began.

    One line each: client, times in milliseconds since the first, the call and what came of it.
    Short histories have a picture in front, in which each moment has a column of its own, so that
    what overlaps and what does not is seen at once.
    """
    ordered = sorted(operations, key=lambda operation: (operation.invoked, operation.returned))
    if not ordered:
        return "(no operations)"
    begin = ordered[0].invoked
    bars = _bars(ordered)
    rows = [
        (
            bar,
            f"client {operation.client}",
            f"{(operation.invoked - begin) * 1e3:.3f}",
            "?" if operation.returned == inf else f"{(operation.returned - begin) * 1e3:.3f}",
            f"{text_of(operation.call)} → {_outcome(operation)}",
        )
        for bar, operation in zip(bars, ordered, strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{bar:{widths[0]}}{'  ' if bars[0] else ''}{client:{widths[1]}}  "
        f"{start:>{widths[2]}} … {end:>{widths[3]}} ms  {text}"
        for bar, client, start, end, text in rows
    )


def _bars(ordered: Sequence[Operation]) -> list[str]:
    moments = sorted({time for op in ordered for time in (op.invoked, op.returned) if time < inf})
    if len(moments) > _BAR:
        return [""] * len(ordered)
    column = {time: number for number, time in enumerate(moments)}
    bars = []
    for operation in ordered:
        start = column[operation.invoked]
        end = column.get(operation.returned, len(moments))
        mark = "?" if operation.returned == inf else "┤"
        bar = "│" if start == end else "├" + "─" * (end - start - 1) + mark
        bars.append(" " * start + bar)
    return bars


def text_of(call: Call) -> str:
    """The call as program text."""
    match call:
        case Get(key):
            return f"get({shown(key)})"
        case Put(key, value):
            return f"store({shown(key)}, {shown(value)})"
        case Delete(key):
            return f"delete({shown(key)})"
        case Tas(key, test, new):
            return f"tas({shown(key)}, {shown(test)}, {shown(new)})"
        case Cas(key, revision, value):
            return f"cas({shown(key)}, {revision}, {shown(value)})"
        case Range(prefix):
            return f"range(prefix={shown(prefix)})"
        case Txn(when, then, otherwise):
            parts = [
                f"[{', '.join(map(_compare, when))}]",
                *(f"[{', '.join(map(_action, branch))}]" for branch in (then, otherwise)),
            ]
            return f"txn({', '.join(parts if otherwise else parts[:2])})"


def _action(action: Action) -> str:
    match action:
        case Put(key, value):
            return f"Put({shown(key)}, {shown(value)})"
        case Get(key):
            return f"Get({shown(key)})"
        case Delete(key):
            return f"Delete({shown(key)})"


def _compare(compare: Compare) -> str:
    key = f"Key({shown(compare.key)})"
    if compare.target is Target.CREATE_REVISION and compare.operand == 0:
        if compare.operator is Operator.GREATER:
            return f"{key}.exists"
        if compare.operator is Operator.EQUAL:
            return f"{key}.absent"
    sign = "==" if compare.operator is Operator.EQUAL else compare.operator.value
    return f"{key}.{compare.target.value} {sign} {shown(compare.operand)}"


def _outcome(operation: Operation) -> str:
    if operation.outcome is not Outcome.OK:
        return str(operation.outcome.value)
    result = operation.result
    if isinstance(operation.call, Range) and isinstance(result, TxnResult):
        entries = zip(operation.call.keys, result.results, strict=True)
        found = ", ".join(f"{shown(key)}: {_value(entry)}" for key, entry in entries)
        return f"{{{found}}} at revision {result.revision}"
    if isinstance(result, TxnResult):
        branch = "then" if result.succeeded else "otherwise"
        return f"{branch} at revision {result.revision}: [{', '.join(map(_value, result.results))}]"
    return _value(result)


def _value(result: KeyValue | int | bool | None) -> str:
    if not isinstance(result, KeyValue):
        return repr(result)
    version = "" if result.version is None else f", version {result.version}"
    return (
        f"{shown(result.value)} (revision {result.revision}, "
        f"created at {result.create_revision}{version})"
    )
