"""The scenarios hold, for a share of schedules that fits into a minute; more in ``-m soak``.

A test that fails prints the schedule's story, and the command that runs it again.
"""

from __future__ import annotations

import pytest

from tests.simulation.schedule import SCENARIOS, first_failure, run

_SHARE = 250  # schedules of each scenario: all of them take less than a minute
_LONG = 60_000

# Schedules that once showed a fault, in the flows or in the simulation.
_ONCE = {
    "lock": (50, 140, 2561),
    "single": (419, 5027139),
    "watch": (17, 32, 6550, 10456),
    "states": (582, 3100),
    "keep": (12, 56),
    "close": (2, 10, 1626, 3742, 9000951),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_holds(scenario: str) -> None:
    """What must hold does, at every step of every schedule."""
    failed = first_failure(scenario, (*_ONCE.get(scenario, ()), *range(1, 1 + _SHARE)))
    assert failed is None, f"\n{failed}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_holds_for_long(scenario: str) -> None:
    """The same, for hundreds of times as many."""
    failed = first_failure(scenario, range(1_000_000, 1_000_000 + _LONG))
    assert failed is None, f"\n{failed}"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_same_seed_same_story(scenario: str) -> None:
    """A schedule is decided by its seed: told twice, it is the same story."""
    for seed in range(1, 11):
        first, second = (run(scenario, seed, telling=True) for _ in range(2))
        assert first.story
        assert first == second
        assert run(scenario, seed).steps == first.steps, "telling it changes nothing"


def test_other_seed_other_story() -> None:
    """Seeds differ."""
    stories = {run("lock", seed, telling=True).story for seed in range(1, 21)}
    assert len(stories) == 20
