"""The checkers of linearizability: what they must catch, accept and leave undecided."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import kvi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvi import Key, KeyValue, TxnResult
from kvi.conformance.checking import (
    Budget,
    Call,
    Cas,
    Judgement,
    Operation,
    Outcome,
    Range,
    Result,
    Tas,
    Verdict,
    by_revision,
    by_search,
)
from kvi.conformance.checking.history import keys_of
from kvi.model import Txn

CHECKERS = (by_revision, by_search)


def op(call: Call, result: Result, invoked: float, returned: float, client: int = 0) -> Operation:
    """An operation with a result."""
    return Operation(client=client, call=call, result=result, invoked=invoked, returned=returned)


def open_op(call: Call, invoked: float, client: int = 9) -> Operation:
    """An operation of unknown outcome."""
    return Operation(client=client, call=call, outcome=Outcome.UNKNOWN, invoked=invoked)


def put(value: str, revision: int, invoked: float, returned: float, key: str = "a") -> Operation:
    """A write."""
    return op(kvi.Put(key, value.encode()), revision, invoked, returned)


def entry(value: str, revision: int, create: int = 0, version: int | None = None) -> KeyValue:
    """What a read of ``a`` gave."""
    return KeyValue("a", value.encode(), revision, create or revision, version)


def get(
    value: str | None, revision: int, invoked: float, returned: float, create: int = 10
) -> Operation:
    """A read of ``a``, which was created at revision 10 unless told."""
    found = None if value is None else entry(value, revision, create)
    return op(kvi.Get("a"), found, invoked, returned, 1)


def verdicts(history: Sequence[Operation]) -> tuple[Verdict, Verdict]:
    """What both checkers say."""
    return by_revision(history).verdict, by_search(history).verdict


def accepted(*history: Operation) -> bool:
    """Whether both checkers accept."""
    return verdicts(history) == (Verdict.LINEARIZABLE,) * 2


def refused(*history: Operation) -> bool:
    """Whether both checkers find a violation."""
    return verdicts(history) == (Verdict.VIOLATION,) * 2


# -- what is wrong ---------------------------------------------------------------------------------


def test_stale_read() -> None:
    """A read that began after a write had returned sees it."""
    history = [put("1", 10, 0, 1), put("2", 20, 2, 3), get("1", 10, 4, 5)]
    assert refused(*history)
    assert accepted(*history[:2], get("1", 10, 2.5, 5))
    assert accepted(*history[:2], get("2", 20, 2.5, 5))


def test_reads_going_back() -> None:
    """Of two reads, one after the other, the second does not see an older state."""
    history = [put("1", 10, 0, 1), put("2", 20, 2, 9)]
    assert refused(*history, get("2", 20, 3, 4), get("1", 10, 5, 6))
    assert accepted(*history, get("1", 10, 3, 4), get("2", 20, 5, 6))
    assert accepted(*history, get("2", 20, 3, 5), get("1", 10, 4, 6))


def test_read_from_the_future() -> None:
    """A read does not see what was written only after it had returned."""
    assert refused(get("1", 10, 0, 1), put("1", 10, 2, 3))


def test_never_written() -> None:
    """A read sees only what was written; what surely was not applied was not."""
    assert refused(put("1", 10, 0, 1), get("x", 20, 2, 3))
    denied = Operation(
        client=2, call=kvi.Put("a", b"x"), outcome=Outcome.DENIED, invoked=0, returned=1
    )
    assert refused(put("1", 10, 0, 1), denied, get("x", 20, 2, 3))
    assert accepted(put("1", 10, 0, 1), denied, get("1", 10, 2, 3))


def test_lost_update() -> None:
    """Of two compare-and-sets on one revision one fails; a version counts every write."""
    first = op(Cas("a", 10, b"2"), 20, 2, 5)
    assert refused(put("1", 10, 0, 1), first, op(Cas("a", 10, b"3"), 30, 3, 6))
    assert accepted(put("1", 10, 0, 1), first, op(Cas("a", 10, b"3"), None, 3, 6))
    writes = [put("1", 10, 0, 1), put("2", 20, 2, 5), put("3", 30, 3, 6)]
    assert refused(*writes, op(kvi.Get("a"), entry("3", 30, 10, 2), 7, 8))
    assert accepted(*writes, op(kvi.Get("a"), entry("3", 30, 10, 3), 7, 8))


def test_two_winners() -> None:
    """Of two test-and-sets on one value one fails."""
    first = op(Tas("a", b"1", b"2"), True, 2, 5)
    assert refused(put("1", 10, 0, 1), first, op(Tas("a", b"1", b"3"), True, 3, 6))
    assert accepted(put("1", 10, 0, 1), first, op(Tas("a", b"1", b"3"), False, 3, 6))
    assert refused(op(Tas("a", None, b"2"), True, 0, 1), op(Tas("a", None, b"3"), True, 0, 1))
    assert refused(put("1", 10, 0, 1), op(Tas("a", b"1", b"2"), False, 2, 3))


def test_deletes_that_lie() -> None:
    """A delete tells whether the key was there, and it is gone behind it."""
    history = [put("1", 10, 0, 1), op(kvi.Delete("a"), True, 2, 3)]
    assert accepted(*history, get(None, 0, 4, 5), op(kvi.Delete("a"), False, 4, 5))
    assert refused(*history, get("1", 10, 4, 5))
    assert refused(*history, op(kvi.Delete("a"), True, 2, 5))
    assert refused(history[0], op(kvi.Delete("a"), False, 2, 3))
    assert refused(op(kvi.Delete("a"), True, 2, 3))


def test_created_anew() -> None:
    """A key that was deleted and written again has a new create revision."""
    history = [put("1", 10, 0, 1), op(kvi.Delete("a"), True, 2, 3), put("2", 30, 4, 5)]
    assert accepted(*history, get("2", 30, 6, 7, create=30))
    assert refused(*history, get("2", 30, 6, 7, create=10))
    assert refused(history[0], history[2], get("2", 30, 6, 7, create=30))


def test_dirty_read() -> None:
    """No one sees half of a transaction, or a state between its writes."""
    both = Txn(then=(kvi.Put("a", b"1"), kvi.Put("b", b"1")))
    reads = Txn(then=(kvi.Get("a"), kvi.Get("b")))
    write = op(both, TxnResult(True, 10, (10, 10)), 0, 9)
    a, b = entry("1", 10), KeyValue("b", b"1", 10, 10)
    for seen, right in [((a, b), True), ((None, None), True), ((a, None), False)]:
        for call in (reads, Range("", ("a", "b"))):
            history = (write, op(call, TxnResult(True, None, seen), 2, 3))
            assert accepted(*history) is right
            assert refused(*history) is not right
    # with one key after the other it is real time that tells
    assert refused(write, get("1", 10, 2, 3), op(kvi.Get("b"), None, 4, 5))


def test_transactions() -> None:
    """Compares, the branch that ran, and reads behind writes fit the state before."""
    txn = Txn((Key("a").value == b"1",), (kvi.Put("b", b"2"), kvi.Get("b")), (kvi.Get("a"),))
    b = KeyValue("b", b"2", 20, 20, 1)
    done = op(txn, TxnResult(True, 20, (20, b)), 2, 3)
    assert accepted(put("1", 10, 0, 1), done)
    assert refused(put("x", 10, 0, 1), done)
    assert refused(done)
    assert refused(put("1", 10, 0, 1), op(txn, TxnResult(True, 20, (20, None)), 2, 3))
    assert refused(put("1", 10, 0, 1), op(txn, TxnResult(True, 20, (21, b)), 2, 3))
    other = op(txn, TxnResult(False, 10, (entry("x", 10),)), 2, 3)
    assert accepted(put("x", 10, 0, 1), other)
    assert refused(put("1", 10, 0, 1), other)


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (Key("a").value != b"1", False),
        (Key("a").value < b"2", True),
        (Key("a").value > b"2", False),
        (Key("a").revision > 5, True),
        (Key("a").create_revision < 5, False),
        (Key("a").version == 1, True),
        (Key("a").exists, True),
        (Key("a").absent, False),
        (Key("missing").value != b"1", False),
        (Key("missing").revision == 0, True),
    ],
)
def test_compares(compare: kvi.Compare, expected: bool) -> None:
    """Each compare means what the contract says."""
    for told in (True, False):
        txn = op(Txn((compare,)), TxnResult(told, 10), 2, 3)
        assert accepted(put("1", 10, 0, 1), txn) is (told is expected)


def test_revision_of_reads() -> None:
    """A transaction that writes nothing tells the revision that the store is at."""
    reads = Txn(then=(kvi.Get("b"),))
    history = [put("1", 10, 0, 1), put("2", 20, 2, 3)]
    for revision, right in [(10, False), (19, False), (20, True), (25, True)]:
        last = op(reads, TxnResult(True, revision, (None,)), 4, 5)
        assert (by_revision([*history, last]).verdict is Verdict.LINEARIZABLE) is right


def test_revisions_against_real_time() -> None:
    """What is written later has a larger revision, also on other keys."""
    assert refused(put("1", 20, 0, 1), put("2", 10, 2, 3))
    elsewhere = [put("1", 20, 0, 1), put("2", 10, 2, 3, "b")]
    assert by_revision(elsewhere).verdict is Verdict.VIOLATION
    assert by_search(elsewhere), "each key by itself is in order"


def test_reads_against_the_order_of_other_keys() -> None:
    """A read is not older than a write to another key which had returned, by its revision."""
    history = [
        put("1", 10, 0, 9),  # overlaps everything
        put("2", 20, 1, 2, "b"),
        get(None, 0, 3, 4),
    ]
    found = by_revision(history)
    assert found.verdict is Verdict.VIOLATION
    assert len(found.operations) == 3
    assert by_search(history), "each key by itself is in order"


def test_same_revision() -> None:
    """Two write transactions never have the same revision."""
    assert refused(put("1", 10, 0, 3), put("2", 10, 1, 4))


# -- what is not known -----------------------------------------------------------------------------


def test_unknown_writes_count_both_ways() -> None:
    """What may have been written may be seen, at once, late, or never; then it stays."""
    lost = open_op(kvi.Put("a", b"2"), 2)
    first = put("1", 10, 0, 1)
    assert accepted(first, lost, get("1", 10, 3, 4))
    assert accepted(first, lost, get("2", 20, 3, 4))
    assert accepted(first, lost, get("1", 10, 3, 4), get("2", 20, 5, 6))
    assert refused(first, lost, get("2", 20, 3, 4), get("1", 10, 5, 6))
    assert refused(first, lost, get("2", 20, 0, 1)), "not before it was called"


def test_unknown_writes_that_nobody_read() -> None:
    """What only others' results betray is found, too."""
    lost = open_op(kvi.Put("a", b"2"), 2)
    first = put("1", 10, 0, 1)
    for betrays in (
        op(Tas("a", b"1", b"3"), False, 3, 4),
        op(Cas("a", 10, b"3"), None, 3, 4),
    ):
        assert accepted(first, lost, betrays)
        assert refused(first, betrays)
        assert refused(first, lost, betrays, get("1", 10, 5, 6))
    gone = open_op(kvi.Delete("a"), 2)
    assert accepted(first, gone, get(None, 0, 3, 4))
    assert refused(first, gone, get(None, 0, 3, 4), get("1", 10, 5, 6))


