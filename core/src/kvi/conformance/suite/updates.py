"""Read-modify-write: `update` and `atomically` of section 3 of the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import kvi
from kvi.conformance.clients import run_clients
from kvi.conformance.contract import rule
from kvi.conformance.neighbours import snapshot
from kvi.conformance.rules import Rules
from kvi.conformance.trace import plain

LONG = 60.0  # seconds: nothing of a test outlives it
SHORT, LONGEST = 0.5, 8.0  # seconds after which a call that others never let through gives up


class OnceBefore:
    """Something that happens once, as a function is run for the first time.

    Attributes:
        runs: how often the function has been run.

    """

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens
        self.runs = 0

    def __call__(self) -> None:
        """The function is run."""
        self.runs += 1
        if self.runs == 1:
            self._happens()


class TestUpdates(Rules):
    """A value changed by a function."""

    @rule("update.value")
    def test_value(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The function gets what is there and its result is stored; the entry is returned."""
        seen: list[object] = []

        def note(result: bytes | str | None) -> Callable[[object], bytes | str | None]:
            return lambda old: seen.append(old) or result  # type: ignore[func-returns-value]

        for result, then in (("", b""), (b"\0\xff", b"\0\xff"), ("é", "é".encode())):
            entry = store.update("k", note(result))
            found = peer.get("k")
            assert found == entry
            assert found is not None
            assert found.value == then
        assert seen == [None, b"", b"\0\xff"]

    @rule("update.value")
    def test_default(self, store: kvi.Kvi) -> None:
        """The default is given only if the key is absent: an empty value is one."""
        assert store.update("k", lambda old: old, default="none").value == b"none"  # type: ignore[union-attr]
        store.store("k", b"")
        assert store.update("k", lambda old: old + b"!", default=b"none").value == b"!"  # type: ignore[union-attr]

    @rule("update.value")
    def test_delete(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A result of None deletes the key; of one that is not there it does nothing."""
        store.store("k", b"v")
        assert store.update("k", lambda old: None) is None
        assert peer.get("k") is None
        with peer.watch("k") as watch:
            assert store.update("k", lambda old: None, default=b"d") is None
            store.store("k", b"mark")
            assert watch.next(LONG).value == b"mark"

    @rule("update.value")
    def test_permanent(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """What a lease held is permanent afterwards."""
        with store.lease(LONG) as lease:
            store.store("k", b"v", lease=lease)
            entry = store.update("k", lambda old: old + b"!")
        assert entry is not None
        assert entry.lease is None
        assert peer.get("k") == entry

    @rule("update.atomic")
    @pytest.mark.parametrize(
        ("deleted", "then"), [(False, b"theirs"), (False, b"v"), (True, None), (True, b"v")]
    )
    def test_interfered(
        self, store: kvi.Kvi, peer: kvi.Kvi, deleted: bool, then: bytes | None
    ) -> None:
        """It is run again if another has written the key meanwhile, also the same value."""

        def interfere() -> None:
            if deleted:
                peer.delete("k")
            if then is not None:
                peer.store("k", then)

        meanwhile = OnceBefore(interfere)

        def append(old: bytes | None) -> bytes:
            meanwhile()
            return (old or b"") + b"!"

        store.store("k", b"v")
        entry = store.update("k", append)
        assert meanwhile.runs == 2
        assert entry is not None
        assert entry == peer.get("k")
        assert entry.value == (then or b"") + b"!"

    @rule("update.atomic")
    def test_created_meanwhile(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """It is run again if another has created the key that was absent."""
        meanwhile = OnceBefore(lambda: peer.store("k", b"theirs"))

        def append(old: bytes) -> bytes:
            meanwhile()
            return old + b"!"

        assert store.update("k", append, default=b"").value == b"theirs!"  # type: ignore[union-attr]

    @rule("update.atomic")
    def test_contention(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Contention once the time is up, and nothing of it is written."""
        runs = 0

        def change(old: object) -> bytes:
            nonlocal runs
            runs += 1
            peer.store("k", f"theirs {runs}")
            return b"ours"

        def both(tx: Any) -> None:
            tx.get("k")
            tx.put("k", change(None))

        calls: tuple[Callable[[float], object], ...] = (
            lambda seconds: store.update("k", change, timeout=seconds),
            lambda seconds: store.atomically(both, timeout=seconds),
        )
        for call in calls:
            seconds = SHORT
            while True:
                runs = 0
                with pytest.raises((kvi.Contention, kvi.Timeout, kvi.OutcomeUnknown)) as raised:
                    call(seconds)
                if isinstance(raised.value, kvi.Contention) and runs > 1:
                    break
                if seconds >= LONGEST and not isinstance(raised.value, kvi.Contention):
                    raise raised.value
                assert seconds < LONGEST, "it never lost to anybody, or did not try again"
                seconds *= 4  # on a slow machine there was no time for more
            assert peer.get("k").value == b"theirs %d" % runs  # type: ignore[union-attr]

    @rule("update.atomic")
    def test_counting(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Many who count at once, by either of the two: no count is lost."""

        def count(tx: Any) -> None:
            entry = tx.get("b")
            tx.put("b", str(int(entry.value if entry else 0) + 1))

        handles = [plain(handle) for handle in (store, peer)]

        def work(number: int) -> None:
            handle = handles[number % 2]
            for _ in range(10):
                handle.update("a", lambda old: str(int(old) + 1), default="0", timeout=LONG)
                handle.atomically(count, timeout=LONG)

        run_clients(work)
        assert snapshot(store) == {"a": b"40", "b": b"40"}

    @rule("update.raises")
    @pytest.mark.parametrize("error", [ValueError("mine"), kvi.Timeout("mine")], ids=repr)
    def test_raises(self, store: kvi.Kvi, error: Exception) -> None:
        """What the function raises comes out as it is; it is not run again, nothing is written."""
        runs = 0

        def fail(_: object) -> bytes:
            nonlocal runs
            runs += 1
            raise error

        def write_and_fail(tx: Any) -> None:
            tx.put("other", b"x")
            fail(tx.get("k"))

        store.store("k", b"v")
        text = str(error)
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.update("k", fail),
            lambda: store.atomically(write_and_fail),
        )
        for number, call in enumerate(calls, 1):
            with pytest.raises(type(error)) as raised:
                call()
            assert raised.value is error
            assert str(error) == text
            assert runs == number
        assert snapshot(store) == {"k": b"v"}

    @rule("update.value")
    def test_bad_arguments(self, store: kvi.Kvi) -> None:
        """A function that is none, a result or default that is no value, a bad key: an error."""
        store.store("k", b"v")
        with pytest.raises(kvi.InvalidArgument, match="fn="):
            store.update("k", b"v")  # type: ignore[arg-type]
        with pytest.raises(kvi.InvalidArgument, match="fn="):
            store.atomically(None)  # type: ignore[arg-type]
        with pytest.raises(kvi.InvalidArgument, match="int"):
            store.update("k", lambda old: 3)  # type: ignore[arg-type, return-value]
        with pytest.raises(kvi.InvalidArgument, match="default="):
            store.update("none", lambda old: old, default=0)  # type: ignore[arg-type]
        with pytest.raises(kvi.InvalidKey):
            store.update("", lambda old: old)
        with pytest.raises(kvi.InvalidKey):
            store.atomically(lambda tx: tx.put("", b"v"))
        assert snapshot(store) == {"k": b"v"}


class TestAtomically(Rules):
    """Several keys read and written in one step."""

    @rule("atomically.reads")
    def test_reads_and_writes(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """`tx.get` gives what `get` does, or what was written before; the last write counts."""
        store.store("a", b"1")
        store.store("gone", b"x")

        def work(tx: Any) -> list[Any]:
            first, missing = tx.get("a"), tx.get("b")
            tx.put("b", "2")
            tx.put("b", b"3")
            own = tx.get("b")
            tx.delete("gone")
            deleted = tx.get("gone")
            tx.delete("c")
            tx.put("c", b"back")
            tx.put("d", b"never")
            tx.delete("d")
            return [first, missing, own, deleted, tx.get("a")]

        entry = store.get("a")
        first, missing, own, deleted, again = store.atomically(work)
        assert first == again == entry
        assert (missing, deleted) == (None, None)
        assert (own.key, own.value, own.revision) == ("b", b"3", 0)
        assert snapshot(peer) == {"a": b"1", "b": b"3", "c": b"back"}
        assert len({peer.get(key).revision for key in "bc"}) == 1  # type: ignore[union-attr]

    @rule("atomically.reads")
    def test_lease(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """`tx.put` takes a lease, or makes the key permanent."""
        with store.lease(LONG) as lease:
            store.store("k", b"v", lease=lease)

            def work(tx: Any) -> object:
                tx.put("k", tx.get("k").value)
                tx.put("held", b"v", lease=lease)
                return tx.get("held").lease

            assert store.atomically(work) == lease.id
        assert snapshot(peer) == {"k": b"v"}

    @rule("atomically.reads")
    @pytest.mark.parametrize("read", ["there", "absent"])
    def test_conditions(self, store: kvi.Kvi, peer: kvi.Kvi, read: str) -> None:
        """What was read is a condition, absence too, and what was only written is none."""
        store.store("there", b"1")
        meanwhile = OnceBefore(lambda: peer.store(read, b"theirs"))

        def copy(tx: Any) -> None:
            entry = tx.get(read)
            meanwhile()
            tx.put("copy", entry.value if entry else b"nothing")

        store.atomically(copy)
        assert meanwhile.runs == 2
        assert peer.get("copy").value == b"theirs"  # type: ignore[union-attr]
        other = OnceBefore(lambda: peer.store("written", b"theirs"))

        def write(tx: Any) -> None:
            tx.get("there")
            other()
            tx.put("written", b"ours")

        store.atomically(write)
        assert other.runs == 1
        assert peer.get("written").value == b"ours"  # type: ignore[union-attr]

    @rule("atomically.moment")
    def test_moment(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A run whose reads are of two moments is run again, also if it writes nothing."""

        def both(value: bytes) -> None:
            assert peer.txn(then=[kvi.Put("a", value), kvi.Put("b", value)])

        for writes in (True, False):
            both(b"1")
            meanwhile = OnceBefore(lambda: both(b"2"))

            def work(tx: Any, writes: bool = writes, meanwhile: OnceBefore = meanwhile) -> Any:
                first = tx.get("a").value
                meanwhile()
                second = tx.get("b").value
                if writes:
                    tx.put("sum", first + second)
                return first + second

            assert store.atomically(work) == b"22"
            assert meanwhile.runs == 2
        assert peer.get("sum").value == b"22"  # type: ignore[union-attr]

    @rule("atomically.refused")
    def test_too_much(self, store: kvi.Kvi) -> None:
        """More than a transaction takes is refused, and nothing of it is written."""
        most = store.capabilities.max_txn_ops
        if most is not None:

            def write(tx: Any) -> None:
                for number in range(most + 1):
                    tx.put(f"k{number}", b"")

            with pytest.raises(kvi.InvalidArgument, match=f"{most:,}|{most}"):
                store.atomically(write)
        longest = store.capabilities.max_value
        if longest is not None:
            with pytest.raises(kvi.ValueTooLarge):
                store.atomically(lambda tx: tx.put("k", bytes(longest + 1)))
            with pytest.raises(kvi.ValueTooLarge):
                store.update("k", lambda old: bytes(longest + 1))
        assert snapshot(store) == {}

    @rule("atomically.refused")
    def test_over(self, store: kvi.Kvi) -> None:
        """After its run a `tx` is an error."""
        kept: list[Any] = []
        store.atomically(kept.append)
        calls: tuple[Callable[[Any], object], ...] = (
            lambda tx: tx.get("k"),
            lambda tx: tx.put("k", b""),
            lambda tx: tx.delete("k"),
        )
        for call in calls:
            with pytest.raises(kvi.InvalidArgument, match="over"):
                call(kept[0])
        assert snapshot(store) == {}
