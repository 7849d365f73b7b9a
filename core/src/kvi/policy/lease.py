"""When a lease is surely alive, when to renew it, and what to do after a failure.

*Theory.* The store starts a lease's time anew when a renewal reaches it, which is after the renewal
was sent. So the holder counts from the moment of sending: by its own clock a lease is over no later
than by the store's, whatever the network did. It asks nobody to know that.

The clock keeps counting while the machine sleeps or the process is stopped (`kvi.clock`).

===========  ==========================================  =======================================
state        guarantee                                   left by
===========  ==========================================  =======================================
``ALIVE``    the store keeps the lease                   reading the clock past the deadline, or
                                                         the store saying that it is gone: LOST;
                                                         `end`: ENDED
``LOST``     it may be gone; final, also if the store    `end`: ENDED
             turns out to have it still
``ENDED``    the holder gave it up                       final
===========  ==========================================  =======================================

A renewal is sent at a third of the ttl: two more still fit before the deadline, or one if the store
is silent instead of refusing. A failed one is sent again after a tenth of the ttl, at most a
second: a store that is back must hear of the lease before its time is up.
"""

from __future__ import annotations

import enum
import sys

from kvi.capabilities import Capabilities
from kvi.errors import InvalidArgument, is_number, shown

MOST_PATIENCE = 1.0  # seconds for one renewal: others are waiting, and it will be tried again
LEAST_PATIENCE = 0.05


class LeaseState(enum.Enum):
    """What is known of a lease; see the module's table."""

    ALIVE = enum.auto()
    LOST = enum.auto()
    ENDED = enum.auto()


class Term:
    """The state of one lease. Not safe for threads by itself, except `alive`.

    `alive` may be asked while a renewal is being noted, by a thread whose clock read is older. So
    that what was false stays false, it leaves a mark, which `observe` turns into ``LOST``.

    Attributes:
        ttl: seconds that each renewal is good for, as granted.
        deadline: until when the lease is surely alive.
        due: when to send the next renewal.
        state: see the module's table; `observe` brings it up to date.

    """

    __slots__ = ("_over", "_sent", "deadline", "due", "state", "ttl")

    def __init__(self, ttl: float, sent: float) -> None:
        self.state = LeaseState.ALIVE
        self._over = False  # somebody was told that the time is up
        self._count_from(ttl, sent)

    def alive(self, now: float) -> bool:
        """Whether the store surely keeps the lease at the moment ``now``."""
        return self.state is LeaseState.ALIVE and not self.expired(now)

    def expired(self, now: float) -> bool:
        """Whether the time was up at the moment ``now``, or when this was asked before."""
        if now >= self.deadline:
            self._over = True
        return self._over

    def observe(self, now: float) -> LeaseState:
        """The state at the moment ``now``."""
        if self.state is LeaseState.ALIVE and self.expired(now):
            self.state = LeaseState.LOST
        return self.state

    def renewed(self, ttl: float, sent: float, now: float) -> LeaseState:
        """A renewal sent at ``sent`` succeeded; too late, it saves nothing.

        Of several under way at once the one sent last counts.
        """
        if self.observe(now) is LeaseState.ALIVE and sent > self._sent:
            self._count_from(ttl, sent)
        return self.observe(now)

    def failed(self, now: float) -> LeaseState:
        """A renewal failed in a way that may pass."""
        self.due = min(now + min(self.ttl / 10, 1.0), max(self.deadline, now))
        return self.observe(now)

    def gone(self) -> None:
        """The store says that the lease is gone."""
        if self.state is LeaseState.ALIVE:
            self.state = LeaseState.LOST

    def end(self) -> LeaseState:
        """The holder gives it up; returns the state before."""
        before, self.state = self.state, LeaseState.ENDED
        return before

    def patience(self, now: float) -> float:
        """Seconds to wait for the answer to one renewal."""
        return max(LEAST_PATIENCE, min(self.ttl / 3, MOST_PATIENCE, self.deadline - now))

    def _count_from(self, ttl: float, sent: float) -> None:
        self._sent = sent
        self.ttl = ttl
        self.deadline = sent + ttl
        self.due = sent + ttl / 3


def check_key_ttl(ttl: object, lease: object, limits: Capabilities) -> float:
    """Return the time to live of one key, checked as `check_ttl` does; ``lease`` must be `None`."""
    if lease is not None:
        raise InvalidArgument("ttl= gives the key a lease of its own; give it or lease=, not both")
    return check_ttl(ttl, limits)


def check_ttl(ttl: object, limits: Capabilities, name: str = "ttl") -> float:
    """Return a time to live in seconds, raised to the store's minimum; ``name`` is the argument's.

    Raises `InvalidArgument` for what is no number, not positive or above the store's maximum.
    """
    if not is_number(ttl) or not 0 < ttl <= sys.float_info.max:
        raise InvalidArgument(f"{name}= is a positive number of seconds, not {shown(ttl)}")
    longest = limits.lease_max_ttl
    if longest is not None and ttl > longest:
        raise InvalidArgument(
            f"this store's leases last at most {longest:,.0f} seconds, not {shown(ttl)}"
        )
    return float(max(ttl, limits.lease_min_ttl))