def test_unknown_transactions_are_whole() -> None:
    """A transaction of unknown outcome did all or nothing, in the branch that fits."""
    first = put("1", 10, 0, 1)
    lost = open_op(
        Txn(
            (Key("a").value == b"1",),
            (kvi.Put("a", b"2"), kvi.Put("b", b"2")),
            (kvi.Put("c", b"2"),),
        ),
        2,
    )
    b = KeyValue("b", b"2", 20, 20)
    assert accepted(first, lost, get("2", 20, 3, 4), op(kvi.Get("b"), b, 5, 6))
    assert refused(first, lost, get("2", 20, 3, 4), op(kvi.Get("b"), None, 5, 6))
    c = KeyValue("c", b"2", 20, 20)
    assert refused(first, lost, op(kvi.Get("c"), c, 3, 4))


def test_revisions_shown_by_reads() -> None:
    """A write that told no revision stands where its reader saw it."""
    first = put("1", 10, 0, 1)
    won = op(Tas("a", b"1", b"2"), True, 2, 9)
    assert accepted(first, won, get("2", 20, 3, 4), put("3", 30, 5, 6))
    assert refused(first, won, get("2", 40, 3, 4), put("3", 30, 5, 6))


def test_unknown_when_the_budget_ends() -> None:
    """A search that does not come to its end says UNKNOWN, by steps and by the clock."""
    history = [op(Tas("a", None, str(n).encode()), True, 0, 10, n) for n in range(4)] + [
        op(kvi.Delete("a"), True, 0, 10, n) for n in range(4, 8)
    ]
    ticks = itertools.count()
    for budget in (
        Budget(steps=3),
        Budget(seconds=0.5, clock=lambda: next(ticks)),
    ):
        long = history * 10 if budget.steps > 3 else history
        for checker in CHECKERS:
            found = checker([*long, get("x", 5, 11, 12)], budget)
            assert found.verdict is Verdict.UNKNOWN
            assert not found
            assert str(found).startswith("unknown: the budget ended")
    assert accepted(*history)


