"""The contract: keys, values, revisions."""

from __future__ import annotations

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.neighbours import snapshot
from kvi.conformance.rules import Rules

ODD_KEYS = [
    "/x",
    "//",
    "/",
    "a//b",
    "a/../b",
    "a/./b",
    ".",
    "..",
    "../..",
    "p%41",
    "pA",
    "%2F",
    "a b",
    " ",
    "a?b=c",
    "a#b",
    "a+b",
    "a&b;c",
    'quote"back\\slash',
    "\0",
    "a",
    "a\0",
    "a\0\0",
    "a\0b",
    "line\nfeed",
    "\r\n",
    "\x7f",
    "\x80",
    "é",
    "e\u0301",
    "😀",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    "x" * 1000,
    "ü" * 500,
]


# Keys that a store which reads lines, strips or normalises takes for others of these.
CONFUSED_KEYS = [
    *("a\n", "\n", "a\nb", "a\rb", "a\vb", "a\x1cb", "a\x85b", "a\u2028b", "a\u2028"),
    *("a/", "a ", " a", "fi", "\ufb01", "\u03a9", "\u2126", "ss", "ß", "i", "İ", "ı"),
    *("\ud7ff", "\ue000"),
]


# Values that a store which takes them for text, numbers or lines changes.
TRANSLATED = [
    b"\r\n",
    b"a\r\nb\rc\n",
    b" a\t\n ",
    b"\xef\xbb\xbfa",
    b"e\xcc\x81",
    b"007",
    b"1e2",
    b"null",
    b'"a"',
    b"a%20b+c",
]


