"""Is the store alive, and who is to be told: decided without clock or threads.

*What an operation proves.*

=======================================================  ========================================
it ended with                                            the store is
=======================================================  ========================================
a result, also "there is no such key"                    alive
`Unavailable`, `Timeout`, `OutcomeUnknown`               not alive: it could not be reached, gave
                                                         no answer in time, or is damaged
`InvalidArgument`, `NotSupported`, `Closed`              as before: it was not asked, or the call
                                                         was given up here
any other error (`PermissionDenied`, `AuthenticationFailed`,  alive: it answered
`Contention`, `Compacted`, `LeaseLost`, …)
=======================================================  ========================================

*What is posted*: a change at once; the same state again once ``interval`` seconds have passed since
the last post. Before the first operation a store counts as not alive.
"""

from __future__ import annotations

from kvi.errors import (
    Closed,
    InvalidArgument,
    KviError,
    NotSupported,
    OutcomeUnknown,
    Timeout,
    Unavailable,
)

_NOT_ALIVE = (Unavailable, Timeout, OutcomeUnknown)
_UNASKED = (InvalidArgument, NotSupported, Closed)


def verdict(error: KviError) -> bool | None:
    """What ``error`` proves: alive, not alive, or nothing (``None``)."""
    if isinstance(error, _NOT_ALIVE):
        return False
    return None if isinstance(error, _UNASKED) else True


class Liveness:
    """The state of a store, and when it was posted last. For one thread at a time.

    Attributes:
        alive: what the last operation proved; false before the first.
        interval: seconds after which an unchanged state is posted again.

    """

    __slots__ = ("alive", "interval", "posted")

    def __init__(self, interval: float) -> None:
        self.alive = False
        self.interval = interval
        self.posted: float | None = None  # when; None: nobody wants to know

    def start(self, now: float) -> bool:
        """Somebody wants to know from now on; returns the state to begin with."""
        self.posted = now
        return self.alive

    def observe(self, alive: bool, now: float) -> bool:
        """Take in what an operation proved; returns whether to post it."""
        changed = alive is not self.alive
        self.alive = alive
        if self.posted is None or not (changed or now - self.posted >= self.interval):
            return False
        self.posted = now
        return True
