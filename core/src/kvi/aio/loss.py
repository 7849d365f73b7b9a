"""`AsyncLoss`: the event that something held was lost; see `kvi.flow.loss`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from kvi.aio.face import AsyncFace
from kvi.clock import now
from kvi.driver.loop import LoopSignal
from kvi.errors import KviError
from kvi.flow.loss import LossState, look
from kvi.policy.lock import check_wait


class AsyncLoss:
    """Whether something was lost against its holder's will. Giving it up is no loss.

    Safe for any number of tasks. Made by kvi: ``lease.lost``, ``temp_key.lost``, ``lock.lost``.
    """

    __slots__ = ("_state", "_store")

    def __init__(self, store: AsyncFace, state: LossState | None) -> None:
        """``state`` is shared with its flow; ``None``: it was never held."""
        self._store = store
        self._state = state

    def __repr__(self) -> str:
        return f"<AsyncLoss {'lost' if self.is_set() else 'not lost'}>"

    def is_set(self) -> bool:
        """Whether it was lost, computed at the call: true from the first moment after a pause."""
        return self._state is not None and self._state.is_set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for the loss, at most ``timeout`` seconds; whether it happened.

        Returns false early if the holder gives up what it held. Raises `Closed` if the handle
        is closed meanwhile, `InvalidArgument` for a negative time-out.
        """
        store, state, signal = self._store, self._state, LoopSignal()
        try:
            wait = check_wait(timeout)
            deadline = inf if wait is None else now() + wait
            if state is not None:
                state.add(signal.set, own=True)
            while not isinstance(found := look(state, store._scope, deadline - now()), bool):
                await signal.wait(found)
            return found
        except KviError as error:
            raise store._placed(error, "wait", None)
        finally:
            if state is not None:
                state.remove(signal.set)

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` in the handle's loop once it is lost; soon, if it is already.

        It may be a coroutine function. What it raises is logged.
        """
        store = self._store
        if self._state is not None and not store.closed:
            store._enter()
            self._state.add(lambda: store._runtime.call_in_loop(callback))
