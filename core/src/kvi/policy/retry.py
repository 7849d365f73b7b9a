"""When to try again, and after how long: decided without clock, threads or chance.

*The question* is never "did it fail?" but "what does doing it again do?". So every primitive has an
`Effect`, and the decision is a table:

==============  ==========================  ================  =============================
effect          surely not applied, and     fate unknown      any other error
                the cause is passing
==============  ==========================  ================  =============================
``READ``        again                       (cannot be)       raise
``REPEATABLE``  again                       again             raise
``WRITE``       again                       raise, unless     raise
                                            ``idempotent``
``DECIDING``    again                       raise             raise
``ASKING``      raise                       raise             raise
==============  ==========================  ================  =============================

``DECIDING`` is a write whose answer depends on what it finds, such as a test-and-set: had the lost
one applied, the second would find its work and answer "no". Not even the caller's word makes that
right. ``ASKING`` is the question whether the store answers *now*.

*The wait* before try ``n + 1`` is ``min_wait + factor · eⁿ`` seconds, give or take ``jitter`` of
it, between ``min_wait`` and ``max_wait``. The first few are all but equal, so that a change of
leader or a restart is bridged soon; from the sixth on they grow. The numbers are those of VOLTHA's
etcd client; the jitter is evenly spread over what the bounds leave of it, so that clients that
failed together do not come back together. A wait that would outlive the deadline is not begun: the
error is raised at once.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from kvi.errors import (
    AuthenticationFailed,
    Contention,
    InvalidArgument,
    KviError,
    OutcomeUnknown,
    PermissionDenied,
    Timeout,
    Unavailable,
    is_number,
    is_whole,
    shown,
)

__all__ = ["UNSAID", "Effect", "RetryPolicy"]

UNSAID = (Unavailable, Timeout, Contention, AuthenticationFailed, PermissionDenied)
"""What another try may end with that says nothing of an earlier one whose fate is unknown."""

_LARGEST = 700  # e to the power of more is not a float


class Effect(enum.Enum):
    """What doing an operation twice does; see the module's table."""

    READ = enum.auto()
    REPEATABLE = enum.auto()
    WRITE = enum.auto()
    DECIDING = enum.auto()
    ASKING = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How operations that failed are tried again, within the one deadline of their call.

    Reads are tried again after any fault that may pass, writes only after one that surely left them
    unapplied. A write whose fate is unknown is `OutcomeUnknown`, unless ``idempotent`` says that
    doing it twice is the same as doing it once.

    The wait before another try is ``min_wait + factor · e**tries`` seconds, spread by ``jitter`` in
    both directions, and stays between ``min_wait`` and ``max_wait``. The defaults are VOLTHA's.
    Immutable, so one policy may serve any number of stores and threads.

    Attributes:
        min_wait: the shortest wait in seconds, not negative.
        max_wait: the longest wait in seconds, not under ``min_wait``.
        factor: seconds; how fast waits grow, not negative.
        jitter: the part of a wait by which it may be shorter or longer, from 0 to 1.
        max_attempts: tries in all, at least 1; ``None``: as many as the time-out allows.
        idempotent: also repeat a `Kvi.store`, `Kvi.delete`, `Kvi.delete_range`, or a transaction
            without conditions, whose fate is unknown. The write may then happen twice, what it
            returns is told by the last try, and what others wrote between the two is overwritten.
            Test-and-set and transactions with conditions are never repeated.

    Raises `InvalidArgument` for values out of range.

    """

    min_wait: float = 0.1
    max_wait: float = 5.0
    factor: float = 0.0012
    jitter: float = 0.2
    max_attempts: int | None = None
    idempotent: bool = False

    def __post_init__(self) -> None:
        for name in ("min_wait", "max_wait", "factor", "jitter"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value) or value < 0:
                raise InvalidArgument(
                    f"{name}= is a number that is not negative, not {shown(value)}"
                )
        if self.max_wait < self.min_wait:
            raise InvalidArgument(
                f"max_wait= is not under min_wait= ({self.min_wait:g}), not {self.max_wait:g}"
            )
        if self.jitter > 1:
            raise InvalidArgument(f"jitter= is from 0 to 1, not {self.jitter:g}")
        most = self.max_attempts
        if most is not None and (not is_whole(most) or most < 1):
            raise InvalidArgument(
                f"max_attempts= is a whole number from 1, or None; not {shown(most)}"
            )

    def wait(self, attempt: int, chance: float = 0.5) -> float:
        """Return the seconds to wait after ``attempt`` tries; before the first (0), none.

        ``chance``, from 0 to 1, chooses between the shortest and the longest of the spread.
        """
        if attempt <= 0:
            return 0.0
        wanted = self.min_wait + self.factor * math.exp(min(attempt, _LARGEST))
        middle = min(wanted, self.max_wait)
        low = max(self.min_wait, middle * (1 - self.jitter))
        high = min(self.max_wait, middle * (1 + self.jitter))
        return low + (high - low) * chance

    def decide(
        self, error: KviError, effect: Effect, *, attempt: int, left: float, chance: float = 0.5
    ) -> float | None:
        """Return the seconds to wait before the next try, or ``None`` to raise ``error``.

        ``attempt`` is how many tries there were, ``left`` the seconds until the deadline.
        """
        if effect is Effect.ASKING:
            return None
        if isinstance(error, OutcomeUnknown):
            again = effect is Effect.REPEATABLE or (effect is Effect.WRITE and self.idempotent)
        else:
            again = error.passing
        if not again or (self.max_attempts is not None and attempt >= self.max_attempts):
            return None
        pause = self.wait(attempt, chance)
        return pause if pause < left else None
