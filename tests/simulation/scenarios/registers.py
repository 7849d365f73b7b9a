"""What many change by turns: counters, sequences, what is done once, and schedules.

*Counters*: every addition has an amount of its own, so that each change of the total tells whose it
was. None applies twice; what surely failed never applies; whoever is told a total was counted with
it; in the end every named addition has applied once. *Sequences*: no number is given twice, and
those of one caller grow. *Once*: at most one is at work, one result is recorded, whoever is told of
a success is told that one, and whoever is told that its turn was lost has not recorded.
*Schedules*: no time is begun twice, or with ``at_least_once`` while the one before has its turn or
after it was recorded; none is left out. *In the calm*: everybody comes to an end in time.
"""

from __future__ import annotations

from itertools import count

from kvi.call import Call
from kvi.errors import Closed, KviError, LeaseLost, OutcomeUnknown
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.counter import CounterFlow, SequenceFlow
from kvi.flow.recipes.once import Done, OnceLine, once, result_of
from kvi.flow.recipes.schedule import ScheduleFlow
from kvi.policy.line import loads
from kvi.policy.txn import Change
from kvi.port import Cancelled, Port

from tests.simulation.client import Client
from tests.simulation.model import Model
from tests.simulation.nemesis import Nemesis, rough
from tests.simulation.network import Network, Weather
from tests.simulation.store import EARLY, QUEUE, SINGLE
from tests.simulation.world import START, World

_PAUSE = 0.2  # seconds between two tries of the same


class Sharing:
    """Two or three processes that share something; a scenario says what each does."""

    most = 3

    def __init__(self, world: World, *, early: bool = False) -> None:
        random = world.random
        self.world = world
        self.model = Model(world)
        self.network = Network(world, self.model)
        self.capabilities = random.choice((QUEUE, SINGLE, EARLY) if early else (QUEUE, SINGLE))
        self.early = self.capabilities.lock_delay_factor > 0
        self.ttl = random.choice((2.0, 3.0))
        self.timeout = random.choice((1.0, 3.0))
        self.storm = 2.0 + 6.0 * random.random()
        self.stormy = True
        self.clients = [self._client(f"P{number}") for number in range(1, random.randint(3, 4))]
        rough(self.network)
        self.nemesis = Nemesis(
            self.network, self.clients, self.storm, most=self.most, early=self.early
        )
        self.model.witness = self._witness

    def run(self) -> None:
        """Run one schedule."""
        world = self.world
        for client in self.clients:
            for number in range(world.random.randint(1, 2)):
                client.program(f"program {number}", self._work(client))
        world.run(self._quiet, START + self.storm)
        self.stormy = False
        self.nemesis.calm()
        self._ease()
        bound = self.timeout + 4.0 * (self.ttl + 2.0) + 10.0
        if not world.run(self._quiet, world.time + bound):
            world.fail(f"somebody still waits {bound:.1f} s after all is well")
        world.run(_never, world.time + 1.0)  # what was late has come by then
        probe = self._client("probe")
        probe.program("probe", self._probe(probe))
        if not world.run(lambda: probe.idle, world.time + bound):
            world.fail("nobody is there any more, and it does not answer")
        for client in (*self.clients, probe):
            client.ensure_well()

    def _client(self, name: str) -> Client:
        retrying = self.world.random.random() < 0.5
        return Client(
            self.network, name, self.capabilities, timeout=self.timeout, retrying=retrying
        )

    def _quiet(self) -> bool:
        return all(client.idle for client in self.clients)

    def _call(self, port: Port) -> Call:
        return Call(port, port.now() + self.timeout)

    def _tell(self, client: Client, what: str) -> None:
        if self.world.story is not None:
            self.world.tell(client.name, what)

    async def _work(self, client: Client) -> None:
        raise NotImplementedError

    def _ease(self) -> None:
        """All is well from now on: what this needs so that everybody comes to an end."""

    async def _probe(self, client: Client) -> None:
        raise NotImplementedError

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        raise NotImplementedError


