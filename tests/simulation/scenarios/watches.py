"""Watches: of a store that writes, forgets, and is restored; by consumers fast, slow and cut short.

*With history*: every change once and in order; or a `RESYNC`, only where changes are gone, whose
snapshot is a state that the store had. `WatchFlow.revision` never runs ahead of what was handed
out. *Without*: per key ever newer states that existed. *In the calm*: what the consumer knows is
soon what the store has.
"""

from __future__ import annotations

from kvi.capabilities import Capabilities
from kvi.errors import Closed, Compacted, KviError, Timeout
from kvi.feed import WatchSpec
from kvi.flow.watch import WatchFlow
from kvi.model import Event, EventType, Span
from kvi.policy.txn import Change
from kvi.port import Cancelled

from tests.simulation.client import Client
from tests.simulation.model import Model
from tests.simulation.nemesis import Nemesis, rough
from tests.simulation.network import Network
from tests.simulation.store import QUEUE, SINGLE
from tests.simulation.world import START, Signal, World

_SPAN = Span.of_prefix("k/")
_KEYS = ("k/a", "k/b", "k/c", "z")
_LEAST = 0.05  # seconds for a poll, as in `kvi.sync.watch`
_BOUND = 6.0  # seconds after which consumers know the truth

Known = dict[str, bytes | None]
Entry = tuple[int, int, str, bytes | None]  # epoch, revision, key, value


