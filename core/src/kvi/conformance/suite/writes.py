"""contract, writing: store, delete, tas, cas."""

from __future__ import annotations

from typing import Any

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.neighbours import snapshot
from kvi.conformance.rules import Rules


class TestStore(Rules):
    """store creates or replaces, and tells the revision."""

    @rule("store.replaces", "revision.entry")
    def test_create_and_replace(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Store makes the key exist with this value, whatever was there."""
        assert peer.get("k") is None
        first = store.store("k", b"1")
        assert peer.get("k").value == b"1"  # type: ignore[union-attr]
        second = store.store("k", b"2")
        entry = peer.get("k")
        assert entry is not None
        assert (entry.value, entry.revision, entry.create_revision) == (b"2", second, first)

    @rule("get.absent")
    def test_absence_is_none(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Get of a missing key is None, also of a parent or child of a key that is there."""
        store.store("a/b", b"")
        for key in ("a", "a/", "a/b/", "a/b/c", "A/b"):
            assert peer.get(key) is None

    @rule("lease.gone")
    def test_lease_that_is_gone(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """lease= of a lease that is not alive raises LeaseLost and nothing is written."""
        store.store("k", b"before")
        for call in (
            lambda: store.store("k", b"x", lease=123456789),
            lambda: store.cas("new", 0, b"x", lease=123456789),
            lambda: store.store("k", b"x", lease=2**70),
            lambda: store.txn(then=[kvi.Put("new", b""), kvi.Put("k", b"x", lease=123456789)]),
        ):
            with pytest.raises(kvi.LeaseLost):
                call()
        assert snapshot(peer) == {"k": b"before"}

    @rule("value.exact")
    def test_kinds_of_bytes_and_text(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """bytearray, memoryview and subclasses count for what they hold, and come back plain."""

        class Text(str):
            __slots__ = ()

        class Data(bytes):
            __slots__ = ()

        store.store(Text("k"), Data(b"1"))
        entry = peer.get("k")
        assert entry is not None
        assert (type(entry.key), type(entry.value)) == (str, bytes)
        assert store.tas("k", bytearray(b"1"), memoryview(b"2"))  # type: ignore[arg-type]
        assert snapshot(peer) == {"k": b"2"}

    @rule("value.invalid")
    @pytest.mark.parametrize("lease", [0, -1, True, "7", 1.5], ids=repr)
    def test_no_lease_id(self, store: kvi.Kvi, peer: kvi.Kvi, lease: int) -> None:
        """What cannot be the id of a lease raises InvalidArgument; nothing is written."""
        with pytest.raises(kvi.InvalidArgument, match="lease"):
            store.store("k", b"x", lease=lease)
        with pytest.raises(kvi.InvalidArgument, match="lease"):
            store.txn(then=[kvi.Put("k", b"x", lease=lease)])
        assert peer.get("k") is None

    @rule("get.linearizable", "get.absent")
    def test_read_at_once(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """What any write has done, or left undone, the other handle reads next."""

        def seen() -> bytes | None:
            entry = peer.get("k")
            return None if entry is None else entry.value

        for _ in range(3):
            assert seen() is None
            store.store("k", b"")
            assert seen() == b""
            revision = store.store("k", b"1")
            assert seen() == b"1"
            assert not store.tas("k", b"0", b"refused")
            assert seen() == b"1"
            assert store.tas("k", b"1", b"2")
            assert seen() == b"2"
            assert store.cas("k", revision, b"refused") is None
            assert seen() == b"2"
            assert store.txn(then=[kvi.Put("k", b"3")])
            assert seen() == b"3"
            assert not store.txn([kvi.Key("k").absent], [kvi.Put("k", b"refused")])
            assert seen() == b"3"
            assert store.delete("k")
            assert seen() is None
            store.store("k", b"4")
            assert seen() == b"4"
            assert store.delete_range(prefix="k") == 1


class TestDelete(Rules):
    """delete and delete_range tell what they deleted."""

    @rule("delete.tells")
    def test_delete_tells_whether_the_key_was_there(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """True only if it existed; deleting nothing is no error and makes no revision."""
        store.store("k", b"v")
        assert store.delete("k") is True
        assert peer.get("k") is None
        before = peer.range().revision
        assert store.delete("k") is False
        assert store.delete("never") is False
        assert peer.range().revision == before

    @rule("delete.exact")
    def test_delete_leaves_children(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Delete touches this key only."""
        for key in ("a", "a/b", "ab"):
            store.store(key, b"")
        assert store.delete("a")
        assert list(snapshot(peer)) == ["a/b", "ab"]

    @rule("delete-range.bounds")
    @pytest.mark.parametrize(
        ("bounds", "left"),
        [
            ({"prefix": "b"}, ["a", "c"]),
            ({"prefix": "b/"}, ["a", "b", "c"]),
            ({"prefix": "zz"}, ["a", "b", "b/1", "b/2", "c"]),
            ({"prefix": ""}, []),
            ({"start": "b"}, ["a"]),
            ({"end": "b"}, ["b", "b/1", "b/2", "c"]),
            ({"start": "b/1", "end": "c"}, ["a", "b", "c"]),
            ({"start": "c", "end": "a"}, ["a", "b", "b/1", "b/2", "c"]),
            ({"start": "b", "end": "b"}, ["a", "b", "b/1", "b/2", "c"]),
        ],
        ids=str,
    )
    def test_delete_range(
        self, store: kvi.Kvi, peer: kvi.Kvi, bounds: dict[str, Any], left: list[str]
    ) -> None:
        """Deletes the keys of [start, end) or of the prefix, and no other; returns how many."""
        keys = ["a", "b", "b/1", "b/2", "c"]
        for key in keys:
            store.store(key, b"")
        assert store.delete_range(**bounds) == len(keys) - len(left)
        assert list(snapshot(peer)) == left

    @rule("delete-range.unbounded")
    def test_delete_range_needs_a_bound(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Without any bound it is refused, with the way to say "everything" in the text."""
        store.store("k", b"")
        with pytest.raises(kvi.InvalidArgument, match='prefix=""'):
            store.delete_range()
        with pytest.raises(kvi.InvalidArgument, match="prefix"):
            store.delete_range("a", prefix="a")
        assert peer.count() == 1

    @rule("delete-range.bounds")
    def test_delete_range_of_many(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """More keys than fit a transaction are all deleted and counted."""
        for number in range(150):
            store.store(f"many/{number:03}", b"")
        store.store("other", b"")
        assert store.delete_range("many/", "many/100") == 100
        assert store.delete_range(prefix="many/") == 50
        assert list(snapshot(peer)) == ["other"]

    @rule("delete-range.bounds")
    def test_delete_range_of_a_page_and_more(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """One call deletes more keys than a transaction takes operations, and counts them all."""
        number = (store.capabilities.max_txn_ops or 1000) + 30
        keys = [f"many/{i:04}" for i in range(number)]
        for first in range(0, number, 50):
            store.txn(then=[kvi.Put(key, b"") for key in keys[first : first + 50]])
        store.store("other", b"")
        assert store.delete_range(prefix="many/") == number
        assert list(snapshot(peer)) == ["other"]


class TestTas(Rules):
    """tas: test and set, atomic, on the value."""

    @rule("tas.table")
    @pytest.mark.parametrize(
        ("stored", "test", "new", "done"),
        [
            (b"1", b"1", b"2", True),
            (b"1", b"0", b"2", False),
            (b"1", b"", b"2", False),
            (b"1", None, b"2", False),
            (b"1", b"1", None, True),
            (b"1", b"0", None, False),
            (b"", b"", b"2", True),
            (b"", None, b"2", False),
            (None, None, b"2", True),
            (None, b"1", b"2", False),
            (None, b"", b"2", False),
            (None, b"1", None, False),
            (None, None, None, True),
            (b"1", None, None, False),
            (b"1", b"1", b"1", True),
        ],
        ids=repr,
    )
    def test_table(
        self,
        store: kvi.Kvi,
        peer: kvi.Kvi,
        stored: bytes | None,
        test: bytes | None,
        new: bytes | None,
        done: bool,
    ) -> None:
        """test=None means absent, set=None deletes, a missing key matches nothing but None."""
        if stored is not None:
            store.store("k", stored)
        assert store.tas("k", test, new) is done
        entry = peer.get("k")
        assert (entry.value if entry else None) == (new if done else stored)


class TestCas(Rules):
    """cas: set only if the key has this revision."""

    @rule("cas.revision")
    def test_sets_at_the_revision_only(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The new revision if the key's is the one given, else None and no change."""
        first = store.store("k", b"1")
        second = store.cas("k", first, b"2")
        assert second is not None
        assert second > first
        assert store.cas("k", first, b"3") is None
        assert store.cas("k", second + 1000, b"3") is None
        assert store.cas("k", 0, b"3") is None
        entry = peer.get("k")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"2", second)

    @rule("cas.revision")
    def test_zero_means_absent(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Revision 0 creates the key only if it is not there."""
        created = store.cas("k", 0, b"1")
        assert created is not None
        assert peer.get("k").create_revision == created  # type: ignore[union-attr]
        assert store.cas("k", 0, b"2") is None
        assert store.cas("missing", created, b"2") is None
        assert snapshot(peer) == {"k": b"1"}

    @rule("cas.revision", "revision.created")
    def test_not_fooled_by_a_new_life(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A key deleted and re-created with the same value does not have its old revision."""
        first = store.store("k", b"same")
        store.delete("k")
        store.store("k", b"same")
        assert store.cas("k", first, b"x") is None
        assert snapshot(peer) == {"k": b"same"}

    @rule("cas.revision")
    @pytest.mark.parametrize(
        "revision", [-1, 1.5, "1", None, True, 2**63, pytest.param(-(10**5000), id="huge")]
    )
    def test_no_revision(self, store: kvi.Kvi, peer: kvi.Kvi, revision: int) -> None:
        """What is not a revision raises InvalidArgument; nothing is written."""
        with pytest.raises(kvi.InvalidArgument, match="revision"):
            store.cas("k", revision, b"")
        assert peer.get("k") is None
