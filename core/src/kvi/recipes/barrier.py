"""`Barrier`: so many parties meet; see `kvi.flow.recipes.barrier`."""

from __future__ import annotations

from kvi.errors import KviError
from kvi.flow.recipes.barrier import LEAVE, WAIT, BarrierFlow
from kvi.flow.recipes.state import Named
from kvi.policy.lock import check_wait
from kvi.sync.face import Face


class Barrier(Named):
    """A place where ``parties`` meet, among threads, processes and hosts: all or none go on.

    ``parties`` is stored by the first who uses the name, and must be the same for all. ``ttl``
    (seconds) is after how long a party whose process has died is lost. ``name`` is relative to the
    store, which may be a view or a `kvi.Backend`. Safe for threads: each call is a party. It can be
    used again and again: who comes after all have passed waits for the next generation.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for other values out of range; using it
    raises `InvalidArgument` if the name is another recipe's, or has other parties.
    """

    def __init__(self, store: Face, name: str, parties: int, *, ttl: float = 10) -> None:
        self._store = store
        try:
            self._flow = BarrierFlow(store._scope, name, parties, ttl)
        except KviError as error:
            raise store._placed(error, "barrier", name)
        super().__init__(self._flow.owner, store.uri)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties have come; returns the order of arrival, from 0.

        At most ``timeout`` seconds (``None``: without end). Raises `LockTimeout` if not all came in
        time: this party has left then, and the others wait on. Raises `BrokenBarrier` if a party
        was lost while it waited, which is so for all that wait: its process died, its handle was
        closed, its call was interrupted, or failed. Raises `OutcomeUnknown` if the time was up
        while the store could not be reached, or if somebody has to mend it: all may have come.
        """
        return self._meet("wait", WAIT, timeout)

    def leave(self, timeout: float | None = None) -> int:
        """Wait until all parties have come to leave: the other end of a double barrier.

        As `wait`, at a gate of its own.
        """
        return self._meet("leave", LEAVE, timeout)

    def _meet(self, operation: str, gate: str, timeout: float | None) -> int:
        store, flow = self._store, self._flow
        try:
            store._ensure_open()
            wait = check_wait(timeout)
            return store._drive(lambda port: flow.meet(port, gate, wait), away=True)
        except KviError as error:
            raise store._placed(error, operation, self.name)
