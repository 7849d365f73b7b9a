"""Records of what clients did, and how they are shown."""

from __future__ import annotations

from math import inf

import kvi
import pytest
from kvi import Key, KeyValue, TxnResult
from kvi.conformance.checking import Call, Cas, Operation, Outcome, Range, Result, Tas, render
from kvi.conformance.checking.history import as_answer, as_txn, changes_of, keys_of, observed
from kvi.model import Txn

ENTRY = KeyValue("a", b"1", 5, 3, 2)
CALLS: list[tuple[Call, Result, str, dict[str, bytes | None]]] = [
    (kvi.Get("a"), None, "get('a') → None", {}),
    (kvi.Get("a"), ENTRY, "get('a') → b'1' (revision 5, created at 3, version 2)", {}),
    (kvi.Put("a", b"1"), 5, "store('a', b'1') → 5", {"a": b"1"}),
    (kvi.Delete("a"), True, "delete('a') → True", {"a": None}),
    (kvi.Delete("a"), False, "delete('a') → False", {}),
    (Tas("a", None, b"1"), True, "tas('a', None, b'1') → True", {"a": b"1"}),
    (Tas("a", b"1", b"2"), False, "tas('a', b'1', b'2') → False", {}),
    (Tas("a", b"1", None), True, "tas('a', b'1', None) → True", {"a": None}),
    (Tas("a", None, None), True, "tas('a', None, None) → True", {}),
    (Cas("a", 4, b"1"), 5, "cas('a', 4, b'1') → 5", {"a": b"1"}),
    (Cas("a", 0, b"1"), None, "cas('a', 0, b'1') → None", {}),
    (
        Range("", ("a", "b")),
        TxnResult(True, 7, (ENTRY._replace(version=None), None)),
        "range(prefix='') → {'a': b'1' (revision 5, created at 3), 'b': None} at revision 7",
        {},
    ),
    (
        Txn((Key("b").absent,), (kvi.Put("b", b"1"), kvi.Delete("a"))),
        TxnResult(True, 6, (6, True)),
        "txn([Key('b').absent], [Put('b', b'1'), Delete('a')]) → then at revision 6: [6, True]",
        {"b": b"1", "a": None},
    ),
    (
        Txn((Key("b").value == b"x",), (), (kvi.Get("b"),)),
        TxnResult(False, 7, (None,)),
        "txn([Key('b').value == b'x'], [], [Get('b')]) → otherwise at revision 7: [None]",
        {},
    ),
]


@pytest.mark.parametrize(("call", "result", "text", "changes"), CALLS)
def test_calls(call: Call, result: Result, text: str, changes: dict[str, bytes | None]) -> None:
    """Each call is shown as program text, is a transaction, and tells what it changed."""
    operation = Operation(client=1, call=call, result=result, invoked=1, returned=2)
    assert render([operation]).endswith(text)
    assert changes_of(operation)[1] == changes
    txn, answer = as_txn(call), as_answer(call, result)
    assert len(answer.results) == len(txn.then if answer.succeeded else txn.otherwise)
    assert {entry.key for entry in observed(operation)} <= keys_of(call) <= {"a", "b"}


def test_wrong_results() -> None:
    """A result that the call cannot have is refused."""
    with pytest.raises(TypeError, match=r"get\('a'\) cannot result in True"):
        as_answer(kvi.Get("a"), True)


def test_times() -> None:
    """An unknown outcome has no end, everything else has, and not before its beginning."""
    for outcome, returned in [(Outcome.UNKNOWN, 2.0), (Outcome.OK, inf), (Outcome.DENIED, inf)]:
        with pytest.raises(ValueError, match="infinite"):
            Operation(client=0, call=kvi.Get("a"), outcome=outcome, invoked=1, returned=returned)
    with pytest.raises(ValueError, match="before"):
        Operation(client=0, call=kvi.Get("a"), invoked=1, returned=0.5)


def test_timeline() -> None:
    """Operations stand one below the other as they began, with a picture of their overlap."""
    history = [
        Operation(client=12, call=kvi.Get("a"), invoked=10.002, returned=10.0045),
        Operation(client=1, call=kvi.Put("a", b"1"), result=5, invoked=10, returned=10.003),
        Operation(client=2, call=kvi.Delete("a"), outcome=Outcome.UNKNOWN, invoked=10.004),
        Operation(
            client=3,
            call=kvi.Put("a", b"2"),
            outcome=Outcome.DENIED,
            invoked=10.005,
            returned=10.006,
        ),
    ]
    assert render(history).splitlines() == [
        "├─┤       client 1   0.000 … 3.000 ms  store('a', b'1') → 5",
        " ├──┤     client 12  2.000 … 4.500 ms  get('a') → None",
        "   ├───?  client 2   4.000 …     ? ms  delete('a') → unknown",
        "     ├┤   client 3   5.000 … 6.000 ms  store('a', b'2') → denied",
    ]


def test_long_timeline() -> None:
    """Long histories have no picture, and nothing is made up for none."""
    many = [Operation(client=0, call=kvi.Get("a"), invoked=n, returned=n + 0.5) for n in range(100)]
    lines = render(many).splitlines()
    assert len(lines) == 100
    assert all(line.startswith("client 0") for line in lines)
    assert render([]) == "(no operations)"
