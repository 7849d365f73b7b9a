"""One consumer of a watch, who knows what must come next.

With history, what comes next is read off a log of all that ever happened, by epoch and revision.
The initial state, and that of a `RESYNC`, must be one that the store had; it decides from where on
the log is followed. Two epochs may have had the same state at the same revision: then the newer is
taken, and a second `RESYNC` is no surprise.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from kvi.errors import Closed, Compacted, KviError, Timeout
from kvi.feed import WatchSpec
from kvi.flow.watch import WatchFlow
from kvi.model import Event, EventType, Span
from kvi.policy.txn import Change
from kvi.port import Cancelled

from tests.simulation.client import Client
from tests.simulation.model import Model
from tests.simulation.world import Signal, World

SPAN = Span.of_prefix("k/")

Known = dict[str, bytes | None]
Entry = tuple[int, int, str, bytes | None]  # epoch, revision, key, value


class Scene(Protocol):
    """What a consumer needs of its scenario.

    Attributes:
        writing: the store still changes, and consumers take their time.
        resumable: a revision says where to go on, for the store is never restored.
        history: whether the store has one.

    """

    world: World
    model: Model
    log: Log
    timeout: float
    writing: bool
    resumable: bool
    history: bool


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
        self.states[model.epoch, model.revision] = known_of(model)

    def witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        """A commit."""
        for key, _, new in changes:
            if key in SPAN:
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

    def __init__(self, scene: Scene, client: Client, name: str) -> None:
        random = scene.world.random
        self.scene = scene
        self.world = scene.world
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
        self.called = random.random() < 0.3  # by call-back
        self.early: list[Event] | None = []  # call-backs before it is known where they begin

    async def run(self) -> None:
        """Watch until the handle is closed."""
        try:
            while not await self._begin_watch():
                await self._rest()
            early, self.early = self.early, None
            for event in early or ():
                self._accept(event)
            while not self.called:
                await self._take()
                if self.scene.resumable and self.world.random.random() < 0.05:
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
        client, model, log = self.client, self.scene.model, self.scene.log
        flow, timeout = WatchFlow(client.scope, None, None, None), self.scene.timeout
        if self.called:
            self.early = []
            flow = WatchFlow(client.scope, None, partial(self._call_back, self.early), None)
        initial = self.start is None and self.world.random.random() < 0.5
        spec = WatchSpec(SPAN, self.start, initial)
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

    def _call_back(self, early: list[Event], event: Event, _: object) -> None:
        if self.early is early:
            early.append(event)
        elif self.early is None:
            self._accept(event)

    async def _take(self) -> None:
        pace = self.pace if self.scene.writing else 0.0
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
        main = self.main and world.random.random() < 0.9  # or else another thread takes over
        flow.lending.asked = main
        try:
            event = None if self.client.scope.closed else flow.take(main=main)
            if event is None:
                event = await self._await(timeout, main)
            if main:
                if world.random.random() < 0.05:
                    raise Cancelled  # a handler raises, where no step of Python can be kept out
                flow.got(event)
            return event
        finally:
            flow.lending.asked = False

    async def _await(self, timeout: float | None, main: bool) -> Event:
        flow, world = self.flow, self.world
        signal = Signal(world)
        asking = flow.ask(world.time, timeout, main=main)
        try:
            asking.begin(signal)
            while not isinstance(found := asking.look(world.time), Event):
                await signal.wait(found)
            return found
        finally:
            flow.unwant(signal)

    def _accept(self, event: Event) -> None:
        if self.world.story is not None:
            what = {entry.key: entry.value for entry in event.snapshot or ()} or event.value
            self.world.tell(
                self.client.name,
                f"{self.name} gets {event.type} {event.key} {what!r} at {event.revision}",
            )
        if self.scene.history:
            self._accept_change(event)
            self._check_revision()
        else:
            self._accept_state(event)

    def _accept_change(self, event: Event) -> None:
        log = self.scene.log
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
        log = self.scene.log
        for epoch, revision in reversed(log.states):
            if log.states[epoch, revision] == self.initial:
                position = log.behind(epoch, revision)
                if position < len(log.entries) and log.entries[position][:2] == (epoch, first):
                    self.known, self.epoch, self.position = dict(self.initial), epoch, position
                    return
        self.world.fail(f"{self.name}: no state that the store had comes before the change {first}")

    def _accept_resync(self, event: Event) -> None:
        log, model = self.scene.log, self.scene.model
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
        entries = self.scene.log.entries
        if event.type is EventType.PUT and all(
            (event.revision, event.key, event.value) != entry[1:] for entry in entries
        ):
            self._fail(event, "there never was such a state")

    def _check_revision(self) -> None:
        complete, entries = self.flow.revision, self.scene.log.entries
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
        return known == known_of(self.scene.model)


def _apply(known: Known, event: Event) -> None:
    if event.type is EventType.DELETE:
        known.pop(event.key, None)
    else:
        known[event.key] = event.value


def known_of(model: Model) -> Known:
    """The watched keys as the store has them."""
    return {key: entry.value for key, entry in model.entries.items() if key in SPAN}
