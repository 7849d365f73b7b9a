"""Watches: section 7 of the contract."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import kvi
from kvi.conformance.clients import run_clients
from kvi.conformance.contract import rule
from kvi.conformance.recipes import Waiter
from kvi.conformance.rules import Rules
from kvi.conformance.used import grown, in_use
from kvi.conformance.waiting import side_by_side, until

PUT, DELETE = kvi.EventType.PUT, kvi.EventType.DELETE
WAIT = 20.0  # seconds within which what was written is seen
BEHIND = 500  # revisions
MANY = 100  # watches


def take(watch: kvi.Watch, number: int) -> list[kvi.Event]:
    """The next events."""
    return [watch.next(WAIT) for _ in range(number)]


def brief(events: list[kvi.Event]) -> list[tuple[str, str, bytes | None]]:
    """What events say, without revisions."""
    return [(event.type.value, event.key, event.value) for event in events]


def nothing_more(watch: kvi.Watch, store: kvi.Kvi, marker: str) -> None:
    """The next event of the watch is one that is made now."""
    store.store(marker, b"marker")
    event = watch.next(WAIT)
    assert (event.key, event.value) == (marker, b"marker"), "an event too much"


def _check_behind(
    watch: kvi.Watch, revisions: list[int], values: dict[str, bytes], *, history: bool
) -> None:
    """A watch tells these revisions, or what it must instead; each key is left with its value."""
    left = list(revisions)
    seen: dict[str, bytes | None] = {}
    while left if history else seen != values:
        try:
            event = watch.next(WAIT)
        except kvi.Timeout:
            raise AssertionError(f"revisions were not told: {left or 'the last ones'}") from None
        if event.type is kvi.EventType.RESYNC:  # of a store whose history is as short as that
            assert event.snapshot is not None
            seen = {entry.key: entry.value for entry in event.snapshot}
            left = [revision for revision in left if revision > event.revision]
            continue
        seen[event.key] = event.value
        if history:
            assert event.revision == left.pop(0), "changes were left out"
    assert seen == values


class TestWatches(Rules):
    """What a watch sees."""

    @rule("watch.selects", "watch.event")
    def test_key(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A watch of one key sees its creation, changes and deletion, and no other key's."""
        with peer.watch("k") as watch:
            revisions = [store.store("k", b"1")]
            for other in ("j", "k2", "k/", "l"):
                store.store(other, b"other")
            (first,) = take(watch, 1)
            revisions.append(store.store("k", b"2"))
            (second,) = take(watch, 1)
            store.delete("k")
            (third,) = take(watch, 1)
        assert brief([first, second, third]) == [
            ("PUT", "k", b"1"),
            ("PUT", "k", b"2"),
            ("DELETE", "k", None),
        ]
        assert [first.revision, second.revision] == revisions
        assert third.revision > revisions[1]
        assert not any(event.initial for event in (first, second, third))
        assert first.previous is None
        for event, value in ((second, b"1"), (third, b"2")):
            if event.previous is not None:
                assert (event.previous.key, event.previous.value) == ("k", value)

    @rule("watch.event")
    def test_entry_before(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The entry before is what was there, whole, or is not told; a new life has none."""
        before: kvi.KeyValue | None = None
        with store.lease(60) as lease, peer.watch("k") as watch:
            changes: tuple[Callable[[], object], ...] = (
                lambda: store.store("k", b"1", lease=lease),
                lambda: store.store("k", b"2"),
                lambda: store.delete("k"),
                lambda: store.store("k", b"3"),
            )
            for change in changes:
                change()
                (event,) = take(watch, 1)
                assert event.previous in (None, before)
                before = peer.get("k")

    @rule("watch.selects")
    def test_prefix(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A watch of a prefix sees the keys that start with it."""
        with peer.watch(prefix="a/") as watch:
            for key in ("a", "a/", "a/b", "a/b/c", "a/\U0010ffff", "a0", "b"):
                store.store(key, key.encode())
            seen = take(watch, 4)
            assert {event.key for event in seen} == {"a/", "a/b", "a/b/c", "a/\U0010ffff"}
            nothing_more(watch, store, "a/z")

    @rule("watch.selects")
    def test_bounds(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A watch of bounds sees ``[start, end)``; either may be open; the empty prefix is all."""
        keys = ["a", "b", "c", "d"]
        with (
            peer.watch(start="b", end="d") as between,
            peer.watch(start="c") as upwards,
            peer.watch(end="b") as downwards,
            peer.watch(prefix="") as everything,
        ):
            for key in keys:
                store.store(key, b"")
            assert {event.key for event in take(between, 2)} == {"b", "c"}
            assert {event.key for event in take(upwards, 2)} == {"c", "d"}
            assert {event.key for event in take(downwards, 1)} == {"a"}
            assert {event.key for event in take(everything, 4)} == set(keys)

    @rule("watch.selects")
    def test_empty_bounds(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Bounds that hold no key make a watch that sees nothing, and can be cancelled."""
        with peer.watch(start="b", end="a") as watch:
            store.store("a", b"")
            with pytest.raises(kvi.Timeout):
                watch.next(0.05)

    @rule("watch.selects", "key.exact")
    def test_odd_keys(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Keys with slashes, dots, spaces, NUL, newlines and emoji are watched like others."""
        keys = ["/", "//a", "a/./b", "..", "a b", "?#%41", "\0", "a\0", "a\nb", "😀", "ü/é"]
        watches = [peer.watch(key) for key in keys]
        for key in keys:
            store.store(key, key.encode())
        for key, watch in zip(keys, watches, strict=True):
            assert brief(take(watch, 1)) == [("PUT", key, key.encode())]
            watch.cancel()

    @rule("watch.event", "value.exact")
    def test_values(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Empty, binary and large values arrive whole."""
        large = bytes(range(256)) * 1000
        with peer.watch("k") as watch:
            for value in (b"", b"\0\xff", large):
                store.store("k", value)
                assert take(watch, 1)[0].value == value

    @rule("store.same-value", "watch.event")
    def test_same_value_is_an_event(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A write of the same value is a change, and so is an event."""
        with peer.watch("k") as watch:
            for _ in range(3):
                revision = store.store("k", b"same")
                (event,) = take(watch, 1)
                assert (event.value, event.revision) == (b"same", revision)

    @rule("watch.writes-only")
    def test_nothing_happened(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Deleting nothing, failed compares and reads make no events."""
        store.store("k", b"1")
        with peer.watch(prefix="") as watch:
            store.delete("missing")
            store.delete_range(prefix="missing/")
            store.tas("k", b"other", b"2")
            store.cas("k", 0, b"2")
            store.get("k")
            nothing_more(watch, store, "z")

    @rule("watch.from-now", "watch.event")
    def test_every_kind_of_write(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Tas, cas, txn and delete_range are seen like store and delete."""
        with peer.watch(prefix="") as watch:
            store.tas("a", None, b"1")
            assert brief(take(watch, 1)) == [("PUT", "a", b"1")]
            store.cas("b", 0, b"2")
            assert brief(take(watch, 1)) == [("PUT", "b", b"2")]
            store.txn(then=[kvi.Put("c", b"3"), kvi.Delete("a")])
            assert sorted(brief(take(watch, 2))) == [("DELETE", "a", None), ("PUT", "c", b"3")]
            store.delete_range(prefix="")
            assert sorted(brief(take(watch, 2))) == [("DELETE", "b", None), ("DELETE", "c", None)]

    @rule("watch.from-now")
    def test_only_from_now_on(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """What was written before the watch began is not seen."""
        store.store("k", b"before")
        with peer.watch("k") as watch:
            nothing_more(watch, store, "k")

    @rule("watch.many")
    def test_many_watches_of_one_key(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Each watch gets every event."""
        watches = [peer.watch("k") for _ in range(10)]
        store.store("k", b"1")
        store.store("l", b"1")
        for watch in watches:
            assert brief(take(watch, 1)) == [("PUT", "k", b"1")]
            watch.cancel()

    @rule("watch.many")
    def test_many_cost_little(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The threads and connections of many watches of different keys are bounded."""
        with peer.watch("k") as first:
            store.store("k", b"1")
            take(first, 1)
            before = in_use()
            watches = [peer.watch(f"k/{number}") for number in range(MANY)]
            store.store(f"k/{MANY - 1}", b"1")
            assert brief(take(watches[-1], 1)) == [("PUT", f"k/{MANY - 1}", b"1")]
            for kind, new in grown(before).items():
                assert len(new) < MANY // 2, f"{MANY} watches have {len(new)} {kind}"
            for watch in watches:
                watch.cancel()

    @rule("watch.types")
    def test_kinds(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """``events=`` keeps only the kinds given, as one or several."""
        store.store("k", b"0")
        with (
            peer.watch("k", events=DELETE) as deletes,
            peer.watch("k", events=[PUT]) as puts,
            peer.watch("k", events=(PUT, DELETE)) as both,
        ):
            store.store("k", b"1")
            assert brief(take(puts, 1)) == brief(take(both, 1)) == [("PUT", "k", b"1")]
            store.delete("k")
            assert brief(take(deletes, 1)) == brief(take(both, 1)) == [("DELETE", "k", None)]
            store.store("k", b"2")
            assert brief(take(puts, 1)) == [("PUT", "k", b"2")]

    @rule("watch.last-state")
    def test_deleted_and_created(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The last state of a key is always told, in the end."""
        with peer.watch("k") as watch:
            for number in range(20):
                store.store("k", str(number))
                store.delete("k")
            store.store("k", b"last")
            while watch.next(WAIT).value != b"last":
                pass
            store.delete("k")
            while watch.next(WAIT).type is not DELETE:
                pass

    @rule("watch.last-state")
    def test_nothing_old_behind_the_last(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """After the last state of a key none of the earlier ones is told, nor that one again."""
        with peer.watch(prefix="k") as watch:
            for number in range(10):
                store.store("k", str(number))
            while watch.next(WAIT).value != b"9":
                pass
            nothing_more(watch, store, "kz")

    @rule("watch.history", "watch.last-state")
    @pytest.mark.parametrize("resumed", [False, True], ids=["waiting", "resumed"])
    def test_far_behind(self, store: kvi.Kvi, peer: kvi.Kvi, resumed: bool) -> None:
        """A watch that is hundreds of revisions behind is told all of them, or each last state."""
        history = store.capabilities.watch_history
        if resumed and not history:
            return
        values = {f"k/{number % 5}": str(number).encode() for number in range(BEHIND)}
        with peer.watch(prefix="k/") as watch:
            revisions = [store.store(f"k/{n % 5}", str(n)) for n in range(BEHIND)]
            if not resumed:
                _check_behind(watch, revisions, values, history=history)
        if resumed:
            with peer.watch(prefix="k/", from_revision=revisions[0]) as watch:
                _check_behind(watch, revisions, values, history=history)

    @rule("watch.initial")
    def test_initial(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """``initial=True`` delivers the present state in key order, then the changes."""
        for key in ("b", "a/2", "c", "a/1"):
            store.store(key, key.encode())
        before = {entry.key: entry.revision for entry in store.range()}
        with peer.watch(prefix="", initial=True) as watch:
            revision = store.store("a/1", b"changed")
            seen = take(watch, 5)
        assert brief(seen) == [
            ("PUT", "a/1", b"a/1"),
            ("PUT", "a/2", b"a/2"),
            ("PUT", "b", b"b"),
            ("PUT", "c", b"c"),
            ("PUT", "a/1", b"changed"),
        ]
        assert [event.initial for event in seen] == [True] * 4 + [False]
        assert [event.revision for event in seen] == [before[e.key] for e in seen[:4]] + [revision]

    @rule("watch.initial")
    def test_initial_of_nothing(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """``initial=True`` on keys that are not there begins with the first change."""
        with peer.watch("k", initial=True) as watch:
            with pytest.raises(kvi.Timeout):
                watch.next(0.05)
            store.store("k", b"1")
            (event,) = take(watch, 1)
            assert not event.initial

    @rule("watch.initial")
    def test_initial_of_many(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A state of many pages comes whole, in order, once, with the changes behind it."""
        keys = [f"k{number:04}" for number in range(1200)]
        for at in range(0, len(keys), 40):
            store.txn(then=[kvi.Put(key, b"1") for key in keys[at : at + 40]])
        with peer.watch(prefix="k", initial=True) as watch:
            store.store(keys[7], b"2")
            seen = take(watch, len(keys) + 1)
        assert [event.key for event in seen] == [*keys, keys[7]]
        assert all(event.initial for event in seen[:-1])
        assert seen[-1].value == b"2"

    @rule("watch.initial")
    def test_initial_without_gap(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """While others write, the state and the changes after it join without gap or duplicate."""
        stop = threading.Event()

        def write() -> None:
            number = 0
            # Paced: a store with a short history may answer a torrent by RESYNC.
            while not stop.wait(0.001):
                number += 1
                store.store("k", str(number))
            store.store("k", b"end")

        store.store("k", b"0")
        writer = Waiter(write)
        try:
            for _ in range(5):
                with peer.watch("k", initial=True) as watch:
                    first, *rest = [int(event.value or b"") for event in take(watch, 3)]
                    if store.capabilities.watch_history:
                        assert rest == [first + 1, first + 2]
                    else:
                        assert first < rest[0] < rest[1]
        finally:
            stop.set()
            writer.ended()

    @rule("watch.history", "watch.last-state")
    def test_concurrent_writers(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Several writers: every change once, in order; or newer states and the last."""
        writes: dict[int, tuple[str, bytes]] = {}

        def work(number: int) -> None:
            for count in range(30):
                key, value = f"w/{count % 3}", f"{number} {count}".encode()
                writes[(store, peer)[number % 2].store(key, value)] = (key, value)

        with peer.watch(prefix="w/") as watch:
            run_clients(work)
            events = []
            last = {key: revision for revision, (key, _) in sorted(writes.items())}
            while any(revision > 0 for revision in last.values()):
                event = watch.next(WAIT)
                events.append(event)
                assert writes[event.revision] == (event.key, event.value)
                if last[event.key] == event.revision:
                    last[event.key] = 0
        if store.capabilities.watch_history:
            assert [event.revision for event in events] == sorted(writes)
        for key in last:
            own = [event.revision for event in events if event.key == key]
            assert own == sorted(set(own)), "states of a key go forward only"


class TestHistory(Rules):
    """What watches promise where ``watch_history``, and refuse elsewhere."""

    @rule("watch.from-revision")
    def test_from_revision(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """``from_revision`` starts at that revision, inclusive; without history it is refused."""
        revisions = [store.store("k", str(number)) for number in range(5)]
        store.delete("k")
        if not store.capabilities.watch_history:
            with pytest.raises(kvi.NotSupported, match="watch_history"):
                peer.watch("k", from_revision=revisions[2])
            return
        with peer.watch("k", from_revision=revisions[2]) as watch:
            seen = take(watch, 4)
            assert brief(seen) == [
                ("PUT", "k", b"2"),
                ("PUT", "k", b"3"),
                ("PUT", "k", b"4"),
                ("DELETE", "k", None),
            ]
            assert [event.revision for event in seen[:3]] == revisions[2:]
            nothing_more(watch, store, "k")

    @rule("watch.from-revision")
    def test_from_a_future_revision(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A revision that is not there yet is waited for; what comes before it is not told."""
        if not store.capabilities.watch_history:
            return  # refused, as the test before shows
        start = store.store("other", b"") + 3
        with peer.watch(prefix="k", from_revision=start) as watch:
            revisions = [store.store("k", str(number)) for number in range(6)]
            seen = take(watch, sum(revision >= start for revision in revisions))
            assert [event.revision for event in seen] == [r for r in revisions if r >= start]

    @rule("watch.history", "watch.revision")
    def test_one_revision_together(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The changes of a transaction come together, and ``revision`` moves on with the last."""
        if not store.capabilities.watch_history:
            return  # there, no order between keys is promised
        with peer.watch(prefix="") as watch:
            begin = watch.revision
            assert begin is not None
            first = store.store("x", b"")
            done = store.txn(then=[kvi.Put(key, b"") for key in ("a", "b", "c")])
            after = store.store("y", b"")
            assert take(watch, 1)[0].revision == first
            assert watch.revision == first
            told = []
            for _ in range(3):
                told.append(watch.next(WAIT))
                assert watch.revision in ((first, done.revision)[len(told) == 3],)
            assert {event.key for event in told} == {"a", "b", "c"}
            assert {event.revision for event in told} == {done.revision}
            assert take(watch, 1)[0].revision == after
            assert watch.revision == after

    @rule("watch.revision")
    def test_resume(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A new watch from ``revision + 1`` loses and repeats nothing."""
        if not store.capabilities.watch_history:
            return
        watch = peer.watch(prefix="k")
        expected = [store.store("k", str(number)) for number in range(30)]
        seen: list[int] = []
        while len(seen) < len(expected):
            seen += [event.revision for event in take(watch, 3)]
            reached = watch.revision
            assert reached is not None
            watch.cancel()
            watch = peer.watch(prefix="k", from_revision=reached + 1)
        watch.cancel()
        assert seen == expected

    @rule("watch.revision", "watch.initial")
    def test_revision_of_the_initial_state(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """``revision`` is None until the initial state was told, then that state's."""
        store.store("a", b"")
        last = store.store("b", b"")
        with peer.watch(prefix="", initial=True) as watch:
            assert watch.revision is None
            take(watch, 1)
            assert watch.revision is None
            take(watch, 1)
            with pytest.raises(kvi.Timeout):
                watch.next(0.05)
            assert watch.revision is not None
            assert watch.revision >= last

    @rule("watch.revision", "watch.types")
    def test_revision_past_what_is_filtered(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Events that ``events=`` leaves out count as told."""
        if not store.capabilities.watch_history:
            return
        with peer.watch("k", events=DELETE) as watch:
            store.store("k", b"")
            store.delete("k")
            (event,) = take(watch, 1)
            assert watch.revision == event.revision

    @rule("watch.from-revision")
    @pytest.mark.parametrize("revision", [0, -1, 1.5, "1", True, 2**70])
    def test_bad_revision(self, store: kvi.Kvi, revision: object) -> None:
        """A from_revision that is none is an InvalidArgument."""
        with pytest.raises((kvi.InvalidArgument, kvi.NotSupported)):
            store.watch("k", from_revision=revision)  # type: ignore[arg-type]

    @rule("watch.compacted")
    def test_compacted(self, store: kvi.Kvi) -> None:
        """A from_revision that is gone is Compacted; one that is there is not."""
        if not store.capabilities.watch_history:
            return
        revision = store.store("k", b"")
        with store.watch("k", from_revision=revision) as watch:
            assert take(watch, 1)[0].revision == revision


class TestConsumers(Rules):
    """Iterating, waiting, call-backs, cancelling."""

    @rule("watch.next")
    def test_next_waits(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """``next`` waits for an event; when the time is up it raises Timeout and loses nothing."""
        with peer.watch("k") as watch:
            for timeout in (0, 0.05):
                with pytest.raises(kvi.Timeout):
                    watch.next(timeout)

            def write() -> None:
                time.sleep(0.1)
                try:
                    store.store("k", b"1")
                except BaseException:
                    watch.cancel()
                    raise

            writer = Waiter(write)
            try:
                assert watch.next().value == b"1"
            finally:
                writer.ended()

    @rule("watch.next")
    @pytest.mark.parametrize("timeout", [-1, math.nan, "1"])
    def test_bad_time_out(self, store: kvi.Kvi, timeout: object) -> None:
        """A negative time-out of ``next`` is an InvalidArgument; the watch goes on."""
        with store.watch("k") as watch:
            with pytest.raises(kvi.InvalidArgument, match="timeout"):
                watch.next(timeout)  # type: ignore[arg-type]
            assert watch.active

    @rule("watch.next", "watch.cancel")
    def test_iterates(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A watch is an iterator, which ends after cancel."""
        with peer.watch("k") as watch:
            assert iter(watch) is watch
            store.store("k", b"1")
            for event in watch:
                assert event.value == b"1"
                watch.cancel()
            assert list(watch) == []
            with pytest.raises(kvi.Closed):
                watch.next(1)
            watch.cancel()

    @rule("watch.cancel")
    def test_cancel_wakes(self, store: kvi.Kvi) -> None:
        """Cancel wakes who waits for the next event, and comes back within a second."""
        watch = store.watch("k")
        ended: list[object] = []
        iterating = threading.Thread(target=lambda: ended.append(list(watch)))
        waiting = threading.Thread(target=lambda: ended.append(_error_of(watch)))
        for thread in (iterating, waiting):
            thread.start()
        iterating.join(0.1)
        assert not ended
        watch.cancel()
        for thread in (iterating, waiting):
            thread.join(1)
            assert not thread.is_alive()
        assert sorted(ended, key=str) == sorted([[], kvi.Closed], key=str)

    @rule("watch.cancel")
    def test_nothing_after_cancel(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """No event is delivered once cancel has returned, not even one that was there."""
        watch = peer.watch("k")
        store.store("k", b"1")
        take(watch, 1)
        store.store("k", b"2")
        watch.cancel()
        with pytest.raises(kvi.Closed):
            watch.next(0)
        assert list(watch) == []
        assert not watch.active

    @rule("handle.close-wakes")
    def test_close_wakes(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """Closing the handle wakes who waits, with Closed, iterating too."""
        other = kvi.open(kvi_uri)
        watch = other.watch("k")
        ended: list[type[BaseException] | None] = []

        def iterate() -> None:
            try:
                list(watch)
            except kvi.KviError as error:
                ended.append(type(error))

        threads = [
            threading.Thread(target=iterate),
            threading.Thread(target=lambda: ended.append(_error_of(watch))),
        ]
        for thread in threads:
            thread.start()
        threads[0].join(0.1)
        other.close()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        assert ended == [kvi.Closed] * 2
        watch.cancel()
        with pytest.raises(kvi.Closed):
            other.watch("k")

    @rule("namespace.closed")
    def test_view_closes_its_watches(self, store: kvi.Kvi) -> None:
        """Closing a view ends the watches made through it, and no others."""
        with store.watch(prefix="view/") as outer:
            view = store.namespace("view")
            inner = view.watch(prefix="")
            view.store("k", b"1")
            assert brief(take(inner, 1)) == [("PUT", "k", b"1")]
            assert brief(take(outer, 1)) == [("PUT", "view/k", b"1")]
            view.close()
            with pytest.raises(kvi.Closed):
                inner.next(1)
            store.store("view/k", b"2")
            assert brief(take(outer, 1)) == [("PUT", "view/k", b"2")]

    @rule("watch.callback")
    def test_callback(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A call-back gets each event and the user's data, in order, on another thread."""
        seen: list[tuple[kvi.Event, object, int]] = []
        data = object()
        watch = peer.watch(
            prefix="k",
            callback=lambda event, given: seen.append((event, given, threading.get_ident())),
            user_data=data,
        )
        for number in range(5):
            store.store("k", str(number))
            until(lambda n=number: len(seen) > n)
        watch.cancel()
        assert brief([event for event, _, _ in seen]) == [
            ("PUT", "k", str(number).encode()) for number in range(5)
        ]
        assert all(given is data for _, given, _ in seen)
        assert threading.get_ident() not in {thread for _, _, thread in seen}
        with pytest.raises(kvi.InvalidArgument, match="call-back"):
            watch.next(0)

    @rule("watch.callback")
    def test_callback_ends_its_watch(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A call-back that returns False ends its watch; other values do not."""
        seen: list[kvi.Event] = []
        answers: Iterator[object] = iter([None, True, 0, "", False, None])

        def callback(event: kvi.Event, data: object) -> object:
            seen.append(event)
            return next(answers, None)

        watch = peer.watch("k", callback=callback)
        with peer.watch("k") as other:
            for number in range(7):
                store.store("k", str(number))
                take(other, 1)
                until(lambda n=number: len(seen) > n or not watch.active)
        assert len(seen) == 5
        assert not watch.active

    @rule("watch.callback")
    def test_callback_that_ends_on_delete(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """The origin's form: watch until the key is deleted."""
        kinds: list[kvi.EventType] = []

        def callback(event: kvi.Event, data: object) -> bool:
            kinds.append(event.type)
            return event.type is not DELETE

        watch = peer.watch("k", callback=callback)
        store.store("k", b"1")
        until(lambda: kinds == [PUT])
        store.delete("k")
        until(lambda: not watch.active)
        assert kinds == [PUT, DELETE]

    @rule("watch.callback")
    def test_callback_that_raises(
        self, store: kvi.Kvi, peer: kvi.Kvi, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception in a call-back is logged, and its watch goes on."""
        seen: list[bytes | None] = []

        def callback(event: kvi.Event, data: object) -> None:
            seen.append(event.value)
            raise ZeroDivisionError("as a test")

        with caplog.at_level(logging.ERROR, "kvi"), peer.watch("k", callback=callback):
            for number in range(3):
                store.store("k", str(number))
                until(lambda n=number: len(seen) > n)
        assert seen == [b"0", b"1", b"2"]
        assert "ZeroDivisionError" in caplog.text

    @rule("watch.callback")
    def test_callback_uses_the_store(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A call-back may read, write, lock, watch, and cancel its own watch."""
        done = threading.Event()

        def callback(event: kvi.Event, data: object) -> None:
            with peer.lock("jobs", timeout=5):
                peer.store("copy", event.value or b"")
            with peer.watch("copy") as inner:
                peer.delete("copy")
                assert inner.next(WAIT).type is DELETE
            assert peer.get("copy") is None
            watch.cancel()
            done.set()

        watch = peer.watch("k", callback=callback)
        store.store("k", b"1")
        assert done.wait(WAIT)
        assert not watch.active

    @rule("watch.cancel", "watch.callback")
    def test_no_callback_after_cancel(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Cancel waits for the call-back that runs, and none begins after it."""
        running, release = threading.Event(), threading.Event()
        calls: list[str] = []

        def callback(event: kvi.Event, data: object) -> None:
            calls.append("begin")
            running.set()
            release.wait(WAIT)
            calls.append("end")

        watch = peer.watch("k", callback=callback)
        store.store("k", b"1")
        store.store("k", b"2")
        assert running.wait(WAIT)
        threading.Timer(0.1, release.set).start()
        watch.cancel()
        assert calls == ["begin", "end"]
        with peer.watch("k") as other:
            store.store("k", b"3")
            take(other, 1)
        assert calls == ["begin", "end"]

    @rule("watch.cancel", "watch.slow")
    @side_by_side
    def test_cancel_of_a_stuck_callback(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Cancel comes back soon from a call-back that does not, and no other begins."""
        running, release = threading.Event(), threading.Event()
        calls: list[bytes | None] = []

        def callback(event: kvi.Event, data: object) -> None:
            calls.append(event.value)
            running.set()
            release.wait(60)

        watch = peer.watch("k", callback=callback)
        try:
            store.store("k", b"1")
            assert running.wait(WAIT)
            store.store("k", b"2")
            watch.cancel()  # if it waited for the call-back, that would wait for `release`
        finally:
            release.set()
        with peer.watch("k") as other:
            store.store("k", b"3")
            take(other, 1)
        assert calls == [b"1"]

    @rule("watch.callback", "handle.closed")
    def test_callback_closes_the_handle(self, store: kvi.Kvi, kvi_uri: str) -> None:
        """A call-back may close the handle that it runs for."""
        done = threading.Event()
        other = kvi.open(kvi_uri)
        lease = other.lease(60)

        def callback(event: kvi.Event, data: object) -> None:
            other.close()
            done.set()

        other.watch(prefix="", callback=callback)
        store.store("k", b"1")
        assert done.wait(WAIT)
        assert other.closed
        assert not lease.alive

    @rule("watch.slow")
    def test_stuck_callbacks_hold_up_nobody(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Call-backs that never come back delay no other's."""
        release, seen = threading.Event(), threading.Event()
        stuck: list[int] = []

        def block(event: kvi.Event, data: object) -> None:
            stuck.append(1)
            release.wait(60)

        for _ in range(6):
            peer.watch("k", callback=block)
        peer.watch("k", callback=lambda event, data: seen.set())
        try:
            store.store("k", b"1")
            assert seen.wait(WAIT)
            until(lambda: len(stuck) == 6)
        finally:
            release.set()

    @rule("watch.slow")
    def test_consumer_that_never_reads(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A watch that nobody reads holds up neither writers nor other watches."""
        with peer.watch(prefix="") as idle, peer.watch(prefix="") as busy:
            for number in range(200):
                store.store(f"k{number % 5}", str(number))
            while busy.next(WAIT).value != b"199":
                pass
            assert idle.next(WAIT).key.startswith("k")

    @rule("watch.selects")
    def test_nothing_to_watch(self, store: kvi.Kvi) -> None:
        """A watch needs exactly one of key, prefix and bounds."""
        for given in (
            {},
            {"key": "k", "prefix": "k"},
            {"key": "k", "start": "a"},
            {"prefix": "k", "end": "z"},
            {"key": ""},
            {"key": 5},
            {"prefix": 5},
        ):
            with pytest.raises(kvi.InvalidArgument):
                store.watch(**given)

    @rule("watch.types")
    @pytest.mark.parametrize("events", ["MOVED", [], ["PUT", "x"], 5, [None]])
    def test_unknown_kind(self, store: kvi.Kvi, events: object) -> None:
        """A kind of event that is none is an InvalidArgument, and so is none at all."""
        with pytest.raises(kvi.InvalidArgument, match="EventType"):
            store.watch("k", events=events)  # type: ignore[arg-type]

    @rule("watch.callback", "watch.initial")
    def test_other_bad_arguments(self, store: kvi.Kvi) -> None:
        """A call-back that is none, and a start in the past with the present state, are refused."""
        with pytest.raises(kvi.InvalidArgument, match="callback"):
            store.watch("k", callback="f")  # type: ignore[arg-type]
        with pytest.raises((kvi.InvalidArgument, kvi.NotSupported)):
            store.watch("k", initial=True, from_revision=1)
        with pytest.raises(kvi.InvalidArgument):
            store.watch("k", timeout=-1)


def _error_of(watch: kvi.Watch) -> type[BaseException] | None:
    try:
        watch.next()
    except kvi.KviError as error:
        return type(error)
    return None
