"""`Contest`: what decides who holds, for one `kvi.flow.lock.LockFlow`.

The lock flow knows how to wait, to lose, to give up and to clean up. Who is in turn is another
question, and has several answers: the store's own locks (`StoreLock`), and the lines of contenders
that recipes stand on (`kvi.flow.recipes.line`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kvi.call import Call
from kvi.capabilities import Capabilities
from kvi.model import Claim, Event, EventType, Span
from kvi.ops import ClaimOp, ReleaseOp

if TYPE_CHECKING:
    from kvi.flow.lease import LeaseFlow
    from kvi.flow.scope import Scope

# Seconds after which a waiter looks again without having been told. With a queue this mends
# nothing that is known to happen; without, a lock-delay ends in silence.
LOOK_AGAIN, LOOK_AGAIN_UNFAIR = 30.0, 1.0


class Contest(Protocol):
    """What decides who holds.

    Attributes:
        name: what is contended for.
        queued: who waits has a place in the store. Else all who wait look whenever the lock may be
            free, and one of them is lucky: so those of one handle stand in a line of their own, of
            which only the first looks.
        recheck: seconds after which who waits looks again without having been told.
        lends: the lease that held may serve the next one: the guard names more than the lease.

    """

    name: str
    queued: bool
    recheck: float
    lends: bool

    async def claim(self, scope: Scope, call: Call, lease: LeaseFlow) -> Claim:
        """Claim for ``lease``, or look where an earlier claim stands: it keeps its place.

        Raises `LeaseLost` if the claim cannot stand on the lease any more. After any other error
        the claim may or may not stand.
        """

    async def release(self, scope: Scope, call: Call, claim: Claim) -> bool:
        """Take a claim back; whether it still stood."""

    def watched(self, claim: Claim) -> Span:
        """The keys to watch while the claim has somebody ahead."""

    def wakes(self, event: Event) -> bool:
        """Whether a change of a watched key may have let the claim in."""


class StoreLock:
    """A lock of the store; see `kvi.policy.lock`."""

    def __init__(self, name: str, limits: Capabilities) -> None:
        self.name = name
        self.lends = True
        self.queued = limits.lock_fair
        self.recheck = LOOK_AGAIN if limits.lock_fair else LOOK_AGAIN_UNFAIR

    async def claim(self, scope: Scope, call: Call, lease: LeaseFlow) -> Claim:
        """Claim it."""
        return await scope.executor.execute(ClaimOp(self.name, lease.id), call)

    async def release(self, scope: Scope, call: Call, claim: Claim) -> bool:
        """Let go of it."""
        return await scope.executor.execute(ReleaseOp(claim), call)

    def watched(self, claim: Claim) -> Span:
        """The key of the contender right before."""
        assert claim.ahead is not None  # else there is nothing to wait for
        return Span(claim.ahead, claim.ahead + "\0")

    def wakes(self, event: Event) -> bool:
        """It goes, or is let go."""
        return event.type is not EventType.PUT
