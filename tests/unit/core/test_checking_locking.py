"""The checker of lock histories."""

from __future__ import annotations

import pytest
from kvi.conformance.checking import Holding, lock_fault


def test_right() -> None:
    """One holding after the other with growing fences is right, in whatever order it is told."""
    history = [Holding(1, 0, 1, 5), Holding(2, 1, 2, 6), Holding(1, 3, 3, 9)]
    assert lock_fault(history) is None
    assert lock_fault(reversed(history)) is None
    assert lock_fault([]) is None


@pytest.mark.parametrize(
    "other", [Holding(2, 1, 3, 6), Holding(2, 0.5, 1.5, 6), Holding(2, 1.5, 1.6, 6)]
)
def test_overlap(other: Holding) -> None:
    """Two clients never hold the lock at once."""
    fault = lock_fault([Holding(1, 0, 2, 5), other])
    assert fault is not None
    assert "at once" in fault
    assert "client 2" in fault


@pytest.mark.parametrize("fence", [4, 5])
def test_fences(fence: int) -> None:
    """Every fence is larger than all before it."""
    fault = lock_fault([Holding(1, 0, 1, 3), Holding(2, 2, 3, 5), Holding(3, 4, 5, fence)])
    assert fault is not None
    assert "fence" in fault
    assert f"fence {fence}" in fault


def test_impossible_holding() -> None:
    """A holding that ends before it began is a mistake of the recorder."""
    with pytest.raises(ValueError, match="end before"):
        lock_fault([Holding(1, 2, 1, 5)])
