"""`Once`: done until it has succeeded one time; see `kvi.flow.recipes.once`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable

from kvi.aio.face import AsyncFace
from kvi.aio.lock import AsyncLock
from kvi.aio.recipes.recipe import Acquired, ask
from kvi.clock import now
from kvi.errors import KviError, LockTimeout
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.once import Done, OnceLine, forget, once, result_of
from kvi.flow.recipes.state import Named
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait

Result = bytes | str | None


class Once(Named):
    """Something that is done once among all processes; as `kvi.recipes.Once`."""

    def __init__(self, store: AsyncFace, name: str, *, ttl: float = 10) -> None:
        self._store = store
        try:
            super().__init__(once(store._scope, name), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
        except KviError as error:
            raise store._placed(error, "once", name)

    async def run(
        self, fn: Callable[[AsyncLock], Result | Awaitable[Result]], timeout: float | None = None
    ) -> bytes:
        """Do it, unless it is done; returns the recorded result. See `kvi.recipes.Once.run`.

        ``fn`` may be a coroutine function.
        """
        store, began = self._store, now()
        try:
            wait = check_wait(timeout)
        except KviError as error:
            raise store._placed(error, "run", self.name)
        done = await self.result()
        if done is not None:
            return done
        flow = LockFlow(store._scope, OnceLine(self._owner), self._ttl)
        held = Acquired(store, flow, wait, cancel_on_loss=False)
        try:
            if not await held.acquire(None if wait is None else max(0.0, wait - (now() - began))):
                late = LockTimeout(f"others have not done it within {wait:g} seconds")
                raise store._placed(late, "run", self.name)
        except Done as found:
            return found.result
        async with held:
            returned = fn(held)
            if isawaitable(returned):
                returned = await returned
            line = OnceLine.of(flow)
            record = lambda _, call: line.record(flow, call, returned)  # noqa: E731
            recorded = await ask(store, self.name, "run", None, record)
            flow.let_go()  # it has left the line by that
        return recorded

    async def result(self, *, timeout: float | None = None) -> bytes | None:
        """The recorded result; ``None`` before there is one."""
        return await ask(self._store, self.name, "result", timeout, result_of, self._owner)

    async def reset(self, *, timeout: float | None = None) -> None:
        """Forget the result, so that it is done again. Who does it now is not stopped."""
        await ask(self._store, self.name, "reset", timeout, forget, self._owner)
