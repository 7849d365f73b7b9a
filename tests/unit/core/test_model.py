"""The model of a store that the conformance suite compares with: it says what the contract says."""

from __future__ import annotations

from typing import Any

import kvi
import pytest
from kvi.conformance.model import (
    Bounds,
    Differs,
    Model,
    Revision,
    Revisions,
    Watching,
    World,
)

PUT, DELETE = kvi.EventType.PUT, kvi.EventType.DELETE


def filled(*keys: str) -> Model:
    """A model in which each key holds its own name."""
    model = Model()
    for key in keys:
        model.store(key, key)
    return model


def names(entries: list[kvi.KeyValue]) -> list[str]:
    return [entry.key for entry in entries]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, ["a", "a/", "a/1", "a0", "ü", "\uffff", "😀"]),
        ({"start": "a/"}, ["a/", "a/1", "a0", "ü", "\uffff", "😀"]),
        ({"end": "a0"}, ["a", "a/", "a/1"]),
        ({"start": "a/", "end": "a/\0"}, ["a/"]),
        ({"start": "b", "end": "a"}, []),
        ({"start": "a", "end": "a"}, []),
        ({"prefix": "a/"}, ["a/", "a/1"]),
        ({"prefix": ""}, ["a", "a/", "a/1", "a0", "ü", "\uffff", "😀"]),
    ],
    ids=str,
)
def test_range(bounds: dict[str, Any], expected: list[str]) -> None:
    """Bounds are half-open, the order is that of UTF-8 bytes, and count agrees."""
    model = filled("😀", "\uffff", "ü", "a0", "a/1", "a/", "a")
    assert names(model.range(**bounds)) == expected
    assert names(model.range(**bounds, reverse=True, limit=2)) == expected[::-1][:2]
    assert model.count(**bounds) == len(expected)
    assert all(entry.value is None for entry in model.range(**bounds, keys_only=True))


def test_a_life_of_a_key() -> None:
    """Each write is a revision; versions and create revisions begin anew with each life."""
    model = Model()
    assert model.store("k", b"1") == 1
    assert model.store("k", b"1") == 2
    assert model.get("k") == kvi.KeyValue("k", b"1", 2, 1, 2, None)
    assert model.delete("k")
    assert not model.delete("k")
    assert model.revision == 3
    model.store("k", b"")
    assert model.get("k") == kvi.KeyValue("k", b"", 4, 4, 1, None)


def test_store_without_versions() -> None:
    """Where there are no versions, entries have none, and comparing them is refused."""
    model = Model(World(versions=False))
    model.store("k", b"")
    model.store("k", b"")
    assert model.get("k") == kvi.KeyValue("k", b"", 2, 1, None, None)
    with pytest.raises(kvi.NotSupported):
        model.txn([kvi.Key("k").version == 0])


def test_tas_and_cas() -> None:
    """Absence is ``None`` and revision 0, and equals no value."""
    model = Model()
    assert not model.tas("k", b"", b"1")
    assert model.tas("k", None, None)
    assert model.tas("k", None, "ü")
    assert model.tas("k", "ü".encode(), b"")
    assert not model.tas("k", None, b"2")
    assert model.cas("k", 0, b"3") is None
    assert model.cas("k", 2, b"3") == 3
    assert model.tas("k", b"3", None)
    assert model.cas("k", 0, b"4") == 5


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (kvi.Key("k").value == b"v", True),
        (kvi.Key("k").value < b"v\0", True),
        (kvi.Key("k").value > b"v", False),
        (kvi.Key("k").revision == 2, True),
        (kvi.Key("k").create_revision != 2, True),
        (kvi.Key("k").version > 1, True),
        (kvi.Key("k").lease == 0, True),
        (kvi.Key("k").exists, True),
        (kvi.Key("none").value != b"v", False),
        (kvi.Key("none").value < b"v", False),
        (kvi.Key("none").revision < 1, True),
        (kvi.Key("none").version == 0, True),
        (kvi.Key("none").absent, True),
    ],
    ids=str,
)
def test_compares(compare: kvi.Compare, holds: bool) -> None:
    """A missing key compares as 0, and its value with nothing."""
    model = filled("k")
    model.store("k", b"v")
    assert model.txn([compare], [], [kvi.Put("otherwise", b"")]).succeeded is holds
    assert (model.get("otherwise") is None) is holds


def test_txn() -> None:
    """All at one revision, in order; a key is written once in a branch; nothing is no revision."""
    model = filled("a", "b")
    done = model.txn(
        [], [kvi.Get("a"), kvi.Put("a", b"2"), kvi.Get("a"), kvi.Delete("b"), kvi.Delete("c")]
    )
    old, new = kvi.KeyValue("a", b"a", 1, 1, 1), kvi.KeyValue("a", b"2", 3, 1, 2)
    assert done == kvi.TxnResult(True, 3, (old, 3, new, True, False))
    with pytest.raises(kvi.InvalidArgument):
        model.txn([], [], [kvi.Put("a", b""), kvi.Delete("a")])
    assert model.txn([kvi.Key("a").absent], [kvi.Delete("a")]) == kvi.TxnResult(False, 3)
    assert not model.transaction("none", "!=", b"", "then", b"", "else", b"")
    assert names(model.range()) == ["a", "else"]


