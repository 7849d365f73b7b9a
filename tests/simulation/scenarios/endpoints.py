"""Failover: calls go round three endpoints of one store, as `kvi.policy.failover` decides.

The endpoints come and go by themselves::

    mode        a question, or a read            a write
    WELL        answered                         applied, answered
    DEAD        not reached; what was under      the same; it may have been applied
                way is lost
    SILENT      stays there; answered when it    stays there; applied then, or never
                wakes, too late
    LEARNER     a question is answered           refused
    LOCKED      its logins are refused           the same
    FORGETFUL   its logins have ended            the same, until there is a new one

*At every end of a call*: what was told to be applied was, once; what was told not to be never is;
what is unknown is applied once at most. Where one endpoint is always well, no call ends without the
store's word, except a read whose connection broke; a silent endpoint costs each client one call, a
write or a login; and only refusals by every endpoint are final. *In the calm* all calls succeed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial

from kvi.policy.failover import Failover, Happened, Step

from tests.simulation.world import START, Process, Task, World, suspend

_TIMEOUT = 6.0
_LATENCY = 0.02


class Mode(enum.Enum):
    """Of an endpoint; see the module's table."""

    WELL = enum.auto()
    DEAD = enum.auto()
    SILENT = enum.auto()
    LEARNER = enum.auto()
    LOCKED = enum.auto()
    FORGETFUL = enum.auto()


class Message:
    """One request, and who waits for its answer."""

    __slots__ = ("kind", "task", "token", "wait")

    def __init__(self, kind: str, token: int, task: Task) -> None:
        self.kind = kind
        self.token = token  # of a write: which
        self.task = task
        self.wait = task.wait

    def answer(self, happened: Happened | None) -> None:
        """Say what became of it; ``None``: it was done."""
        self.task.resume(self.wait, happened)


class Endpoint:
    """A server."""

    def __init__(self, scenario: Endpoints, name: str) -> None:
        self.scenario = scenario
        self.world = scenario.world
        self.name = name
        self.mode = Mode.WELL
        self.episode = 0  # how often the mode has changed
        self.kept: list[tuple[Message, Callable[[], object]]] = []  # while it is silent
        self.logins: set[str] = set()

    def turn(self, mode: Mode) -> None:
        """Change the mode."""
        self.world.tell(self.name, f"is {mode.name}")
        self.mode, self.episode = mode, self.episode + 1
        kept, self.kept = self.kept, []
        for message, go_on in kept:
            if mode is Mode.DEAD:
                message.answer(Happened.LOST)
            elif message.kind != "write" or self.world.random.random() < 0.5:
                go_on()
        if mode is Mode.FORGETFUL:
            self.logins.clear()

    def send(self, message: Message) -> None:
        """A request sets out."""
        if self.mode is Mode.DEAD:
            message.answer(Happened.UNREACHED)
        else:
            due = self.world.time + self.world.random.random() * _LATENCY
            self.world.at(due, None, partial(self.arrive, message))

    def arrive(self, message: Message) -> None:
        """It has come."""
        mode, kind, client = self.mode, message.kind, message.task.process.name
        if mode is Mode.SILENT:
            self.kept.append((message, partial(self.arrive, message)))
            return
        if mode is Mode.DEAD:
            message.answer(Happened.LOST)
            return
        happened: Happened | None = None
        if kind == "login":
            if mode is Mode.LOCKED:
                happened = Happened.LOGIN_REFUSED
            else:
                self.logins.add(client)
        elif kind == "status":
            happened = None
        elif mode is Mode.LOCKED or client not in self.logins:
            happened = Happened.LOGIN_ENDED
        elif mode is Mode.LEARNER:
            happened = Happened.REFUSED
        elif kind == "write":
            self.scenario.apply(message.token)
        due = self.world.time + self.world.random.random() * _LATENCY
        self.world.at(due, None, partial(self._answer, message, happened))

    def _answer(self, message: Message, happened: Happened | None) -> None:
        if self.mode is Mode.SILENT:
            self.kept.append((message, partial(self._answer, message, happened)))
        elif self.mode is Mode.DEAD:
            message.answer(Happened.LOST)
        else:
            message.answer(happened)


class Connection:
    """What a client has of one endpoint."""

    def __init__(self) -> None:
        self.proven = False
        self.logged_in = False


