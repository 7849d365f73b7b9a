"""Following a prefix as a whole, as live settings do, while the store is written and restored.

*Whatever is told*: was the state of the store at one moment, behind the one that it claims; so what
one transaction changed is never told in part. States are told in the order of their reading, and
nothing is told once it has ended. *In the calm*: what was told last is the truth, soon, though the
interval is an hour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from kvi.errors import Closed, KviError
from kvi.flow.recipes.following import FollowFlow, Seen
from kvi.flow.scope import PASSING
from kvi.model import Put, Txn
from kvi.policy.txn import Change
from kvi.port import Cancelled

from tests.simulation.client import Client
from tests.simulation.scenarios.registers import Sharing
from tests.simulation.world import World

_PREFIX = "s/"
_KEYS = ("s/a", "s/b", "s/c", "z")
_LONG = 3600.0  # seconds; nothing may count on the interval

State = dict[str, bytes]


@dataclass(slots=True, eq=False)
class Follower:
    """One flow, and what it has told.

    Attributes:
        client: whose it is.
        flow: it.
        last: what was told last.
        begun: it tells what changes.
        ended: it was asked to end.

    """

    client: Client = field(repr=False)
    flow: FollowFlow = field(init=False, repr=False)
    last: Seen | None = None
    begun: bool = False
    ended: bool = False

    @property
    def lives(self) -> bool:
        """Whether it follows the store."""
        gone = self.ended or self.client.dead or self.client.scope.closed
        return self.begun and not gone


class Followers(Sharing):
    """Two or three processes follow the same prefix."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.values = count(1)
        self.states: list[tuple[float, State]] = [(0.0, {})]  # since when
        self.followers: list[Follower] = []
        self.saved = self.model.snapshot()
        self.restores = self.capabilities.watch_history and world.random.random() < 0.3
        for _ in range(world.random.randint(0, 3)):
            self._write()
        self._next()

    # -- those who follow -------------------------------------------------------------------------

    async def _work(self, client: Client) -> None:
        random = self.world.random
        try:
            while True:
                follower = self._follow(client)
                await self._begin(follower)
                await client.port.sleep(random.random() * 4.0)
                if not self.stormy or random.random() < 0.5:
                    return  # it goes on to the end
                self._tell(client, "ends it")
                follower.ended = True
                follower.flow.end()
        except (Closed, Cancelled):
            return

    def _follow(self, client: Client) -> Follower:
        follower = Follower(client)
        follower.flow = FollowFlow(
            client.scope,
            _PREFIX,
            _LONG,
            lambda seen, error: self._told(follower, seen, error),
        )
        self.followers.append(follower)
        return follower

    async def _begin(self, follower: Follower) -> None:
        client, flow = follower.client, follower.flow
        try:
            seen = await client.call(flow.look)
        except PASSING as error:
            self._tell(client, f"begins without the store: {error!r}")
            follower.begun = True
            flow.go(at_once=True)
            return
        self._told(follower, seen, None)
        follower.begun = True
        flow.go(at_once=False)

    def _told(self, follower: Follower, seen: Seen | None, error: KviError | None) -> None:
        self._tell(follower.client, f"is told {seen or error!r}")
        if follower.ended:
            self.world.fail("it has ended, and tells something")
        if seen is None:
            return
        last = follower.last
        if last is not None and seen.asked < last.asked:
            self.world.fail(f"it goes back: {last} came before {seen}")
        follower.last = seen
        since = len(self.states) - 1
        while since and self.states[since][0] > seen.asked:
            since -= 1
        if all(state != seen.entries for _, state in self.states[since:]):
            self.world.fail(f"{seen.entries} was never there since {seen.asked:.3f}")

    # -- the store --------------------------------------------------------------------------------

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
            self._note()
        self._next()

    def _write(self) -> None:
        """Change several keys in one transaction, or delete some."""
        random, model = self.world.random, self.model
        keys = random.sample(_KEYS, random.randint(1, 3))
        there = [key for key in keys if key in model.entries]
        if there and random.random() < 0.3:
            model.delete(*there)
        else:
            value = b"%d" % next(self.values)
            model.transact(Txn(then=tuple(Put(key, value) for key in keys)))

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        self._note()

    def _note(self) -> None:
        entries = self.model.entries.items()
        state = {
            key.removeprefix(_PREFIX): entry.value or b""
            for key, entry in entries
            if key.startswith(_PREFIX)
        }
        self.states.append((self.world.time, state))

    # -- the calm ---------------------------------------------------------------------------------

    async def _probe(self, client: Client) -> None:
        """Whoever follows has the truth by now."""
        await client.port.sleep(2 * self.timeout + 5.0)
        truth = self.states[-1][1]
        for follower in self.followers:
            if follower.lives and (follower.last is None or follower.last.entries != truth):
                self.world.fail(f"{truth} is there, and this was told: {follower.last}")


def following(world: World) -> None:
    """Two or three processes follow a prefix."""
    Followers(world).run()
