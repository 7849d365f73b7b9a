"""Runs schedules: one by its seed, or many; a failing one is run again and told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from time import process_time
from typing import TYPE_CHECKING

from tests.simulation.scenarios import (
    copies,
    endpoints,
    following,
    groups,
    leases,
    lines,
    locks,
    meetings,
    queues,
    registers,
    watches,
)
from tests.simulation.world import Violation, World

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIOS: dict[str, Callable[[World], None]] = {
    "lock": locks.contended,
    "single": locks.single,
    "reuse": locks.reuse,
    "watch": watches.history,
    "states": watches.states,
    "keep": leases.kept,
    "close": leases.closing,
    "failover": endpoints.failover,
    "semaphore": lines.semaphore,
    "slots": lines.slots,
    "rwlock": lines.rwlock,
    "election": lines.election,
    "counter": registers.counter,
    "sequence": registers.sequence,
    "once": registers.done_once,
    "schedule": registers.schedule,
    "queue": queues.queue,
    "barrier": meetings.barrier,
    "group": groups.gathering,
    "cache": copies.cache,
    "following": following.following,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a schedule ended.

    Attributes:
        scenario: which.
        seed: of the schedule.
        violation: what did not hold, or ``None``.
        story: what happened, in virtual time, if it was told.
        steps: how many there were.

    """

    scenario: str
    seed: int
    violation: str | None
    story: tuple[str, ...]
    steps: int

    def __str__(self) -> str:
        head = f"scenario {self.scenario}, seed {self.seed}: {self.violation or 'all holds'}"
        return "\n".join((head, *self.story))


def run(scenario: str, seed: int, *, telling: bool = False) -> Outcome:
    """Run one schedule."""
    with _quiet():
        return _run(scenario, seed, telling)


def _run(scenario: str, seed: int, telling: bool) -> Outcome:
    world = World(seed, telling=telling)
    violation = None
    try:
        SCENARIOS[scenario](world)
    except Violation as error:
        violation = str(error)
    finally:
        story = tuple(world.story or ())
        world.end()
    return Outcome(scenario, seed, violation, story, world.steps)


def first_failure(scenario: str, seeds: Iterable[int]) -> Outcome | None:
    """Run schedules until one fails, and return that one with its story."""
    return measure(scenario, seeds)[1]


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast schedules ran, in processor time."""

    schedules: int
    steps: int
    seconds: float

    def __str__(self) -> str:
        minute = self.schedules / max(self.seconds, 1e-9) * 60
        return (
            f"{self.schedules} schedules, {self.steps} steps in {self.seconds:.1f} s: "
            f"{minute:,.0f} schedules a minute"
        )


def measure(scenario: str, seeds: Iterable[int]) -> tuple[Rate, Outcome | None]:
    """Run all schedules, or up to the first that fails; how fast, and which."""
    began, schedules, steps = process_time(), 0, 0
    failed = None
    with _quiet():
        for seed in seeds:
            outcome = _run(scenario, seed, False)
            schedules += 1
            steps += outcome.steps
            if outcome.violation is not None:
                failed = _run(scenario, seed, True)
                break
    return Rate(schedules, steps, process_time() - began), failed


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is logged: faults are what schedules are made of."""
    log = logging.getLogger("kvi")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
