"""Recipes that stand in line: semaphores, read-write locks, slots and elections.

What holds of locks holds of them, but for who may hold at once. *At the store*, besides: whoever is
let in is let in under the limit of that very moment, also while it is changed.
"""

from __future__ import annotations

from functools import partial

from kvi.call import Call
from kvi.capabilities import Capabilities
from kvi.errors import KviError
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.election import ElectionLine
from kvi.flow.recipes.line import HOLDS
from kvi.flow.recipes.rwlock import READ, WRITE, ReadWriteLine
from kvi.flow.recipes.semaphore import SemaphoreLine, resize
from kvi.flow.recipes.slots import SlotLine
from kvi.flow.recipes.state import Owner
from kvi.flow.scope import PASSING
from kvi.policy.line import Place, loads
from kvi.policy.txn import Change
from kvi.port import Cancelled, Port

from tests.simulation.client import Client
from tests.simulation.scenarios.locks import Kind, Locks
from tests.simulation.store import EARLY, QUEUE, SINGLE
from tests.simulation.world import World


class Permits(Locks):
    """A semaphore, whose limit is changed now and then if leases keep their time."""

    recipe = SemaphoreLine

    def __init__(self, world: World, capabilities: Capabilities) -> None:
        self.limit = world.random.randint(1, 3)
        self.kind = Kind(
            lambda scope, name: self.recipe(self._owner(name)),
            self._admits,
            exclusive=False,
            marks=self.recipe is SlotLine,
        )
        self.resized = False
        super().__init__(world, capabilities)
        if self.recipe is SemaphoreLine and not self.early and world.random.random() < 0.5:
            self.resized = True
            client = self.clients[0]
            client.program("resizer", self._resize(client))

    def _admits(self, held: list[LockFlow]) -> bool:
        return self.resized or len(held) <= self.limit

    def _owner(self, name: str) -> Owner:
        """The right to the name, with the limit that it has."""
        entry = self.model.entries.get(Place(name).settings)
        limit = self.limit if entry is None else loads(entry.value)[self.recipe.setting]
        return Owner(self.recipe.kind, name, {self.recipe.setting: limit})

    async def _resize(self, client: Client) -> None:
        for _ in range(3):
            await client.port.sleep(self.world.random.random() * 2.0)
            limit = self.world.random.randint(1, 3)
            step = partial(self._resize_once, client, self._owner("a"), limit)
            try:
                await client.call(step)
            except (KviError, Cancelled) as error:
                self.world.tell(client.name, f"has not resized: {error!r}")

    async def _resize_once(self, client: Client, owner: Owner, limit: int, port: Port) -> None:
        await resize(client.scope, Call(port, port.now() + self.timeout), owner, limit)

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        super()._witness(revision, changes)
        place = Place("a")
        for key, _, new in changes:
            entered = key.startswith(place.root) and new is not None and new.lease is not None
            if new is None or not entered or loads(new.value).get("state") != HOLDS:
                continue
            state = place.read(revision, self.model.listing(place.span))
            assert state.settings is not None  # the first who came has stored them
            limit = loads(state.settings.value)[self.recipe.setting]
            holding = [one for one in state.line if one.said.get("state") == HOLDS]
            if len(holding) > limit:
                self.world.fail(f"{len(holding)} were let in, and the limit is {limit}")


class Places(Permits):
    """Slots."""

    recipe = SlotLine

    def _admits(self, held: list[LockFlow]) -> bool:
        taken = [lock.contest.index for lock in held if isinstance(lock.contest, SlotLine)]
        return len(set(taken)) == len(taken) <= self.limit and max(taken) < self.limit


class ReadersAndWriters(Locks):
    """A read-write lock; writers go on as readers now and then."""

    def __init__(self, world: World, capabilities: Capabilities) -> None:
        self.kind = Kind(
            lambda scope, name: ReadWriteLine(
                Owner(ReadWriteLine.kind, name), world.random.choice((READ, WRITE))
            ),
            _share,
            exclusive=False,
        )
        super().__init__(world, capabilities)

    async def _release(self, client: Client, lock: LockFlow) -> None:
        line = lock.contest
        assert isinstance(line, ReadWriteLine)  # it was made so
        try:
            if line.mode == WRITE and self.world.random.random() < 0.5:
                await client.call(
                    lambda port: line.downgrade(lock, Call(port, port.now() + self.timeout))
                )
                await client.port.sleep(self.world.random.random())
        except KviError as error:
            self.world.tell(client.name, f"does not go on as a reader: {error!r}")
        finally:
            if not self.world.over:
                await super()._release(client, lock)


def _share(held: list[LockFlow]) -> bool:
    modes = [lock.contest.mode for lock in held if isinstance(lock.contest, ReadWriteLine)]
    return len(modes) <= 1 or WRITE not in modes


class Candidates(Locks):
    """An election."""

    kind = Kind(lambda scope, name: ElectionLine(Owner(ElectionLine.kind, name), b"me"), keeps=True)

    async def _release(self, client: Client, lock: LockFlow) -> None:
        try:
            while True:
                try:
                    return await super()._release(client, lock)
                except PASSING as error:
                    self.world.tell(client.name, f"may be in the way still: {error!r}")
                    if lock.held:
                        self.world.fail("it leads, after it was asked to resign")
                await client.port.sleep(0.1)
        except Cancelled:
            lock.let_go()  # as the faces do, and an object that is dropped
            raise


def _some(world: World) -> Capabilities:
    return world.random.choice((QUEUE, SINGLE, EARLY))


def semaphore(world: World) -> None:
    """Two to four contend for the permits of a semaphore."""
    Permits(world, _some(world)).run()


def slots(world: World) -> None:
    """Two to four contend for slots."""
    Places(world, _some(world)).run()


def rwlock(world: World) -> None:
    """Two to four read and write."""
    ReadersAndWriters(world, _some(world)).run()


def election(world: World) -> None:
    """Two to four would like to lead."""
    Candidates(world, world.random.choice((QUEUE, SINGLE))).run()
