"""Groups: members that say something else, are lost, join again, and leave; and who watches them.

*At the store*: a member never says again what it said before its last update that worked, nor what
an update that surely failed would have said; and once it has been told that it left, nothing of it
comes back. No two that have one id are members at once. *To those who look*: what is told was
there, at one moment while it was asked for; what a watch tells adds up, to the truth in the calm.
*In the calm*: whoever has not left is there again, with its present value; in the end nothing
stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from kvi.errors import AlreadyHeld, Closed, KviError, LeaseLost, NotHeld, OutcomeUnknown
from kvi.flow.recipes.group import (
    MemberEventType,
    MemberFlow,
    MemberInfo,
    _info,
    changes,
    group,
    members_of,
    observing,
)
from kvi.model import KeyValue
from kvi.policy.line import MEMBER, Place
from kvi.policy.txn import Change
from kvi.port import Cancelled, Flow, Port

from tests.simulation.client import Client
from tests.simulation.scenarios.registers import Sharing
from tests.simulation.world import START, Task, World

_PLACE = Place("g")
_MEMBERS = f"{_PLACE.root}{MEMBER}"

Known = dict[str, MemberInfo]  # by id


@dataclass(slots=True, eq=False)
class Membership:
    """One membership, as its process has it.

    Attributes:
        client: whose it is.
        flow: it.
        said: what it was asked to say, in order.
        sure: how many of them were said, or followed by one that was.
        refused: what surely was not said.
        joined: when, as others see it; 0 before.
        leaves: it was asked to leave, or dropped.
        left: it was told that it has left.
        taken: another has, or had, the id.

    """

    client: Client = field(repr=False)
    flow: MemberFlow = field(repr=False)
    said: list[bytes]
    sure: int = 0
    refused: set[bytes] = field(default_factory=set)
    joined: int = 0
    leaves: bool = False
    left: bool = False
    taken: bool = False

    def holder(self) -> object | None:
        """The object that the program has, if it has it still."""
        return None if self.leaves else self

    @property
    def there(self) -> bool:
        """Whether it is to be there once all is well."""
        client = self.client
        return not (self.leaves or self.taken or client.dead or client.scope.closed)


class Members(Sharing):
    """A group."""

    def __init__(self, world: World) -> None:
        super().__init__(world, early=True)
        random = world.random
        self.values = count(1)
        self.memberships: list[Membership] = []
        self.by_value: dict[bytes, Membership] = {}
        self.states: list[Known] = [{}]  # one after the other
        self.views: list[tuple[Client, Known]] = []  # what those who watch know
        self.watchers: list[Task] = []
        self.checked = False
        self.deletes = random.random() < 0.3
        for client in self.clients:
            if random.random() < 0.7:
                watching = world.spawn(client.process, "watcher", self._watch(client))
                self.watchers.append(watching)
        self.forgets = random.random() < 0.3
        for _ in range(random.randint(0, 3) if self.deletes else 0):
            world.at(START + self.storm * random.random(), None, self._delete)

    # -- members ----------------------------------------------------------------------------------

    async def _work(self, client: Client) -> None:
        random = self.world.random
        try:
            while True:
                await client.port.sleep(random.random() * 0.5)
                membership = await self._join(client)
                if membership is not None:
                    client.program("updater", self._update(membership))
                    await self._be(membership)
                if not self.stormy:
                    return
        except (Closed, Cancelled):
            return

    async def _be(self, membership: Membership) -> None:
        port, random = membership.client.port, self.world.random
        try:
            await port.sleep(random.random() * 4.0)
            stays = random.random() < 0.5
            while stays and not self.checked:
                await port.sleep(0.5)
            await self._leave(membership)
        finally:
            membership.leaves = True  # who has it left it, or drops it

    async def _join(self, client: Client) -> Membership | None:
        scope, random, value = client.scope, self.world.random, self._value()
        id = random.choice(("a", "b", client.name))
        flow = MemberFlow(scope, group(scope, "g"), id, value, self.ttl, rejoin=True)
        membership = self.by_value[value] = Membership(client, flow, [value])
        membership.taken = id in self.states[-1]
        self.memberships.append(membership)
        self._tell(client, f"joins as {id}, saying {value!r}")
        try:
            await client.call(
                lambda port: flow.join(port, membership.holder), undo=lambda _: flow.let_go()
            )
        except (Closed, Cancelled):
            membership.leaves = True
            raise
        except KviError as error:
            self._tell(client, f"has not joined as {id}: {error!r}")
            if isinstance(error, AlreadyHeld) and not membership.taken:
                self.world.fail(f"nobody else has {id}: {error!r}")
            membership.leaves = True
            return None
        self._tell(client, f"IS {id}")
        membership.sure = 1
        return membership

    async def _update(self, membership: Membership) -> None:
        random, client, flow = self.world.random, membership.client, membership.flow
        for _ in range(random.randint(0, 4)):
            await client.port.sleep(random.random() * 1.5)
            if not self.stormy or membership.leaves:
                return
            value = self._value()
            self.by_value[value] = membership
            membership.said.append(value)
            self._tell(client, f"{flow.id} is to say {value!r}")
            try:
                await client.call(_updating(flow, value))
            except (Closed, Cancelled):
                return
            except KviError as error:
                self._tell(client, f"{flow.id} may not say {value!r}: {error!r}")
                self._refused(membership, value, error)
            else:
                self._tell(client, f"{flow.id} SAYS {value!r}")
                membership.sure = len(membership.said)
                info = self.states[-1].get(flow.id)
                if info is not None and self.by_value[info.value] is membership:
                    self._ensure_newest(membership, info)

    def _refused(self, membership: Membership, value: bytes, error: KviError) -> None:
        if isinstance(error, OutcomeUnknown):
            return
        if isinstance(error, (NotHeld, AlreadyHeld)):
            gone = membership.leaves if type(error) is NotHeld else membership.taken
            if not gone:
                self.world.fail(f"it is a member, and is told that it is not: {error!r}")
        if isinstance(error, (LeaseLost, AlreadyHeld)):
            return  # if it joins again, then with this
        membership.refused.add(value)
        if any(one.value == value for one in self.states[-1].values()):
            self.world.fail(f"{value!r} is said, and was refused: {error!r}")

    async def _leave(self, membership: Membership) -> None:
        client, flow, random = membership.client, membership.flow, self.world.random
        membership.leaves = True
        if random.random() < 0.15:
            self._tell(client, f"{flow.id} is dropped")
            return
        while True:
            self._tell(client, f"{flow.id} leaves")
            try:
                await client.call(lambda port: flow.leave(port, self.timeout))
            except (Closed, Cancelled):
                raise
            except KviError as error:
                self._tell(client, f"{flow.id} may not have left: {error!r}")
                if self.stormy and random.random() < 0.3:
                    return
                await client.port.sleep(0.1)
            else:
                break
        self._tell(client, f"{flow.id} HAS LEFT")
        membership.left = True
        for info in self.states[-1].values():
            if self.by_value[info.value] is membership:
                self.world.fail(f"it has left, and is there: {info}")

    def _value(self) -> bytes:
        return b"%d" % next(self.values)

    # -- those who look ---------------------------------------------------------------------------

    async def _watch(self, client: Client) -> None:
        """As the faces have it."""
        flow = observing(client.scope, group(client.scope, "g"))
        known: list[MemberInfo] = []
        view: Known = {}
        self.views.append((client, view))
        since = 0
        while True:
            try:
                if self.world.random.random() < 0.1:
                    await self._look(client)
                found = await client.call(flow.next)
            except (Closed, Cancelled):
                self.views = [one for one in self.views if one[1] is not view]
                return
            except KviError as error:
                self._tell(client, f"looks again: {error!r}")
                await client.port.sleep(0.1)
                continue
            since = self._ensure_true(found, since)
            for what, member in changes(known, found):
                if (what is MemberEventType.JOINED) is (member.id in view):
                    self.world.fail(f"{member} {what}, and there was {view}")
                if what is MemberEventType.LEFT:
                    del view[member.id]
                else:
                    view[member.id] = member
            known = found
            flow.told(found)
            self._tell(client, f"KNOWS {[*view.values()]}")
            await client.port.sleep(self.world.random.random() * 0.3)

    async def _look(self, client: Client) -> None:
        owner, since = group(client.scope, "g"), len(self.states) - 1
        found = await client.call(lambda port: members_of(client.scope, self._call(port), owner))
        self._ensure_true(found, since)

    def _ensure_true(self, found: list[MemberInfo], since: int) -> int:
        """Since when it was there; it was not before another."""
        if found != sorted(found, key=lambda one: (one.joined, one.id)):
            self.world.fail(f"in the order of their joining: {found}")
        state = {one.id: one for one in found}
        for which in range(since, len(self.states)):
            if self.states[which] == state:
                return which
        self.world.fail(f"this was never there, or long ago: {found}")
        return since

    # -- the calm ---------------------------------------------------------------------------------

    def _ease(self) -> None:
        patience = self.timeout + self.ttl + 4.0  # seconds after which all know
        self.world.at(self.world.time + patience, None, self._check_calm)

    def _check_calm(self) -> None:
        self.checked, state = True, self.states[-1]
        for one in self.memberships:
            said = state.get(one.flow.id)
            if one.there and one.sure:
                self._tell(one.client, f"{one} is there")
                if not one.flow.alive or said is None or self.by_value[said.value] is not one:
                    self.world.fail(f"{one} is to be there, not {said}")
        for client, view in self.views:
            if not client.dead and view != state:
                self.world.fail(f"{client.name} knows {view}, and there is {state}")

    async def _probe(self, client: Client) -> None:
        """Nothing stays."""
        await client.port.sleep(2.0 * self.ttl + 2.0)
        if self.model.entries:
            self.world.fail(f"members have left {sorted(self.model.entries)}")
        for watcher in self.watchers:
            if watcher.error is not None:
                self.world.fail(f"who watches ends: {watcher.error!r}")
        for one, view in self.views:
            if not one.dead and view:
                self.world.fail(f"{one.name} knows {view}, and nobody is there")

    # -- the store --------------------------------------------------------------------------------

    def _forget(self) -> None:
        """The store forgets what has changed."""
        self.model.compact(self.model.revision)

    def _delete(self) -> None:
        """Somebody deletes a member's key."""
        keys = [key for key in self.model.entries if key.startswith(_MEMBERS)]
        if keys and self.stormy:
            key = self.world.random.choice(sorted(keys))
            self.world.tell("store", f"{key} is deleted")
            self.model.delete(key)

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        if self.forgets and self.world.random.random() < 0.5:
            self.world.soon(None, self._forget)
        state = dict(self.states[-1])
        for key, _, new in changes:
            if not key.startswith(_MEMBERS):
                continue
            id = key.removeprefix(_MEMBERS)
            state.pop(id, None)
            if new is not None:
                state[id] = self._said(id, new)
        self.states.append(state)

    def _said(self, id: str, entry: KeyValue) -> MemberInfo:
        info = _info(id, entry)
        one = self.by_value[info.value]
        for other in self.memberships:
            if other is not one and other.flow.id == id:
                other.taken = True
                if other.flow.joined and other.flow.alive and not (self.early or self.deletes):
                    self.world.fail(f"another has the id: {other}")
        if self.deletes:  # then a first put that comes late may make the key anew, for a while
            return info
        if one.left:
            self.world.fail(f"it has left, and comes back: {info}")
        if info.value in one.refused:
            self.world.fail(f"this was refused: {info}")
        self._ensure_newest(one, info)
        if one.joined and info.joined != one.joined:
            self.world.fail(f"it has joined at {one.joined}: {info}")
        one.joined = info.joined
        return info

    def _ensure_newest(self, one: Membership, info: MemberInfo) -> None:
        if one.said.index(info.value) < one.sure - 1:
            self.world.fail(f"this was said before {one.said[one.sure - 1]!r}: {info}")


def _updating(flow: MemberFlow, value: bytes) -> Callable[[Port], Flow[None]]:
    return lambda port: flow.update(port, value)


def gathering(world: World) -> None:
    """Two or three processes have members in a group."""
    Members(world).run()
