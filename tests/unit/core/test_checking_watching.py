"""The checker of watch histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kvi
import pytest
from kvi import Event, EventType, KeyValue, TxnResult
from kvi.conformance.checking import Call, Operation, Outcome, Result, Tas, watch_fault
from kvi.model import Txn

PUT, DELETE, RESYNC = EventType.PUT, EventType.DELETE, EventType.RESYNC


def op(call: Call, result: Result) -> Operation:
    """An operation; its times do not matter here."""
    return Operation(client=0, call=call, result=result, invoked=0, returned=1)


def unknown(call: Call) -> Operation:
    """An operation of unknown outcome."""
    return Operation(client=0, call=call, outcome=Outcome.UNKNOWN, invoked=0)


def put(key: str, value: str, revision: int, initial: bool = False) -> Event:
    """An event."""
    return Event(PUT, key, value.encode(), revision, initial=initial)


def gone(key: str, revision: int) -> Event:
    """A deletion."""
    return Event(DELETE, key, None, revision)


WRITES = [
    op(kvi.Put("a", b"1"), 10),
    op(kvi.Put("b", b"2"), 20),
    op(kvi.Delete("b"), True),
    op(Tas("a", b"1", b"4"), True),
    op(
        Txn(then=(kvi.Put("a", b"5"), kvi.Put("b", b"5"), kvi.Delete("c"))),
        TxnResult(True, 50, (50, 50, False)),
    ),
    op(kvi.Put("other", b"6"), 60),
    op(Tas("a", b"x", b"7"), False),
    op(kvi.Get("a"), KeyValue("a", b"5", 50, 10)),
    Operation(client=1, call=kvi.Put("a", b"8"), outcome=Outcome.DENIED, invoked=0, returned=1),
]
EVENTS = [
    put("a", "1", 10),
    put("b", "2", 20),
    gone("b", 30),
    put("a", "4", 40),
    put("a", "5", 50),
    put("b", "5", 50),
]
LAST = {"a": KeyValue("a", b"5", 50, 10), "b": KeyValue("b", b"5", 50, 50), "c": None}


def fault(
    events: Sequence[Event], writes: Sequence[Operation] = WRITES, **options: Any
) -> str | None:
    """What is wrong with a watch of ``a``, ``b`` and ``c``."""
    given: dict[str, Any] = {"history": True, "keys": {"a", "b", "c"}, "last": LAST}
    return watch_fault(events, writes, **(given | options))


def without(*numbers: int) -> list[Event]:
    """The events but these."""
    return [event for number, event in enumerate(EVENTS) if number not in numbers]


def test_right() -> None:
    """What was written, each once, in order, is right; the order within a revision is free."""
    assert fault(EVENTS) is None
    assert fault([*EVENTS[:4], EVENTS[5], EVENTS[4]]) is None
    assert fault(EVENTS, history=False) is None
    assert fault([*EVENTS, put("other", "6", 60)], keys=None) is None


@pytest.mark.parametrize("number", range(6))
def test_dropped(number: int) -> None:
    """Every change that is left out is missed."""
    assert fault(without(number)) is not None
    assert fault(without(number), last=None) is not None


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("history", [True, False])
def test_duplicated(number: int, history: bool) -> None:
    """No event comes twice, at once or later."""
    twice = [*EVENTS[: number + 1], EVENTS[number], *EVENTS[number + 1 :]]
    assert fault(twice, history=history) is not None
    assert fault([*EVENTS, EVENTS[number]], history=history) is not None


def test_reordered() -> None:
    """Revisions never go back; without history, those of one key."""
    crossed = [EVENTS[1], EVENTS[0], *EVENTS[2:]]
    assert "revisions go back" in (fault(crossed) or "")
    assert fault(crossed, history=False) is None
    assert fault([EVENTS[3], EVENTS[0], *EVENTS[4:]], history=False) is not None


@pytest.mark.parametrize(
    "event",
    [
        put("a", "9", 45),
        put("a", "8", 45),  # denied
        put("a", "7", 45),  # its test failed
        put("c", "5", 50),  # of another key
        put("b", "4", 45),
        put("a", "4", 45),  # written once, told twice
        gone("a", 45),
        gone("c", 45),
        put("other", "6", 60),
        Event(PUT, "a", None, 45),
        Event(DELETE, "b", b"2", 45),
        put("a", "1", 45, initial=True),
    ],
)
@pytest.mark.parametrize("history", [True, False])
def test_invented(event: Event, history: bool) -> None:
    """Nothing is told that was not written."""
    told = sorted([*EVENTS, event], key=lambda one: one.revision)
    assert fault(told, history=history, last=None) is not None


def test_wrong_value_or_revision() -> None:
    """A write is told with its own value, at its own revision."""
    for history in (True, False):
        for event in (put("a", "2", 10), put("a", "1", 11), gone("a", 10)):
            assert fault([event, *EVENTS[1:]], history=history, last=None) is not None
        assert fault([*EVENTS[:2], gone("b", 30), gone("b", 31)], history=history, last=None)


def test_newer_states() -> None:
    """Without history states may be left out, but not the last, and none that never was."""
    assert fault(EVENTS[-2:], history=False) is None
    assert fault([gone("b", 35), *EVENTS[-2:]], history=False) is None
    assert "left at" in (fault(EVENTS[:-1], history=False) or "")
    assert "left at nothing" in (fault([], history=False) or "")
    assert fault([*EVENTS[:5], gone("b", 70)], history=False) is not None


def test_unknown_writes() -> None:
    """What may have been written may be told or not, but not more often than it was tried."""
    writes = [*WRITES, unknown(kvi.Put("c", b"9")), unknown(kvi.Delete("c"))]
    for history in (True, False):
        assert fault(EVENTS, writes, history=history) is None
        assert fault([*EVENTS, put("c", "9", 70)], writes, history=history, last=None) is None
        told = [*EVENTS, put("c", "9", 70), gone("c", 80)]
        assert fault(told, writes, history=history) is None
        again = [*told, put("c", "9", 90), gone("c", 99)]
        assert fault(again, writes, history=history) is not None
    either = unknown(Txn((kvi.Key("c").absent,), (kvi.Put("c", b"9"),), (kvi.Put("c", b"10"),)))
    for value in ("9", "10"):
        assert fault([*EVENTS, put("c", value, 70)], [*WRITES, either], last=None) is None


def test_since() -> None:
    """A watch that began later tells all that is behind its revision, and nothing before it."""
    assert fault(EVENTS[2:], since=20) is None
    assert fault(EVENTS[1:], since=20) is not None
    assert fault(EVENTS[:-1], since=20) is not None


def test_initial() -> None:
    """The state and the changes behind it join without gap or duplicate."""
    state = [put("a", "1", 10, True), put("b", "2", 20, True)]
    assert fault([*state, *EVENTS[2:]], initial=True) is None
    assert fault(EVENTS, initial=True) is None, "the state was empty"
    after_delete = [state[0], *EVENTS[3:]]
    assert fault(after_delete, initial=True) is None
    end = [put("a", "5", 50, True), put("b", "5", 50, True)]
    assert fault(end, initial=True) is None
    for history in (True, False):
        for wrong in (
            [state[1], state[0], *EVENTS[2:]],  # not in order
            [state[0], EVENTS[3], state[1], *EVENTS[4:]],  # goes on behind a change
            [*state, *EVENTS[1:]],  # a duplicate
            [put("a", "2", 10, True), *EVENTS[3:]],
        ):
            assert fault(wrong, initial=True, history=history) is not None
    for gap in (
        [state[1], *EVENTS[2:]],
        [state[0], gone("b", 30), put("a", "5", 50)],
    ):
        assert fault(gap, initial=True, last=None) is not None
    never_deleted = [one for one in WRITES if not isinstance(one.call, kvi.Delete)]
    assert fault([put("a", "5", 50, True)], never_deleted, initial=True, last=None) is not None
    known = [*WRITES[:3], op(kvi.Put("a", b"4"), 40), *WRITES[4:]]
    assert "revision 40 was not told" in (
        fault([*state, EVENTS[2], *EVENTS[4:]], known, initial=True) or ""
    )
    assert fault([*state, *EVENTS[2:]], initial=True, since=20) is None
    assert fault(EVENTS, initial=True, since=20) is not None, "older than it may be"


def test_resync() -> None:
    """A RESYNC stands for what it holds, and nothing behind it is left out."""
    state = [KeyValue("a", b"4", 40, 10)]
    resync = Event(RESYNC, "", None, 45, snapshot=state)
    for history in (True, False):
        assert fault([EVENTS[0], resync, *EVENTS[4:]], history=history) is None
        wrong = resync._replace(snapshot=[KeyValue("a", b"9", 40, 10)])
        assert fault([EVENTS[0], wrong, *EVENTS[4:]], history=history) is not None
        assert fault([EVENTS[0], resync], history=history) is not None
    stale = resync._replace(snapshot=[KeyValue("a", b"1", 10, 10), KeyValue("b", b"2", 20, 20)])
    writes = [*WRITES[:3], op(kvi.Put("a", b"4"), 40), *WRITES[4:]]
    assert fault([EVENTS[0], resync, *EVENTS[4:]], writes) is None
    assert "'a' at revision 40" in (fault([EVENTS[0], stale, *EVENTS[4:]], writes) or "")
    assert fault([resync._replace(snapshot=None), *EVENTS[4:]]) is not None
    assert fault([*EVENTS, resync]) is not None, "older than what was told"


def test_text() -> None:
    """A fault shows the events around it."""
    text = fault([*EVENTS[:2], put("a", "x", 25), *EVENTS[2:]])
    assert text is not None
    assert text.splitlines() == [
        "nobody wrote this",
        "  0: PUT 'a' b'1' at revision 10",
        "  1: PUT 'b' b'2' at revision 20",
        "→ 2: PUT 'a' b'x' at revision 25",
        "  3: DELETE 'b' at revision 30",
    ]