def test_leases() -> None:
    """Keys go with their lease, unless written without it since; a dead one writes nothing."""
    model = Model()
    model.grant(7)
    for key in ("a", "b", "c"):
        model.store(key, b"", lease=7)
    model.store("b", b"permanent")
    model.revoke(7)
    assert names(model.range()) == ["b"]
    assert [change.revision for change in model.world.log[-2:]] == [5, 5]
    with pytest.raises(kvi.LeaseLost):
        model.txn([], [kvi.Put("d", b""), kvi.Put("e", b"", 7)])
    assert names(model.range()) == ["b"]


def test_namespace() -> None:
    """A view sees the keys below its name and no other, and nobody else's keys are touched."""
    model = filled("a", "a/", "a/1", "ab", "a0")
    view = model.namespace("a")
    assert names(view.range()) == ["1"]
    view.store("2", b"")
    assert view.delete_range(prefix="") == 2
    assert names(model.range()) == ["a", "a/", "a0", "ab"]


class TestRevisions:
    """The store's revisions are the model's, by other numbers, in the same order."""

    def test_order(self) -> None:
        """What the store says of a revision must fit between those around it, and stay."""
        revisions = Revisions()
        revisions.learn(1, 10)
        revisions.learn(3, 20)
        for wrong in (10, 9, 20, 21, None, True):
            with pytest.raises(Differs):
                revisions.learn(2, wrong)
        revisions.learn(2, 15)
        with pytest.raises(Differs, match="15"):
            revisions.learn(2, 16)

    def test_ahead(self) -> None:
        """0 is absence everywhere; what is ahead is as far ahead."""
        revisions = Revisions()
        revisions.learn(0, 100)
        revisions.learn(1, 110)
        assert [revisions.theirs(ours) for ours in (0, 1, 3)] == [0, 110, 112]
        assert revisions.all_known() == [Revision(0), Revision(1)]


def event(
    kind: kvi.EventType, key: str, value: bytes | None, revision: int, *, initial: bool = False
) -> kvi.Event:
    return kvi.Event(kind, key, value, revision, None, initial)


class TestWatching:
    """What a watch must tell, and may."""

    def watching(self, model: Model, **options: Any) -> Watching:
        """A watch of the keys that start with k, on a store with the model's own numbers."""
        revisions = Revisions()
        for number in range(20):
            revisions.learn(number, number)
        return Watching(model, Bounds(prefix="k"), revisions, **{"history": True, **options})

    def test_history(self) -> None:
        """Every change comes once, in order; those of one revision in any order."""
        model = Model()
        watch = self.watching(model)
        model.store("k1", b"1")
        model.store("other", b"")
        model.txn([], [kvi.Put("k2", b""), kvi.Put("k3", b"")])
        with pytest.raises(Differs, match="PUT 'k1' b'1' at revision 1"):
            watch.take(event(PUT, "k2", b"", 3))
        watch.take(event(PUT, "k1", b"1", 1))
        with pytest.raises(Differs):
            watch.take(event(PUT, "k1", b"1", 1))
        watch.take(event(PUT, "k3", b"", 3))
        watch.reached(2)
        with pytest.raises(Differs):
            watch.reached(3)
        watch.take(event(PUT, "k2", b"", 3))
        watch.reached(3)
        with pytest.raises(Differs):
            watch.reached(2)
        assert watch.owed() is None
        with pytest.raises(Differs, match="no event"):
            watch.take(event(DELETE, "k2", None, 4))

    def test_start(self) -> None:
        """From a revision in the past: that one and what came after it."""
        model = Model()
        for _ in range(3):
            model.store("k", b"")
        watch = self.watching(model, start=2)
        with pytest.raises(Differs):
            watch.take(event(PUT, "k", b"", 1))
        watch.take(event(PUT, "k", b"", 2))
        watch.take(event(PUT, "k", b"", 3))
        assert watch.owed() is None

    def test_initial(self) -> None:
        """The present state comes first, in order, marked; then the changes."""
        model = filled("k2", "k1")
        watch = self.watching(model, initial=True)
        model.delete("k1")
        with pytest.raises(Differs, match="'k1'"):
            watch.take(event(PUT, "k2", b"k2", 1, initial=True))
        watch.take(event(PUT, "k1", b"k1", 2, initial=True))
        watch.take(event(PUT, "k2", b"k2", 1, initial=True))
        watch.take(event(DELETE, "k1", None, 3))
        assert watch.owed() is None

    def test_kinds(self) -> None:
        """What was not asked for is neither owed nor allowed."""
        model = filled("k")
        watch = self.watching(model, kinds=[DELETE])
        model.store("k", b"")
        assert watch.owed() is None
        with pytest.raises(Differs):
            watch.take(event(PUT, "k", b"", 2))
        model.delete("k")
        watch.take(event(DELETE, "k", None, 3))

    def test_without_history(self) -> None:
        """States may be left out, but never come back, and the last one must come."""
        model = Model()
        watch = self.watching(model, history=False)
        for value in (b"1", b"2", b"3"):
            model.store("k", value)
        watch.take(event(PUT, "k", b"2", 2))
        assert watch.owed() is not None
        for old in (event(PUT, "k", b"1", 1), event(PUT, "k", b"2", 2), event(PUT, "k", b"9", 3)):
            with pytest.raises(Differs):
                watch.take(old)
        watch.take(event(PUT, "k", b"3", 3))
        assert watch.owed() is None
        model.delete("k")
        assert watch.owed() == "DELETE 'k' at revision 4"
        watch.take(event(DELETE, "k", None, 9))
        assert watch.owed() is None

    def test_unseen_life_without_history(self) -> None:
        """A key that came and went between two looks need not be told of."""
        model = Model()
        watch = self.watching(model, history=False)
        model.store("k", b"")
        model.delete("k")
        assert watch.owed() is None