class Log:
    """All that ever happened to the watched keys.

    Attributes:
        entries: of the changes, in order.
        states: what the keys were, by epoch and revision.

    """

    def __init__(self, model: Model) -> None:
        self.entries: list[Entry] = []
        self.states: dict[tuple[int, int], Known] = {}
        self._model = model
        self.note()

    def note(self) -> None:
        """Remember the present state."""
        model = self._model
        self.states[model.epoch, model.revision] = _known(model)

    def witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A commit."""
        for key, _, new in changes:
            if key in _SPAN:
                value = None if new is None else new.value
                self.entries.append((self._model.epoch, revision, key, value))
        self.note()

    def behind(self, epoch: int, revision: int) -> int:
        """The position of the first change after this moment."""
        at = 0
        while at < len(self.entries) and self.entries[at][:2] <= (epoch, revision):
            at += 1
        return at


class Consumer:
    """Takes the events of one watch, and knows what must come next."""

    def __init__(self, scenario: Watches, client: Client, name: str) -> None:
        random = scenario.world.random
        self.scenario = scenario
        self.world = scenario.world
        self.client = client
        self.name = name
        self.flow = WatchFlow(client.scope, None, None, None)
        self.known: Known | None = None  # before its first whole state
        self.initial: Known | None = None
        self.position = 0  # in the log
        self.epoch = 0
        self.certain = True  # of the epoch: two may have had the same state
        self.start: int | None = None  # of its next watch
        self.told = 0  # the revision of the last event
        self.newest: dict[str, int] = {}
        self.main = random.random() < 0.5
        self.pace = random.choice((0.0, 0.1, 1.0))
        self.patience = random.choice((None, 0.0, 0.5))

    async def run(self) -> None:
        """Watch until the handle is closed."""
        try:
            while not await self._begin_watch():
                await self._rest()
            while True:
                await self._take()
                if self.scenario.resumable and self.world.random.random() < 0.05:
                    self._end_watch()
                    while not await self._begin_watch():
                        await self._rest()
        except Closed:
            return

    def _end_watch(self) -> None:
        """Cancel the watch; another one shall go on behind what was handed out."""
        self.flow.end()
        self._check_revision()
        revision = self.flow.revision
        self.start = None if revision is None else revision + 1
        self.initial = self.known = None

    async def _begin_watch(self) -> bool:
        client, model, log = self.client, self.scenario.model, self.scenario.log
        flow, timeout = WatchFlow(client.scope, None, None, None), self.scenario.timeout
        initial = self.start is None and self.world.random.random() < 0.5
        spec = WatchSpec(_SPAN, self.start, initial)
        try:
            await client.call(
                lambda port: flow.begin(port, spec, timeout), undo=lambda _: flow.end()
            )
        except Closed:
            raise
        except Compacted:
            self.start = None
            return False
        except (KviError, Cancelled):
            return False
        self.flow = flow
        if initial:
            self.initial = {}
            return True
        # It may have begun in an earlier epoch, by the time that this is known.
        revision = flow.revision
        assert revision is not None  # it does not begin with a state
        self.epoch = max(e for e, r in log.states if r == revision and e <= model.epoch)
        self.known = dict(log.states[self.epoch, revision])
        self.position = log.behind(self.epoch, revision)
        self.told = revision
        return True

    async def _take(self) -> None:
        pace = self.pace if self.scenario.writing else 0.0
        try:
            self._accept(await self._next(self.patience))
            await self.client.port.sleep(self.world.random.random() * pace)
        except Timeout:
            await self._rest()
        except Cancelled:
            return

    async def _rest(self) -> None:
        try:
            await self.client.port.sleep(0.01)
        except Cancelled:
            return

    async def _next(self, timeout: float | None) -> Event:
        """As `kvi.sync.watch.Watch.next`: with a look at the world wherever it can be left."""
        flow, world = self.flow, self.world
        event = None if self.client.scope.closed else flow.take(main=self.main)
        if event is None:
            flow.ensure_going()
            began = world.time
            deadline = began + (1e9 if timeout is None else timeout)
            signal = Signal(world)
            polls = flow.want(signal)
            try:
                while (event := flow.take(main=self.main)) is None:
                    flow.ensure_going()
                    moment = world.time
                    patience = max(deadline, began + _LEAST)
                    if moment >= deadline and (moment >= patience or flow.has_polled(polls)):
                        raise Timeout("nothing changed in time")
                    await signal.wait((deadline if moment < deadline else patience) - moment)
            finally:
                flow.unwant(signal)
        if self.main:
            if world.random.random() < 0.05:
                raise Cancelled  # a handler raises, where no step of Python can be kept out
            flow.got(event)
        return event

    def _accept(self, event: Event) -> None:
        if self.world.story is not None:
            what = {entry.key: entry.value for entry in event.snapshot or ()} or event.value
            self.world.tell(
                self.client.name,
                f"{self.name} gets {event.type} {event.key} {what!r} at {event.revision}",
            )
        if self.scenario.capabilities.watch_history:
            self._accept_change(event)
            self._check_revision()
        else:
            self._accept_state(event)

    def _accept_change(self, event: Event) -> None:
        log = self.scenario.log
        if event.type is EventType.RESYNC:
            self._accept_resync(event)
            return
        if event.initial:
            assert self.initial is not None  # it was asked for
            self.initial[event.key] = event.value
            return
        if self.known is None:
            self._begin(event.revision)
        assert self.known is not None  # it has begun
        if self.position >= len(log.entries):
            self._fail(event, "there is no such change")
        epoch, revision, key, value = log.entries[self.position]
        if (epoch, revision, key, value) != (self.epoch, event.revision, event.key, event.value):
            self._fail(event, f"the next change is {key}={value!r} at {revision}, epoch {epoch}")
        self.position += 1
        self.told = revision
        _apply(self.known, event)

    def _begin(self, first: int) -> None:
        """The first change tells which state the initial one was."""
        log = self.scenario.log
        for epoch, revision in reversed(log.states):
            if log.states[epoch, revision] == self.initial:
                position = log.behind(epoch, revision)
                if position < len(log.entries) and log.entries[position][:2] == (epoch, first):
                    self.known, self.epoch, self.position = dict(self.initial), epoch, position
                    return
        self.world.fail(f"{self.name}: no state that the store had comes before the change {first}")

    def _accept_resync(self, event: Event) -> None:
        log, model = self.scenario.log, self.scenario.model
        assert event.snapshot is not None  # it is a RESYNC
        state: Known = {entry.key: entry.value for entry in event.snapshot}
        here = self.certain and self.known is not None and self.epoch == model.epoch
        if here and model.compacted <= self.told:
            self._fail(event, "no change was gone")
        epochs = [e for e in range(model.epoch + 1) if log.states.get((e, event.revision)) == state]
        if not epochs:
            self._fail(event, "the store never had this state")
        self.certain = len(epochs) == 1
        self.known, self.epoch = state, epochs[-1]
        self.position = log.behind(self.epoch, event.revision)
        self.told = event.revision

    def _accept_state(self, event: Event) -> None:
        """Without history."""
        if self.known is None:
            self.known = {}
        _apply(self.known, event)
        if event.revision <= self.newest.get(event.key, 0):
            self._fail(event, "it is older than what was told")
        self.newest[event.key] = event.revision
        entries = self.scenario.log.entries
        if event.type is EventType.PUT and all(
            (event.revision, event.key, event.value) != entry[1:] for entry in entries
        ):
            self._fail(event, "there never was such a state")

    def _check_revision(self) -> None:
        complete, entries = self.flow.revision, self.scenario.log.entries
        if complete is not None and self.known is not None and self.position < len(entries):
            epoch, revision, key, _ = entries[self.position]
            if epoch == self.epoch and revision <= complete and self.position:
                self.world.fail(
                    f"{self.name} counts as complete up to {complete}, without {key} at {revision}"
                )

    def _fail(self, event: Event, why: str) -> None:
        self.world.fail(
            f"{self.name} gets {event.type} {event.key}={event.value!r} at {event.revision}: {why}"
        )

    @property
    def knows(self) -> bool:
        """Whether it knows the truth."""
        known = self.initial if self.known is None else self.known
        return known == _known(self.scenario.model)


class Watches:
    """The scenario."""

    def __init__(self, world: World, capabilities: Capabilities) -> None:
        random = world.random
        self.world = world
        self.capabilities = capabilities
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
            self.world.tell("store", f"has revision {model.revision}: {_known(model)}")


def history(world: World) -> None:
    """Watches of a store with history."""
    Watches(world, QUEUE).run()


def states(world: World) -> None:
    """Watches of a store without."""
    Watches(world, SINGLE).run()


def _apply(known: Known, event: Event) -> None:
    if event.type is EventType.DELETE:
        known.pop(event.key, None)
    else:
        known[event.key] = event.value


def _known(model: Model) -> Known:
    return {key: entry.value for key, entry in model.entries.items() if key in _SPAN}


def _never() -> bool:
    return False


def _nothing() -> None:
    """Nobody does anything."""
