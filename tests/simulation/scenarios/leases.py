"""Leases: kept alive through faults that pass, and everything at once when a handle is closed.

*Kept*: no two renewals in a row fail, so no lease may ever be lost. *At every step*: a lease that
says ``alive`` lives at the store, and so does its key. *Closed*: everybody who waits is awake at
once, with `Closed`; a close that ends before its time is up has told the store of every lease; a
second after the leases' time nothing is left.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Any

from kvi.errors import AlreadyHeld, Closed, KviError
from kvi.feed import WatchSpec
from kvi.flow.contest import StoreLock
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow
from kvi.flow.scope import Held
from kvi.flow.watch import WatchFlow
from kvi.model import Span
from kvi.ops import Op, RenewOp
from kvi.port import Cancelled

from tests.simulation.client import Client
from tests.simulation.model import Model
from tests.simulation.nemesis import Nemesis, rough
from tests.simulation.network import Network, Weather
from tests.simulation.store import QUEUE, SINGLE, SimStore
from tests.simulation.world import START, Signal, World

_AT_ONCE = 0.05  # seconds, and no step of the network fits


class Merciful(Network):
    """After a renewal that failed, the next one of that lease gets through."""

    def __init__(self, world: World, model: Model) -> None:
        super().__init__(world, model)
        self._failed: set[int] = set()
        self._rough = Weather(refused=0.1, lost=0.1, reset=0.1, unanswered=0.1, repeated=0.1)

    async def ask(self, op: Op[Any], store: SimStore, timeout: float) -> Any:
        """As bad as may be."""
        self.weather = self._rough
        if not isinstance(op, RenewOp):
            return await super().ask(op, store, timeout)
        if op.lease in self._failed:
            self.weather = Weather()
        try:
            answer = await super().ask(op, store, timeout)
        except KviError:
            self._failed.add(op.lease)
            raise
        self._failed.discard(op.lease)
        return answer

    def calm(self) -> None:
        """From now on everything gets through."""
        self._rough = Weather()
        super().calm()


class Kept:
    """Leases with a key each, kept alive for a while, then revoked or given up."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.world = world
        self.model = Model(world)
        self.network = Merciful(world, self.model)
        self.storm = 5.0 + 10.0 * random.random()
        self.ttl = random.choice((2.0, 3.0, 5.0))
        self.leases: dict[str, LeaseFlow] = {}
        self.clients = [
            Client(self.network, name, QUEUE, timeout=2.0, retrying=random.random() < 0.5)
            for name in ("P1", "P2")[: random.randint(1, 2)]
        ]
        for client in self.clients:
            for number in range(random.randint(1, 2)):
                client.program(f"program {number}", self._keep(client, f"{client.name}/{number}"))
        world.check = self._check

    def run(self) -> None:
        """Run one schedule."""
        world = self.world
        if not world.run(lambda: all(one.idle for one in self.clients), START + self.storm + 10.0):
            world.fail("somebody does not come to an end")
        self.network.calm()
        for client in self.clients:
            client.ensure_well()
        world.run(lambda: False, world.time + self.ttl + 2.0)  # what is late comes in the first
        if self.model.leases or self.model.entries:
            world.fail(f"left behind: {sorted(self.model.leases)}, {sorted(self.model.entries)}")

    async def _keep(self, client: Client, name: str) -> None:
        for number in count():
            if self.world.time > START + self.storm:
                return
            with suppress(KviError):
                # a late write of an earlier try finds another key
                await self._keep_one(client, f"{name}/{number}")

    async def _keep_one(self, client: Client, key: str) -> None:
        world, ttl = self.world, self.ttl
        lease = await client.call(
            lambda port: LeaseFlow.with_key(port, client.scope, key, b"", ttl, 2.0),
            undo=LeaseFlow.abandon,
        )
        self.leases[key] = lease
        await client.port.sleep(world.random.random() * 8.0)
        if not lease.alive or lease.lost.is_set():
            world.fail(f"lease {lease.id} was lost, though its renewals got through")
        del self.leases[key]
        if world.random.random() < 0.5:
            lease.abandon()
            return
        await client.call(lambda port: lease.revoke(port, 2.0), lasting=True)
        if lease.id in self.model.leases:
            world.fail(f"lease {lease.id} was revoked, and lives")

    def _check(self) -> None:
        for key, lease in self.leases.items():
            if lease.alive and lease.id not in self.model.leases:
                self.world.fail(f"lease {lease.id} says alive, and has ended")
            if lease.alive and key not in self.model.entries:
                self.world.fail(f"the key {key} has gone before its lease")


