"""The store as it was: reading at a revision, and `history`; section 3 of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.rules import Rules

PUT, DELETE = kvi.EventType.PUT, kvi.EventType.DELETE
LONG = 60.0  # seconds: nothing of a test outlives it
MANY = 1500  # entries: more than a page
AT_ONCE = 50  # written in one transaction


class Recorded:
    """A store whose states are written down as it changes.

    Attributes:
        states: all entries, by the revision of each state, in order.

    """

    def __init__(self, store: kvi.Kvi) -> None:
        self._store = store
        self.states: dict[int, list[kvi.KeyValue]] = {}
        self.look()

    def look(self) -> None:
        """Write down what is there."""
        found = self._store.range()
        assert found.revision is not None  # it has a past
        self.states[found.revision] = list(found)

    def after(self, *changes: Callable[[], object]) -> None:
        """Let the store change, step by step."""
        for change in changes:
            change()
            self.look()

    def of(self, key: str) -> list[tuple[int, kvi.KeyValue | None]]:
        """The states of one key, each with the revision at which it was first seen."""
        found: list[tuple[int, kvi.KeyValue | None]] = []
        for revision, entries in self.states.items():
            entry = next((entry for entry in entries if entry.key == key), None)
            if not found or found[-1][1] != entry:
                found.append((revision, entry))
        return found


def record(store: kvi.Kvi) -> Recorded:
    """A store with a past: every kind of change, each of some keys and not of others."""
    recorded = Recorded(store)

    def under_a_lease() -> None:
        with store.lease(LONG) as lease:
            store.store("leased", b"1", lease=lease)
            store.store("a", b"leased", lease=lease)
            recorded.look()

    def in_one_step() -> None:
        store.txn(then=[kvi.Put("a", b"3"), kvi.Delete("b"), kvi.Put("c", b"")])

    recorded.after(
        lambda: store.store("a", b"1"),
        lambda: store.store("b", b"1"),
        lambda: store.store("a", b"1"),
        in_one_step,
        lambda: store.delete("a"),
        lambda: store.delete("a"),
        lambda: store.store("a", b"new life"),
        lambda: store.tas("a", b"new life", b"4"),
        lambda: store.cas("d", 0, b"\0\xff"),
        under_a_lease,
        lambda: store.update("b", lambda old: (old or b"") + b"!"),
        lambda: store.delete_range("b", "d"),
        lambda: store.store("é", "é"),
        lambda: store.delete_range(prefix=""),
        lambda: store.store("b/below", b"another key"),
        lambda: store.store("b", b"last"),
    )
    return recorded


def rows(pages: Iterator[kvi.KeyValue] | kvi.RangeResult) -> list[tuple[str, bytes | None]]:
    """Keys and values."""
    return [(entry.key, entry.value) for entry in pages]


class TestPast(Rules):
    """What was is not changed by what came after."""

    @pytest.fixture(autouse=True)
    def _declared(self, store: kvi.Kvi) -> None:
        self.has_past = store.capabilities.read_at_revision
        self.has_history = store.capabilities.watch_history

    @rule("past.state")
    def test_states(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Every state there was is read again, with all that its entries told then."""
        if not self.has_past:
            with pytest.raises(kvi.NotSupported):
                store.get("a", revision=0)
            with pytest.raises(kvi.NotSupported):
                list(store.range(prefix="a", revision=1))
            return
        recorded = record(store)
        for revision, entries in recorded.states.items():
            found = peer.range(revision=revision)
            assert found.revision == revision
            assert list(found) == entries
            assert list(found) == entries, "read again"
            assert list(peer.range(revision=revision, reverse=True)) == entries[::-1]
            assert list(peer.range(revision=revision, limit=1)) == entries[:1]
            assert list(peer.range(revision=revision, limit=1, reverse=True)) == entries[-1:]
            bare = [entry._replace(value=None) for entry in entries]
            assert list(peer.range(revision=revision, keys_only=True)) == bare
            part = [entry for entry in entries if "b" <= entry.key < "e"]
            assert list(peer.range("b", "e", revision=revision)) == part
            for key in ("a", "b", "c", "d", "é", "leased", "never"):
                there = next((entry for entry in entries if entry.key == key), None)
                assert peer.get(key, revision=revision) == there

    @rule("past.state")
    def test_between(self, store: kvi.Kvi) -> None:
        """A key is at every revision what it was made at the last one before, or at it."""
        if not self.has_past:
            return
        first = store.store("k", b"1")
        store.store("other", b"")
        store.store("other", b"")
        last = store.store("k", b"2")
        for revision in range(first, last):
            entry = store.get("k", revision=revision)
            assert entry is not None
            assert (entry.value, entry.revision) == (b"1", first)
        assert store.get("k", revision=last) == store.get("k")

    @rule("past.state")
    def test_nothing(self, store: kvi.Kvi) -> None:
        """At revision 0 there was nothing: it is not the present."""
        if not self.has_past:
            return
        store.store("k", b"v")
        assert store.get("k", revision=0) is None
        found = store.range(revision=0)
        assert list(found) == []
        assert found.revision == 0
        empty = store.range(limit=0, revision=store.store("k", b"w"))
        assert list(empty) == []

    @rule("past.state")
    def test_long(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Many pages are of that one state, whatever is written while they are read."""
        if not self.has_past:
            return
        names = [f"k/{number:05}" for number in range(MANY)]
        revision: int | None = None
        for at in range(0, MANY, AT_ONCE):
            revision = store.txn(
                then=[kvi.Put(name, name) for name in names[at : at + AT_ONCE]]
            ).revision
        expected = [(name, name.encode()) for name in names]
        for at in range(0, MANY, 2 * AT_ONCE):
            store.txn(then=[kvi.Put(name, b"new") for name in names[at : at + AT_ONCE]])
        store.delete_range(names[100], names[700])
        store.store("k/00000-between", b"new")
        found = peer.range(prefix="k/", revision=revision)
        passes = iter(found)
        begun = [next(passes) for _ in range(10)]
        store.delete_range(prefix="k/")
        assert rows(iter([*begun, *passes])) == expected
        assert rows(peer.range(prefix="k/", revision=revision, reverse=True)) == expected[::-1]
        assert rows(peer.range(prefix="k/", revision=revision, limit=1000)) == expected[:1000]
        assert list(peer.range(prefix="k/")) == []

    @rule("past.refused")
    @pytest.mark.parametrize("revision", [-1, 1.5, "1", True, 2**63, 2**200])
    def test_no_revision(self, store: kvi.Kvi, revision: object) -> None:
        """What is no revision is an InvalidArgument."""
        for call in (store.get, store.range):
            with pytest.raises((kvi.InvalidArgument, kvi.NotSupported)):
                call("k", revision=revision)  # type: ignore[arg-type]

    @rule("past.refused")
    def test_to_come(self, store: kvi.Kvi) -> None:
        """A revision that the store has not come to is an InvalidArgument; its last one is not."""
        if not self.has_past:
            return
        revision = store.store("k", b"v")
        for ahead in (revision + 1000, 2**63 - 1):
            with pytest.raises(kvi.InvalidArgument):
                store.get("k", revision=ahead)
            with pytest.raises(kvi.InvalidArgument):
                store.range(prefix="k", revision=ahead)
            with pytest.raises(kvi.InvalidArgument):
                store.range(prefix="k", limit=0, revision=ahead)
        assert store.get("k", revision=revision) == store.get("k")

    @rule("history.changes")
    def test_history(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Every change of a key, once, newest first; none of another key."""
        if not self.has_history:
            with pytest.raises(kvi.NotSupported):
                store.history("a")
            return
        with store.watch(prefix="") as watch:
            record(store)
            told = [watch.next(LONG)]
            while told[-1].value != b"last":
                told.append(watch.next(LONG))
        for key in ("a", "b", "c", "d", "é", "leased", "never", "b/", "b/below"):
            expected = [
                (event.type, event.key, event.value, event.revision)
                for event in reversed(told)
                if event.key == key
            ]
            found = peer.history(key)
            assert [event[:4] for event in found][: len(expected)] == expected
            # a key of an earlier test may have been changed before
            assert all(event.revision < told[0].revision for event in found[len(expected) :])

    @rule("history.changes")
    def test_limit(self, store: kvi.Kvi) -> None:
        """``limit`` keeps the newest; what a key has never had is an empty list."""
        if not self.has_history:
            return
        for value in (b"1", b"2", b"3"):
            store.store("k", value)
        store.delete("k")
        found = store.history("k", limit=4)
        assert [event.value for event in found] == [None, b"3", b"2", b"1"]
        for limit in (0, 1, 3):
            assert store.history("k", limit=limit) == found[:limit]
        assert store.history("k", limit=2**70)[:4] == found
        assert store.history("never ever") == []
        with pytest.raises(kvi.InvalidArgument, match="limit"):
            store.history("k", limit=-1)
        with pytest.raises(kvi.InvalidKey):
            store.history("")

    @rule("history.changes")
    def test_end_of_a_lease(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A key that ended with its lease, alone or among many, has been deleted then."""
        if not self.has_history:
            return
        with store.lease(LONG) as one, store.lease(LONG) as many:
            store.store("k", b"v", lease=one)
            for number in range(300):
                store.store(f"many/{number}", b"v", lease=many)
        for key in ("k", "many/7"):
            last, first = peer.history(key, limit=2)
            assert (last.type, first.type) == (DELETE, PUT)
            assert last.revision > first.revision
            if self.has_past:
                assert peer.get(key, revision=last.revision) is None
                there = peer.get(key, revision=last.revision - 1)
                assert there is not None
                assert there.revision == first.revision

    @rule("history.previous")
    def test_previous(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The entry before is what was there, whole, or is not told."""
        if not self.has_history:
            return
        if not self.has_past:
            store.store("a", b"1")
            store.store("a", b"2")
            last, first = peer.history("a", limit=2)
            assert last.previous is None or last.previous.value == b"1"
            assert first.previous is None
            return
        recorded = record(store)
        for key in ("a", "b", "c", "leased"):
            # of changes between two looks, only the last one is known
            seen = {entry.revision: entry for _, entry in recorded.of(key) if entry is not None}
            found = peer.history(key)
            told = [event for event in found if event.previous is not None]
            assert told, "of an entry that there was"
            for event in told:
                before = event.previous
                assert before is not None
                assert before.revision < event.revision
                assert before == seen.get(before.revision, before)
            for later, earlier in pairwise(found):
                if later.previous is not None:
                    assert later.previous.revision == earlier.revision
                    assert later.previous.value == earlier.value
