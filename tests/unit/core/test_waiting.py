"""Waiting tests of the suite: what they make of a machine that is too slow to show anything."""

from __future__ import annotations

import time

import kvi
import pytest
from kvi.conformance import waiting

URI = "mem:waiting"


class Control(waiting._Control):
    """A control that finds every write as slow as it is told."""

    def __init__(self, slow: float) -> None:
        super().__init__(URI)
        self._told = slow

    def slowest(self, since: float) -> float:
        """As told."""
        return self._told


def test_slow_machine_gets_a_longer_time() -> None:
    """What fails while the store is slow beside the brief time is tried again with more of it."""
    tried: list[float] = []

    def test(store: kvi.Kvi, brief: float) -> None:
        tried.append(brief)
        assert store.count(prefix="") == 0, "each try has a namespace of its own"
        store.store("k", b"")
        assert brief > 5

    outcome = waiting._patiently(test, URI, "slow", Control(slow=1))
    assert outcome.error is None
    assert tried == [0.5, 2, 8]


@pytest.mark.parametrize("slow", [0.0, 0.09, 1000])
def test_failure_counts(slow: float) -> None:
    """A failure on a prompt store is one at once; one that stays is one on the slowest machine."""
    tried: list[float] = []

    def test(brief: float) -> None:
        tried.append(brief)
        raise AssertionError("lost")

    outcome = waiting._patiently(test, URI, "fails", Control(slow))
    assert str(outcome.error) == "lost"
    assert tried == ([0.5] if slow < 1 else [0.5, 2, 8])


def test_others_are_run_once() -> None:
    """A test that asks for no brief time fails once and for all."""
    tried: list[str] = []

    def test(store: kvi.Kvi) -> None:
        tried.append("once")
        raise AssertionError("wrong")

    assert waiting._patiently(test, URI, "once", Control(slow=1000)).error
    assert tried == ["once"]


def test_control_sees_a_slow_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control tells the slowest of its writes since a moment, also one under way."""
    slow = 0.0
    real = kvi.Kvi.store

    def store(self: kvi.Kvi, *args: object, **options: object) -> int:
        time.sleep(slow)
        return real(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(kvi.Kvi, "store", store)
    with waiting._Control(URI) as control:
        assert control.shortest == 0
        began = time.monotonic()
        slow = 0.3
        waiting.until(lambda: control.slowest(began) > 0.2)
        slow = 0.0
        waiting.until(lambda: control.slowest(time.monotonic()) < 0.2)
        assert control.slowest(began) >= 0.2
