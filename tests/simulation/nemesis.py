"""What goes wrong in a schedule: drawn by the seed, spread over the storm at its beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tests.simulation.client import Client
from tests.simulation.network import Network, Weather
from tests.simulation.world import State

_LEVELS = (0.0, 0.0, 0.02, 0.05, 0.15)  # how likely one fate of a message is
_STALLS = (0.0, 0.01, 0.05)


def rough(network: Network) -> None:
    """Weather and machines as the seed has them; a third of all schedules have good ones."""
    world = network.world
    choice = world.random.choice
    world.stall = choice(_STALLS)
    if world.random.random() < 0.67:
        network.weather = Weather(*(choice(_LEVELS) for _ in range(6)))


class Nemesis:
    """Faults of processes, of their links and of the server, within ``seconds`` from now."""

    def __init__(
        self,
        network: Network,
        clients: Sequence[Client],
        seconds: float,
        *,
        most: int = 3,
        early: bool = False,
    ) -> None:
        """``early``: leases may end before their time."""
        self._network = network
        self._world = network.world
        self._clients = clients
        self._over = False
        self._end = self._world.time + seconds
        random = self._world.random
        kinds: Sequence[Callable[[], None]] = (
            self._pause,
            self._pause_sending,
            self._interrupt,
            self._interrupt,
            self._crash,
            self._close,
            self._cut,
            self._freeze,
            self._restart,
            *((self._end_early,) * 4 if early else ()),
        )
        for _ in range(random.randint(0, most)):
            due = self._world.time + random.random() * seconds
            self._world.at(due, None, partial(self._strike, random.choice(kinds)))

    def calm(self) -> None:
        """All is well from now on, except for what has crashed or was closed."""
        self._over = True
        self._world.tell("world", "from here on all is well")
        self._world.stall = 0.0
        if self._network.model.down:
            self._network.model.begin_anew()
        for client in self._clients:
            client.process.resume()
        self._network.calm()

    def _strike(self, fault: Callable[[], object]) -> None:
        if not self._over:
            fault()

    def _anyone(self) -> Client:
        return self._world.random.choice(self._clients)

    def _span(self, least: float, most: float) -> float:
        return least + (most - least) * self._world.random.random()

    def _pause(self) -> None:
        self._anyone().process.pause(min(self._span(0.1, 7.0), self._end - self._world.time))

    def _pause_sending(self) -> None:
        self._network.traps[self._anyone().name] = self._span(0.5, 7.0)

    def _interrupt(self) -> None:
        tasks = [one for one in self._anyone().programs if not one.done]
        if tasks:
            task = self._world.random.choice(tasks)
            self._world.tell(task.process.name, "is interrupted")
            task.interrupt()

    def _crash(self) -> None:
        client = self._anyone()
        if client.process.state is not State.DEAD:
            client.process.crash()

    def _end_early(self) -> None:
        leases = list(self._network.model.leases)
        if leases:
            self._network.model.revoke(self._world.random.choice(leases))

    def _close(self) -> None:
        client = self._anyone()
        if not client.scope.closed and not client.dead:
            client.program("closer", client.close())

    def _cut(self) -> None:
        name = self._anyone().name
        self._world.tell(name, "is cut off")
        self._network.cut.add(name)
        self._later(self._span(0.2, 6.0), partial(self._network.cut.discard, name))

    def _freeze(self) -> None:
        self._world.tell("store", "stands still")
        self._network.frozen = True
        self._later(self._span(0.2, 4.0), self._network.thaw)

    def _restart(self) -> None:
        if not self._network.model.down:
            self._world.tell("store", "is down")
            self._network.model.down = True
            self._later(self._span(0.1, 3.0), self._back)

    def _back(self) -> None:
        if self._network.model.down:
            self._world.tell("store", "is back; leases get their full time")
            self._network.model.begin_anew()

    def _later(self, seconds: float, function: Callable[[], object]) -> None:
        self._world.at(self._world.time + seconds, None, partial(self._strike, function))
