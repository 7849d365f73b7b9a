"""Consul ends sessions with their node: never do two hold a lock then.

An agent that leaves takes its node out of the catalog, and with it all sessions that were made
through it, however young they are. What is held by them is kept from others for the lock-delay,
and the holder, who may not be told, is out before that is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic

import kvi
import pytest

from tests.servers import ConsulServer
from tests.support.waiting import until

pytestmark = [pytest.mark.consul, pytest.mark.slow]

TTL = 10.0
DELAY = TTL * 0.5  # capabilities.lock_delay_factor


class Agents:
    """A server, and an agent of it that clients talk to."""

    def __init__(self, stack: ExitStack) -> None:
        self.server = stack.enter_context(ConsulServer())
        gossip = f"{self.server.host}:{self.server.ports['serf_lan']}"
        joins = {"retry_join": [gossip], "retry_interval": "1s", "leave_on_terminate": True}
        client = {"server": False, "bootstrap_expect": 0}
        self.agent = stack.enter_context(ConsulServer(config={**client, **joins}))

    def leave(self) -> None:
        """The agent is told to leave; its node is taken out."""
        self.agent.stop()

    def forgotten(self) -> None:
        """Its node is taken out of the catalog, while it goes on."""
        name = self.agent._name.encode()
        answer = self.server._ask(
            "PUT", "/v1/catalog/deregister", b'{"Node": "' + name + b'"}', timeout=5
        )
        assert answer[0] == 200, answer

    def killed(self) -> None:
        """It dies, and the server takes its node out, as it does once nobody hopes for it."""
        self.agent.kill()
        self.forgotten()


@pytest.fixture
def agents() -> Iterator[Agents]:
    """One server and one agent."""
    with ExitStack() as stack:
        yield Agents(stack)


class Beside:
    """Looks, as fast as it can, whether two locks say that they are held."""

    def __init__(self, *locks: kvi.Lock) -> None:
        self._locks = locks
        self._over = False
        self.both = 0
        self.looks = 0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join(10)

    def _look(self) -> None:
        first, second = self._locks
        while not self._over:
            self.looks += 1
            # in this order: what was held before the other was asked may have ended meanwhile
            if second.held and first.held:
                self.both += 1


@pytest.mark.parametrize("end", [Agents.leave, Agents.forgotten, Agents.killed])
def test_never_two(agents: Agents, end: Callable[[Agents], None]) -> None:
    """The next has the lock only after the lock-delay; the holder is out before, told or not."""
    with (
        kvi.open(agents.agent.uri, timeout=2) as store,
        kvi.open(agents.server.uri, timeout=5) as other,
    ):
        held, waits = store.lock("jobs", ttl=TTL), other.lock("jobs", ttl=TTL)
        assert held.acquire(10)
        got: list[float] = []

        def wait() -> None:
            if waits.acquire(60):
                got.append(monotonic())

        waiter = threading.Thread(target=wait)
        waiter.start()
        with Beside(waits, held) as looking:
            began = monotonic()
            end(agents)
            until(lambda: not held.held, within=DELAY + 5)
            assert held.lost.wait(5)
            waiter.join(60)
            assert got, "the lock was never free again"
            assert got[0] - began >= DELAY - 0.1
            assert waits.held
            assert looking.looks > 100
        assert looking.both == 0
        waits.release()


def test_claims_under_way_wait_as_well(agents: Agents) -> None:
    """Who claims at the very moment at which the holder's node is taken out waits as all others."""
    over = threading.Event()
    got: list[float] = []

    def claim(other: kvi.Kvi) -> None:
        lock = other.lock("jobs", ttl=TTL)
        while not over.is_set():
            if lock.acquire(0):
                got.append(monotonic())
                over.set()

    with kvi.open(agents.agent.uri, timeout=5) as store, ExitStack() as stack:
        others = [stack.enter_context(kvi.open(agents.server.uri, timeout=5)) for _ in range(4)]
        held = store.lock("jobs", ttl=TTL)
        assert held.acquire(20)
        claimers = [threading.Thread(target=claim, args=(other,)) for other in others]
        for claimer in claimers:
            claimer.start()
        began = monotonic()
        agents.forgotten()
        over.wait(DELAY + 30)
        over.set()
        for claimer in claimers:
            claimer.join(30)
    assert got, "the lock was never free again"
    assert got[0] - began >= DELAY - 0.1


def test_leases_outlive_an_agent_that_dies(agents: Agents) -> None:
    """With another agent in the URI they are kept through that one, and locks with them."""
    both = f"{agents.agent.uri},{agents.server.host}:{agents.server.port}"
    with kvi.open(both, timeout=5) as store, kvi.open(agents.server.uri, timeout=5) as other:
        store.get("k")
        with store.lease(TTL) as lease, store.lock("jobs", ttl=3 * TTL) as lock:
            store.store("k", "here", lease=lease)
            agents.agent.kill()
            killed = monotonic()
            until(lambda: not lease.alive or monotonic() - killed > 2 * TTL + 2, within=60)
            assert lease.alive
            assert lock.held
            assert other.get("k") is not None


def test_restart_of_the_agent() -> None:
    """A server that comes back has the lock with the holder, or keeps it from all for a while."""
    with (
        ConsulServer() as server,
        kvi.open(server.uri, timeout=20) as store,
        kvi.open(server.uri, timeout=20) as other,
    ):
        held, waits = store.lock("jobs", ttl=TTL), other.lock("jobs", ttl=TTL)
        assert held.acquire(10)
        with Beside(waits, held) as looking:
            waiter = threading.Thread(target=waits.acquire, args=(90,))
            waiter.start()
            server.restart()
            if held.held:
                held.release()
            waiter.join(90)
            assert waits.held
        assert looking.both == 0
        waits.release()


def test_given_back_without_delay(consul_uri: str) -> None:
    """What is released, or closed, or given up by a waiter, is free at once."""
    place = f"{consul_uri}/given-back"
    with kvi.open(place, timeout=20) as other:
        rival = other.lock("jobs", ttl=TTL)
        for closes in (False, True):
            store = kvi.open(place, timeout=20)
            lock = store.lock("jobs", ttl=TTL)
            assert lock.acquire(20)
            began = monotonic()
            if closes:
                store.close()
            else:
                lock.release()
            assert rival.acquire(DELAY * 3)
            assert monotonic() - began < DELAY - 1
            rival.release()
            store.close()


def test_temporary_keys_have_no_delay(consul_uri: str) -> None:
    """A key of another lease that ended can be written at once."""
    with kvi.open(f"{consul_uri}/no-delay", timeout=20) as store:
        for _ in range(3):
            key = store.temp_key("member", "here", ttl=TTL)
            key.close()
            assert store.get("member") is None