class TestKeys(Rules):
    """Every key round-trips exactly, and what is no key is refused before anything is sent."""

    @rule("key.exact")
    @pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: ascii(key[:12]))
    def test_odd_key_round_trips(self, store: kvi.Kvi, peer: kvi.Kvi, key: str) -> None:
        """A key of any text round-trips exactly, and no operation on it touches another key."""
        store.store("neighbour", b"untouched")
        revision = store.store(key, b"1")
        entry = peer.get(key)
        assert entry is not None
        assert (entry.key, entry.value, entry.revision) == (key, b"1", revision)
        assert snapshot(peer) == {key: b"1", "neighbour": b"untouched"}
        assert store.tas(key, b"1", b"2")
        assert store.txn([kvi.Key(key).value == b"2"], [kvi.Put(key, b"3"), kvi.Get(key)])
        assert [e.key for e in peer.range(prefix=key)] == [key]
        assert peer.count(key, key + "\0") == 1
        assert snapshot(peer) == {key: b"3", "neighbour": b"untouched"}
        assert store.delete(key)
        assert peer.get(key) is None
        assert snapshot(peer) == {"neighbour": b"untouched"}

    @rule("key.exact", "range.bounds", "delete-range.bounds")
    @pytest.mark.parametrize("prefix", ODD_KEYS, ids=lambda key: ascii(key[:12]))
    def test_odd_prefix_is_exact(self, store: kvi.Kvi, peer: kvi.Kvi, prefix: str) -> None:
        """Range, count and delete by a prefix of any text take its keys, and no other."""
        below = ("", "\0", "x", "/y", "\U0010ffff")
        keys = {prefix[:-1], "neighbour", *(prefix + rest for rest in below)} - {""}
        for key in keys:
            store.store(key, key)
        inside = sorted(key for key in keys if key.startswith(prefix))
        assert [entry.key for entry in peer.range(prefix=prefix)] == inside
        assert peer.count(prefix=prefix) == len(inside)
        assert store.delete_range(prefix=prefix) == len(inside)
        assert snapshot(peer) == {key: key.encode() for key in sorted(keys - set(inside))}

    @rule("key.exact", "key.order")
    def test_odd_keys_live_side_by_side(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Keys that differ in any byte are different keys, and sort by their UTF-8 bytes."""
        keys = [*ODD_KEYS, *CONFUSED_KEYS]
        for number, key in enumerate(keys):
            store.store(key, str(number))
        expected = sorted(keys, key=str.encode)
        assert [entry.key for entry in peer.range()] == expected
        assert [entry.key for entry in peer.range(reverse=True)] == expected[::-1]
        for number, key in enumerate(keys):
            entry = peer.get(key)
            assert entry is not None
            assert entry.text == str(number)

    @rule("key.order")
    def test_order_is_by_bytes_alone(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Neither case, nor accents, nor the value of numbers have a say in the order of keys."""
        keys = ["10", "9", "B", "Z", "_", "a", "a b", "a-b", "aB", "ab", "b", "z", "Ä", "é"]
        for key in reversed(keys):
            store.store(key, b"")
        assert [entry.key for entry in peer.range()] == keys
        assert [entry.key for entry in peer.range("B", "b")] == keys[2:10]

    @rule("key.invalid")
    @pytest.mark.parametrize(
        "key", ["", "\ud800", "a\udfffb", b"bytes", None, 7, ["list"]], ids=repr
    )
    def test_no_key_is_refused(self, store: kvi.Kvi, key: str) -> None:
        """What is empty, not text or not UTF-8 raises InvalidKey, a ValueError; nothing changes."""
        store.store("k", b"v")
        before = snapshot(store)
        for call in (
            lambda: store.get(key),
            lambda: store.store(key, b""),
            lambda: store.delete(key),
            lambda: store.tas(key, None, b""),
            lambda: store.cas(key, 0, b""),
            lambda: store.txn(then=[kvi.Put(key, b"")]),
            lambda: store.txn(then=[kvi.Put("other", b""), kvi.Get(key)]),
            lambda: store.txn(otherwise=[kvi.Delete(key)]),
            lambda: store.txn([kvi.Key(key).exists], [kvi.Put("other", b"")]),
            lambda: store.transaction("k", "=", b"v", key, b"", "k", b""),
        ):
            with pytest.raises(kvi.InvalidKey) as caught:
                call()
            assert isinstance(caught.value, ValueError)
        assert snapshot(store) == before

    @rule("key.length")
    def test_longest_key(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A key of max_key bytes works, one byte more is refused before anything is sent."""
        limit = store.capabilities.max_key
        assert limit is None or limit >= 4096
        longest = "k" * (limit or 100_000)
        store.store(longest, b"v")
        assert [entry.key for entry in peer.range()] == [longest]
        if limit is not None:
            for key in (longest + "k", "ü" * (limit // 2 + 1)):
                with pytest.raises(kvi.InvalidKey, match="bytes"):
                    store.store(key, b"v")
                with pytest.raises(kvi.InvalidKey):
                    store.get(key)
        assert [entry.key for entry in peer.range()] == [longest]


class TestValues(Rules):
    """Values are bytes; text is encoded as UTF-8; an empty value is a value."""

    @rule("value.exact")
    @pytest.mark.parametrize(
        "value",
        [b"", b"\0", b"\xff\xfe", bytes(range(256)), b"x" * 10_000, *TRANSLATED],
        ids=lambda value: repr(value) if value in TRANSLATED else len(value),
    )
    def test_value_round_trips(self, store: kvi.Kvi, peer: kvi.Kvi, value: bytes) -> None:
        """Any bytes come back as they were stored, through get, range and txn."""
        store.store("k", value)
        entry = peer.get("k")
        assert entry is not None
        assert entry.value == value
        assert snapshot(peer) == {"k": value}
        assert peer.txn(then=[kvi.Get("k")]).results == (entry,)
        assert peer.txn([kvi.Key("k").value == value]).succeeded

    @rule("value.exact")
    def test_text_is_utf8(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A str is stored as its UTF-8 bytes, and compares as them; .text and .json() read it."""
        store.store("k", '{"größe": 1}')
        entry = peer.get("k")
        assert entry is not None
        assert entry.value == '{"größe": 1}'.encode()
        assert entry.text == '{"größe": 1}'
        assert entry.json() == {"größe": 1}
        assert store.tas("k", '{"größe": 1}', "ü")
        assert peer.get("k").text == "ü"  # type: ignore[union-attr]

    @rule("value.exact")
    def test_empty_value_is_a_value(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """b"" exists: get gives an entry, tas on absence fails, tas on b"" succeeds."""
        store.store("k", b"")
        entry = peer.get("k")
        assert entry is not None
        assert entry.value == b""
        assert not store.tas("k", None, b"x")
        assert store.tas("k", b"", b"x")

    @rule("value.invalid")
    @pytest.mark.parametrize("value", [None, 7, 1.5, ["list"], "\ud800"], ids=repr)
    def test_no_value_is_refused(self, store: kvi.Kvi, value: bytes) -> None:
        """What is neither bytes nor encodable text raises InvalidArgument; nothing changes."""
        store.store("k", b"v")
        before = snapshot(store)
        with pytest.raises(kvi.InvalidArgument):
            store.store("k", value)
        with pytest.raises(kvi.InvalidArgument):
            store.txn(then=[kvi.Put("other", b""), kvi.Put("k", value)])
        assert snapshot(store) == before

    @rule("value.length")
    def test_largest_value(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A value of max_value bytes works; one more raises ValueTooLarge, nothing is sent."""
        limit = store.capabilities.max_value
        size = 5_000_000 if limit is None else min(limit, 5_000_000)
        store.store("k", b"x" * size)
        entry = peer.get("k")
        assert entry is not None
        assert entry.value == b"x" * size
        if limit is not None and limit <= 10_000_000:
            for call in (
                lambda value: store.store("k", value),
                lambda value: store.tas("k", b"x", value),
                lambda value: store.cas("k", 1, value),
                lambda value: store.txn(then=[kvi.Put("other", b""), kvi.Put("k", value)]),
            ):
                with pytest.raises(kvi.ValueTooLarge, match="bytes"):
                    call(b"x" * (limit + 1))
            assert peer.get("k") == entry
            assert peer.get("other") is None

    @rule("key.length", "value.length")
    def test_longest_key_with_largest_value(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """max_key and max_value hold together."""
        limits = store.capabilities
        key = "k" * min(limits.max_key or 4096, 65_536)
        value = b"x" * min(limits.max_value or 4096, 5_000_000)
        store.store(key, value)
        assert store.txn([kvi.Key(key).exists], [kvi.Put(key, value)])
        assert peer.get(key).value == value  # type: ignore[union-attr]


class TestRevisions(Rules):
    """One integer for the whole store; every committed write transaction gets a larger one."""

    @rule("revision.grows")
    def test_every_write_has_a_larger_revision(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Writes to any keys, of any kind, get growing revisions."""
        seen = [store.store("a", b"1"), store.store("b", b"1"), store.store("a", b"1")]
        seen.append(store.cas("a", seen[-1], b"2") or 0)
        assert store.tas("b", b"1", b"2")
        seen.append(peer.get("b").revision)  # type: ignore[union-attr]
        assert store.delete("b")
        seen.append(store.store("b", b"3"))
        seen.append(store.txn(then=[kvi.Put("c", b""), kvi.Put("d", b"")]).revision or 0)
        assert seen == sorted(set(seen))

    @rule("revision.grows")
    def test_deletes_have_revisions(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """What deletes something gets a larger revision too, as events tell."""
        last = max([store.store(key, b"1") for key in ("a", "b", "c", "d")])
        with peer.watch(prefix="") as watch:
            for delete in (
                lambda: store.delete("a"),
                lambda: store.delete_range(prefix="b"),
                lambda: store.tas("c", b"1", None),
                lambda: store.txn(then=[kvi.Delete("d")]),
            ):
                assert delete()
                revision = watch.next(20).revision
                assert revision > last
                assert peer.range().revision in (revision, None)
                last = revision
        assert store.store("a", b"1") > last

    @rule("revision.entry")
    def test_entry_tells_its_revisions(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Revision is of the last change, create_revision of the first, version counts writes."""
        created = store.store("k", b"1")
        store.store("other", b"")
        changed = store.store("k", b"2")
        versioned = store.capabilities.key_version
        expected = kvi.KeyValue("k", b"2", changed, created, 2 if versioned else None, None)
        assert peer.get("k") == expected
        assert list(peer.range("k", "k\0")) == [expected]
        assert peer.txn(then=[kvi.Get("k")]).results == (expected,)

    @rule("store.same-value")
    def test_same_value_is_a_new_revision(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Storing the value that is there already is a write: a larger revision on the entry."""
        first = store.store("k", b"same")
        second = store.store("k", b"same")
        assert second > first
        assert peer.get("k").revision == second  # type: ignore[union-attr]
        assert store.cas("k", first, b"same") is None
        third = store.cas("k", second, b"same")
        assert third is not None
        assert third > second

    @rule("revision.created")
    def test_rewritten_key_has_a_new_creation(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Delete and re-create gives a larger create_revision, and version 1."""
        created = store.store("k", b"1")
        store.store("k", b"2")
        store.delete("k")
        again = store.store("k", b"3")
        entry = peer.get("k")
        assert entry is not None
        assert entry.create_revision == again > created
        assert entry.version == (1 if store.capabilities.key_version else None)

    @rule("txn.atomic")
    def test_entries_of_one_transaction_share_its_revision(
        self, store: kvi.Kvi, peer: kvi.Kvi
    ) -> None:
        """All writes of a transaction have its revision."""
        result = store.txn(then=[kvi.Put("a", b""), kvi.Put("b", b"")])
        assert {entry.revision for entry in peer.range()} == {result.revision}
