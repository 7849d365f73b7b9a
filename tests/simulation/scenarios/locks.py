"""Locks: contended by threads of several processes, and one after the other by idle leases.

*At every step*: at most one holder of a name says ``held``; then the store has its lease; and what
was not held any more stays so. *At the store*: a guarded write of an earlier holder never follows
one of a later; none is applied twice, nor after its writer was told "no". *At each entry*: the
fence has grown. *In the calm*: everybody comes to an end in time, and a second after the leases'
time the lock can be had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kvi.capabilities import Capabilities
from kvi.errors import Closed, KviError, LeaseLost
from kvi.flow.contest import Contest, StoreLock
from kvi.flow.lock import LockFlow
from kvi.flow.scope import Scope
from kvi.model import Claim, Put, Txn
from kvi.ops import TxnOp
from kvi.policy.txn import Change
from kvi.port import Cancelled

from tests.simulation.client import Client
from tests.simulation.model import Model
from tests.simulation.nemesis import Nemesis, rough
from tests.simulation.network import Network, Weather
from tests.simulation.store import QUEUE, SINGLE
from tests.simulation.world import START, World

_HOLD = 0.3  # seconds that a lock is held in the calm


class Kind(NamedTuple):
    """What is contended for.

    Attributes:
        contest: of one object.
        admits: whether those may hold at once.
        exclusive: only one may, and its fence is larger than all before.
        marks: what crashes leave stands for a ttl.
        keeps: a release whose answer is lost is tried again.

    """

    contest: Callable[[Scope, str], Contest]
    admits: Callable[[list[LockFlow]], bool] = lambda held: len(held) <= 1
    exclusive: bool = True
    marks: bool = False
    keeps: bool = False


LOCK = Kind(lambda scope, name: StoreLock(name, scope.capabilities))


class Holder:
    """Somebody who was told that he has a lock."""

    __slots__ = ("claim", "gone", "lock")

    def __init__(self, lock: LockFlow, claim: Claim) -> None:
        self.lock = lock
        self.claim = claim
        self.gone = False  # ``held`` was false once


class Locks:
    """The scenario; ``names``: of the locks, ``reuse``: claims go astray, nothing else does."""

    kind = LOCK

    def __init__(
        self,
        world: World,
        capabilities: Capabilities,
        *,
        names: str = "a",
        reuse: bool = False,
    ) -> None:
        random = world.random
        self.world = world
        self.model = Model(world)
        self.network = Network(world, self.model)
        self.names = names
        self.capabilities = capabilities
        self.ttl = random.choice((2.0, 3.0, 5.0))
        self.timeout = random.choice((1.0, 3.0))
        self.storm = 2.0 + 6.0 * random.random()
        self.stormy = True
        self.inside: list[Holder] = []
        self.fences = dict.fromkeys(names, 0)
        self.applied: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.writes = 0
        self.rounds = 0
        self.clients: list[Client] = []
        contenders = random.randint(1 if reuse else 2, 3 if reuse else 4)
        while contenders > 0:
            retrying = reuse or random.random() < 0.5
            client = self._client(f"P{len(self.clients) + 1}", retrying=retrying)
            self.clients.append(client)
            for number in range(min(contenders, random.randint(1, 2))):
                contenders -= 1
                rounds = random.randint(1, 3) + 2 * reuse
                self.rounds += rounds
                client.program(f"program {number}", self._contend(client, rounds))
        if reuse:
            self.network.weather = Weather(reset=0.2)
        else:
            rough(self.network)
        self.early = capabilities.lock_delay_factor > 0
        self.nemesis = Nemesis(
            self.network, self.clients, self.storm, most=0 if reuse else 3, early=self.early
        )
        self.model.witness = self._witness
        world.check = self._check

    def run(self) -> None:
        """Run one schedule."""
        world = self.world
        world.run(self._quiet, START + self.storm)
        self.stormy = False
        self.nemesis.calm()
        handover = 0.5 if self.capabilities.watch_history else 1.5  # without, it looks again
        if self.early or self.kind.marks:  # what is lost stands for its time
            handover += self.ttl + 1.0
        bound = self.timeout + self.ttl + 4.0 + self.rounds * (_HOLD + handover)
        began = world.time
        if not world.run(self._quiet, began + bound):
            world.fail(f"somebody still waits {bound:.1f} s after all is well")
        if world.time < began + 1.0:  # what was late has come by then
            world.run(_never, began + 1.0)
        world.run(_never, world.time + self.ttl + 1.0)
        probe = self._client("probe", retrying=False)
        for name in self.names:
            probe.program("probe", self._probe(probe, name))
        if not world.run(lambda: probe.idle, world.time + 5.0 + 2 * self.ttl):
            world.fail("a lock that nobody wants does not answer")
        for client in (*self.clients, probe):
            client.ensure_well()

    def _client(self, name: str, *, retrying: bool) -> Client:
        return Client(
            self.network, name, self.capabilities, timeout=self.timeout, retrying=retrying
        )

    def _quiet(self) -> bool:
        return all(client.idle for client in self.clients)

    async def _probe(self, client: Client, name: str) -> None:
        lock = self._lock(client, name)
        wait = self.ttl + 2.0 if self.early or self.kind.marks else 0
        if not await client.call(lambda port: lock.acquire(port, wait)):
            self.world.fail(f"lock {name} is blocked, and nobody holds it")

    async def _contend(self, client: Client, rounds: int) -> None:
        for _ in range(rounds):
            lock = self._lock(client, self.world.random.choice(self.names))
            try:
                await self._try(client, lock)
            except Closed:
                return
            except (KviError, Cancelled) as error:
                if self.world.story is not None:
                    self.world.tell(client.name, f"has no lock {lock.name}: {error!r}")

    def _lock(self, client: Client, name: str) -> LockFlow:
        return LockFlow(client.scope, self.kind.contest(client.scope, name), self.ttl)

    async def _try(self, client: Client, lock: LockFlow) -> None:
        random = self.world.random
        await client.port.sleep(random.random() * (2.0 if self.stormy else 0.1))
        wait = random.choice((None, None, 0, 4.0 * random.random()))
        got = await client.call(
            lambda port: lock.acquire(port, wait), undo=lambda _: lock.give_up()
        )
        if got:
            await self._hold(client, lock)

    async def _hold(self, client: Client, lock: LockFlow) -> None:
        world, random, claim = self.world, self.world.random, lock.claim
        assert claim is not None  # it has just been acquired
        if world.story is not None:
            world.tell(client.name, f"HAS lock {lock.name}, fence {claim.fence}")
        if lock.held and self.kind.exclusive:  # else it was lost before its caller could look
            if claim.fence <= self.fences[lock.name]:
                world.fail(f"the fence of lock {lock.name} does not grow: {claim.fence}")
            self.fences[lock.name] = claim.fence
        holder = Holder(lock, claim)
        self.inside.append(holder)
        self._check()
        try:
            while random.random() < (0.7 if self.stormy else 0.3):
                await client.port.sleep(random.random() * (2.0 if self.stormy else _HOLD / 3))
                if lock.held and random.random() < 0.5:
                    await self._write(client, lock, claim)
        finally:
            self.inside.remove(holder)
            if not world.over:
                await self._release(client, lock)

    async def _release(self, client: Client, lock: LockFlow) -> None:
        lease, timeout = lock.lease, self.timeout
        assert lease is not None  # it was acquired
        alive = lease.alive
        if self.world.story is not None:
            self.world.tell(client.name, f"releases lock {lock.name}")
        try:
            await client.call(
                lambda port: lock.release(port, timeout, keep=self.kind.keeps), lasting=True
            )
        except LeaseLost:
            if alive and self.world.time < lease.term.deadline and not self.early:
                self.world.fail(f"a release of lock {lock.name} says that it was lost; it was not")
            raise

    async def _write(self, client: Client, lock: LockFlow, claim: Claim) -> None:
        """Write what only a holder may."""
        self.writes += 1
        token = b"%d %d" % (claim.fence, self.writes)
        op = TxnOp(Txn((claim.guard,), (Put(f"{lock.name}-data", token),)))
        done = await client.call(
            lambda port: client.scope.execute(port, op, self.timeout),
        )
        if not done.succeeded:
            self.refused.add(token)
            if token in self.applied:
                self.world.fail(f"the write {token!r} was applied, and its writer told that not")

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        for key, old, new in changes:
            if new is not None and key.endswith("-data"):
                token = new.value
                assert token is not None  # it was written
                if token in self.applied:
                    self.world.fail(f"the write {token!r} was applied twice")
                if token in self.refused:
                    self.world.fail(f"the write {token!r} was applied after it had been refused")
                self.applied.add(token)
                if (
                    self.kind.exclusive
                    and old is not None
                    and int(token.split()[0]) < int(_bytes(old.value).split()[0])
                ):
                    self.world.fail(f"the write {token!r} of an earlier holder passed its guard")

    def _check(self) -> None:
        if not self.inside:
            return
        held: dict[str, list[LockFlow]] = {}
        for holder in self.inside:
            lock = holder.lock
            if not lock.held:
                holder.gone = True
                continue
            lease = lock.lease
            assert lease is not None  # it is held
            if holder.gone:
                self.world.fail(f"lock {lock.name} is held again, after it was not")
            held.setdefault(lock.name, []).append(lock)
            if lease.id not in self.model.leases and not self.early:
                self.world.fail(f"lock {lock.name} is held, and its lease {lease.id} has ended")
        for name, locks in held.items():
            if not self.kind.admits(locks):
                self.world.fail(f"lock {name} is held by {len(locks)}")


def contended(world: World) -> None:
    """Two to four contend for a lock with a queue."""
    Locks(world, QUEUE).run()


def single(world: World) -> None:
    """Two to four contend for a lock of a single key, on a store without history."""
    Locks(world, SINGLE).run()


def reuse(world: World) -> None:
    """Few take two locks in turn, by the same leases; answers to claims get lost."""
    capabilities = QUEUE if world.random.random() < 0.7 else SINGLE
    Locks(world, capabilities, names="ab", reuse=True).run()


def _bytes(value: bytes | None) -> bytes:
    assert value is not None  # it was written
    return value


def _never() -> bool:
    return False
