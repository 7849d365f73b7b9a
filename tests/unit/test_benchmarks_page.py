"""What the page of the benchmarks says of two runs."""

from __future__ import annotations

import pytest

from benchmarks.measure import AGAIN, FLOOR, KVI, Comparison
from benchmarks.page import agree


def run(ratio: float, noise: float = 0.0, again: float = 1.0) -> Comparison:
    """A case whose rounds differ by so much."""
    rounds = [1 + noise * (number % 3 - 1) for number in range(30)]
    return Comparison(
        {
            FLOOR: [1.0] * len(rounds),
            KVI: [ratio * each for each in rounds],
            AGAIN: [again] * len(rounds),
        }
    )


@pytest.mark.parametrize(
    ("one", "other", "agrees"),
    [
        (run(1.2), run(1.2), True),
        (run(1.2), run(1.4), False),
        (run(1.2, noise=0.2), run(1.3, noise=0.2), True),
        (run(1.2, again=1.1), run(1.3), True),
        (run(1.3), run(1.2, again=0.9), True),
        (run(1.2, again=1.1), run(1.4), False),
    ],
)
def test_two_runs(one: Comparison, other: Comparison, agrees: bool) -> None:
    """They agree if the difference is within both intervals, and what the floor differs."""
    assert agree(one, other) is agrees
    assert agree(other, one) is agrees