def test_leases_are_refused() -> None:
    """Compares of leases cannot be judged, and are not silently passed."""
    for checker in CHECKERS:
        with pytest.raises(ValueError, match="leases"):
            checker([op(Txn((Key("a").lease == 0,)), TxnResult(True, 1), 0, 1)])


# -- what is shown ---------------------------------------------------------------------------------


def test_explanation() -> None:
    """A violation is shown by the few operations that suffice for it."""
    history = [put(str(n), 10 * n, n, n + 0.5) for n in range(1, 40)]
    history += [get(str(n), 10 * n, n + 0.6, n + 0.7) for n in range(1, 40)]
    assert accepted(*history)
    history.append(replace(get("20", 200, 30.6, 30.7), client=5))
    for checker in CHECKERS:
        found = checker(history)
        assert found.verdict is Verdict.VIOLATION
        assert len(found.operations) == 2
        assert history[-1] in found.operations
        assert "get('a')" in str(found)
        assert "client 5" in str(found)


def test_what_is_shown_is_a_violation() -> None:
    """The part that is shown is wrong by itself, whatever the keys held before."""
    history = [
        put("1", 10, 0, 1),
        op(Tas("a", b"1", b"2"), True, 2, 5),
        op(Tas("a", b"1", b"3"), True, 3, 6),
        get("3", 30, 7, 8),
    ]
    for checker in CHECKERS:
        found = checker(history)
        assert {type(operation.call) for operation in found.operations} == {Tas}


