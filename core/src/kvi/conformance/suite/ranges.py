"""contract, reading many: range and count."""

from __future__ import annotations

from typing import Any

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.rules import Rules

KEYS = ["a", "a/", "a/1", "a/2", "a0", "b", "b/1", "ü", "😀"]

BOUNDS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, KEYS),
    ({"prefix": ""}, KEYS),
    ({"start": "a/1"}, KEYS[2:]),
    ({"end": "a/1"}, KEYS[:2]),
    ({"start": "a", "end": "b"}, KEYS[:5]),
    ({"start": "a/", "end": "a/\0"}, ["a/"]),
    ({"start": "", "end": "a/"}, ["a"]),
    ({"start": "c", "end": "ü"}, []),
    ({"start": "b", "end": "a"}, []),
    ({"start": "b", "end": "b"}, []),
    ({"start": "", "end": ""}, []),
    ({"start": "", "end": "\0"}, []),
    ({"start": "\0"}, KEYS),
    ({"prefix": "a"}, KEYS[:5]),
    ({"prefix": "a/"}, KEYS[1:4]),
    ({"prefix": "a/1"}, ["a/1"]),
    ({"prefix": "c"}, []),
    ({"prefix": "\U0010ffff"}, []),
    ({"prefix": "😀"}, ["😀"]),
    ({"start": "\uffff"}, ["😀"]),
    ({"end": "\uffff"}, KEYS[:-1]),
]