class Closing:
    """One handle with all that can be under way; it is closed at any moment."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.world = world
        self.model = Model(world)
        self.network = Network(world, self.model)
        self.ttl = random.choice((2.0, 3.0))
        self.timeout = random.choice((1.0, 3.0))
        self.storm = 1.0 + 3.0 * random.random()
        self.known: list[Held] = []
        self.deadline = 0.0
        capabilities = random.choice((QUEUE, SINGLE))
        self.client = self._client("P1", capabilities)
        self.other = self._client("P2", capabilities)
        self.lock = LockFlow(
            self.client.scope, StoreLock("a", self.client.scope.capabilities), self.ttl
        )
        programs = (self._locks, self._locks, self._leases, self._watches, self._shares)
        for number in range(random.randint(2, 5)):
            self.client.program(f"program {number}", random.choice(programs)(self.client))
        self.other.program("program", self._locks(self.other))
        rough(self.network)
        world.at(START + self.storm * random.random(), None, self._close)
        self.nemesis = Nemesis(self.network, [self.other], self.storm, most=2)

    def run(self) -> None:
        """Run one schedule."""
        world, client = self.world, self.client
        if not world.run(lambda: client.scope.closed, START + self.storm + 1.0):
            world.fail("the handle is not closed")
        if not world.run(lambda: not client.waiting, world.time + _AT_ONCE) and not world.stall:
            world.fail("somebody waits on, although the handle is closed")
        world.run(lambda: client.idle, START + self.storm)
        self.nemesis.calm()
        (closer,) = (task for task in client.programs if task.name == "closer")
        if not world.run(lambda: closer.done, world.time + self.timeout + 1.0):
            world.fail("the close does not come to an end")
        if not self.other.dead:
            self.other.program("closer", self.other.close())
        world.run(lambda: False, world.time + self.timeout + self.ttl + 1.0)
        left = [key for key, entry in self.model.entries.items() if entry.lease is not None]
        if self.model.leases or left:
            world.fail(f"left behind: leases {sorted(self.model.leases)}, keys {sorted(left)}")
        if any(feed.process is client.process for feed in self.model.watchers):
            world.fail("a watch goes on at the store")
        for one in (client, self.other):
            one.ensure_well()

    def _client(self, name: str, capabilities: Any) -> Client:
        retrying = self.world.random.random() < 0.5
        return Client(self.network, name, capabilities, timeout=self.timeout, retrying=retrying)

    def _close(self) -> None:
        self.client.program("closer", self._closes())

    async def _closes(self) -> None:
        client, world = self.client, self.world
        self.known = [one for one in client.scope.ledger._members if isinstance(one, LeaseFlow)]
        self.deadline = world.time + self.timeout
        await client.close()
        if world.time < self.deadline - 0.2:
            for lease in self.known:
                if lease.id in self.model.leases and lease.may_live(world.time):
                    world.fail(f"the close has ended early, and lease {lease.id} lives")

    async def _until_closed(self, client: Client, step: Any) -> None:
        while True:
            try:
                await step()
                await client.port.sleep(self.world.random.random() * 0.5)
            except Closed:
                return
            except (KviError, Cancelled):
                pause = 0.0 if client.scope.closed else 0.1 * self.world.random.random()
                await client.port.sleep(pause)
            if client.scope.closed:
                return

    async def _locks(self, client: Client) -> None:
        await self._until_closed(
            client,
            lambda: self._take(
                client, LockFlow(client.scope, StoreLock("a", client.scope.capabilities), self.ttl)
            ),
        )

    async def _shares(self, client: Client) -> None:
        """One object, by several programs."""
        await self._until_closed(client, lambda: self._take(client, self.lock))

    async def _take(self, client: Client, lock: LockFlow) -> None:
        try:
            got = await client.call(
                lambda port: lock.acquire(port, None), undo=lambda _: lock.give_up()
            )
        except AlreadyHeld:
            return
        if got:
            await client.port.sleep(self.world.random.random() * 0.5)
            if not client.scope.closed:
                await client.call(lambda port: lock.release(port, self.timeout), lasting=True)

    async def _leases(self, client: Client) -> None:
        await self._until_closed(client, lambda: self._lease(client))

    async def _lease(self, client: Client) -> None:
        lease = await client.call(
            lambda port: LeaseFlow.with_key(port, client.scope, "k", b"", self.ttl, self.timeout),
            undo=LeaseFlow.abandon,
        )
        await client.port.sleep(self.world.random.random() * 2.0)
        if self.world.random.random() < 0.3:
            await client.call(lambda port: lease.revoke(port, self.timeout), lasting=True)

    async def _watches(self, client: Client) -> None:
        await self._until_closed(client, lambda: self._watch(client))

    async def _watch(self, client: Client) -> None:
        flow, signal = WatchFlow(client.scope, None, None, None), Signal(self.world)
        spec = WatchSpec(Span.of_prefix("k"), initial=True)
        await client.call(
            lambda port: flow.begin(port, spec, self.timeout), undo=lambda _: flow.end()
        )
        flow.want(signal)
        try:
            while not client.scope.closed and self.world.random.random() < 0.9:
                flow.take(main=False)
                flow.ensure_going()
                client.waiting += 1
                try:
                    await signal.wait(1e9 if self.world.random.random() < 0.5 else 0.3)
                finally:
                    client.waiting -= 1
        finally:
            flow.unwant(signal)
        flow.end()


def kept(world: World) -> None:
    """Leases are kept alive, and given up."""
    Kept(world).run()


def closing(world: World) -> None:
    """A handle is closed during everything."""
    Closing(world).run()
