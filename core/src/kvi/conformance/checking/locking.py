"""Do the holdings of a lock exclude each other, and do their fences grow?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Holding", "lock_fault"]


@dataclass(frozen=True, slots=True)
class Holding:
    """One time that a client surely held a lock.

    Attributes:
        client: who held it.
        acquired: when ``acquire`` had returned.
        ended: when ``release`` was called, or the last moment at which ``held`` was true.
        fence: the fence of this holding.

    """

    client: int
    acquired: float
    ended: float
    fence: int


def lock_fault(holdings: Iterable[Holding]) -> str | None:
    """Say what is wrong with the holdings of one lock; ``None`` if nothing is.

    No two may overlap, and each has a larger fence than every one before.
    """
    ordered = sorted(holdings, key=lambda holding: (holding.acquired, holding.ended))
    last: Holding | None = None
    for holding in ordered:
        if holding.ended < holding.acquired:
            raise ValueError("a holding cannot end before it was acquired")
        if last is not None and holding.acquired < last.ended:
            return "two clients held the lock at once:\n" + _table([last, holding])
        if last is not None and holding.fence <= last.fence:
            return "a later holder has no larger fence:\n" + _table([last, holding])
        last = holding
    return None


def _table(holdings: list[Holding]) -> str:
    begin = holdings[0].acquired
    return "\n".join(
        f"client {holding.client}  held {(holding.acquired - begin) * 1e3:10.3f} … "
        f"{(holding.ended - begin) * 1e3:10.3f} ms  fence {holding.fence}"
        for holding in holdings
    )
