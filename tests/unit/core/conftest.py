"""Memory stores that fail as told, and a clock that stands still."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import kvi
import kvi_memory.state
import pytest
from kvi import clock as real
from kvi.recipes import lease
from kvi.runtime import keeper, runtime

from tests.unit.core.faulty import Faulty

_numbers = itertools.count()


class Clock:
    """The clock of leases: it moves only when it is told to."""

    def __init__(self) -> None:
        self.time = real.now()

    def __call__(self) -> float:
        """The time."""
        return self.time

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the test's own, for leases in core and in the memory store."""
    clock = Clock()
    for module in (lease, keeper, runtime, kvi_memory.state):
        monkeypatch.setattr(module, "now", clock)
    return clock


@pytest.fixture
def uri() -> str:
    """The URI of an empty memory store of this test alone."""
    return f"mem:core-{next(_numbers)}"


@pytest.fixture
def store(uri: str) -> Iterator[Faulty]:
    """A handle on the test's store that fails as told."""
    with Faulty(kvi.open(uri)) as handle:
        yield handle


@pytest.fixture
def peer(store: Faulty, uri: str) -> Iterator[kvi.Kvi]:
    """Another handle on the same data, which never fails."""
    with kvi.open(uri) as handle:
        yield handle
