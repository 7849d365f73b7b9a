"""Is a history linearizable? Two checkers with one answer, `by_revision` and `by_search`.

A history is *linearizable* (Herlihy & Wing, "Linearizability: a correctness condition for
concurrent objects", 1990) if its operations can be put in one order in which each takes effect
at a moment between its call and its return, and every result is what a single client would get who
makes the calls one after another. An operation of unknown outcome stands anywhere after its
call, or nowhere. Here the order must agree with the revisions, too: they are the store's own
statement of it.

*Revisions.* A write that told its revision is ordered by it. Each other write takes up one, too,
so that there must be room for it between those that are known. A value that one operation alone
writes gives the revision of that write to whoever reads it, so such revisions are found before any
order is tried. A revision that is only read, of a value that several operations write, or of a
creation (``create_revision``) that told none, is compared from its first reading on.

*by_revision* takes all keys at once. If every write has told its revision, the states that the
store went through are known, and each reading operation needs a revision at which to stand among
them: one whose state explains its result, and no smaller than that of whatever had returned before
it was called. The smallest such revision is the best: by induction along real time, in every valid
order an operation stands at this one or at a larger one, and nothing ever asks for a larger one.
So one pass in the order of the calls decides, without search: what finds no place has none.

*by_search* takes connected keys at once (linearizability is local, so each group that no
operation joins is a problem of its own), and tries the orders: Wing & Gong, "Testing and verifying
concurrent objects", 1993, with what Lowe, "Testing for linearizability", 2017, adds: a pair of
(operations done, state) that led nowhere once is not tried again. Two facts keep it near to linear:

* An operation that may come next, explains its result, and leaves the state as it is, may as well
  be the next: it asks nothing of those behind it, and waiting only forbids more.
* Of the writes whose revision is known only the smallest may come next.

And one thing that unknown outcomes need: to have used fewer of them in the same state is never
worse, so that a state is looked at again only for others (and those that differ in nothing but
values nobody asked for are one and the same).

`by_revision` turns to the same search, over all keys, where not every place follows from revisions.
"""

from __future__ import annotations

import enum
import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvi.conformance.checking.history import Operation, keys_of, render, text_of
from kvi.conformance.checking.model import State, Step, nothing, outcomes, prepare
from kvi.conformance.checking.search import Budget, SpentError, shrink, stuck

__all__ = ["Budget", "Judgement", "Verdict", "by_revision", "by_search"]


class Verdict(enum.Enum):
    """What a checker found."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNKNOWN = "unknown"  # the budget was spent before the search had ended; not a pass


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and its reasons; true as a condition if the history is linearizable.

    Attributes:
        verdict: what was found.
        explanation: why, in a sentence or two.
        operations: for a VIOLATION, the smallest part of the history found that no order explains.

    """

    verdict: Verdict
    explanation: str
    operations: tuple[Operation, ...] = ()

    def __bool__(self) -> bool:
        return self.verdict is Verdict.LINEARIZABLE

    def __str__(self) -> str:
        text = f"{self.verdict.value}: {self.explanation}"
        return f"{text}\n{render(self.operations)}" if self.operations else text


def by_revision(operations: Iterable[Operation], budget: Budget | None = None) -> Judgement:
    """Judge a history of one store, all keys together, by the order that its revisions give.

    Revisions must be unique to each write and agree with real time, and every reading operation
    must have a place among the writes. Writes of unknown outcome whose value was never read are
    first taken as never applied; if that does not explain the history, or a write has not told its
    revision, the search decides, which tries both.
    """
    history = list(operations)
    steps = prepare(history)
    if (clash := _same_revision(steps)) is not None:
        return clash
    hidden = any(step.must and step.writes and step.revision is None for step in steps)
    misfit = None
    if not hidden:
        misfit = _place(steps)
        if misfit is None:
            return Judgement(
                Verdict.LINEARIZABLE, f"each of {len(steps)} operations has its place by revision"
            )
    if misfit is None or any(not step.must for step in steps):
        return _judge([steps], budget or Budget())
    why, witnesses = misfit
    core = shrink(steps, budget or Budget())
    shown = core or tuple(dict.fromkeys(step.operation for step in witnesses))
    return Judgement(Verdict.VIOLATION, why, shown)