class Caller:
    """A client: drives the table, as a backend does."""

    def __init__(self, scenario: Endpoints, name: str) -> None:
        self.scenario = scenario
        self.world = scenario.world
        self.process = Process(scenario.world, name)
        self.at = 0
        self.connections = [Connection() for _ in scenario.endpoints]
        self.suffered: set[tuple[str, int]] = set()  # endpoint and episode

    async def run(self) -> None:
        """Call after call."""
        scenario, random = self.scenario, self.world.random
        while not scenario.over:
            scenario.tokens += 1
            await self._call(scenario.tokens, write=random.random() < 0.7)
            await self._pause(random.random() * 0.5)

    async def _call(self, token: int, *, write: bool) -> None:
        scenario, world = self.scenario, self.world
        kind = "write" if write else "read"
        way = Failover(
            len(scenario.endpoints),
            write=write,
            login=True,
            timeout=_TIMEOUT,
            deadline=world.time + _TIMEOUT,
        )
        met: list[Happened] = []
        calm = scenario.calm
        while True:
            at = self.at
            endpoint, episode = scenario.endpoints[at], scenario.endpoints[at].episode
            happened = await self._try(at, kind, token, way)
            if happened is None:
                self._tell(token, kind, endpoint, "done")
                if write and scenario.applied.get(token) != 1:
                    world.fail(f"write {token} was told to be applied, and was not, or twice")
                return
            met.append(happened)
            sent = way.sent
            if happened in (Happened.UNREACHED, Happened.LOST):
                self.connections[at].proven = False
            decision = way.decide(happened, world.time)
            self._tell(token, kind, endpoint, f"{happened.name}, {decision.step.name}")
            if decision.replace:
                self.connections[at] = Connection()
            if decision.leave:
                self.at = (at + 1) % len(scenario.endpoints)
            if decision.step is Step.LOGIN:
                self.connections[at].logged_in = False
            elif decision.step is not Step.NEXT:
                break
        if decision.step is Step.UNKNOWN:
            if happened is Happened.SILENT:
                self._suffer(endpoint, episode)
            scenario.expect(token, most=1)
            return
        if write:
            scenario.expect(token, most=0)
        # Of several errors the one that may pass is raised, so only these are final.
        refused = met.count(Happened.LOGIN_REFUSED)
        if refused + met.count(Happened.LOGIN_ENDED) == len(met) and refused < 3:
            world.fail(f"call {token} is refused for good, though not by every endpoint")
        if happened is Happened.LOGIN_WAITING:  # it has all of the call's time
            self._suffer(endpoint, episode)
        elif (scenario.safe or calm) and not (sent and happened is Happened.LOST):
            world.fail(f"call {token} fails, though one endpoint is well: {met}")

    def _suffer(self, endpoint: Endpoint, episode: int) -> None:
        if (endpoint.name, episode) in self.suffered:
            self.world.fail(f"{self.process.name}: a second call to the silent {endpoint.name}")
        self.suffered.add((endpoint.name, episode))

    async def _try(self, at: int, kind: str, token: int, way: Failover) -> Happened | None:
        connection, world = self.connections[at], self.world
        if not connection.proven and (kind == "write" or not connection.logged_in):
            happened = await self._ask(at, "status", 0, way.share(world.time))
            if happened is not None:
                return happened
            connection.proven = True
        if not connection.logged_in:
            happened = await self._ask(at, "login", 0, way.rest(world.time))
            if happened is not None:
                return Happened.LOGIN_WAITING if happened is Happened.SILENT else happened
            connection.logged_in = True
        way.sent = connection.proven
        happened = await self._ask(at, kind, token, way.time(world.time))
        if happened is None:
            connection.proven = True
        return happened

    async def _ask(self, at: int, kind: str, token: int, seconds: float) -> Happened | None:
        task, world = self.world.current, self.world
        assert task is not None  # a client asks
        message = Message(kind, token, task)
        due = world.time + max(0.001, seconds)
        world.at(due, None, partial(message.answer, Happened.SILENT))
        self.scenario.endpoints[at].send(message)
        return await suspend()  # type: ignore[no-any-return]

    async def _pause(self, seconds: float) -> None:
        task = self.world.current
        assert task is not None  # a client waits
        self.world.at(self.world.time + seconds, None, partial(task.resume, task.wait))
        await suspend()

    def _tell(self, token: int, kind: str, endpoint: Endpoint, what: str) -> None:
        if self.world.story is not None:
            self.world.tell(self.process.name, f"{kind} {token} at {endpoint.name}: {what}")


class Endpoints:
    """The scenario."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.world = world
        self.endpoints = [Endpoint(self, name) for name in ("E1", "E2", "E3")]
        self.safe = random.random() < 0.7
        self.applied: dict[int, int] = {}
        self.most: dict[int, int] = {}
        self.tokens = 0
        self.calm = self.over = False
        self.tasks = [
            world.spawn(caller.process, "calls", caller.run())
            for caller in (Caller(self, "P1"), Caller(self, "P2"))
        ]
        sure = random.randrange(3) if self.safe else None
        for _ in range(random.randint(1, 6)):
            at = random.randrange(3)
            if at != sure:
                turn = partial(self.endpoints[at].turn, random.choice(tuple(Mode)))
                world.at(START + 8.0 * random.random(), None, turn)

    def run(self) -> None:
        """Run one schedule."""
        world = self.world
        world.run(lambda: False, START + 8.0)
        for endpoint in self.endpoints:
            endpoint.turn(Mode.WELL)
        world.run(lambda: False, world.time + 0.1)
        self.calm = True
        world.run(lambda: False, world.time + _TIMEOUT + 1.0)
        self.over = True
        if not world.run(lambda: all(task.done for task in self.tasks), world.time + _TIMEOUT):
            world.fail("a call does not come to an end")
        for task in self.tasks:
            if task.error is not None:
                world.fail(f"{task.process.name}: {task.error!r}")

    def apply(self, token: int) -> None:
        """The store does a write."""
        count = self.applied[token] = self.applied.get(token, 0) + 1
        if count > self.most.get(token, 1):
            told = "twice" if count > 1 else "after its caller was told that it surely was not"
            self.world.fail(f"write {token} is applied {told}")

    def expect(self, token: int, *, most: int) -> None:
        """From now on a write has this many effects at the most."""
        self.most[token] = most
        if self.applied.get(token, 0) > most:
            self.world.fail(
                f"write {token} was applied, and its caller told that it surely was not"
            )


def failover(world: World) -> None:
    """Three endpoints of one store."""
    Endpoints(world).run()