class TestRange(Rules):
    """range reads [start, end) or a prefix, in order, lazily, at one revision."""

    @pytest.fixture
    def filled(self, store: kvi.Kvi, peer: kvi.Kvi) -> kvi.Kvi:
        """A handle on a store with `KEYS`, each holding its own name."""
        for key in reversed(KEYS):
            store.store(key, key)
        return peer

    @rule("range.bounds")
    @pytest.mark.parametrize(("bounds", "expected"), BOUNDS, ids=lambda case: ascii(case)[:40])
    def test_bounds(self, filled: kvi.Kvi, bounds: dict[str, Any], expected: list[str]) -> None:
        """Exactly the keys of [start, end), sorted by UTF-8 bytes, both ways; count agrees."""
        assert [entry.key for entry in filled.range(**bounds)] == expected
        assert [entry.text for entry in filled.range(**bounds)] == expected
        assert [entry.key for entry in filled.range(**bounds, reverse=True)] == expected[::-1]
        assert filled.count(**bounds) == len(expected)

    @rule("range.limit")
    @pytest.mark.parametrize("limit", [0, 1, 3, 9, 10, 10_000, 2**70])
    def test_limit(self, filled: kvi.Kvi, limit: int) -> None:
        """At most limit entries, the first ones in the direction of reading; 0 is empty."""
        assert [entry.key for entry in filled.range(limit=limit)] == KEYS[:limit]
        backward = [entry.key for entry in filled.range(limit=limit, reverse=True)]
        assert backward == KEYS[::-1][:limit]
        assert [e.key for e in filled.range("a/1", "b/1", limit=limit)] == KEYS[2:6][:limit]

    @rule("range.keys-only")
    def test_keys_only(self, filled: kvi.Kvi) -> None:
        """keys_only leaves values None and all else as it is."""
        whole = list(filled.range())
        bare = list(filled.range(keys_only=True))
        assert bare == [entry._replace(value=None) for entry in whole]
        with pytest.raises(kvi.InvalidArgument, match="keys_only"):
            _ = bare[0].text

    @rule("range.invalid")
    @pytest.mark.parametrize(
        "arguments",
        [
            {"limit": -1},
            {"limit": 1.5},
            {"limit": "3"},
            {"limit": True},
            {"start": "a", "prefix": "a"},
            {"end": "a", "prefix": "a"},
            {"start": b"a"},
            {"end": 7},
            {"prefix": "\ud800"},
            {"limit": -(10**5000)},
        ],
        ids=lambda given: ascii(list(given)),
    )
    def test_bad_arguments(self, store: kvi.Kvi, arguments: dict[str, Any]) -> None:
        """A negative limit, a prefix beside bounds, bounds that are not text: InvalidArgument."""
        with pytest.raises(kvi.InvalidArgument):
            store.range(**arguments)

    @rule("range.invalid", "key.length")
    def test_bound_longer_than_a_key(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A bound just behind the longest key works; a longer one is refused, not sent."""
        limit = store.capabilities.max_key
        longest = "k" * (limit or 10_000)
        store.store(longest, b"")
        assert peer.count(longest, longest + "\0") == 1
        if limit is not None:
            for call in (
                lambda: peer.range(prefix=longest + "kk"),
                lambda: peer.count(longest + "kk"),
                lambda: store.delete_range(end=longest + "kk"),
            ):
                with pytest.raises(kvi.InvalidKey, match="bytes"):
                    call()
        assert peer.count() == 1

    @rule("range.long")
    def test_same_twice(self, filled: kvi.Kvi) -> None:
        """A result can be iterated again, and by two iterators at once."""
        result = filled.range()
        assert [entry.key for entry in result] == KEYS
        assert [a.key for a, b in zip(result, result, strict=True) if a == b] == KEYS

    @rule("range.snapshot")
    def test_revision(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Where snapshot_range, .revision is that of the last write, also of an empty result."""
        revision = store.store("k", b"")
        expected = revision if store.capabilities.snapshot_range else None
        assert peer.range().revision == expected
        assert peer.range("x", "y").revision == expected
        assert peer.range("y", "x").revision == expected
        assert peer.range(limit=0).revision == expected

    @rule("range.snapshot", "range.long")
    @pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
    def test_snapshot(self, store: kvi.Kvi, peer: kvi.Kvi, reverse: bool) -> None:
        """All pages of a long range are of one revision, whatever is written meanwhile.

        Where snapshot_range is false, entries that nobody changes are delivered all the same.
        """
        number = 1500
        for first in range(0, number, 50):
            store.txn(then=[kvi.Put(f"k{i:05}", b"old") for i in range(first, first + 50)])
        result = peer.range(reverse=reverse)
        entries = iter(result)
        read = [next(entries)]
        changed = range(0, number, 7)
        for i in changed:
            store.store(f"k{i:05}", b"new")
        store.delete_range("k01000", "k01100")
        store.store("k00500x", b"inserted")
        read += entries
        keys = [entry.key for entry in read]
        assert keys == sorted(set(keys), reverse=reverse)
        if store.capabilities.snapshot_range:
            assert [entry.value for entry in read] == [b"old"] * number
            assert {entry.revision for entry in read if entry.revision > result.revision} == set()  # type: ignore[operator]
            assert [entry.key for entry in result] == keys
        else:
            steady = {f"k{i:05}" for i in range(number) if i % 7 and not 1000 <= i < 1100}
            assert steady <= set(keys)

    @rule("range.keys-only")
    @pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
    def test_keys_only_of_what_changes(self, store: kvi.Kvi, peer: kvi.Kvi, reverse: bool) -> None:
        """keys_only leaves values out of every page, also of keys that are changed meanwhile."""
        keys = [f"k{i:05}" for i in range(1500)]
        for first in range(0, len(keys), 50):
            store.txn(then=[kvi.Put(key, b"old") for key in keys[first : first + 50]])
        entries = iter(peer.range(keys_only=True, reverse=reverse))
        read = [next(entries)]
        for key in keys[::7]:
            store.store(key, b"new")
        store.delete_range("k01000", "k01100")
        read += entries
        assert {entry.value for entry in read} == {None}, "an entry has a value"
        steady = set(keys if store.capabilities.snapshot_range else keys[:1000] + keys[1100:])
        assert steady <= {entry.key for entry in read}

    @rule("range.limit", "range.long")
    def test_long_limit(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A limit beyond one page delivers exactly so many, from either end."""
        keys = [f"k{i:05}" for i in range(1200)]
        for first in range(0, len(keys), 50):
            store.txn(then=[kvi.Put(key, b"") for key in keys[first : first + 50]])
        for limit in (1, 127, 129, 1000, 1199, 1200, 1201):
            assert [e.key for e in peer.range(limit=limit)] == keys[:limit]
            assert [e.key for e in peer.range(limit=limit, reverse=True)] == keys[::-1][:limit]
        assert peer.count() == 1200
        assert peer.count("k00100", "k00300") == 200

    @rule("range.long", "value.length")
    def test_large_values(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Pages hold however large the values are: 40 of the largest come through."""
        size = min(store.capabilities.max_value or 1_000_000, 1_500_000)
        for i in range(40):
            store.store(f"k{i:02}", bytes([i]) * size)
        sizes = [(entry.key, len(entry.value or b"")) for entry in peer.range()]
        assert sizes == [(f"k{i:02}", size) for i in range(40)]
        assert [e.key for e in peer.range(keys_only=True)] == [f"k{i:02}" for i in range(40)]