class Additions(Sharing):
    """A counter."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.numbers = count(1)
        self.applied: dict[int, int] = {}  # by amount: the total after it
        self.refused: set[int] = set()  # as those who added them were told
        self.doubtful: set[int] = set()
        self.named: set[int] = set()
        self.flows = {client.name: CounterFlow(client.scope, "c") for client in self.clients}

    async def _work(self, client: Client) -> None:
        random = self.world.random
        for _ in range(random.randint(1, 4)):
            amount = 2 ** next(self.numbers)
            named = random.random() < 0.7
            if named:
                self.named.add(amount)
            try:
                while not await self._add(client, amount, named) and named:
                    if random.random() < 0.2:
                        break  # somebody else sends it again
                    await client.port.sleep(_PAUSE * random.random())
            except (Closed, Cancelled):
                return

    async def _add(self, client: Client, amount: int, named: bool) -> bool:
        """Send it once; whether it was counted for sure."""
        flow = self.flows[client.name]
        op = (f"op{amount}", 3600.0) if named else None
        self.refused.discard(amount)
        self._tell(client, f"adds {amount}{' by name' if named else ''}")
        try:
            total = await client.call(
                lambda port: flow.add(client.scope, self._call(port), amount, op)
            )
        except (OutcomeUnknown, Closed, Cancelled) as error:
            self.doubtful.add(amount)
            self._tell(client, f"does not know of {amount}: {error!r}")
            if isinstance(error, OutcomeUnknown):
                return False
            raise
        except KviError as error:
            self._tell(client, f"has not added {amount}: {error!r}")
            if amount not in self.doubtful:  # else an earlier try may have applied
                self.refused.add(amount)
                if amount in self.applied:
                    self.world.fail(f"{amount} was added, and who did so told that it was not")
            return False
        if self.applied.get(amount) != total:
            self.world.fail(f"{amount} is said to have made {total}: {self.applied}")
        return True

    async def _probe(self, client: Client) -> None:
        self.flows[client.name] = CounterFlow(client.scope, "c")
        for amount in sorted(self.named):
            if not await self._add(client, amount, True):
                self.world.fail(f"{amount} cannot be added though all is well")
        total = await client.call(
            lambda port: self.flows[client.name].value(client.scope, self._call(port))
        )
        if total != sum(self.applied):
            self.world.fail(f"the total is {total}, of {sorted(self.applied)}")

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        for key, old, new in changes:
            if key != "c/.kvi/total" or new is None:
                continue
            before = 0 if old is None else loads(old.value)["total"]
            total = loads(new.value)["total"]
            amount = total - before
            if amount in self.applied:
                self.world.fail(f"{amount} was added twice")
            if amount in self.refused:
                self.world.fail(f"{amount} was added after it had failed")
            self.applied[amount] = total


class Numbers(Sharing):
    """A sequence."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.given: dict[int, str] = {}

    async def _work(self, client: Client) -> None:
        random = self.world.random
        flow = SequenceFlow(client.scope, "s", random.randint(1, 3))
        last = 0
        for _ in range(random.randint(2, 8)):
            try:
                number = flow.take()
                if number is None:
                    number = await client.call(
                        lambda port: flow.fetch(client.scope, self._call(port))
                    )
            except (Closed, Cancelled):
                return
            except KviError as error:
                self._tell(client, f"gets no number: {error!r}")
                await client.port.sleep(_PAUSE * random.random())
                continue
            self._tell(client, f"GETS {number}")
            if number in self.given:
                self.world.fail(f"{number} was given to {self.given[number]} and {client.name}")
            if number <= last:
                self.world.fail(f"{client.name} got {last}, and then {number}")
            self.given[number], last = client.name, number

    async def _probe(self, client: Client) -> None:
        await self._work(client)

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        """All is seen by who gets the numbers."""


class Doing(Sharing):
    """Something that is done once."""

    def __init__(self, world: World) -> None:
        super().__init__(world, early=True)
        self.tokens = count(1)
        self.recorded: bytes | None = None
        self.at_work: list[LockFlow] = []
        self.lost: set[bytes] = set()  # whose turn was lost, as they were told
        self.world.check = self._check

    async def _work(self, client: Client) -> None:
        random = self.world.random
        while True:
            await client.port.sleep(random.random())
            try:
                result = await self._run(client)
            except (Closed, Cancelled):
                return
            except (KviError, ValueError) as error:
                self._tell(client, f"has not done it: {error!r}")
                continue
            if result != self.recorded:
                self.world.fail(f"{result!r} was told, and {self.recorded!r} recorded")
            return

    async def _run(self, client: Client) -> bytes:
        """As the faces have it."""
        scope, random = client.scope, self.world.random
        owner = once(scope, "m")
        done = await client.call(lambda port: result_of(scope, self._call(port), owner))
        if done is not None:
            return done
        lock = LockFlow(scope, OnceLine(owner), self.ttl)
        try:
            await client.call(lambda port: lock.acquire(port, None), undo=lambda _: lock.give_up())
        except Done as found:
            return found.result
        token = b"%d" % next(self.tokens)
        self._tell(client, f"WORKS, as {token!r}")
        if self.recorded is not None and lock.held:
            self.world.fail("it is done, and somebody does it again")
        self.at_work.append(lock)
        line = lock.contest
        assert isinstance(line, OnceLine)  # it was made so
        try:
            self._check()
            await client.port.sleep(random.random() * (4.0 if self.stormy else 0.3))
            if random.random() < 0.2:
                raise ValueError("as the seed has it")
            return await client.call(lambda port: line.record(lock, self._call(port), token))
        except LeaseLost:
            self.lost.add(token)
            if token == self.recorded:
                self.world.fail(f"{token!r} is recorded, and was told that its turn was lost")
            raise
        finally:
            self.at_work.remove(lock)
            if not self.world.over:
                client.runtime.post(lock.let_go)

    async def _probe(self, client: Client) -> None:
        await self._work(client)

    def _check(self) -> None:
        if sum(lock.held for lock in self.at_work) > 1:
            self.world.fail("two are at work")

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        for key, _, new in changes:
            if key != "m/.kvi/result" or new is None:
                continue
            if self.recorded is not None:
                self.world.fail(f"{self.recorded!r} was recorded, and then {new.value!r}")
            if new.value in self.lost:
                self.world.fail(f"{new.value!r} was recorded after its turn was lost")
            self.recorded = new.value


