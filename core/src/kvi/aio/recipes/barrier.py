"""`Barrier`: so many parties meet; see `kvi.flow.recipes.barrier`."""

from __future__ import annotations

from kvi.aio.face import AsyncFace
from kvi.errors import KviError
from kvi.flow.recipes.barrier import LEAVE, WAIT, BarrierFlow
from kvi.flow.recipes.state import Named
from kvi.policy.lock import check_wait


class Barrier(Named):
    """A place where ``parties`` meet: all or none go on; as `kvi.recipes.Barrier`."""

    def __init__(self, store: AsyncFace, name: str, parties: int, *, ttl: float = 10) -> None:
        self._store = store
        try:
            self._flow = BarrierFlow(store._scope, name, parties, ttl)
        except KviError as error:
            raise store._placed(error, "barrier", name)
        super().__init__(self._flow.owner, store.uri)

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties have come; returns the order of arrival, from 0."""
        return await self._meet("wait", WAIT, timeout)

    async def leave(self, timeout: float | None = None) -> int:
        """Wait until all parties have come to leave: the other end of a double barrier."""
        return await self._meet("leave", LEAVE, timeout)

    async def _meet(self, operation: str, gate: str, timeout: float | None) -> int:
        store, flow = self._store, self._flow
        try:
            store._enter()
            wait = check_wait(timeout)
            return await store._drive(lambda port: flow.meet(port, gate, wait))
        except KviError as error:
            raise store._placed(error, operation, self.name)
