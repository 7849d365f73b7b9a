"""The simulation finds what it is for: each planted bug, within a bound of schedules.

The bounds are far above what was needed, and far below a minute of schedules.
"""

from __future__ import annotations

import pytest

from tests.simulation.planted import PLANTED, planted
from tests.simulation.schedule import first_failure, run

_BOUND = 4000  # schedules; a minute has 15,000 and more


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_found(name: str) -> None:
    """A bug is found, told as a story, and found again by its seed."""
    with planted(name) as scenario:
        failed = first_failure(scenario, range(1, 1 + _BOUND))
        assert failed is not None, f"nothing was found in {_BOUND} schedules"
        assert failed.violation is not None
        assert "VIOLATION" in failed.story[-1]
        assert run(scenario, failed.seed, telling=True) == failed
    assert run(scenario, failed.seed).violation is None, "without the bug it holds"