# -- against all orders ----------------------------------------------------------------------------

_Entry = tuple[bytes, int, int, int]
_State = dict[str, _Entry]


class AllOrders:
    """Tries every order of a tiny history, on a model of its own."""

    def __init__(self, history: Sequence[Operation]) -> None:
        self.history = [one for one in history if one.outcome is not Outcome.DENIED]
        self.revisions = sorted(set(self._told()))

    def _told(self) -> Iterator[int]:
        for one in self.history:
            if isinstance(one.call, Cas):
                yield one.call.revision
            results = [one.result]
            if isinstance(one.result, TxnResult):
                results = [one.result.revision, *one.result.results]
            for result in results:
                if isinstance(result, KeyValue):
                    yield from (result.revision, result.create_revision)
                elif isinstance(result, int) and not isinstance(result, bool):
                    yield result

    def accepts(self) -> bool:
        """Whether there is an order."""
        return self._go(frozenset(range(len(self.history))), {}, 0)

    def _go(self, left: frozenset[int], state: _State, last: int) -> bool:
        if all(self.history[number].outcome is Outcome.UNKNOWN for number in left):
            return True
        return any(
            self._go(left - {number}, after, revision)
            for number in left
            if not any(
                self.history[other].returned < self.history[number].invoked for other in left
            )
            for after, revision in self._apply(self.history[number], state, last)
        )

    def _apply(self, one: Operation, state: _State, last: int) -> Iterator[tuple[_State, int]]:
        known = one.outcome is Outcome.OK
        result = one.result

        def at(told: object) -> list[int]:
            if isinstance(told, int):
                return [told] if told > last else []
            return sorted({last + 1, *(one for one in self.revisions if one > last)})

        def wrote(revision: int, **changes: bytes | None) -> tuple[_State, int]:
            return _written(state, changes, revision), revision

        match one.call:
            case kvi.Get(key):
                if _same(state.get(key), result):
                    yield state, last
            case kvi.Put(key, bytes(value)):
                for revision in at(result):
                    yield wrote(revision, **{key: value})
            case kvi.Delete(key):
                if key not in state and (not known or result is False):
                    yield state, last
                elif key in state and (not known or result is True):
                    for revision in at(None):
                        yield wrote(revision, **{key: None})
            case Tas(key, test, new):
                met = (state[key][0] if key in state else None) == test
                if known and met is not result:
                    return
                if not met or (test is None and new is None):
                    yield state, last
                    return
                for revision in at(None):
                    yield wrote(revision, **{key: new})
            case Cas(key, expected, value):
                met = (state[key][1] if key in state else 0) == expected
                if known and met is not (result is not None):
                    return
                if not met:
                    yield state, last
                    return
                for revision in at(result):
                    yield wrote(revision, **{key: value})
            case Txn((compare,), then, otherwise):
                assert compare == Key(compare.key).exists
                met = compare.key in state
                yield from self._run(one, met, then if met else otherwise, state, last, at)
            case _:
                raise AssertionError(one)

    def _run(
        self,
        one: Operation,
        met: bool,
        branch: Sequence[object],
        state: _State,
        last: int,
        at: Callable[[object], list[int]],
    ) -> Iterator[tuple[_State, int]]:
        """Branches of gets, or of puts."""
        answer = one.result
        assert answer is None or isinstance(answer, TxnResult)
        if answer is not None and answer.succeeded is not met:
            return
        puts = {part.key: part.value for part in branch if isinstance(part, kvi.Put)}
        if puts:
            for revision in at(answer and answer.revision):
                yield _written(state, puts, revision), revision
        elif answer is None:
            yield state, last
        else:
            gets = [part.key for part in branch if isinstance(part, kvi.Get)]
            same = all(
                _same(state.get(key), seen) for key, seen in zip(gets, answer.results, strict=True)
            )
            assert answer.revision is not None
            if same and last <= answer.revision:
                yield state, answer.revision


