"""The contract: transactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.neighbours import snapshot
from kvi.conformance.rules import Rules

Condition = Callable[[kvi.Key], kvi.Compare]

VALUE_CASES: list[tuple[str, bytes | None, bytes, bool]] = [
    (operator, stored, operand, operator in true)
    for stored, operand, true in [
        (b"b", b"b", {"="}),
        (b"b", b"a", {"!=", ">"}),
        (b"b", b"c", {"!=", "<"}),
        (b"b", b"", {"!=", ">"}),
        (b"b", b"ba", {"!=", "<"}),
        (b"", b"", {"="}),
        (b"", b"a", {"!=", "<"}),
        (b"\xff", b"\x7f", {"!=", ">"}),
        (None, b"b", set()),
        (None, b"", set()),
    ]
    for operator in ("=", "!=", "<", ">")
]


class TestCompares(Rules):
    """when: compares of value, revision, create_revision, version, lease, existence."""

    @rule("txn.values")
    @pytest.mark.parametrize(("operator", "stored", "operand", "holds"), VALUE_CASES, ids=repr)
    def test_values(
        self, store: kvi.Kvi, operator: str, stored: bytes | None, operand: bytes, holds: bool
    ) -> None:
        """Values compare as bytes; every value compare on a missing key is false, != too."""
        if stored is not None:
            store.store("k", stored)
        assert store.txn([kvi.Key("k").value.compare(operator, operand)]).succeeded is holds

    @rule("txn.values")
    def test_values_of_any_length(self, store: kvi.Kvi) -> None:
        """The first byte that differs decides, not length, case or the value of numbers."""
        ascending = [b"", b"\0", b"10", b"9", b"B", b"a", b"aa", b"b", b"b\0", b"\xc3\xa4"]
        ascending += [b"\xfe", b"\xff", b"\xff\0"]
        for position, value in enumerate(ascending):
            store.store("k", value)
            stored = kvi.Key("k").value
            assert store.txn([stored > lower for lower in ascending[:position]])
            assert store.txn([stored < higher for higher in ascending[position + 1 :]])
            assert store.txn([stored != o for o in ascending if o != value] + [stored == value])

    @rule("txn.numbers", "txn.version")
    @pytest.mark.parametrize("operator", ["=", "!=", "<", ">"])
    @pytest.mark.parametrize("target", ["revision", "create_revision", "version", "lease"])
    def test_numbers(self, store: kvi.Kvi, peer: kvi.Kvi, target: str, operator: str) -> None:
        """Numbers compare as numbers; version is NotSupported where there is none."""
        created = store.store("k", b"1")
        store.store("k", b"2")
        changed = store.store("k", b"3")
        number = {"revision": changed, "create_revision": created, "version": 3, "lease": 0}[target]
        for operand in {max(number - 1, 0), number, number + 1}:
            compare = getattr(kvi.Key("k"), target).compare(operator, operand)
            if target == "version" and not store.capabilities.key_version:
                with pytest.raises(kvi.NotSupported, match="version"):
                    store.txn([compare], [kvi.Delete("k")])
                assert peer.get("k") is not None
                continue
            expected = {
                "=": number == operand,
                "!=": number != operand,
                "<": number < operand,
                ">": number > operand,
            }[operator]
            assert store.txn([compare]).succeeded is expected, (number, operator, operand)

    @rule("txn.numbers")
    def test_numbers_of_any_length(self, store: kvi.Kvi) -> None:
        """Numbers compare by what they are worth, not digit by digit."""
        store.store("other", b"")
        revision = store.store("k", b"")
        more_digits = 10 ** len(str(revision))
        less_digits = more_digits // 10 - 1
        for number in (kvi.Key("k").revision, kvi.Key("k").create_revision):
            assert store.txn([number < more_digits, number > less_digits])
            assert not store.txn([number > more_digits])
            assert not store.txn([number < less_digits])

    @rule("txn.numbers")
    @pytest.mark.parametrize("lease", [2**63 - 1, 2**63, 2**64, 2**200])
    def test_leases_that_are_none(self, store: kvi.Kvi, lease: int) -> None:
        """A lease compares with any number as one, also with what no store could give out."""
        with store.lease(60) as held:
            store.store("held", b"", lease=held)
            store.store("permanent", b"")
            for key, present in (("held", held.id), ("permanent", 0), ("missing", 0)):
                compare = kvi.Key(key).lease.compare
                assert not store.txn([compare("=", lease)])
                assert store.txn([compare("!=", lease)])
                assert store.txn([compare("<", lease)]).succeeded is (present < lease)
                assert store.txn([compare(">", lease)]).succeeded is (present > lease)

    @rule("txn.numbers", "txn.version")
    @pytest.mark.parametrize("target", ["revision", "create_revision", "version", "lease"])
    def test_numbers_of_a_missing_key(self, store: kvi.Kvi, target: str) -> None:
        """A missing key compares as revision, create revision, version and lease 0."""
        store.store("other", b"")
        if target == "version" and not store.capabilities.key_version:
            with pytest.raises(kvi.NotSupported):
                store.txn([kvi.Key("k").version == 0])
            return
        compare = getattr(kvi.Key("k"), target).compare
        assert store.txn([compare("=", 0)])
        assert store.txn([compare("<", 1)])
        assert store.txn([compare("!=", 1)])
        assert not store.txn([compare("!=", 0)])
        assert not store.txn([compare(">", 0)])
        assert not store.txn([compare("<", 0)])

    @rule("txn.existence")
    def test_existence(self, store: kvi.Kvi) -> None:
        """Exists and absent tell whether the key is there, also with an empty value."""
        store.store("k", b"")
        assert store.txn([kvi.Key("k").exists])
        assert not store.txn([kvi.Key("k").absent])
        assert store.txn([kvi.Key("missing").absent])
        assert not store.txn([kvi.Key("missing").exists])

    @rule("txn.branches")
    def test_all_must_hold(self, store: kvi.Kvi) -> None:
        """The compares are joined by "and"; none at all is true."""
        store.store("a", b"1")
        yes, no = kvi.Key("a").value == b"1", kvi.Key("b").exists
        assert store.txn([])
        assert store.txn([yes, yes])
        assert not store.txn([yes, no])
        assert not store.txn([no, yes])
        assert not store.txn([kvi.Key("a").value == b"1", kvi.Key("a").value == b"2"])
        assert store.txn([kvi.Key("a").value > b"0", kvi.Key("a").value < b"2"])

    @rule("txn.refused")
    @pytest.mark.parametrize("operator", ["<=", ">=", "~", "", "===", None, 1], ids=repr)
    def test_unknown_operator(self, store: kvi.Kvi, peer: kvi.Kvi, operator: str) -> None:
        """An operator other than = != < > is InvalidArgument; neither branch runs."""
        store.store("k", b"v")
        with pytest.raises(kvi.InvalidArgument, match="operator"):
            store.transaction("k", operator, b"v", "then", b"", "else", b"")
        with pytest.raises(kvi.InvalidArgument, match="operator"):
            kvi.Key("k").revision.compare(operator, 1)
        assert snapshot(peer) == {"k": b"v"}

    @rule("txn.values")
    def test_compare_made_by_hand(self, store: kvi.Kvi) -> None:
        """A Compare made of plain text means what it says."""
        store.store("k", b"v")
        assert store.txn([kvi.Compare("k", "value", "=", "v")])  # type: ignore[arg-type]
        assert not store.txn([kvi.Compare("k", "value", "!=", b"v")])  # type: ignore[arg-type]

    @rule("txn.refused")
    def test_wrong_operands(self, store: kvi.Kvi) -> None:
        """A value compares with bytes or text, the others with integers from 0 on."""
        for make in (
            lambda: kvi.Key("k").value == None,  # noqa: E711
            lambda: kvi.Key("k").value == 7,
            lambda: kvi.Key("k").revision == b"7",
            lambda: kvi.Key("k").revision == -1,
            lambda: kvi.Key("k").lease == True,  # noqa: E712
            lambda: kvi.Key("k").value <= b"x",
            lambda: bool(kvi.Key("k").value == b"x"),
        ):
            with pytest.raises(kvi.InvalidArgument):
                make()


class TestTransactions(Rules):
    """txn: one branch, whole, at one revision."""

    @rule("txn.branches")
    def test_branches(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Then runs if the compares hold, otherwise runs if not, never both."""
        store.store("k", b"1")
        when = [kvi.Key("k").value == b"1"]
        done = store.txn(when, [kvi.Put("k", b"2"), kvi.Put("t", b"")], [kvi.Put("e", b"")])
        assert (done.succeeded, bool(done)) == (True, True)
        assert snapshot(peer) == {"k": b"2", "t": b""}
        done = store.txn(when, [kvi.Delete("k")], [kvi.Put("e", b"")])
        assert (done.succeeded, bool(done)) == (False, False)
        assert snapshot(peer) == {"e": b"", "k": b"2", "t": b""}

    @rule("txn.results")
    def test_results(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """One result per operation: entry or None, the revision, whether the key was there."""
        store.store("a", b"1")
        store.store("b", b"1")
        before_a = peer.get("a")
        done = store.txn(
            then=[
                kvi.Get("a"),
                kvi.Get("missing"),
                kvi.Put("a", b"2"),
                kvi.Delete("b"),
                kvi.Delete("missing"),
                kvi.Put("c", b"3"),
            ]
        )
        assert done.revision is not None
        assert done.results == (before_a, None, done.revision, True, False, done.revision)
        assert peer.get("a").revision == done.revision  # type: ignore[union-attr]

    @rule("txn.order")
    def test_get_sees_the_writes_before_it(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Operations run in order: a Get sees the Put and Delete before it, not those behind."""
        store.store("a", b"1")
        store.store("b", b"1")
        old_a, old_b = peer.get("a"), peer.get("b")
        results = store.txn(
            then=[
                kvi.Get("a"),
                kvi.Put("a", b"2"),
                kvi.Get("a"),
                kvi.Get("b"),
                kvi.Delete("b"),
                kvi.Get("b"),
                kvi.Put("new", b""),
                kvi.Get("new"),
            ]
        ).results
        assert (results[0], results[3], results[5]) == (old_a, old_b, None)
        assert results[2] == peer.get("a")
        assert results[7] == peer.get("new")

    @rule("txn.revision")
    def test_revision_of_a_commit(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Revision is that of the commit, or the store's present one if nothing was written.

        A store without snapshots may not tell the latter, nor that of deletes alone.
        """
        first = store.store("k", b"")
        told = store.capabilities.snapshot_range
        assert store.txn(then=[kvi.Get("k")]).revision in ({first} if told else {first, None})
        assert store.txn(then=[kvi.Delete("x")]).revision in ({first} if told else {first, None})
        second = store.txn(then=[kvi.Put("k", b"")]).revision
        assert second is not None
        assert second > first
        assert peer.get("k").revision == second  # type: ignore[union-attr]
        third = store.txn(then=[kvi.Delete("k")]).revision
        assert (told and third is not None and third > second) or third is None

    @rule("txn.revision", "delete.tells")
    def test_nothing_written_makes_no_revision(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Reads, failed compares and deletes of nothing leave revision and entries as they are."""
        store.store("k", b"v")
        before = (peer.range().revision, list(peer.range()))
        store.txn([kvi.Key("k").absent], [kvi.Put("k", b"x")])
        store.txn(then=[kvi.Get("k"), kvi.Delete("missing")])
        store.txn()
        assert (peer.range().revision, list(peer.range())) == before

    @rule("txn.refused")
    @pytest.mark.parametrize(
        "branch",
        [
            [kvi.Put("k", b"1"), kvi.Put("k", b"2")],
            [kvi.Put("k", b"1"), kvi.Delete("k")],
            [kvi.Delete("k"), kvi.Put("k", b"1")],
            [kvi.Delete("k"), kvi.Delete("k")],
            [kvi.Put("k", b"1"), kvi.Get("k"), kvi.Put("k", b"1")],
        ],
        ids=str,
    )
    @pytest.mark.parametrize("name", ["then", "otherwise"])
    def test_one_key_twice(
        self, store: kvi.Kvi, peer: kvi.Kvi, branch: list[Any], name: str
    ) -> None:
        """Writing one key twice in a branch is InvalidArgument naming it; nothing is sent."""
        store.store("k", b"v")
        with pytest.raises(kvi.InvalidArgument, match="twice") as caught:
            store.txn(**{name: [kvi.Put("a", b""), *branch]})  # type: ignore[arg-type]
        assert caught.value.key == "k"
        assert snapshot(peer) == {"k": b"v"}

    @rule("txn.branches")
    def test_same_key_in_both_branches(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Each branch may write a key that the other writes, and that is compared."""
        store.store("k", b"1")
        for expected in (b"2", b"3"):
            store.txn([kvi.Key("k").value == b"1"], [kvi.Put("k", b"2")], [kvi.Put("k", b"3")])
            assert snapshot(peer) == {"k": expected}

    @rule("txn.refused")
    def test_too_many_operations(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Exactly max_txn_ops compares and operations work, one more is refused unsent."""
        limit = store.capabilities.max_txn_ops
        size = limit or 2000
        half = size // 2
        compares = [kvi.Key(f"m{i}").absent for i in range(half)]
        puts = [kvi.Put(f"k{i:04}", b"") for i in range(size - half)]
        assert store.txn(compares, puts, [kvi.Put("else", b"")]).succeeded
        assert peer.count() == len(puts)
        deletes = size // store.capabilities.txn_delete_ops
        assert store.txn(then=[kvi.Delete(f"k{i:04}") for i in range(deletes)]).succeeded
        assert peer.count() == 0
        assert store.txn(then=[kvi.Get(f"k{i:04}") for i in range(size)]).results == (None,) * size
        if limit is not None:
            one_more: list[kvi.Put | kvi.Get] = [*puts, kvi.Get("x")]
            for when, then, otherwise in (
                (compares, one_more, ()),
                (compares, (), one_more),
                ((), [kvi.Put(f"k{i}", b"") for i in range(limit + 1)], ()),
                ((), [kvi.Delete(f"k{i}") for i in range(deletes + 1)], ()),
            ):
                with pytest.raises(kvi.InvalidArgument, match=str(limit)):
                    store.txn(when, then, otherwise)
            assert peer.count() == 0

    @rule("txn.refused")
    @pytest.mark.parametrize(
        "arguments",
        [
            {"when": [True]},
            {"when": [None]},
            {"when": kvi.Key("k").exists},
            {"when": ["k"]},
            {"when": [kvi.Compare("k", "value", "~", b"")]},  # type: ignore[arg-type]
            {"when": [kvi.Compare("k", "size", "=", 1)]},  # type: ignore[arg-type]
            {"when": [kvi.Compare("k", "revision", "=", b"1")]},  # type: ignore[arg-type]
            {"then": ["k"]},
            {"then": kvi.Put("k", b"")},
            {"then": [kvi.Key("k").exists]},
            {"otherwise": [None]},
            {"otherwise": "k"},
        ],
        ids=str,
    )
    def test_no_transaction(self, store: kvi.Kvi, peer: kvi.Kvi, arguments: Any) -> None:
        """What is no list of compares or operations is InvalidArgument that tells what is meant."""
        with pytest.raises(kvi.InvalidArgument):
            store.txn(**arguments)
        assert snapshot(peer) == {}

    @rule("txn.short")
    def test_transaction_of_one_line(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """transaction(key, op, value, then pair, else pair) stores one pair and tells which."""
        store.store("k", b"5")
        cases = [("=", True), ("!=", False), ("<", False), (">", False)]
        for number, (operator, expected) in enumerate(cases):
            yes, no = f"yes{number}", f"no{number}"
            assert store.transaction("k", operator, b"5", yes, b"1", no, b"1") is expected
            assert (peer.get(yes) is not None, peer.get(no) is not None) == (expected, not expected)
        assert store.transaction("missing", "!=", b"5", "yes", b"", "no", b"") is False
        assert peer.get("no") is not None

    @rule("txn.short")
    def test_transaction_compares(self, store: kvi.Kvi) -> None:
        """`<` asks whether the stored value is less than the one given, `>` whether it is more."""
        store.store("k", b"5")
        for operator, value, expected in (
            ("<", b"6", True),
            ("<", b"4", False),
            (">", b"4", True),
            (">", b"6", False),
            ("=", b"4", False),
            ("!=", b"4", True),
        ):
            done = store.transaction("k", operator, value, "yes", b"", "no", b"")
            assert done is expected, (operator, value)
