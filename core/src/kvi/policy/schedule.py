"""When a schedule is due, and what has been missed: decided on the times alone.

*Times* are seconds since the epoch. An interval means its multiples since the epoch, so that all
processes agree on them; a cron line is read in UTC, by the library ``cronsim``.

==========  ====================================================================================
``missed``  of several times that have come since the last one that ran
==========  ====================================================================================
``last``    the latest runs, the others do not
``all``     each runs, the earliest first
``skip``    the latest runs if it is not late; what is late does not run
==========  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from kvi.errors import InvalidArgument, NotSupported, is_number, shown

Missed = Literal["last", "all", "skip"]
After = Callable[[float], float]


class Decision(NamedTuple):
    """What is to be done.

    Attributes:
        time: the time that is due, or, if nothing is, the next one.
        due: whether it has come.
        runs: whether it is to run; else it is only recorded.

    """

    time: float
    due: bool
    runs: bool


def decide(after: After, last: float, now: float, missed: Missed, late: float) -> Decision:
    """What is to be done at ``now``, if ``last`` was the last time that was recorded.

    ``late``: by how many seconds a time may be late, and not be missed.
    """
    first = after(last)
    if first > now:
        return Decision(first, False, False)
    if missed == "all":
        return Decision(first, True, True)
    latest = _latest(after, first, now)
    return Decision(latest, True, missed == "last" or now - latest <= late)


def _latest(after: After, first: float, now: float) -> float:
    """The last time up to ``now``; ``first`` is one."""
    span = 1.0
    while now - span > first and after(now - span) > now:
        span *= 2
    latest = first if now - span <= first else after(now - span)
    while (following := after(latest)) <= now:
        latest = following
    return latest


def times_of(when: object) -> tuple[After, str | float]:
    """The times that ``when`` means, and how it is stored.

    Raises `InvalidArgument`, and `NotSupported` for a cron line without the library.
    """
    if isinstance(when, str):
        return _cron(when), when
    if not is_number(when) or not 0.001 <= when <= 1e9:
        raise InvalidArgument(
            f"when= is a number of seconds from 0.001, or a cron line, not {shown(when)}"
        )
    interval = float(when)

    def after(moment: float) -> float:
        number = int(moment / interval)
        while number * interval <= moment:  # a quotient may be rounded down
            number += 1
        return number * interval

    return after, interval


def check_missed(missed: object) -> Missed:
    """Return what is to become of missed times; raises `InvalidArgument`."""
    if missed not in ("last", "all", "skip"):
        raise InvalidArgument(f"missed= is 'last', 'all' or 'skip', not {shown(missed)}")
    return missed


def _cron(line: str) -> After:
    try:
        from cronsim import CronSim, CronSimError
    except ModuleNotFoundError as error:
        raise NotSupported(
            "cron lines need the library cronsim: pip install 'kvi-core[cron]', or give seconds"
        ) from error

    def after(moment: float) -> float:
        try:
            return next(CronSim(line, datetime.fromtimestamp(moment, UTC))).timestamp()
        except StopIteration:
            raise InvalidArgument(f"no time ever fits the cron line {line!r}") from None

    try:
        after(0.0)
    except CronSimError as error:
        raise InvalidArgument(
            f"when={line!r} is no cron line: {error}; write minute, hour, day, month, weekday"
        ) from error
    return after
