"""`Election`: at most one leader, whom everybody can see; see `kvi.flow.recipes.election`."""

from __future__ import annotations

from types import EllipsisType

from kvi.aio.face import AsyncFace
from kvi.aio.lock import AsyncLock
from kvi.aio.recipes.recipe import Observation, ask
from kvi.errors import KviError
from kvi.flow.recipes.election import (
    ElectionLine,
    Leader,
    check_proclaimed,
    election,
    look,
    observing,
)
from kvi.policy.lock import check_wait

__all__ = ["Election", "Leader", "Leaders"]


class Election(AsyncLock):
    """At most one leader among tasks, processes and hosts, whom everybody can see.

    As a `kvi.recipes.Election`; leading is held as an `AsyncLock`.
    """

    _failure = "the leader could not resign"

    def __init__(
        self,
        store: AsyncFace,
        name: str,
        value: bytes | str = b"",
        *,
        ttl: float = 10,
        timeout: float | None = None,
        cancel_on_loss: bool = False,
    ) -> None:
        try:
            flow = election(store._scope, name, value, ttl)
            super().__init__(store, flow, check_wait(timeout), cancel_on_loss=cancel_on_loss)
        except KviError as error:
            raise store._placed(error, "election", name)

    async def campaign(self, timeout: float | EllipsisType | None = ...) -> bool:
        """Wait for the leadership, at most ``timeout`` seconds; whether it now leads."""
        return await self.acquire(timeout)

    async def proclaim(self, value: bytes | str, *, timeout: float | None = None) -> None:
        """Let everybody see another value, for this term.

        Raises `NotHeld` if it does not lead, `LeaseLost` (a `NotHeld`) if it was lost,
        `InvalidArgument` for ``lock``, which is what the keys of locks say.
        """
        try:
            data = check_proclaimed(value, self._store.capabilities)
        except KviError as error:
            raise self._store._placed(error, "proclaim", self.name)
        flow = self._flow
        line = ElectionLine.of(flow)
        step = lambda _, call: line.proclaim(flow, call, data)  # noqa: E731
        await ask(self._store, self.name, "proclaim", timeout, step)

    async def resign(self, *, timeout: float | None = None) -> None:
        """Lead no more, and let the next one in; see `kvi.recipes.Election.resign`."""
        await self._release("resign", timeout, keep=True)

    async def leader(self, *, timeout: float | None = None) -> Leader | None:
        """Who leads at this moment; ``None``: nobody."""
        owner = ElectionLine.of(self._flow).owner
        return (await ask(self._store, self.name, "leader", timeout, look, owner))[0]

    async def contenders(self, *, timeout: float | None = None) -> list[Leader]:
        """The leader, then all other candidates; see `kvi.recipes.Election.contenders`."""
        owner = ElectionLine.of(self._flow).owner
        leader, others = await ask(self._store, self.name, "contenders", timeout, look, owner)
        return others if leader is None else [leader, *others]

    def observe(self) -> Leaders:
        """Iterate who leads with ``async for``: at once, then after each change."""
        owner = ElectionLine.of(self._flow).owner
        return Leaders(self._store, self.name, observing(self._store._scope, owner))


class Leaders(Observation[Leader | None, Leader | None]):
    """Who leads, each time that it has changed; made by `Election.observe`."""
