"""A process with a handle on the store, as a program has it.

`SimPort` and `SimRuntime` are the third driver of `kvi.port`. `Client.call` stands for the faces of
the thread driver and of asyncio at once: a call is a flow of its own and a caller who waits for it,
who may leave (a signal, a cancelled task, `close`); the flow is then cancelled at its next look,
and if it has a result all the same, ``undo`` gives that back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from kvi.capabilities import Capabilities
from kvi.errors import KviError, Unavailable
from kvi.flow.scope import Scope
from kvi.middleware.retry import Retrying
from kvi.ops import Op
from kvi.policy.retry import RetryPolicy
from kvi.port import Cancelled, Flow, Kept, Performable, Port
from kvi.primitives import Primitives

from tests.simulation.network import Network
from tests.simulation.store import SimStore
from tests.simulation.world import Process, Signal, State, Task, World, suspend

T = TypeVar("T")


class SimPort:
    """The world of one flow."""

    __slots__ = ("_network", "_world", "cancelled", "chance", "now")

    def __init__(self, network: Network) -> None:
        self._network = network
        self._world = network.world
        self.cancelled = False
        self.now = network.world.now
        self.chance = network.world.random.random

    def signal(self) -> Signal:
        """Something to wait for."""
        return Signal(self._world)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await Signal(self._world).wait(seconds)

    async def perform(self, op: Performable[T], primitives: Primitives, timeout: float) -> T:
        """Send it."""
        assert isinstance(primitives, SimStore)
        assert isinstance(op, Op)
        return await self._network.ask(op, primitives, timeout)  # type: ignore[no-any-return]


class SimRuntime:
    """A `kvi.port.Runtime`: all of it is steps and tasks of the process."""

    def __init__(self, process: Process, network: Network) -> None:
        self.process = process
        self.world: World = process.world
        self.network = network
        self.calls: list[tuple[Task, Callable[[], object]]] = []  # and how to wake their callers
        self.stopped = False
        self.now = self.world.now

    def keep(self, kept: Kept, due: float) -> None:
        """Call ``kept.step`` at ``due``, and whenever it says."""
        if not self.stopped:
            self.world.at(due, self.process, partial(self._step, kept))

    def forget(self) -> None:
        """One of those kept has ended: its step will find out."""

    def at(self, due: float, function: Callable[[], object]) -> None:
        """Call a function at ``due``."""
        self.world.at(due, self.process, partial(self._run, function))

    def post(self, function: Callable[[], object]) -> None:
        """Call a function soon."""
        if not self.world.over:
            self.world.soon(self.process, partial(self._run, function))

    def prompt(self, function: Callable[[], object]) -> None:
        """Call a function soon, or at once: on the main thread, and elsewhere."""
        if self.world.random.random() < 0.5:
            self.post(function)
        else:
            function()

    def read(self, flow: Callable[[Port], Flow[Any]]) -> None:
        """Run a flow soon."""
        self.spawn(flow)

    def spawn(self, flow: Callable[[Port], Flow[Any]]) -> None:
        """Run a flow soon."""
        if not self.stopped and not self.world.over:
            self.world.spawn(self.process, "work", flow(SimPort(self.network)))

    def call_back(self, function: Callable[[], object]) -> None:
        """Run a function of the program soon."""
        self.post(function)

    def wake(self) -> None:
        """A handle was closed."""
        for flow, rouse in self.calls:
            flow.wake()
            rouse()

    def stop(self) -> None:
        """Begin nothing more."""
        self.stopped = True

    def _run(self, function: Callable[[], object]) -> None:
        if not self.stopped:
            function()

    def _step(self, kept: Kept) -> None:
        if self.stopped or kept.ended:
            return
        task = self.world.spawn(self.process, "keeper", kept.step(SimPort(self.network)))
        task.on_end = partial(self._stepped, kept, task)

    def _stepped(self, kept: Kept, task: Task) -> None:
        if task.error is not None:
            raise task.error
        if task.value is not None:
            self.keep(kept, task.value)


class Client:
    """One process, one handle."""

    def __init__(
        self,
        network: Network,
        name: str,
        capabilities: Capabilities,
        *,
        timeout: float,
        retrying: bool,
    ) -> None:
        self.world = network.world
        self.name = name
        self.network = network
        self.process = Process(network.world, name)
        self.port = SimPort(network)
        self.runtime = SimRuntime(self.process, network)
        self.store = SimStore(network.model, self.process, capabilities, timeout)
        self.store.online = self._ensure_online
        self.scope = Scope(self.runtime, self.store)
        self.programs: list[Task] = []
        self.waiting = 0  # callers whom the end of the handle has to wake
        if retrying:
            scope = self.scope
            again = Retrying(scope.executor, RetryPolicy(), scope.uri, lambda: scope.closed)
            scope.executor = again

    @property
    def dead(self) -> bool:
        """Whether the process has crashed."""
        return self.process.state is State.DEAD

    def program(self, name: str, flow: Flow[object]) -> Task:
        """Begin what the process is for."""
        task = self.world.spawn(self.process, name, flow)
        self.programs.append(task)
        return task

    @property
    def idle(self) -> bool:
        """Whether all its programs have ended, in whatever way."""
        return self.dead or all(task.done for task in self.programs)

    def ensure_well(self) -> None:
        """Fail if a program has ended by an error."""
        for task in self.programs:
            if task.error is not None and not isinstance(task.error, Cancelled):
                self.world.fail(f"{self.name}, {task.name}: {task.error!r}")

    async def call(
        self,
        flow: Callable[[Port], Flow[T]],
        *,
        undo: Callable[[T], object] | None = None,
        lasting: bool = False,
    ) -> T:
        """Run a flow, and wait for its end, or for the end of the handle."""
        caller = self.world.current
        assert caller is not None  # a program calls
        port = SimPort(self.network)
        task = self.world.spawn(self.process, "call", flow(port))

        def rouse() -> None:
            caller.resume(caller.wait)

        entry = (task, rouse)
        self.runtime.calls.append(entry)
        task.on_end = rouse
        self.waiting += not lasting
        try:
            while not task.done and (lasting or not self.scope.closed):
                await suspend()
        except BaseException:
            self._leave(task, port, undo, lasting)
            raise
        finally:
            self.runtime.calls.remove(entry)
            self.waiting -= not lasting
        if not task.done:
            self._leave(task, port, undo, lasting)
            raise self.scope.refusal()
        if task.error is not None:
            error = task.error
            raise self.scope.placed(error, "call", None) if isinstance(error, KviError) else error
        return task.value  # type: ignore[no-any-return]

    async def close(self) -> None:
        """As `Kvi.close`."""
        await self.call(self._end, lasting=True)

    async def _end(self, port: Port) -> None:
        scope = self.scope
        if not scope.latch.acquire(blocking=False):
            return
        self.world.tell(self.name, "closes its handle")
        scope.shut()
        try:
            await scope.settle(port)
        finally:
            self.runtime.stop()
            self.store._close()

    def _leave(
        self, task: Task, port: SimPort, undo: Callable[[T], object] | None, lasting: bool
    ) -> None:
        port.cancelled = True

        def give_back() -> None:
            if undo is not None and task.error is None:
                undo(task.value)

        if task.done:
            self.runtime.post(give_back)
        else:
            task.on_end = give_back
            if not lasting:
                task.cancel()

    def _ensure_online(self) -> None:
        network = self.network
        if network.model.down or network.frozen or self.name in network.cut:
            raise Unavailable("nothing gets through")
        if network.weather.refused and self.world.random.random() < network.weather.refused:
            raise Unavailable("the connection is refused")
