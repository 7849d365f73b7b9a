"""Transactions decided on plain data."""

from __future__ import annotations

import kvi
from kvi.model import KeyValue, Txn
from kvi.policy.txn import Change, choose, perform

OLD = KeyValue("a", b"1", 5, 3, 2, None)
ENTRIES = {"a": OLD}


def test_choice() -> None:
    """All compares must hold for the first branch."""
    then, otherwise = (kvi.Get("a"),), (kvi.Get("b"),)
    for when, succeeded in [
        ((), True),
        ((kvi.Key("a").revision == 5, kvi.Key("b").absent), True),
        ((kvi.Key("a").revision == 5, kvi.Key("b").exists), False),
        ((kvi.Key("b").value != b"1",), False),
        ((kvi.Key("a").lease == 0, kvi.Key("a").version > 1), True),
    ]:
        expected = (succeeded, then if succeeded else otherwise)
        assert choose(Txn(when, then, otherwise), ENTRIES.get) == expected


def test_effect() -> None:
    """Writes get the revision, creation is kept, gets see what was written before them."""
    branch = (kvi.Put("a", b"2"), kvi.Get("a"), kvi.Put("b", b"3", lease=9), kvi.Delete("zz"))
    effect = perform(branch, ENTRIES.get, 6)
    a = KeyValue("a", b"2", 6, 3, 3, None)
    b = KeyValue("b", b"3", 6, 6, 1, 9)
    assert effect.results == (6, a, 6, False)
    assert effect.changes == (Change("a", OLD, a), Change("b", None, b))


def test_delete_then_get() -> None:
    """A delete of an entry is a change to nothing, and a get behind it sees none."""
    effect = perform((kvi.Get("a"), kvi.Delete("a"), kvi.Get("a")), ENTRIES.get, 6)
    assert effect.results == (OLD, True, None)
    assert effect.changes == (Change("a", OLD, None),)


def test_nothing_written_has_no_changes() -> None:
    """Gets and deletes of nothing use up no revision."""
    assert perform((kvi.Get("a"), kvi.Delete("b")), ENTRIES.get, 6).changes == ()


def test_compare_of_an_unknown_version() -> None:
    """Where entries have no version, none is made up for what is written."""
    bare = {"a": OLD._replace(version=None)}
    effect = perform((kvi.Put("a", b"2"),), bare.get, 6)
    assert effect.changes[0].new == KeyValue("a", b"2", 6, 3, None, None)
