"""Atomicity under concurrency: nothing is lost, nothing is seen half-done.

Threads with a handle each stand for the clients; the totals are exact or the store is wrong.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

import kvi
from kvi.conformance.clients import run_clients, switching
from kvi.conformance.contract import rule
from kvi.conformance.rules import Rules
from kvi.conformance.waiting import until
from kvi.primitives import Primitives

CLIENTS, ROUNDS = 4, 25
BOUNDS = ({"prefix": "p/"}, {"start": "p/", "end": "p/~"})
"""Of the keys below ``p/``, as a prefix and as what is none."""


def _one_step(store: kvi.Kvi, bounds: dict[str, Any]) -> bool:
    """Whether `delete_range` with such bounds is declared to be one step."""
    declared = store.capabilities.atomic_range_delete
    return declared == "any" or (declared == "prefix" and "prefix" in bounds)


class TestConcurrency(Rules):
    """Clients that race for the same keys."""

    @rule("tas.atomic")
    def test_tas_loses_nothing(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Increments by tas from several clients add up exactly."""
        store.store("counter", b"0")

        def work(number: int) -> None:
            handle = (store, peer)[number % 2]
            for _ in range(ROUNDS):
                while True:
                    now = int(handle.get("counter").text)  # type: ignore[union-attr]
                    if handle.tas("counter", str(now), str(now + 1)):
                        break

        run_clients(work)
        assert peer.get("counter").text == str(CLIENTS * ROUNDS)  # type: ignore[union-attr]

    @rule("cas.atomic")
    def test_cas_loses_nothing(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Increments by cas add up, with values that come back to what they were."""
        store.store("toggle", b"0")
        won = [0] * CLIENTS

        def work(number: int) -> None:
            handle = (store, peer)[number % 2]
            for _ in range(ROUNDS):
                entry = handle.get("toggle")
                assert entry is not None
                new = b"1" if entry.value == b"0" else b"0"
                if handle.cas("toggle", entry.revision, new) is not None:
                    won[number] += 1

        run_clients(work)
        assert peer.get("toggle").text == str(sum(won) % 2)  # type: ignore[union-attr]

    @rule("txn.atomic")
    def test_txn_moves_whole(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Transfers between two keys keep their sum, and no reader sees one half done."""
        store.txn(then=[kvi.Put("a", b"100"), kvi.Put("b", b"100")])

        def work(number: int) -> None:
            handle = (store, peer)[number % 2]
            done = 0
            while done < ROUNDS:
                a, b = handle.txn(then=[kvi.Get("a"), kvi.Get("b")]).results
                assert isinstance(a, kvi.KeyValue)
                assert isinstance(b, kvi.KeyValue)
                assert int(a.text) + int(b.text) == 200
                if number == 0:  # reads only
                    done += 1
                    continue
                done += bool(
                    handle.txn(
                        [kvi.Key("a").value == a.text, kvi.Key("b").value == b.text],
                        [
                            kvi.Put("a", str(int(a.text) - number)),
                            kvi.Put("b", str(int(b.text) + number)),
                        ],
                    )
                )

        run_clients(work)
        moved = ROUNDS * sum(range(CLIENTS))
        assert peer.get("a").text == str(100 - moved)  # type: ignore[union-attr]
        assert peer.get("b").text == str(100 + moved)  # type: ignore[union-attr]

    @rule("tas.atomic")
    def test_create_has_one_winner(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Of several clients that create the same absent key, exactly one does."""
        winners: list[tuple[int, int]] = []

        def work(number: int) -> None:
            handle = (store, peer)[number % 2]
            for turn in range(ROUNDS):
                if handle.tas(f"k{turn}", None, str(number)):
                    winners.append((turn, number))  # noqa: PERF401  (a race, not a list)

        run_clients(work)
        assert sorted(turn for turn, _ in winners) == list(range(ROUNDS))
        for turn, number in winners:
            assert peer.get(f"k{turn}").text == str(number)  # type: ignore[union-attr]

    @rule("delete.tells")
    def test_delete_has_one_winner(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Of several clients that delete the same key, exactly one is told that it was there."""
        for turn in range(ROUNDS):
            store.store(f"k{turn}", b"")
        deleted: list[int] = []

        def work(number: int) -> None:
            handle = (store, peer)[number % 2]
            for turn in range(ROUNDS):
                if handle.delete(f"k{turn}"):
                    deleted.append(turn)  # noqa: PERF401  (a race, not a list)

        run_clients(work)
        assert sorted(deleted) == list(range(ROUNDS))

    @rule("delete-range.atomic")
    def test_range_delete_is_atomic_as_declared(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Deletes by prefix take all or nothing of what one transaction wrote together."""
        store.store("p/a", b"")
        assert store.delete_range(prefix="p/") == 1
        if store.capabilities.atomic_range_delete == "no":
            return
        derived = type(store._scope.primitives)._delete_range is Primitives._delete_range
        assert not derived, "declared to be one step, and derived: that lists, and then deletes"
        keys = [f"p/{i}" for i in range(10)]

        def work(number: int) -> None:
            handle = (store, peer)[number % 2]
            for _ in range(ROUNDS):
                if number == 0:
                    assert handle.delete_range(prefix="p/") in (0, len(keys))
                else:
                    handle.txn(then=[kvi.Put(key, b"") for key in keys])
                    there = handle.txn(then=[kvi.Get(key) for key in keys]).results
                    assert sum(entry is not None for entry in there) in (0, len(keys))

        run_clients(work, clients=3)

    @rule("delete-range.atomic")
    def test_range_delete_is_not_seen_half_done(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Where atomic, nobody who reads meanwhile sees some of the keys gone and some not."""
        if store.capabilities.atomic_range_delete == "no":
            return  # each key goes by itself, as the test before expects
        keys = [f"p/{i}" for i in range(10)]
        stop = threading.Event()

        def work(number: int) -> None:
            if number == 0:
                try:
                    for _ in range(ROUNDS):
                        store.txn(then=[kvi.Put(key, b"") for key in keys])
                        assert store.delete_range(prefix="p/") == len(keys)
                finally:
                    stop.set()
                return
            while not stop.is_set():
                there = peer.txn(then=[kvi.Get(key) for key in keys]).results
                assert sum(entry is not None for entry in there) in (0, len(keys))

        run_clients(work, clients=3)

    @rule("delete-range.atomic")
    @pytest.mark.parametrize("bounds", BOUNDS, ids=["prefix", "bounds"])
    def test_range_delete_takes_what_moves(
        self, store: kvi.Kvi, peer: kvi.Kvi, bounds: dict[str, Any]
    ) -> None:
        """Where atomic, a key that is always there is deleted, wherever it is moved meanwhile."""
        if not _one_step(store, bounds):
            return
        keys = [f"p/{i}" for i in range(10)]
        over = threading.Event()
        stored: list[str] = []  # where it was put after it had been deleted

        def move() -> None:
            at = 0
            while not over.is_set():
                here, there = keys[at], keys[(at + 7) % len(keys)]
                moved = store.txn(
                    [kvi.Key(here).exists], [kvi.Delete(here), kvi.Put(there, b"")], [kvi.Get(here)]
                )
                if moved:
                    at = keys.index(there)
                else:  # it was deleted: there is none until now
                    store.store(here, b"")
                    stored.append(here)

        def delete() -> None:
            try:
                for turn in range(2 * ROUNDS):
                    until(lambda done=turn: len(stored) > done)
                    assert peer.delete_range(**bounds) == 1, "a key that is always there was missed"
            finally:
                over.set()

        with switching():
            run_clients(lambda number: (move, delete)[number](), clients=2)

    @rule("delete-range.atomic")
    @pytest.mark.parametrize("bounds", BOUNDS, ids=["prefix", "bounds"])
    def test_range_delete_of_many_is_atomic(
        self, store: kvi.Kvi, peer: kvi.Kvi, bounds: dict[str, Any]
    ) -> None:
        """Where atomic, it is so for more keys than a transaction takes operations."""
        if not _one_step(store, bounds):
            return
        number = (store.capabilities.max_txn_ops or 1000) + 30
        keys = [f"p/{i:04}" for i in range(number)]
        some = keys[:: number // 8]
        phase = [0]  # odd: it is being deleted; -1: over

        def delete() -> None:
            try:
                for _ in range(3):
                    for first in range(0, number, 50):
                        page = keys[first : first + 50]
                        store.txn(then=[kvi.Put(key, b"") for key in page])
                    phase[0] += 1
                    assert store.delete_range(**bounds) == number
                    phase[0] += 1
            finally:
                phase[0] = -1

        def read() -> None:
            while (before := phase[0]) >= 0:
                there = peer.txn(then=[kvi.Get(key) for key in some]).results
                present = sum(entry is not None for entry in there)
                if before % 2 and phase[0] == before:
                    assert present in (0, len(some)), "others see a part of it deleted"

        with switching():
            run_clients(lambda client: (delete, read, read)[client](), clients=3)

    @rule("range.snapshot")
    def test_range_is_one_snapshot(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Where snapshot_range, a range never mixes two transactions' writes."""
        keys = [f"s/{i}" for i in range(8)]
        store.txn(then=[kvi.Put(key, b"0") for key in keys])
        stop = threading.Event()

        def work(number: int) -> None:
            if number == 0:
                try:
                    for turn in range(ROUNDS):
                        store.txn(then=[kvi.Put(key, str(turn)) for key in keys])
                finally:
                    stop.set()
                return
            while not stop.is_set():
                values = {entry.value for entry in peer.range(prefix="s/")}
                assert len(values) == 1 or not store.capabilities.snapshot_range

        run_clients(work, clients=3)

    @rule("range.moment")
    def test_range_is_of_one_moment(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Where atomic_range, whoever lists a prefix sees what moves below it exactly once."""
        keys = [f"m/{i:02}" for i in range(20)]
        store.store(keys[0], b"")
        stop = threading.Event()

        def work(number: int) -> None:
            if number == 0:
                try:
                    for turn in range(ROUNDS):
                        here, there = keys[turn * 7 % 20], keys[(turn + 1) * 7 % 20]
                        store.txn(then=[kvi.Delete(here), kvi.Put(there, b"")])
                finally:
                    stop.set()
                return
            while not stop.is_set():
                found = list(peer.range(prefix="m/"))
                assert len(found) == 1 or not store.capabilities.atomic_range

        run_clients(work, clients=3)
