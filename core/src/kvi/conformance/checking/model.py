"""What operations do to keys, one after another: the sequential model of a store.

It is written on its own, not with the functions that backends share, so that a mistake there does
not excuse itself. The state of a key is absent, or value, revision, create revision and version;
what a write did not tell is unknown until a read shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Final, Literal, NamedTuple

from kvi import Delete, Get, KeyValue, Put, TxnResult
from kvi.conformance.checking.history import (
    Operation,
    Outcome,
    as_answer,
    as_txn,
    changes_of,
    keys_of,
    observed,
    possible_changes,
    value_of,
)
from kvi.model import Compare, Operator, Target
from kvi.model import Operation as Action

__all__ = ["ANYTHING", "Entry", "Slot", "State", "Step", "nothing", "outcomes", "prepare"]


class Entry(NamedTuple):
    """A key that is there; ``None`` in a field is what is not known yet."""

    value: bytes
    revision: int | None
    create_revision: int | None
    version: int | None


# Nothing is known of the key: the history before was cut off.
ANYTHING: Final[Literal["anything"]] = "anything"
Slot = Entry | None | Literal["anything"]  # None: the key is absent
State = tuple[Slot, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """An operation as the search sees it.

    Attributes:
        answer: what it must give; ``None`` if anything will do, and the operation need not be.
        must: it surely took effect.
        writes: it surely changed something; of unknown outcome: it can.
        revision: of its change, where known.
        present: what it told of the store's revision without changing anything.

    """

    operation: Operation
    invoked: float
    returned: float
    when: tuple[tuple[int, Compare], ...]
    branches: tuple[tuple[tuple[int, Action], ...], ...]  # if the compares hold, and if not
    answer: TxnResult | None
    must: bool
    writes: bool
    revision: int | None
    present: int | None

    def opened(self) -> Step:
        """The same operation, as if its outcome were unknown: explains more, asks nothing."""
        return replace(
            self, returned=inf, answer=None, must=False, writes=True, revision=None, present=None
        )


def prepare(operations: Iterable[Operation]) -> list[Step]:
    """The steps of a problem in the order of their calls; what surely had no effect is left out."""
    relevant = sorted(
        (
            operation
            for operation in operations
            if operation.outcome is Outcome.OK
            or (operation.outcome is Outcome.UNKNOWN and any(possible_changes(operation)))
        ),
        key=lambda operation: (operation.invoked, operation.returned),
    )
    keys = sorted({key for operation in relevant for key in keys_of(operation.call)})
    slots = {key: slot for slot, key in enumerate(keys)}
    shown = _shown_revisions(relevant)
    steps = []
    for operation in relevant:
        txn = as_txn(operation.call)
        for compare in txn.when:
            if compare.target is Target.LEASE:
                raise ValueError("leases are no part of the model")
        known = operation.outcome is Outcome.OK
        answer = as_answer(operation.call, operation.result) if known else None
        revision, changes = changes_of(operation)
        if revision is None:
            revision = shown.get(id(operation))
        then, otherwise = (
            tuple((slots[action.key], action) for action in branch)
            for branch in (txn.then, txn.otherwise)
        )
        steps.append(
            Step(
                operation,
                operation.invoked,
                operation.returned,
                tuple((slots[compare.key], compare) for compare in txn.when),
                (then, otherwise),
                answer,
                must=known or revision is not None,
                writes=bool(changes) or not known,
                revision=revision,
                present=answer.revision if answer is not None and not changes else None,
            )
        )
    return steps


def _shown_revisions(operations: Iterable[Operation]) -> dict[int, int]:
    """Revisions of writes that did not tell them, by ``id``: shown by who read their values."""
    writers: dict[tuple[str, bytes], Operation | None] = {}  # None: more than one
    seen: dict[tuple[str, bytes | None], int] = {}
    for operation in operations:
        written = {
            (action.key, value_of(action))
            for branch in (as_txn(operation.call).then, as_txn(operation.call).otherwise)
            for action in branch
            if isinstance(action, Put)
        }
        for pair in written:
            writers[pair] = None if pair in writers else operation
        for entry in observed(operation):
            seen.setdefault((entry.key, entry.value), entry.revision)
    return {
        id(operation): seen[pair]
        for pair, operation in writers.items()
        if operation is not None and pair in seen
    }


def outcomes(step: Step, state: State) -> list[State]:
    """The states that the operation can leave; none if it cannot stand at this place."""
    met: bool | None = True
    for slot, compare in step.when:
        held = _holds(compare, state[slot])
        if held is False:
            met = False
            break
        met = met if held else None
    if step.answer is not None:
        succeeded = step.answer.succeeded
        if met is not None and met is not succeeded:
            return []
        after = _perform(step, succeeded, step.answer, state)
        return [] if after is None else [after]
    possible = [True, False] if met is None else [met]
    # that it changes nothing says no more than that it never happened
    return [
        after
        for succeeded in possible
        if (after := _perform(step, succeeded, None, state)) is not None and after != state
    ]


def _holds(compare: Compare, slot: Slot) -> bool | None:
    """Whether the compare is true; ``None`` if the state does not tell."""
    if slot == ANYTHING:
        return None
    stored: bytes | int | None
    if compare.target is Target.VALUE:
        if slot is None:
            return False
        stored = slot.value
    elif slot is None:
        stored = 0
    else:
        stored = getattr(slot, compare.target.value)
        if stored is None:  # something above 0
            if compare.operand == 0:
                return compare.operator in (Operator.GREATER, Operator.NOT_EQUAL)
            return None
    relation: bool
    match compare.operator:
        case Operator.EQUAL:
            relation = stored == compare.operand
        case Operator.NOT_EQUAL:
            relation = stored != compare.operand
        case Operator.LESS:
            relation = stored < compare.operand  # type: ignore[operator]
        case Operator.GREATER:
            relation = stored > compare.operand  # type: ignore[operator]
    return relation


def _perform(step: Step, succeeded: bool, answer: TxnResult | None, state: State) -> State | None:
    """The state behind a branch, the same object if unchanged; ``None`` if a result is wrong."""
    branch = step.branches[not succeeded]
    after: list[Slot] | None = None
    for number, (slot, action) in enumerate(branch):
        old = state[slot] if after is None else after[slot]
        new: Slot
        result = None if answer is None else answer.results[number]
        if isinstance(action, Get):
            if answer is None:
                continue
            read = _read(old, result)
            if read is False:
                return None
            new = read
        elif isinstance(action, Delete):
            if answer is not None and old != ANYTHING and (old is not None) is not result:
                return None
            new = None
        else:
            if None not in (result, step.revision) and result != step.revision:
                return None
            value = value_of(action)
            if old is None:
                new = Entry(value, step.revision, step.revision, 1)
            elif old == ANYTHING:
                new = Entry(value, step.revision, None, None)
            else:
                version = None if old.version is None else old.version + 1
                new = Entry(value, step.revision, old.create_revision, version)
        if new is not old:
            if after is None:
                after = list(state)
            after[slot] = new
    return state if after is None else tuple(after)


def _read(slot: Slot, result: object) -> Slot | Literal[False]:
    """What is known of a key after ``result`` was read from it; false if it cannot be."""
    if result is None:
        return None if slot is None or slot == ANYTHING else False
    assert isinstance(result, KeyValue)
    if slot is None or result.create_revision > result.revision:
        return False
    if slot == ANYTHING:
        assert result.value is not None
        return Entry(result.value, result.revision, result.create_revision, result.version)
    if slot.value != result.value:
        return False
    known = slot
    for name in ("revision", "create_revision", "version"):
        told, had = getattr(result, name), getattr(slot, name)
        if told is None or told == had:
            continue
        if had is not None:
            return False
        known = known._replace(**{name: told})
    return known


def nothing(steps: Iterable[Step]) -> State:
    """The state in which no key of a problem is there."""
    return (None,) * len({key for step in steps for key in keys_of(step.operation.call)})
