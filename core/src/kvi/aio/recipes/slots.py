"""`Slots`: small unique integers; see `kvi.flow.recipes.slots`."""

from __future__ import annotations

from kvi.aio.awaited import Beginning
from kvi.aio.face import AsyncFace
from kvi.aio.recipes.recipe import Acquired
from kvi.errors import KviError, LockTimeout
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.slots import SlotLine, slots
from kvi.flow.recipes.state import Named
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait


class Slot(Acquired):
    """One slot that is held, as an `AsyncLock` is. Made by `Slots.claim`."""

    _failure = "the slot could not be released"

    @property
    def index(self) -> int:
        """The integer, from 0 and under the size. It stays after the slot was given back."""
        return SlotLine.of(self._flow).index


class Slots(Named):
    """Integers from 0 to ``size`` - 1, each for one holder at once: ids of workers, shards.

    As `kvi.recipes.Slots`; any number of tasks may claim slots through one object.
    """

    def __init__(self, store: AsyncFace, name: str, size: int, *, ttl: float = 10) -> None:
        self._store = store
        try:
            super().__init__(slots(store._scope, name, size), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
        except KviError as error:
            raise store._placed(error, "slots", name)

    def claim(self, timeout: float | None = None) -> Beginning[Slot]:
        """Claim the smallest free slot; waits for one, at most ``timeout`` seconds.

        Await it, or hold it for an ``async with`` block. See `kvi.recipes.Slots.claim`.
        """

        async def begin() -> Slot:
            store = self._store
            try:
                wait = check_wait(timeout)
            except KviError as error:
                raise store._placed(error, "claim", self.name)
            flow = LockFlow(store._scope, SlotLine(self._owner), self._ttl)
            claimed = Slot(store, flow, wait, cancel_on_loss=False)
            if not await claimed.acquire(wait):
                late = LockTimeout(f"others held all slots for {wait:g} seconds")
                raise store._placed(late, "claim", self.name)
            return claimed

        return Beginning(begin)
