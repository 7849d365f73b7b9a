"""What a flow may ask of the world: the time, a wait, a store.

*Theory.* Everything that waits, retries or cleans up is written once, as ``async def``, and asks
nobody but its `Port`. Three drivers implement it:

==========  ==================================================================================
driver      how it waits
==========  ==================================================================================
threads     blocks the thread. Nothing ever suspends, so a flow comes to its end in one step
            (`kvi.driver.threads`, `kvi.coroutine`)
loop        awaits in an asyncio event loop (`kvi.driver.loop`)
simulation  a virtual clock and one seeded scheduler, in the tests
==========  ==================================================================================

*Cancellation.* A flow can be given up by its caller: an exception of a signal handler ended the
call, or a task was cancelled. The next look at the port then raises `Cancelled` (or asyncio's own
``CancelledError``). Both are no `Exception`. A flow hands what it holds to the runtime in
``except BaseException`` and never waits there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from kvi.async_primitives import AsyncPrimitives
    from kvi.policy.retry import Effect
    from kvi.primitives import Primitives

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Flow = Coroutine[Any, Any, T]


class Cancelled(BaseException):
    """Nobody waits for the flow any more."""


class Performable(Protocol[T_co]):
    """What a store can do: an operation of `kvi.ops`."""

    @property
    def called(self) -> str:
        """Its name, as `Primitives.in_place` has it."""

    @property
    def effect(self) -> Effect:
        """What doing it twice does."""

    @property
    def awaited(self) -> bool:
        """Whether `ask` can do it."""

    def run(self, primitives: Primitives, timeout: float) -> T_co:
        """Let a store do it."""

    def ask(self, primitives: AsyncPrimitives, timeout: float) -> Awaitable[T_co]:
        """Let the asyncio form of a store do it."""


class Signal(Protocol):
    """What one flow waits for, and anybody sets."""

    def set(self) -> None:
        """Wake the flow, now or at its next wait. Any thread, at any moment; never blocks."""

    async def wait(self, timeout: float) -> bool:
        """Wait until it is set, at most ``timeout`` seconds; whether it was. Unset afterwards.

        May return early without having been set: look, then wait again.
        """


class Port(Protocol):
    """The world of one flow.

    Attributes:
        cancelled: nobody waits for the flow any more, though it may not have noticed yet.

    """

    cancelled: bool

    def now(self) -> float:
        """Seconds on a clock that never goes back and counts on while the machine sleeps."""

    def chance(self) -> float:
        """A random number from 0 to 1, to spread load."""

    def signal(self) -> Signal:
        """Something to wait for."""

    async def sleep(self, seconds: float) -> None:
        """Wait for so long, or less if the handle is closed meanwhile."""

    async def perform(self, op: Performable[T], primitives: Primitives, timeout: float) -> T:
        """Let the store do it, within ``timeout`` seconds."""


class Kept(Protocol):
    """What the runtime calls at its times: a lease, for one."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to do."""

    def step(self, port: Port) -> Flow[float | None]:
        """Do what is due; returns when to be called again, or ``None`` for never."""


class Runtime(Protocol):
    """What goes on behind a handle, whoever waits. One serves a handle and all views of it."""

    def now(self) -> float:
        """As `Port.now`."""

    def keep(self, kept: Kept, due: float) -> None:
        """Call ``kept.step`` at the moment ``due``."""

    def forget(self) -> None:
        """One of those kept has ended."""

    def at(self, due: float, function: Callable[[], object]) -> None:
        """Call a short function at the moment ``due``."""

    def post(self, function: Callable[[], object]) -> None:
        """Call a short function soon. Any thread, at any moment; never blocks."""

    def prompt(self, function: Callable[[], object]) -> None:
        """As `post`, but at once where nothing can interrupt it."""

    def read(self, flow: Callable[[Port], Flow[Any]]) -> None:
        """Read for a watch, soon. Any thread, at any moment; never blocks."""

    def spawn(self, flow: Callable[[Port], Flow[Any]]) -> None:
        """Run a flow of kvi's own soon, which nobody waits for. Never waits for the program."""

    def call_back(self, function: Callable[[], object]) -> None:
        """Run a function of the program soon; what it raises is logged."""

    def wake(self) -> None:
        """Wake every flow that waits: its handle was closed."""

    def stop(self) -> None:
        """End what goes on, without waiting: the handle is closed and settled."""
