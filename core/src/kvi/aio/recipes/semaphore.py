"""`Semaphore`: at most so many hold at once; see `kvi.flow.recipes.semaphore`."""

from __future__ import annotations

from kvi.aio.face import AsyncFace
from kvi.aio.lock import AsyncLock
from kvi.aio.recipes.recipe import ask
from kvi.errors import KviError
from kvi.flow.recipes.semaphore import SemaphoreLine, resize, semaphore, standing
from kvi.policy.line import check_count
from kvi.policy.lock import check_wait


class Semaphore(AsyncLock):
    """At most ``limit`` hold it at once, among tasks, handles, processes and hosts.

    As a `kvi.recipes.Semaphore`; held as an `AsyncLock`.
    """

    def __init__(
        self,
        store: AsyncFace,
        name: str,
        limit: int,
        *,
        ttl: float = 10,
        timeout: float | None = None,
        cancel_on_loss: bool = False,
    ) -> None:
        try:
            flow = semaphore(store._scope, name, limit, ttl)
            super().__init__(store, flow, check_wait(timeout), cancel_on_loss=cancel_on_loss)
        except KviError as error:
            raise store._placed(error, "semaphore", name)

    async def holders(self, *, timeout: float | None = None) -> list[str]:
        """The ids of those who hold it, in the order of their coming, as of one moment."""
        return await self._standing("holders", True, timeout)

    async def waiters(self, *, timeout: float | None = None) -> list[str]:
        """The ids of those who wait, in the order of their coming, as of one moment."""
        return await self._standing("waiters", False, timeout)

    async def resize(self, limit: int, *, timeout: float | None = None) -> None:
        """Let ``limit`` hold it from now on. Nothing is taken from who holds it now."""
        owner = SemaphoreLine.of(self._flow).owner
        try:
            count = check_count("limit", limit)
        except KviError as error:
            raise self._store._placed(error, "resize", self.name)
        await ask(self._store, self.name, "resize", timeout, resize, owner, count)

    async def _standing(self, operation: str, holds: bool, timeout: float | None) -> list[str]:
        owner = SemaphoreLine.of(self._flow).owner
        flow = lambda scope, call: standing(scope, call, owner, holds=holds)  # noqa: E731
        found = await ask(self._store, self.name, operation, timeout, flow)
        return [f"{one.lease:x}" for one in found]
