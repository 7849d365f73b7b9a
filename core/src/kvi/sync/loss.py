"""`Loss`: the event that something held was lost, for leases, temporary keys and locks."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from kvi.clock import now
from kvi.driver.threads import ThreadSignal
from kvi.errors import KviError
from kvi.flow.loss import LossState, look
from kvi.flow.scope import Scope
from kvi.policy.lock import check_wait


class Loss:
    """Whether something was lost against its holder's will. Giving it up is no loss.

    Safe for threads. Made by kvi: ``lease.lost``, ``temp_key.lost``, ``lock.lost``.
    """

    __slots__ = ("_scope", "_state")

    def __init__(self, state: LossState | None, scope: Scope) -> None:
        """``state`` is shared with its flow; ``None``: it was never held."""
        self._state = state
        self._scope = scope

    def __repr__(self) -> str:
        return f"<Loss {'lost' if self.is_set() else 'not lost'}>"

    def is_set(self) -> bool:
        """Whether it was lost, computed at the call: true from the first moment after a pause."""
        return self._state is not None and self._state.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the loss, at most ``timeout`` seconds; whether it happened.

        Returns false early if the holder gives up what it held. Raises `Closed` if the handle
        is closed meanwhile, `InvalidArgument` for a negative time-out.
        """
        signal, state = ThreadSignal(), self._state
        try:
            wait = check_wait(timeout)
            deadline = inf if wait is None else now() + wait
            if state is not None:
                state.add(signal.set, own=True)
            return self._told(signal, deadline)
        except KviError as error:
            raise self._scope.placed(error, "wait", None)
        finally:
            if state is not None:
                state.remove(signal.set)

    def _told(self, signal: ThreadSignal, deadline: float) -> bool:
        # Apart from the `finally`: see `kvi.sync.watch._found`.
        while not isinstance(found := look(self._state, self._scope, deadline - now()), bool):
            signal.wait_here(found)
        return found

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once it is lost, on a thread of kvi; soon, if it is already.

        It may call any method of the store. What it raises is logged.
        """
        if self._state is not None and not self._scope.closed:
            self._state.add(callback)
