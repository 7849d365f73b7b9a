"""Members of etcd that were stopped, and do not know yet what happened when they go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import kvi
import pytest

from tests.servers import EtcdCluster
from tests.servers.cluster import EtcdMember
from tests.support.inside import inmost
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.etcd, pytest.mark.timeout(180)]

TTL = 20.0
ROUNDS = 3  # in each, that leader may learn of the next one before it answers anybody
HOLDERS = 20
AHEAD = 3.0  # seconds by which the new leader counts longer than who renews
ROUNDED = 1.0  # seconds: etcd tells whole ones
COMPARED, COMPARISONS = 8, 20


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    """Three members of this test alone."""
    with EtcdCluster() as cluster:
        yield cluster


def uri(*members: EtcdMember) -> str:
    """The store by way of these."""
    return "etcd://" + ",".join(f"{member.host}:{member.port}" for member in members)


def led(members: list[EtcdMember]) -> bool:
    """Whether they agree on one of them as their leader."""
    try:
        states = [member.state() for member in members]
    except (OSError, ValueError):
        return False
    leaders = {state.get("leader") for state in states}
    return len(leaders) == 1 and leaders <= {state["header"]["member_id"] for state in states}


def test_renewed_by_a_leader_that_was_stopped(cluster: EtcdCluster) -> None:
    """What counts as renewed lives for its ttl, by the word of the new leader."""
    for _ in range(ROUNDS):
        old = cluster.leader()
        others = [member for member in cluster.members if member is not old]
        with ExitStack() as stack:
            observer = stack.enter_context(kvi.open(uri(*others)))
            observer.ping()
            handles = [stack.enter_context(kvi.open(uri(old), timeout=15)) for _ in range(HOLDERS)]
            leases = [handle.lease(TTL, keep_alive=False) for handle in handles]
            old.pause()
            until(partial(led, others))
            time.sleep(AHEAD)
            with ThreadPoolExecutor(HOLDERS) as pool:
                renewals = [pool.submit(renew, lease) for lease in leases]
                time.sleep(0.2)  # they wait before the stopped one; if not, little is tested
                old.resume()
                renewed = dict(renewal.result(30) for renewal in renewals)
            told = inmost(observer)._leases(list(renewed), None, 10)
            now = time.monotonic()
            assert len(told) == HOLDERS
            for lease in told:
                assert now + lease.left + ROUNDED - renewed[lease.id] >= TTL


def test_compared_by_a_member_that_is_behind(cluster: EtcdCluster) -> None:
    """A transaction that only compares tells what is so, not what the member knew before."""
    behind = next(member for member in cluster.members if member is not cluster.leader())
    others = [member for member in cluster.members if member is not behind]
    with (
        kvi.open(uri(*others)) as writer,
        kvi.open(uri(behind), timeout=15) as store,
        ThreadPoolExecutor(COMPARED) as pool,
    ):
        revision = writer.store("k", "0")
        until(lambda: store.get("k").revision == revision)  # type: ignore[union-attr]
        for number in range(1, COMPARISONS):
            behind.pause()
            same = [kvi.Key("k").revision == writer.store("k", str(number))]
            asked = [pool.submit(store.txn, same) for _ in range(COMPARED)]
            time.sleep(0.05)  # they wait before the stopped one; if not, little is tested
            behind.resume()
            assert all(one.result(30).succeeded for one in asked)


def renew(lease: kvi.Lease) -> tuple[int, float]:
    """Its id, and when its renewal was sent."""
    sent = time.monotonic()
    lease.renew()
    return lease.id, sent