def _written(state: _State, changes: Mapping[str, object], revision: int) -> _State:
    after = dict(state)
    for key, value in changes.items():
        if value is None:
            after.pop(key, None)
            continue
        assert isinstance(value, bytes)
        old = state.get(key)
        after[key] = (
            (value, revision, revision, 1) if old is None else (value, revision, old[2], old[3] + 1)
        )
    return after


def _same(have: _Entry | None, told: object) -> bool:
    if have is None or told is None:
        return have is told
    assert isinstance(told, KeyValue)
    return have == (told.value, told.revision, told.create_revision, told.version)


def _groups(history: Sequence[Operation]) -> list[list[Operation]]:
    """Operations by connected keys, the slow way."""
    groups: list[list[Operation]] = []
    for one in history:
        joined = [
            group
            for group in groups
            if any(keys_of(one.call) & keys_of(other.call) for other in group)
        ]
        groups = [group for group in groups if group not in joined]
        groups.append([*itertools.chain(*joined), one])
    return groups


@st.composite
def histories(draw: st.DrawFn, most: int, values: int = 0) -> list[Operation]:
    """A run one after another, each operation stretched; some of unknown outcome.

    Without ``values`` every value is written once, else they are so many.
    """
    state: _State = {}
    revision = 0
    history: list[Operation] = []
    for number in range(draw(st.integers(1, most))):
        key = draw(st.sampled_from("ab"))
        value = str(number % values if values else number).encode()
        have = state.get(key)
        seen = have and KeyValue(key, have[0], have[1], have[2], have[3])
        kind = draw(st.sampled_from(["get", "put", "delete", "tas", "cas", "txn"]))
        changes: Mapping[str, object] = {}
        call: Call
        result: Result
        if kind == "get":
            call, result = kvi.Get(key), seen
        elif kind == "put":
            call, result, changes = kvi.Put(key, value), revision + 10, {key: value}
        elif kind == "delete":
            call, result = kvi.Delete(key), seen is not None
            changes = {key: None} if seen else {}
        elif kind == "tas":
            right = draw(st.booleans())
            test = (have[0] if have else None) if right else b"never"
            new = draw(st.sampled_from([value, None]))
            call, result = Tas(key, test, new), right
            changes = {key: new} if right and (test is not None or new is not None) else {}
        elif kind == "cas":
            right = draw(st.booleans())
            call = Cas(key, (have[1] if have else 0) + (not right), value)
            result, changes = (revision + 10, {key: value}) if right else (None, {})
        else:
            then = (kvi.Put("a", value), kvi.Put("b", value))
            call = Txn((Key(key).exists,), then, (kvi.Get(key), kvi.Get("b")))
            other = state.get("b")
            if seen:
                result = TxnResult(True, revision + 10, (revision + 10,) * 2)
                changes = {"a": value, "b": value}
            else:
                entries = (
                    None,
                    other and KeyValue("b", other[0], other[1], other[2], other[3]),
                )
                result = TxnResult(False, revision, entries)
        invoked = number - draw(st.sampled_from([0.1, 0.7, 1.6, 2.8]))
        lost = draw(st.integers(0, 4)) == 0
        applied = not lost or draw(st.booleans())
        if changes and applied:
            revision += 10
            state = _written(state, changes, revision)
        if lost:
            history.append(open_op(call, invoked, number))
        else:
            returned = number + draw(st.sampled_from([0.1, 0.7, 1.6, 2.8]))
            history.append(op(call, result, invoked, returned, number))
    return history


