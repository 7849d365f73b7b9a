"""The middleware that tries again; what it decides is in `kvi.policy.retry`.

An operation that works costs one look at the clock. One that fails waits for as long as the policy
says, and then is asked again with what is left of its time. Closing the handle wakes who waits.

*Of several policies on the way to the store only the outermost counts*: it marks the call as
``decided``. Renewals of leases come so marked: they are tried again by the lease, which knows how
much time it has left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kvi.call import Call
from kvi.errors import KviError, OutcomeUnknown
from kvi.log import log
from kvi.ops import Executor, Op
from kvi.policy.retry import UNSAID, RetryPolicy

T = TypeVar("T")


class Retrying:
    """Tries again as ``policy`` says, until ``closed()``."""

    __slots__ = ("_closed", "_inner", "_policy", "_uri", "is_short")

    def __init__(
        self, inner: Executor, policy: RetryPolicy, uri: str, closed: Callable[[], bool]
    ) -> None:
        self._inner = inner
        self._policy = policy
        self._uri = uri
        self._closed = closed
        # What succeeds is not tried again, nor is a write of unknown fate.
        self.is_short = inner.is_short and not policy.idempotent

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it, and again if it fails in a way that may pass.

        Once a try's fate is unknown, it stays so, unless a later one knows better.
        """
        if call.decided:
            return await self._inner.execute(op, call)
        call.decided = True
        lost: OutcomeUnknown | None = None
        try:
            while True:
                try:
                    return await self._inner.execute(op, call)
                except KviError as error:
                    if isinstance(error, OutcomeUnknown):
                        lost = error
                    if not await self._pause(error, op, call):
                        if lost is not None and isinstance(error, UNSAID):
                            raise lost from error
                        raise
        finally:
            call.decided = False
            del lost  # it holds this frame

    async def _pause(self, error: KviError, op: Op[T], call: Call) -> bool:
        """Wait before the next try; whether there is to be one."""
        call.doubt = call.doubt or isinstance(error, OutcomeUnknown)
        port = call.port
        pause = self._policy.decide(
            error,
            op.effect,
            attempt=call.attempts,
            left=call.deadline - port.now(),
            chance=port.chance(),
        )
        if pause is None or self._closed() or port.cancelled:
            return False
        _log(error, op, call.attempts, pause, self._uri)
        end = port.now() + pause
        while (rest := end - port.now()) > 0:
            await port.sleep(rest)
            if self._closed():
                return False
        if port.now() >= call.deadline:
            return False
        call.attempts += 1
        return True


def _log(error: KviError, op: Op[T], attempts: int, pause: float, uri: str) -> None:
    log("kvi.retry").warning(
        "%s of %r on %s failed (try %d), again in %.3f s: %s",
        op.name,
        op.key,
        uri,
        attempts,
        pause,
        error,
    )
