"""Caches: live copies of what a store has, which is written, forgotten, and restored meanwhile.

*At every moment*: the copy has every change up to the revision, and up to the moment, that it
claims. *What is told*: adds up to the copy, change by change; a key that was deleted and created
anew is told as both. *In the calm*: whoever waits for a revision that was written is told soon, and
the copies are the truth; a cache that is closed tells nothing more, and wakes who waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from kvi.errors import Closed, KviError
from kvi.flow.recipes.cache import CacheChange, CacheFlow
from kvi.flow.scope import PASSING
from kvi.policy.txn import Change
from kvi.port import Cancelled, Flow, Port

from tests.simulation.client import Client
from tests.simulation.scenarios.registers import Sharing
from tests.simulation.world import START, World

_PREFIX = "c/"
_KEYS = ("c/a", "c/b", "c/c", "z")


@dataclass(slots=True, eq=False)
class Copy:
    """One cache, and what was told of it.

    Attributes:
        client: whose it is.
        flow: it.
        told: what the changes add up to; ``None`` before it is loaded.
        closed: it was closed.

    """

    client: Client = field(repr=False)
    flow: CacheFlow = field(repr=False)
    told: dict[str, bytes] | None = None
    closed: bool = False

    @property
    def lives(self) -> bool:
        """Whether it follows the store."""
        client = self.client
        gone = self.closed or client.dead or client.scope.closed
        return self.told is not None and not gone


class _State:
    """A value of a key, or ``None``, from some moment on."""

    __slots__ = ("revision", "time", "value")

    def __init__(self, value: bytes | None, revision: int, time: float) -> None:
        self.value, self.revision, self.time = value, revision, time


class Copies(Sharing):
    """Caches of some keys."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        random = world.random
        self.history: dict[str, list[_State]] = {key: [_State(None, 0, 0.0)] for key in _KEYS}
        self.born: dict[bytes, int] = {}  # by value: in which life of its key
        self.values = count(1)
        self.lives = count(1)
        self.copies: list[Copy] = []
        self.failed = False
        self.saved = self.model.snapshot()
        self.restores = self.capabilities.watch_history and random.random() < 0.3
        self.max_age = random.choice((None, None, 1.0))
        for _ in range(random.randint(0, 4)):
            self._write()
        for client in self.clients:
            client.store.between = self._between
        self._next()

    # -- those who copy ---------------------------------------------------------------------------

    async def _work(self, client: Client) -> None:
        random = self.world.random
        try:
            while True:
                flow = CacheFlow(client.scope, _PREFIX, self.max_age)
                copy = Copy(client, flow)
                self.copies.append(copy)
                await self._load(copy)
                for _ in range(random.randint(0, 2)):
                    client.program("waiter", self._wait(copy))
                end = self.world.time + random.random() * 4.0
                while self.world.time < end:
                    await client.port.sleep(random.random() * 0.3)
                    self._ensure_as_claimed(copy)
                if not self.stormy or random.random() < 0.5:
                    return  # it goes on to the end
                self._tell(client, "closes a cache")
                copy.closed = True
                flow.end()
        except (Closed, Cancelled):
            return

    async def _load(self, copy: Copy) -> None:
        client, flow = copy.client, copy.flow
        while True:
            try:
                await client.call(flow.load)
            except PASSING as error:
                self._tell(client, f"cannot copy: {error!r}")
                await client.port.sleep(0.1)
            else:
                break
        copy.told = dict(flow.values)
        flow.told.append(lambda change: self._told(copy, change))
        self._tell(client, f"COPIES {copy.told} at {flow.revision}")
        self._ensure_as_claimed(copy)

    async def _wait(self, copy: Copy) -> None:
        random, client, flow = self.world.random, copy.client, copy.flow
        while self.stormy and copy.lives:
            await client.port.sleep(random.random())
            wanted = self._newest()
            seconds = 4.0 * random.random() if self.restores else random.choice((1.0, 1e9))
            self._tell(client, f"waits for {wanted}")
            try:
                done = await client.call(_waiting(flow, wanted, seconds))
            except (Closed, Cancelled):
                return
            except KviError as error:
                self._tell(client, f"waits no more: {error!r}")
                continue
            self._tell(client, f"HAS {flow.values} at {flow.revision}, {wanted}: {done}")
            if done:
                self._ensure_known(copy, revision=wanted)
            elif seconds > 1e6:
                self.world.fail(f"it does not wait, though it has time: {flow.revision}")

    def _newest(self) -> int:
        """A revision that a wait is for."""
        if self.capabilities.snapshot_range:
            return self.model.revision
        copied = [states for key, states in self.history.items() if key.startswith(_PREFIX)]
        return max(states[-1].revision for states in copied)

    def _told(self, copy: Copy, change: CacheChange) -> None:
        told = copy.told
        assert told is not None  # it is loaded
        if self.failed:
            return  # the cache has caught that, as what any call-back raises
        self.failed = True
        self._tell(copy.client, f"is told {change}")
        if copy.closed:
            self.world.fail(f"it is closed, and is told {change}")
        if told.get(change.key) != change.before or change.before == change.value is None:
            self.world.fail(f"there was {told}, and this is told: {change}")
        if change.value is None:
            del told[change.key]
        else:
            told[change.key] = change.value
        if change.before is not None and change.value is not None and not self.restores:
            lives = {self.born[value] for value in (change.before, change.value)}
            if len(lives) > 1:
                self.world.fail(f"a deletion was not told: {change}")
        self.failed = False

    # -- what is claimed --------------------------------------------------------------------------

    def _ensure_as_claimed(self, copy: Copy) -> None:
        flow = copy.flow
        if list(flow.copy()) != sorted(flow.values) or list(flow.keys()) != sorted(flow.values):
            self.world.fail(f"it is not sorted: {flow.copy()}")
        self._ensure_known(copy, time=self.world.time - flow.age)
        self._ensure_known(copy, revision=flow.revision)

    def _ensure_known(
        self, copy: Copy, *, revision: int | None = None, time: float | None = None
    ) -> None:
        if self.restores:
            return  # a revision is not of one moment, until the watch has told
        for key, states in self.history.items():
            if not key.startswith(_PREFIX):
                continue
            since = len(states) - 1
            while since and (
                states[since].time > time if time is not None else states[since].revision > revision  # type: ignore[operator]
            ):
                since -= 1
            mine = copy.flow.values.get(key.removeprefix(_PREFIX))
            if all(state.value != mine for state in states[since:]):
                claimed = f"revision {revision}" if time is None else f"{time - START:.3f}"
                self.world.fail(f"{key} is {mine!r}, and was not since {claimed}")

    # -- the store --------------------------------------------------------------------------------

    def _between(self) -> None:
        """What others do between two steps of a feed."""
        if self.stormy and self.world.random.random() < 0.3:
            self._write()
            self.model.compact(self.model.revision)

    def _next(self) -> None:
        if self.stormy:
            due = self.world.time + self.world.random.random() * 0.5
            self.world.at(due, None, self._act)

    def _act(self) -> None:
        if not self.stormy:
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
            for key in _KEYS:
                entry = self.model.entries.get(key)
                self._note(key, None if entry is None else entry.value)
        self._next()

    def _write(self) -> None:
        """Put a key; or delete one, and perhaps make it anew at once."""
        random, model = self.world.random, self.model
        key = random.choice(_KEYS)
        gone = random.random()
        if key in model.entries and gone < 0.5:
            model.delete(key)
        if gone > 0.3 or key not in model.entries:
            model.put(key, b"%d" % next(self.values))

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        for key, old, new in changes:
            if new is not None:
                life = next(self.lives) if old is None else self.born[old.value or b""]
                self.born[new.value or b""] = life
            self._note(key, None if new is None else new.value)

    def _note(self, key: str, value: bytes | None) -> None:
        state = _State(value, self.model.revision, self.world.time)
        self.history[key].append(state)

    # -- the calm ---------------------------------------------------------------------------------

    async def _probe(self, client: Client) -> None:
        """All copies are the truth by now."""
        await client.port.sleep(self.timeout + 3.0)
        entries = self.model.entries.items()
        truth = {k.removeprefix(_PREFIX): v.value for k, v in entries if k.startswith(_PREFIX)}
        mine = Copy(client, CacheFlow(client.scope, _PREFIX, self.max_age))
        await self._load(mine)
        for copy in (*self.copies, mine):
            if not copy.lives:
                continue
            if not copy.told == copy.flow.values == truth:
                self.world.fail(f"{truth} is there, {copy.flow.values} copied, {copy.told} told")
            if self.max_age is not None and copy.flow.age > self.max_age:
                self.world.fail(f"all is well, and the copy is {copy.flow.age:.1f} s old")
            if not await copy.client.call(_waiting(copy.flow, self._newest(), 3.0)):
                self.world.fail(f"all is well, and the copy is at {copy.flow.revision}")


def _waiting(flow: CacheFlow, revision: int, seconds: float) -> Callable[[Port], Flow[bool]]:
    return lambda port: flow.wait(port, revision, seconds)


def cache(world: World) -> None:
    """Two or three processes have caches."""
    Copies(world).run()
