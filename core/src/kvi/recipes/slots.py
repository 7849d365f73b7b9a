"""`Slots`: small unique integers; see `kvi.flow.recipes.slots`."""

from __future__ import annotations

from kvi.errors import KviError, LockTimeout
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.slots import SlotLine, slots
from kvi.flow.recipes.state import Named
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait
from kvi.recipes.recipe import Acquired
from kvi.sync.face import Face


class Slot(Acquired):
    """One slot that is held, as a `kvi.Lock` is: a block, `release`, ``held``, ``lost``, ``guard``.

    Made by `Slots.claim`. One that is dropped is given up, within its ttl.
    """

    _failure = "the slot could not be released"

    @property
    def index(self) -> int:
        """The integer, from 0 and under the size. It stays after the slot was given back."""
        return SlotLine.of(self._flow).index


class Slots(Named):
    """Integers from 0 to ``size`` - 1, each for one holder at once: ids of workers, shards.

    ``name`` is relative to the store, which may be a view or a `kvi.Backend`. ``size`` is stored by
    the first who uses the name, and must be the same for all. ``ttl`` (seconds) is how long a slot
    outlives its holder's process; only then, and once its holder has surely noticed, is it given
    out again. Safe for threads: any number of slots may be claimed through one object.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for other values out of range; using it
    raises `InvalidArgument` if the name is another recipe's, or has another size.
    """

    def __init__(self, store: Face, name: str, size: int, *, ttl: float = 10) -> None:
        self._store = store
        try:
            super().__init__(slots(store._scope, name, size), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
        except KviError as error:
            raise store._placed(error, "slots", name)

    def claim(self, timeout: float | None = None) -> Slot:
        """Claim the smallest free slot; waits for one, at most ``timeout`` seconds.

        ``None`` waits without end, 0 tries once. First come, first served. Raises `LockTimeout` if
        none came free, `InvalidArgument` for a negative time-out, and what a call to the store
        raises; nothing is left then that could win later.
        """
        store = self._store
        try:
            wait = check_wait(timeout)
        except KviError as error:
            raise store._placed(error, "claim", self.name)
        claimed = Slot(store, LockFlow(store._scope, SlotLine(self._owner), self._ttl), wait)
        if not claimed.acquire(wait):
            late = LockTimeout(f"others held all slots for {wait:g} seconds")
            raise store._placed(late, "claim", self.name)
        return claimed