def by_search(operations: Iterable[Operation], budget: Budget | None = None) -> Judgement:
    """Judge a history by trying orders, for each group of keys that operations join.

    Real time and revisions are not compared between groups; `by_revision` does that.
    """
    problems = [prepare(group) for group in _groups(list(operations))]
    for steps in problems:
        if (clash := _same_revision(steps)) is not None:
            return clash
    return _judge(problems, budget or Budget())


def _judge(problems: Sequence[Sequence[Step]], budget: Budget) -> Judgement:
    meter = budget.start()
    total = sum(map(len, problems))
    for number, steps in enumerate(problems):
        try:
            furthest = stuck(steps, meter, nothing(steps))
            if furthest is None:
                continue
        except SpentError:
            return Judgement(
                Verdict.UNKNOWN,
                f"the budget ended before {len(steps)} operations on "
                f"{_keys(steps)} were decided, {number} of {len(problems)} groups of keys were",
            )
        return Judgement(
            Verdict.VIOLATION,
            f"no order of the operations on {_keys(steps)} explains their results",
            shrink(steps, budget, furthest) or tuple(step.operation for step in steps),
        )
    return Judgement(Verdict.LINEARIZABLE, f"an order of {total} operations was found")


def _keys(steps: Iterable[Step]) -> str:
    keys = sorted({key for step in steps for key in keys_of(step.operation.call)})
    return ", ".join(map(repr, keys[:5])) + (", …" if len(keys) > 5 else "")


def _groups(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Operations by connected keys."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    for operation in operations:
        first, *others = sorted(keys_of(operation.call)) or [""]
        for key in others:
            leader[find(key)] = find(first)
    groups: dict[str, list[Operation]] = {}
    for operation in operations:
        key = min(keys_of(operation.call), default="")
        groups.setdefault(find(key), []).append(operation)
    return list(groups.values())


# -- by revision ----------------------------------------------------------------------------------


def _same_revision(steps: Iterable[Step]) -> Judgement | None:
    times = Counter(step.revision for step in steps if step.revision is not None)
    for revision, count in times.items():
        if count > 1:
            return Judgement(
                Verdict.VIOLATION,
                f"{count} writes have the revision {revision}",
                tuple(step.operation for step in steps if step.revision == revision),
            )
    return None


def _place(steps: Sequence[Step]) -> tuple[str, list[Step]] | None:
    """Give every operation the smallest revision at which it can stand.

    All writes have told theirs, but for those of unknown outcome that are taken as never applied.
    Returns ``None``, or what has no place, and why.
    """
    writes = sorted(
        (step for step in steps if step.revision is not None), key=lambda step: step.revision or 0
    )
    revisions = [step.revision or 0 for step in writes]
    states: list[State] = [nothing(steps)]  # behind so many writes
    for number, step in enumerate(writes):
        after = outcomes(step, states[-1])
        if not after:
            why = (
                f"{text_of(step.operation.call)} has the revision {step.revision}, and does not "
                "fit the state that the writes before it had left"
            )
            return why, writes[max(0, number - 3) : number + 1]
        states.append(after[0])

    floor, reason = 0, None
    placed: list[tuple[float, int, int]] = []  # what may still be running: until when, at which
    for number, step in enumerate(steps):
        while placed and placed[0][0] < step.invoked:
            _, revision, who = heapq.heappop(placed)
            if revision > floor:
                floor, reason = revision, steps[who]
        witnesses = [step] if reason is None else [reason, step]
        if step.revision is not None:
            if step.revision <= floor:
                return (
                    f"{text_of(step.operation.call)} has the revision {step.revision}, but what "
                    f"had returned before it began shows revision {floor}"
                ), witnesses
            place = step.revision
        elif step.must:
            found = next(_places(step, floor, revisions, states), None)
            if found is None:
                return (
                    f"no state from revision {floor} on, which was reached before it began, "
                    f"explains {text_of(step.operation.call)}"
                ), witnesses
            place = found
        else:
            continue
        heapq.heappush(placed, (step.returned, place, number))
    return None


def _places(
    step: Step, floor: int, revisions: Sequence[int], states: Sequence[State]
) -> Iterator[int]:
    """The revisions from ``floor`` on at which a reading operation explains its result."""
    if step.present is not None:
        candidates = [step.present] if step.present >= floor else []
    else:
        candidates = [floor, *revisions[bisect_right(revisions, floor) :]]
    for revision in candidates:
        if outcomes(step, states[bisect_right(revisions, revision)]):
            yield revision
