"""`AsyncWatch`: changes, event by event, for those who ask and for call-backs."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, Self

from kvi.aio.caller import is_cancelled
from kvi.aio.face import AsyncFace
from kvi.clock import now
from kvi.driver.loop import LoopSignal
from kvi.errors import Closed, InvalidArgument, KviError
from kvi.flow.watch import WatchFlow
from kvi.log import log
from kvi.model import Event
from kvi.policy.lock import check_wait

Callback = Callable[[Event, Any], object]

_PATIENCE = 0.9  # seconds that cancel() waits for a call-back that is running


class AsyncWatch:
    """The changes of some keys; made by `AsyncKvi.watch`.

    Iterate it with ``async for``, or await `next`; one event goes to one of the tasks that do. With
    a call-back, kvi does that, in the loop. As a `kvi.Watch` it survives lost connections, restarts
    and changes of leader. It lasts until `cancel`, the end of its ``async with`` block, or the end
    of the handle; one without a call-back that is dropped ends, with a `ResourceWarning`.
    Cancelling who waits for an event loses none.
    """

    def __init__(self, store: AsyncFace, flow: WatchFlow) -> None:
        self._store = store
        self._flow = flow
        self._delivery: asyncio.Task[None] | None = None

    async def next(self, timeout: float | None = None) -> Event:
        """The next event; waits for it, at most ``timeout`` seconds (``None``: without end).

        Raises `Timeout` if none came, `Closed` after `cancel` and when the handle is closed,
        `InvalidArgument` for a negative time-out and for a watch with a call-back; or the error
        that ended the watch.
        """
        try:
            if self._delivery is not None:
                raise InvalidArgument("this watch gives its events to its call-back")
            return await self._next(check_wait(timeout))
        except KviError as error:
            raise self._store._placed(error, "next", None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; ends after `cancel`, raises `Closed` when the handle is closed."""
        try:
            return await self.next()
        except Closed:
            if self._flow.ended and not self._store.closed:
                raise StopAsyncIteration from None
            raise

    @property
    def revision(self) -> int | None:
        """Every change up to this revision has been handed out; see `kvi.Watch.revision`."""
        return self._flow.revision

    @property
    def error(self) -> KviError | None:
        """What ended the watch, if it was an error; a watch with a call-back logs it as well."""
        return self._flow.error

    @property
    def active(self) -> bool:
        """Whether events may still come."""
        return not self._flow.ended and not self._store.closed

    async def cancel(self) -> None:
        """End it. No event is delivered once this has returned, within a second.

        From its own call-back it returns at once. Cancelling again does nothing.
        """
        if self._store.closed:
            return  # `close` ended it; in a forked child its locks may be held forever
        try:
            self._store._enter()
        except KviError as error:
            raise self._store._placed(error, "cancel", None)
        self._flow.end()
        delivery = self._delivery
        if delivery is not None and delivery is not asyncio.current_task():
            await asyncio.wait([delivery], timeout=_PATIENCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.cancel()

    def __del__(self) -> None:
        flow, store = self._flow, self._store
        if flow.ended or store.closed:
            return
        store._runtime.post(flow.end)  # the locks of this thread may be taken
        if self._delivery is None:
            warnings.warn(f"{self!r} was dropped and not cancelled", ResourceWarning, 2, self)

    def __repr__(self) -> str:
        state = "ended" if self._flow.ended or self._store.closed else "active"
        return f"<AsyncWatch {state} {self._store.uri}>"

    async def _next(self, timeout: float | None) -> Event:
        store, flow = self._store, self._flow
        store._enter()
        await store._runtime.breathe()
        asking, signal = flow.ask(now(), timeout, main=False), LoopSignal()
        # Between taking an event and returning it nothing waits, so that no cancellation comes.
        if (event := flow.take(main=False)) is not None:
            return event
        try:
            asking.begin(signal)
            while not isinstance(found := asking.look(now()), Event):
                await signal.wait(found)
            return found
        finally:
            flow.unwant(signal)

    def _deliver(self, callback: Callback, user_data: Any) -> None:
        """Hand the events to a call-back, from now on."""
        self._delivery = asyncio.ensure_future(self._call_back(callback, user_data))
        self._store._runtime.hold(self._delivery)

    async def _call_back(self, callback: Callback, user_data: Any) -> None:
        flow, over = self._flow, False
        try:
            while not over:
                event = await self._next(None)
                try:
                    result = callback(event, user_data)
                    over = (await result if isawaitable(result) else result) is False
                except (KeyboardInterrupt, SystemExit, GeneratorExit):
                    raise
                except BaseException as error:
                    if isinstance(error, asyncio.CancelledError) and is_cancelled():
                        raise
                    log().exception("the call-back of a watch failed; the watch goes on")
        except KviError as error:
            if flow.error is not None:
                log().error("a watch has ended: %s", error)
        finally:
            flow.end()
