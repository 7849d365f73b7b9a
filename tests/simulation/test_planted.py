"""The simulation finds what it is for: each planted bug, within a bound of schedules.

The bounds are far above what was needed, and far below a minute of schedules.
"""

from __future__ import annotations

import pytest

from tests.simulation.planted import PLANTED, planted
from tests.simulation.schedule import first_failure, run

_BOUND = 4000  # schedules; a minute has 15,000 and more

_FIRST_FOUND = {
    "work outlives its lock": 612,
    "job taken from another": 297,
    "lost job told as done": 122,
    "lease of a job ended once more": 160,
    "job put again": 118,
    "lost one waits on": 75,
    "lost party counts": 115,
    "joins again after leaving": 48,
    "leaving cannot be repeated": 60,
    "late update overtakes": 142,
    "refused value is said": 167,
    "copy goes back": 394,
    "renewal after a loss revives": 1034,
    "lost wake-up": 125,
    "guard that is always true": 162,
    "wake-up during a poll is lost": 550,
    "job that is done told as lost": 192,
    "job passed over": 312,
    "delay ends with its handle": 222,
    "joining under way outlives leaving": 48,
    "lost lease goes on": 60,
    "early change forgotten": 96,
    "read before it is watched": 195,
    "change while it is read": 341,
}
"""The schedules that found those which take long. They are tried first; others follow if the flows
have changed meanwhile."""


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_found(name: str) -> None:
    """A bug is found, told as a story, and found again by its seed."""
    with planted(name) as scenario:
        known = _FIRST_FOUND.get(name, 1)
        failed = first_failure(scenario, (known, *range(1, 1 + _BOUND)))
        assert failed is not None, f"nothing was found in {_BOUND} schedules"
        assert failed.violation is not None
        assert "VIOLATION" in failed.story[-1]
        assert run(scenario, failed.seed, telling=True) == failed
    assert run(scenario, failed.seed).violation is None, "without the bug it holds"
