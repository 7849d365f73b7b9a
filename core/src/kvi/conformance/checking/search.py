"""The search of an order of operations, and of the few that have none.

Theory: see `kvi.conformance.checking.linearizability`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from kvi import Put
from kvi.conformance.checking.history import Operation, Outcome, observed, possible_changes
from kvi.conformance.checking.model import ANYTHING, State, Step, nothing, outcomes
from kvi.model import Operation as Action
from kvi.model import Operator, Target

__all__ = ["Budget", "Meter", "SpentError", "shrink", "stuck"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a search may take: in configurations looked at, and in seconds of ``clock``."""

    steps: int = 500_000
    seconds: float = 20.0
    clock: Callable[[], float] = time.monotonic

    def start(self) -> Meter:
        """Begin to count."""
        return Meter(self)


class SpentError(Exception):
    """The budget ended: the answer is UNKNOWN."""


class Meter:
    """What is left of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._left = budget.steps
        self._clock = budget.clock
        self._end = budget.clock() + budget.seconds

    def spend(self) -> None:
        """Count one configuration; raises `SpentError`."""
        self._left -= 1
        if self._left < 0 or (self._left & 63 == 0 and self._clock() > self._end):
            raise SpentError


def stuck(steps: Sequence[Step], meter: Meter, start: State) -> float | None:
    """Search an order of ``steps``, which are sorted by their calls, from a state on.

    Raises `SpentError`. Returns ``None`` if there is one, else the moment at which the longest try
    got stuck: all that had returned before it can be explained.
    """
    search = _Search(_anonymous(steps), meter)
    # Where nothing was reached, by what surely was done and the state: what else had been done,
    # and the revision. To have done less besides, or to be at a smaller revision, is never worse.
    seen: dict[tuple[int, State], list[tuple[int, int]]] = {}

    def moves(at: _Place) -> Iterator[_Place] | None:
        settled = search.settle(at)
        if settled is None:
            return None
        (done, state, revision), following = settled
        tried = seen.setdefault((done & search.must, state), [])
        if any(done & fewer == fewer and revision >= smaller for fewer, smaller in tried):
            return iter(())
        tried.append((done & ~search.must, revision))
        return iter(following)

    stack = [iter([_Place(0, start, 0)])]
    while stack:
        for at in stack[-1]:
            following = moves(at)
            if following is None:
                return None
            stack.append(following)
            break
        else:
            stack.pop()
    return search.furthest


def _anonymous(steps: Sequence[Step]) -> list[Step]:
    """Give all that need not be and wrote what nobody asked for the same value.

    So what differs only in its values becomes the same, and is tried once.
    """
    asked: set[tuple[str, bytes | int | None]] = set()
    ordered: set[str] = set()  # keys whose values are compared as larger or smaller
    for step in steps:
        if step.must:
            asked |= {(entry.key, entry.value) for entry in observed(step.operation)}
        for _, compare in step.when:
            if compare.target is Target.VALUE:
                asked.add((compare.key, compare.operand))
                if compare.operator in (Operator.LESS, Operator.GREATER):
                    ordered.add(compare.key)
    nobody = b"?" + max((value for _, value in asked if isinstance(value, bytes)), default=b"")
    while any(value == nobody for _, value in asked):
        nobody += b"?"

    def anonymous(action: Action) -> Action:
        if not isinstance(action, Put) or action.key in ordered:
            return action
        return action if (action.key, action.value) in asked else Put(action.key, nobody)

    return [
        step
        if step.must
        else replace(
            step,
            branches=tuple(
                tuple((slot, anonymous(action)) for slot, action in branch)
                for branch in step.branches
            ),
        )
        for step in steps
    ]


class _Place(NamedTuple):
    """How far an order has got.

    Attributes:
        done: the operations that it has, as bits.
        state: what they leave.
        revision: the smallest that the store can have reached.

    """

    done: int
    state: State
    revision: int


class _Search:
    """The operations as bits of a number, in the order of their calls."""

    def __init__(self, steps: Sequence[Step], meter: Meter) -> None:
        self._steps = steps
        self._meter = meter
        self.furthest = -inf
        self.must = sum(1 << number for number, step in enumerate(steps) if step.must)
        self._open = sum(1 << number for number, step in enumerate(steps) if not step.must)
        ranked = sorted(
            (step.revision, number)
            for number, step in enumerate(steps)
            if step.revision is not None
        )
        self._revisions = [revision for revision, _ in ranked]
        self._ranked = sum(1 << number for _, number in ranked)

    def settle(self, at: _Place) -> tuple[_Place, list[_Place]] | None:
        """Do all that changes nothing; return where that leads and what may come next.

        ``None`` means that everything is done.
        """
        steps = self._steps
        done, state, revision = at
        while rest := self.must & ~done:
            self._meter.spend()
            candidates, limit = [], inf
            for number in _bits(rest):
                if steps[number].invoked > limit:
                    break
                limit = min(limit, steps[number].returned)
                candidates.append(number)
            self.furthest = max(self.furthest, limit)
            told = (done & self._ranked).bit_count()
            ahead = self._revisions[told] if told < len(self._revisions) else inf
            moves: list[tuple[float, int, _Place]] = []
            before = done
            for number in candidates:
                step = steps[number]
                reached = _reached(step, revision, ahead)
                if step.invoked > limit or reached is None:
                    continue
                for after in outcomes(step, state):
                    if after is state and reached == revision:
                        done |= 1 << number
                    else:
                        to = _Place(done | 1 << number, after, reached)
                        moves.append((step.returned, number, to))
            if done != before:
                continue
            tried = set()
            for number in _bits(self._open & ~done):
                step = steps[number]
                if step.invoked > limit or revision + 1 >= ahead:
                    break
                if (effect := (step.when, step.branches)) not in tried:
                    tried.add(effect)
                    moves += [
                        (inf, number, _Place(done | 1 << number, after, revision + 1))
                        for after in outcomes(step, state)
                    ]
            # What must end soonest is tried first, what need not be at all last.
            moves.sort(key=lambda move: move[:2])
            return _Place(done, state, revision), [to for _, _, to in moves]
        return None


def _reached(step: Step, revision: int, ahead: float) -> int | None:
    """The smallest revision behind a step that comes next; ``None`` if it cannot come next.

    ``ahead`` is the smallest revision known of a write that is still to come.
    """
    if step.revision is not None:
        return step.revision if revision < step.revision == ahead else None
    if step.present is not None:
        return step.present if revision <= step.present < ahead else None
    if step.writes:
        return revision + 1 if revision + 1 < ahead else None
    return revision


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


# -- what breaks the rule, made small --------------------------------------------------------------

_TRY, _ALL = 4_000, 3.0  # configurations for one cut, seconds for all: the answer stands anyhow


def shrink(
    steps: Sequence[Step], budget: Budget, furthest: float | None = None
) -> tuple[Operation, ...]:
    """Find a small part of a history that no order explains, whatever stands around it.

    Each cut only ever asks for less, so that what is left is a violation on its own account:
    the end is cut off with all that had not returned by then, the beginning together with what
    is known of the keys, operations that read are left out, and writes become of unknown outcome.
    Returns nothing if nothing could be cut. ``furthest``: where the search got stuck, if known.
    """
    end = budget.clock() + min(_ALL, budget.seconds)

    def tried(part: Sequence[Step], start: State) -> float | None:
        tries = Budget(min(_TRY, budget.steps), end - budget.clock(), budget.clock)
        try:
            return stuck(part, tries.start(), start)
        except SpentError:
            return None

    def fails(part: Sequence[Step], start: State) -> bool:
        return tried(part, start) is not None

    start = nothing(steps)
    everything: State = (ANYTHING,) * len(start)
    left: list[Step] = []
    if furthest is None and (furthest := tried(steps, start)) is None:
        furthest = -inf
    ends = sorted({step.returned for step in steps if furthest <= step.returned < inf})
    for number in _growing(len(ends)):
        part = _ended_by(steps, ends[number])
        starts = sorted({step.invoked for step in part}, reverse=True)

        def tail_fails(
            number: int, part: Sequence[Step] = part, starts: Sequence[float] = starts
        ) -> bool:
            return fails(_begun_after(part, starts[number]), everything)

        late = _first(len(starts), tail_fails)
        if late is not None:
            left, start = _begun_after(part, starts[late]), everything
            break
        if fails(part, start):
            left = part
            break

    for step in reversed(left.copy()):
        less = [other for other in left if other is not step]
        if step.must and not step.writes and fails(less, start):
            left = less
    for number, step in enumerate(left):
        looser = [*left[:number], step.opened(), *left[number + 1 :]]
        if step.must and step.writes and fails(looser, start):
            left = looser

    firm = [step.operation for step in left if step.must]
    return tuple(step.operation for step in left if step.must or _mentioned(step.operation, firm))


def _ended_by(steps: Iterable[Step], moment: float) -> list[Step]:
    return [
        step
        if step.returned <= moment or step.operation.outcome is Outcome.UNKNOWN
        else step.opened()
        for step in steps
        if step.invoked <= moment and (step.returned <= moment or step.writes)
    ]


def _begun_after(steps: Iterable[Step], moment: float) -> list[Step]:
    return [
        step if step.invoked > moment else step.opened()
        for step in steps
        if step.invoked > moment or (step.returned >= moment and step.writes)
    ]


def _growing(count: int) -> Iterator[int]:
    """0, 1, 3, 7 … and the last number below ``count``."""
    number = 0
    while number < count - 1:
        yield number
        number = 2 * number + 1
    if count:
        yield count - 1


def _first(count: int, true: Callable[[int], bool]) -> int | None:
    """The smallest number below ``count`` for which ``true`` holds, which then holds from it on.

    Small numbers are tried first, they make small problems.
    """
    low, high = 0, 1
    while high <= count and not true(high - 1):
        low, high = high, 2 * high
    high = min(high, count + 1)
    while low + 1 < high:
        middle = (low + high) // 2
        if true(middle - 1):
            high = middle
        else:
            low = middle
    return high - 1 if high <= count else None


def _mentioned(operation: Operation, others: Iterable[Operation]) -> bool:
    """Whether a value that an operation may have written was read by one of the others."""
    written = {pair for changes in possible_changes(operation) for pair in changes.items()}
    return any((entry.key, entry.value) in written for other in others for entry in observed(other))
