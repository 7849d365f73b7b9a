"""Barriers, groups and caches: section 14 of the contract, on every store and both faces."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import kvi
import pytest
from kvi.recipes import CacheChange

from tests.recipes.conftest import FaceOf, at_once
from tests.support.waiting import until

WITHIN = 60.0


def standing(store: kvi.Kvi, name: str) -> list[str]:
    """The keys of a recipe that are kept by leases."""
    return [one.key for one in store.range(prefix=f"{name}/.kvi/") if one.lease is not None]


def test_generation_by_generation(face: FaceOf, uri: str) -> None:
    """All parties of a generation are told different places; nobody is in two at once."""
    store, peer = face.open(uri, timeout=30), face.open(uri, timeout=30)
    parties, rounds = 3, 5
    places: list[list[int]] = [[] for _ in range(rounds)]

    def come(handle: Any) -> None:
        barrier = face.Barrier(handle, "b", parties)
        for number in range(rounds):
            places[number].append(barrier.wait(WITHIN))
            assert len(places[number]) <= parties
            if number:
                assert len(places[number - 1]) == parties, "somebody has not passed before"

    at_once(partial(come, (store, peer)[number % 2]) for number in range(parties))
    assert [sorted(found) for found in places] == [[*range(parties)]] * rounds
    until(lambda: not standing(store, "b"))
    assert {one.key for one in store.range(prefix="b/")} <= {"b/.kvi/settings", "b/.kvi/wait"}


def test_other_parties(face: FaceOf, uri: str) -> None:
    """How many parties there are is stored, and the same for all."""
    with pytest.raises(kvi.LockTimeout):
        face.Barrier(face.open(uri), "b", 3).wait(0)
    with pytest.raises(kvi.InvalidArgument, match="parties"):
        face.Barrier(face.open(uri), "b", 2).wait(0)


def test_lost_party(face: FaceOf, uri: str, ttl: float) -> None:
    """If the store ends a party's lease all are told, itself too, and the next pass."""
    store = face.open(uri)
    with ThreadPoolExecutor(2) as pool:
        barrier = face.Barrier(store, "b", 3, ttl=ttl)
        waiting = [pool.submit(barrier.wait, WITHIN) for _ in range(2)]
        until(lambda: len(standing(store, "b")) == 2)
        with kvi.open(uri) as other:
            lost = int(standing(store, "b")[0].rpartition("/")[2], 16)
            other._scope.primitives._lease_revoke(lost, 5)
        for party in waiting:
            with pytest.raises(kvi.BrokenBarrier):
                party.result(WITHIN)
    again = face.Barrier(face.open(uri, timeout=30), "b", 3, ttl=ttl)
    assert sorted(at_once([partial(again.wait, WITHIN)] * 3)) == [0, 1, 2]


def test_many_updates_and_losses(face: FaceOf, uri: str, ttl: float) -> None:
    """A member that is lost again and again says its present value in the end, once."""
    store = face.open(uri, timeout=30)
    group = face.Group(store, "g", ttl=ttl)
    member = group.join("0", id="m")
    joined = group.members()[0].joined
    done = threading.Event()

    def update() -> None:
        for number in range(1, 9):
            member.update(f"{number}")
        done.set()

    with ThreadPoolExecutor(1) as pool, kvi.open(uri) as other:
        updating = pool.submit(update)
        for _ in range(2):
            for entry in other.range(prefix="g/.kvi/member/"):
                assert entry.lease is not None
                other._scope.primitives._lease_revoke(entry.lease, 5)
            until(lambda: member.alive and standing(other, "g"), within=WITHIN)
        updating.result(WITHIN)
        until(lambda: group.members() and member.alive, within=WITHIN)
        (found,) = group.members()
        assert (found.id, found.value, found.joined) == ("m", b"8", joined)
        member.leave()
        assert group.members() == []
        member.leave()
    with pytest.raises(kvi.NotHeld):
        member.update("late")
    assert standing(store, "g") == []


def test_watch_adds_up(face: FaceOf, uri: str) -> None:
    """Whatever a watch leaves out, what it tells adds up to the members at the end."""
    store, peer = face.open(uri, timeout=30), face.open(uri, timeout=30)
    group, last = face.Group(store, "g"), face.Group(peer, "g").join("last", id="last")
    known: dict[str, bytes] = {}
    with face.Group(peer, "g").watch() as watch:

        def follow() -> None:
            for event in watch:
                kind, member = event
                assert (kind == "JOINED") is (member.id not in known), (event, known)
                if kind == "LEFT":
                    assert known.pop(member.id) == member.value
                else:
                    known[member.id] = member.value
                if known == {"last": b"end"}:
                    return

        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(follow)
            for _ in range(3):
                members = [group.join(f"{number}") for number in range(3)]
                members[0].update("more")
                for member in members:
                    member.leave()
            last.update("end")
            following.result(WITHIN)
    last.leave()


def test_deletion_and_creation(face: FaceOf, uri: str) -> None:
    """A cache tells both, however close they are, and reads its own writes."""
    store = face.open(uri, timeout=30)
    store.store("c/k", "0")
    cache = face.Cache(face.open(uri, timeout=30), "c/")
    told: list[CacheChange] = []
    with cache:
        cache.on_change(told.append)
        for number in range(1, 6):
            store.delete("c/k")
            assert cache.wait(store.store("c/k", f"{number}"), WITHIN)
            assert cache.get("k") == b"%d" % number
        until(lambda: len(told) == 10)
    assert [one.value for one in told] == [
        None,
        b"1",
        None,
        b"2",
        None,
        b"3",
        None,
        b"4",
        None,
        b"5",
    ]
    assert [one.before for one in told] == [
        b"0",
        None,
        b"1",
        None,
        b"2",
        None,
        b"3",
        None,
        b"4",
        None,
    ]
    assert Counter(one.key for one in told) == {"k": 10}