class Times(Sharing):
    """A schedule, by clocks that differ by up to a minute."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.fine = random.random() < 0.2  # nothing goes wrong
        self.most = 0 if self.fine else 3
        super().__init__(world, early=True)
        if self.fine:
            self.network.weather = Weather()
        self.again = random.random() < 0.5
        self.interval = random.choice((0.7, 1.0, 2.5))
        self.enough = random.randint(2, 6)
        self.marks = count(1)
        self.begun: dict[float, LockFlow | None] = {}
        self.told: list[float] = []  # as recorded, in order
        self.flows: list[ScheduleFlow] = []

    async def _work(self, client: Client) -> None:
        random = self.world.random
        flow = ScheduleFlow(client.scope, "s", self.interval, "all", self.again, self.ttl)
        offset = random.choice((0.0, 0.0, -30.0, 30.0))
        flow.wall = lambda: self.world.time + (offset if self.stormy else 60.0)
        try:
            await self._go_on(client, flow)
        except (Closed, Cancelled):
            return

    async def _go_on(self, client: Client, flow: ScheduleFlow) -> None:
        """As the faces have it, until there were enough times."""
        flow.new_mark = lambda: f"{next(self.marks)}"
        self.flows.append(flow)
        while not flow.closed:
            found = await client.call(flow.next, undo=_give_up)
            if found is not None:
                await self._run(client, flow, *found)
            if len(self.told) >= self.enough:
                for one in self.flows:
                    one.close()

    async def _run(
        self, client: Client, flow: ScheduleFlow, due: float, lock: LockFlow | None
    ) -> None:
        self._tell(client, f"RUNS {due:.3f}")
        if due in self.begun:
            before = self.begun[due]
            if before is None or lock is None:
                self.world.fail(f"{due:.3f} runs twice")
            if before.held:  # type: ignore[union-attr]
                self.world.fail(f"{due:.3f} runs again, and the one before has its turn")
        if self.again and due in self.told and (lock is None or lock.held):
            self.world.fail(f"{due:.3f} runs again after it was recorded")
        self.begun[due] = lock
        try:
            await client.port.sleep(self.world.random.random() * 0.5)
            if lock is not None:
                held = lock
                await client.call(lambda port: flow.record(self._call(port), due, held))
        except (Closed, Cancelled):
            raise
        except KviError as error:
            self._tell(client, f"has not recorded {due:.3f}: {error!r}")
        finally:
            if lock is not None and not self.world.over:
                client.runtime.post(lock.let_go)

    async def _probe(self, client: Client) -> None:
        """One more time comes, by a clock that is ahead of all."""
        self.enough = len(self.told) + 1
        flow = ScheduleFlow(client.scope, "s", self.interval, "all", self.again, self.ttl)
        flow.wall = lambda: self.world.time + 90.0
        await self._go_on(client, flow)
        if self.fine and (left := set(self.told) - set(self.begun)):
            self.world.fail(f"all was well, and these have not run: {sorted(left)}")

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        for key, _, new in changes:
            ran = None if new is None or key != "s/.kvi/last" else loads(new.value).get("ran")
            if ran is None:
                continue
            if self.told and abs(ran - self.told[-1] - self.interval) > self.interval / 100:
                self.world.fail(f"after {self.told[-1]:.3f} comes {ran:.3f}")
            if self.again and ran not in self.begun:
                self.world.fail(f"{ran:.3f} is recorded, and has not run")
            self.told.append(ran)


def _give_up(found: tuple[float, LockFlow | None] | None) -> None:
    if found is not None and found[1] is not None:
        found[1].let_go()


def _never() -> bool:
    return False


def counter(world: World) -> None:
    """Two or three add to a counter."""
    Additions(world).run()


def sequence(world: World) -> None:
    """Two or three take numbers of a sequence."""
    Numbers(world).run()


def done_once(world: World) -> None:
    """Two or three would do what is done once."""
    Doing(world).run()


def schedule(world: World) -> None:
    """Two or three run a schedule."""
    Times(world).run()