@st.composite
def spoiled(draw: st.DrawFn, values: int = 0) -> list[Operation]:
    """A history in which results may have been exchanged, or made up."""
    history = draw(histories(5, values))
    for _ in range(draw(st.integers(0, 2))):
        number = draw(st.integers(0, len(history) - 1))
        one = history[number]
        like = [
            other.result
            for other in history
            if type(other.call) is type(one.call) is not Txn
            and other.outcome is Outcome.OK
            and (not isinstance(one.call, kvi.Get) or keys_of(one.call) == keys_of(other.call))
        ]
        if isinstance(one.call, (kvi.Delete, Tas)):
            like = [True, False]
        if like and one.outcome is Outcome.OK:
            history[number] = replace(one, result=draw(st.sampled_from(like)))
    return history


@settings(max_examples=150, deadline=None)
@given(histories(40))
def test_real_runs_are_accepted(history: list[Operation]) -> None:
    """What came from a run one after another is linearizable, however its intervals overlap."""
    for checker in CHECKERS:
        found = checker(history)
        assert found, str(found)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(spoiled())
def test_agree_with_all_orders(history: list[Operation]) -> None:
    """On tiny histories both checkers say what trying every order says."""
    right = AllOrders(history).accepts()
    assert bool(by_revision(history)) is right
    assert bool(by_search(history)) is all(AllOrders(group).accepts() for group in _groups(history))


@settings(max_examples=300, deadline=None)
@given(spoiled(values=2))
def test_no_false_alarm_for_repeated_values(history: list[Operation]) -> None:
    """Also where values are written several times, what has an order is accepted."""
    if AllOrders(history).accepts():
        assert by_revision(history)
        assert by_search(history)


@settings(max_examples=150, deadline=None)
@given(spoiled())
def test_parts_shown_are_parts(history: list[Operation]) -> None:
    """A violation shows operations of the history, and at least one."""
    for checker in CHECKERS:
        found: Judgement = checker(history)
        assert found.verdict is not Verdict.UNKNOWN
        assert bool(found.operations) is (found.verdict is Verdict.VIOLATION)
        assert set(map(id, found.operations)) <= set(map(id, history))


def test_speed() -> None:
    """Four hundred operations of eight clients on one key take well under a second."""
    history: list[Operation] = []
    for n in range(100):
        t = float(n)
        history += [
            op(Tas("a", None, str(n).encode()), True, t, t + 0.8, 0),
            op(kvi.Delete("a"), True, t + 0.1, t + 0.9, 1),
            op(Tas("a", None, b"x%d" % n), n % 3 == 5, t + 0.3, t + 0.8, 2),
            op(kvi.Get("a"), None, t - 0.05, t + 0.95, 3),
        ]
    began = time.perf_counter()
    for checker in CHECKERS:
        assert checker(history)
    assert time.perf_counter() - began < 5, "a generous bound, for slow machines"
