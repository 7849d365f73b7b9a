"""Watches: of a store that writes, forgets, and is restored; by consumers fast, slow and cut short.

*With history*: every change once and in order; or a `RESYNC`, only where changes are gone, whose
snapshot is a state that the store had. `WatchFlow.revision` never runs ahead of what was handed
out. *Without*: per key ever newer states that existed. *In the calm*: what the consumer knows is
soon what the store has.
"""

from __future__ import annotations

from kvi.capabilities import Capabilities

from tests.simulation.client import Client
from tests.simulation.model import Model
from tests.simulation.nemesis import Nemesis, rough
from tests.simulation.network import Network
from tests.simulation.scenarios.consumer import Consumer, Log, known_of
from tests.simulation.store import QUEUE, SINGLE
from tests.simulation.world import START, World

_KEYS = ("k/a", "k/b", "k/c", "z")
_BOUND = 6.0  # seconds after which consumers know the truth


class Watches:
    """The scenario."""

    def __init__(self, world: World, capabilities: Capabilities) -> None:
        random = world.random
        self.world = world
        self.history = capabilities.watch_history
        self.model = Model(world)
        self.network = Network(world, self.model)
        self.log = Log(self.model)
        self.model.witness = self.log.witness
        self.timeout = random.choice((0.5, 2.0))
        self.storm = 3.0 + 5.0 * random.random()
        self.writing = True
        self.saved = self.model.snapshot()
        self.resumable = capabilities.watch_history  # across a restore, no revision says where
        self.restores = capabilities.watch_history and random.random() < 0.4
        self.resumable = self.resumable and not self.restores
        self.clients = [
            Client(self.network, name, capabilities, timeout=self.timeout, retrying=False)
            for name in ("P1", "P2")[: random.randint(1, 2)]
        ]
        for _ in range(random.randint(0, 4)):
            self._write()
        self.consumers: list[Consumer] = []
        for client in self.clients:
            client.store.between = self._between
            for _ in range(random.randint(1, 2)):
                consumer = Consumer(self, client, f"watch {len(self.consumers) + 1}")
                self.consumers.append(consumer)
                client.program(consumer.name, consumer.run())
        self._next_write()
        rough(self.network)
        self.nemesis = Nemesis(self.network, self.clients, self.storm)

    def run(self) -> None:
        """Run one schedule."""
        world = self.world
        world.run(_never, START + self.storm)
        self.nemesis.calm()
        self.writing = False
        for client in self.clients:
            client.store.between = _nothing
        if not world.run(self._all_know, world.time + _BOUND):
            unaware = next(one for one in self.consumers if not self._is_aware(one))
            world.fail(f"{unaware.name} still does not know what the store has")
        for client in self.clients:
            client.ensure_well()

    def _all_know(self) -> bool:
        return all(map(self._is_aware, self.consumers))

    @staticmethod
    def _is_aware(consumer: Consumer) -> bool:
        client = consumer.client
        return client.dead or client.scope.closed or consumer.knows

    def _between(self) -> None:
        """What others do between two steps of a feed."""
        if self.world.random.random() < 0.3:
            self._write()
            self.model.compact(self.model.revision)

    def _next_write(self) -> None:
        if self.writing:
            due = self.world.time + self.world.random.random() * 0.4
            self.world.at(due, None, self._act)

    def _act(self) -> None:
        if not self.writing:
            return
        x = self.world.random.random()
        if x < 0.85:
            if not self.model.down:
                self._write()
        elif x < 0.93:
            self.model.compact(self.model.revision - self.world.random.randint(0, 2))
        elif x < 0.96:
            self.saved = self.model.snapshot()
        elif self.restores:
            self.world.tell("store", f"is restored to revision {self.saved[1]}")
            self.model.restore(self.saved)
            self.log.note()
        self._next_write()

    def _write(self) -> None:
        random, model = self.world.random, self.model
        key = random.choice(_KEYS)
        several = [one for one in _KEYS if one in model.entries]
        if several and random.random() < 0.3:
            model.delete(*random.sample(several, random.randint(1, len(several))))
        else:
            model.put(key, b"%d" % random.randint(0, 99))
        if self.world.story is not None:
            self.world.tell("store", f"has revision {model.revision}: {known_of(model)}")


def history(world: World) -> None:
    """Watches of a store with history."""
    Watches(world, QUEUE).run()


def states(world: World) -> None:
    """Watches of a store without."""
    Watches(world, SINGLE).run()


def _never() -> bool:
    return False


def _nothing() -> None:
    """Nobody does anything."""
