"""Stores and faces that a cancelled task, or a blocked loop, breaks.

What is wrong with the way to the store is put into kvi's own for as long as the suite runs on the
mutant (``plants``). A store that is asked on threads has no operation in place.
"""

# What a mutant breaks is told by its class.

from __future__ import annotations

import threading
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from time import sleep
from typing import Any, ClassVar

from kvi.aio.watch import AsyncWatch
from kvi.driver.loop import Loop, LoopPort, LoopSignal
from kvi.errors import Timeout
from kvi.flow.lease import LeaseFlow
from kvi.model import Event, KeyValue, Txn, TxnResult
from kvi.port import Port

from tests.conformance.broken.correct import Correct, broken

_PAUSE = 0.001

Plant = tuple[type, str, Callable[[Any], Any]]
Awaited = Callable[..., Coroutine[Any, Any, Any]]


class _Planted(Correct):
    """A store whose handles for asyncio are wrong.

    Attributes:
        plants: whose method, its name, and what is made of the real one.

    """

    plants: ClassVar[tuple[Plant, ...]] = ()


class _OnThreads(_Planted):
    """Its operations take a moment, on a thread."""

    in_place = frozenset()

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        sleep(_PAUSE)
        return super()._get(key, timeout)


def _swallowing(real: Awaited) -> Awaited:
    async def wrong(*arguments: Any) -> Any:
        try:
            return await real(*arguments)
        except CancelledError:
            return None

    return wrong


@broken("asyncio.cancelled")
class SwallowsCancelled(_Planted):
    """A task that is cancelled while it has others take a turn goes on as if nothing was."""

    plants = ((Loop, "breathe", _swallowing),)


@broken("asyncio.cancelled")
class SwallowsInWaits(_Planted):
    """A task that is cancelled while it waits looks around, and waits again."""

    plants = ((LoopSignal, "wait", _swallowing),)


def _translating(real: Awaited) -> Awaited:
    async def wrong(*arguments: Any, **options: Any) -> Any:
        try:
            return await real(*arguments, **options)
        except CancelledError as error:
            raise Timeout("the time was up") from error

    return wrong


@broken("asyncio.cancelled")
class TakesItForATimeout(_Planted):
    """`CancelledError` is taken for the end of the time."""

    plants = ((LoopPort, "perform", _translating),)


@broken("asyncio.cancelled")
class LeavesItsClaim(_Planted):
    """The lease of an attempt that was cancelled is kept alive, and its claim with it."""

    plants = ((LeaseFlow, "abandon", lambda real: lambda self: None),)


@broken("asyncio.cancelled")
class MixesUpAnswers(_OnThreads):
    """The answer to a call that was cancelled stays on the line, and the next call reads it."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self._left: list[KeyValue | None] = []
        self._gone: set[int] = set()

    def _cancel(self, thread: int) -> None:
        self._gone.add(thread)

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        me = threading.get_ident()
        self._gone.discard(me)
        entry = super()._get(key, timeout)
        if me in self._gone:
            self._left.append(entry)
            return entry
        return self._left.pop(0) if self._left else entry


@broken("asyncio.cancelled")
class AppliesHalfOfIt(_OnThreads):
    """A transaction that is cancelled as it is under way stops amid its writes."""

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self._gone: set[int] = set()

    def _cancel(self, thread: int) -> None:
        self._gone.add(thread)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        me = threading.get_ident()
        self._gone.discard(me)
        pair = len(txn.then) == 3 and not txn.when
        if pair:
            super()._txn(Txn((), txn.then[:1], ()), timeout)
            sleep(50 * _PAUSE)
            if me in self._gone:
                raise Timeout("nobody waits")
        return super()._txn(txn, timeout)


def _taking_first(real: Awaited) -> Awaited:
    async def wrong(self: AsyncWatch, timeout: float | None) -> Event:
        event: Event = await real(self, timeout)
        await LoopPort(self._store._runtime, self._store._scope, lasting=False).sleep(_PAUSE)
        return event

    return wrong


@broken("asyncio.cancelled")
class LosesTheEventOfNext(_Planted):
    """`next` waits once more when it has taken its event; what is cancelled there is gone."""

    plants = ((AsyncWatch, "_next", _taking_first),)


def _asking_the_loop(real: Awaited) -> Awaited:
    async def wrong(self: LeaseFlow, port: Port) -> float | None:
        runtime = self.scope.runtime
        if isinstance(runtime, Loop) and runtime.loop is not None:
            turn = threading.Event()
            runtime.loop.call_soon_threadsafe(turn.set)
            if not turn.wait(0.1):
                return port.now() + 0.1
        due: float | None = await real(self, port)
        return due

    return wrong


@broken("asyncio.blocked-loop")
class RenewsInTheLoop(_Planted):
    """Leases are renewed by the loop, once it has a turn."""

    plants = ((LeaseFlow, "step", _asking_the_loop),)


@broken("asyncio.free-loop")
class BlocksTheLoop(Correct):
    """A read that takes its time is made in the loop."""

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        sleep(0.08)
        return super()._get(key, timeout)


@broken("asyncio.free-loop")
class ComputesInTheLoop(_Planted):
    """A thread's answer is prepared in the loop, at length."""

    in_place = frozenset()

    plants = ((LoopPort, "perform", lambda real: _computing(real)),)


def _computing(real: Awaited) -> Awaited:
    async def wrong(*arguments: Any) -> Any:
        answer = await real(*arguments)
        if arguments[1].called == "range":
            sum(number * number for number in range(3_000_000))
        return answer

    return wrong
