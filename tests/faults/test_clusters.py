"""Clusters of three whose leader is killed while eight clients are at work."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import kvi
import pytest
from kvi.conformance.checking.history import Operation, Outcome
from kvi.conformance.clients import History, Kind, run_random
from kvi.conformance.suite.histories import judge

from tests.servers import Cluster, ConsulCluster, EtcdCluster
from tests.support.waiting import until

CLIENTS = 8
CALLS = 25  # that each client must have done before the leader is killed, and after
KEYS = ("a", "b", "c", "d")
KINDS: tuple[Kind, ...] = ("get", "get", "store", "store", "tas", "cas", "delete", "txn")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(
    params=[
        pytest.param(EtcdCluster, id="etcd", marks=[pytest.mark.etcd]),
        pytest.param(ConsulCluster, id="consul", marks=[pytest.mark.consul]),
    ]
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster[Any]]:
    """Three servers of this test alone."""
    with request.param() as cluster:
        yield cluster


class Counting:
    """A clock that counts the calls that ended, by who asks it."""

    def __init__(self) -> None:
        self.asked: dict[int, int] = {}

    def __call__(self) -> float:
        """The time."""
        me = threading.get_ident()
        self.asked[me] = self.asked.get(me, 0) + 1
        return time.perf_counter()

    def all_did(self, calls: int) -> bool:
        """Whether every client has ended so many calls: each asks at its begin and its end."""
        return len(self.asked) == CLIENTS and min(self.asked.values()) >= 2 * calls


def outages(history: History) -> dict[int, float]:
    """The longest time between two calls that worked, for each client, in seconds."""
    worked: dict[int, list[Operation]] = {}
    for operation in history.operations:
        if operation.outcome is Outcome.OK:
            worked.setdefault(operation.client, []).append(operation)
    return {
        client: max(b.returned - a.returned for a, b in itertools.pairwise(done))
        for client, done in worked.items()
    }


def lose_the_leader(cluster: Cluster[Any], handles: Sequence[kvi.Kvi], keys: Sequence[str]) -> str:
    """Kill it amid the work of all clients, judge what they saw, and start it again."""
    clock, over = Counting(), threading.Event()
    histories: list[History] = []

    def work() -> None:
        histories.append(
            run_random(handles, keys=keys, kinds=KINDS, clients=CLIENTS, until=over, clock=clock)
        )

    workers = threading.Thread(target=work)
    workers.start()
    try:
        until(lambda: clock.all_did(CALLS), within=120)
        leader = cluster.leader()
        killed = time.perf_counter()
        leader.kill()
        assert cluster.leader() is not leader
        elected = time.perf_counter() - killed
        clock.asked.clear()
        until(lambda: clock.all_did(CALLS), within=120)
    finally:
        over.set()
        workers.join(120)
    leader.start()
    (history,) = histories
    judge(history)
    unknown = sum(operation.outcome is Outcome.UNKNOWN for operation in history.operations)
    return (
        f"{cluster.members[0].scheme}: {len(history.operations):,} calls of {CLIENTS} clients; "
        f"a new leader after {elected:.2f} s, the longest outage of a client "
        f"{max(outages(history).values()):.2f} s; {unknown} writes of unknown fate"
    )


def opened(cluster: Cluster[Any]) -> list[kvi.Kvi]:
    """A handle for each client; they begin at different members."""
    return [kvi.open(cluster.uri_from(n % 3), timeout=20) for n in range(CLIENTS)]


def test_leader_is_killed_under_load(
    cluster: Cluster[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The history stays linearizable, every client goes on by itself, also the leader's own."""
    handles = opened(cluster)
    with handles[0].watch(prefix="") as watch:
        told = lose_the_leader(cluster, handles, KEYS)
        with capsys.disabled():
            print(f"\n{told}", file=sys.stderr)
        # A watch that was begun before goes on as well.
        handles[1].store("marker", b"")
        while watch.next(60).key != "marker":
            pass
    for handle in handles:
        handle.close()


def test_watches_locks_and_leases_outlive_the_leader(cluster: Cluster[Any]) -> None:
    """A lock that is held stays held, its lease is kept, and a watch misses nothing."""
    with kvi.open(cluster.uri, timeout=20) as store, kvi.open(cluster.uri_from(1)) as other:
        with store.lock("jobs", ttl=30) as lock, store.watch("k") as watch:
            store.store("k", "1")
            assert watch.next(20).value == b"1"
            cluster.leader().kill()
            cluster.leader()
            assert store.txn([lock.guard], [kvi.Put("k", "2")])
            assert watch.next(60).value == b"2"
            assert lock.held
            assert not other.lock("jobs").acquire(0)
        assert other.lock("jobs", timeout=30).acquire()


@pytest.mark.consul
def test_follower_whose_leader_is_gone() -> None:
    """What it could not pass on is told as surely not applied, until there is another leader."""
    with ConsulCluster() as cluster:
        leader = cluster.leader()
        follower = next(member for member in cluster.members if member is not leader)
        with kvi.open(follower.uri, timeout=5, retry=None) as store:
            store.store("k", "0")
            leader.kill()
            refused = 0
            with suppress(kvi.Unavailable, kvi.Timeout):
                store.get("k")  # finds that the connection to the leader is broken
            for number in itertools.count():
                try:
                    store.store(f"k{number}", "1")
                    break
                except kvi.Unavailable:
                    refused += 1
                    time.sleep(0.01)
            assert refused
            assert [entry.key for entry in store.range(timeout=20)] == ["k", f"k{number}"]
