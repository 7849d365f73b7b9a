"""Measure contenders side by side, so that what the machine does meanwhile strikes all alike.

One *run* does a given number of calls and says how long they took. Contenders are given turns of
equal length, in many short rounds, in a fresh random order each. A ratio is taken within each
round, and the median of all rounds is told, with the interval that holds the true median with
95 % confidence. The floor runs twice in every round: the ratio of the two is what chance alone
does in this very run.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Run = Callable[[int], float]

FLOOR, AGAIN, KVI = "floor", "floor again", "kvi"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds, and seconds of one contender's turn in a round."""

    rounds: int
    turn: float

    def few(self) -> Effort:
        """The same for runs that take seconds."""
        return Effort(max(3, self.rounds // 5), 0.0)


THOROUGH = Effort(rounds=31, turn=0.05)
QUICK = Effort(rounds=7, turn=0.02)


def calls(function: Callable[..., object], *arguments: object) -> Run:
    """Call ``function`` with ``arguments``, again and again; the loop costs next to nothing."""
    names = ", ".join(f"a{number}" for number in range(len(arguments)))
    unpack = f"; ({names},) = _arguments" if arguments else ""
    timer = timeit.Timer(
        f"call({names})",
        setup=f"import gc; gc.enable(); call = _call{unpack}",  # timeit would switch it off
        globals={"_call": function, "_arguments": arguments},
    )
    return timer.timeit


def threads(count: int, function: Callable[..., object], *arguments: object) -> Run:
    """As `calls`, by ``count`` threads at once; the time is that of a call at their joint rate."""

    def run(number: int) -> float:
        each = max(1, round(number / count))
        gate = threading.Barrier(count + 1)

        def work() -> None:
            gate.wait()
            for _ in range(each):
                function(*arguments)

        workers = [threading.Thread(target=work) for _ in range(count)]
        for worker in workers:
            worker.start()
        gate.wait()
        start = time.perf_counter()
        for worker in workers:
            worker.join()
        return (time.perf_counter() - start) * number / (each * count)

    return run


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, and the interval around it that chance explains (95 %)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Estimate:
        """From order statistics: no assumption about how the samples are distributed."""
        ordered, size = sorted(samples), len(samples)
        skip = max(0, int(size / 2 - 0.98 * size**0.5))
        return cls(statistics.median(ordered), ordered[skip], ordered[size - 1 - skip])


class Comparison:
    """The seconds per call of every contender in every round."""

    def __init__(self, samples: Mapping[str, Sequence[float]]) -> None:
        self.samples = samples

    @property
    def peers(self) -> list[str]:
        """Who ran besides kvi and the floor."""
        return [name for name in self.samples if name not in (FLOOR, AGAIN, KVI)]

    def seconds(self, name: str) -> float:
        """The median of one contender."""
        return statistics.median(self.samples[name])

    def ratio(self, name: str = KVI, to: str = FLOOR) -> Estimate:
        """How many times as long as ``to`` a call takes."""
        pairs = zip(self.samples[name], self.samples[to], strict=True)
        return Estimate.of([ours / theirs for ours, theirs in pairs])

    def over(self, name: str = KVI, to: str = FLOOR) -> Estimate:
        """How many seconds longer than ``to`` a call takes."""
        pairs = zip(self.samples[name], self.samples[to], strict=True)
        return Estimate.of([ours - theirs for ours, theirs in pairs])


def compare(effort: Effort, contenders: Mapping[str, Run]) -> Comparison:
    """Run all contenders, the one called ``floor`` twice a round."""
    runs = dict(contenders)
    if FLOOR in runs:
        runs[AGAIN] = runs[FLOOR]
    sizes = {name: _fitting(run, effort.turn) for name, run in contenders.items()}
    sizes[AGAIN] = sizes.get(FLOOR, 1)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    dice = random.Random(0)
    for _ in range(effort.rounds):
        for name in dice.sample(list(runs), len(runs)):
            samples[name].append(runs[name](sizes[name]) / sizes[name])
    return Comparison(samples)


def _fitting(run: Run, seconds: float) -> int:
    """How many calls fill ``seconds``; warms up by the way."""
    run(1)
    number = 1
    while (took := run(number)) < seconds / 4:
        number *= 4
    return max(1, round(number * seconds / took))
