"""Memory stores that fail as told, and a clock that stands still."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import kvi
import kvi_memory.state
import pytest
from kvi import clock as real
from kvi.coroutine import run
from kvi.driver.threads import ThreadPort, Threads
from kvi.flow.lease import LeaseFlow
from kvi.port import Kept

from tests.support.faulty import Faulty

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

    def step(self, lease: LeaseFlow) -> float | None:
        """Let time pass until the lease is due, and do what is."""
        self.time = max(self.time, lease.term.due)
        return step(lease)


def step(kept: Kept) -> float | None:
    """What the runtime does when it is time."""
    return run(kept.step(ThreadPort()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the test's own, for flows and for leases in the memory store.

    What the runtime keeps is due after as many real seconds, counted from when it was said.
    """
    clock = Clock()
    keep = Threads.keep

    def keep_really(self: Threads, kept: Kept, due: float) -> None:
        keep(self, kept, real.now() + due - clock())

    for owner in (ThreadPort, Threads):
        monkeypatch.setattr(owner, "now", staticmethod(clock))
    monkeypatch.setattr(Threads, "keep", keep_really)
    monkeypatch.setattr(kvi_memory.state, "now", clock)
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
