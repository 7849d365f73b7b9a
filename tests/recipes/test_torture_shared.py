"""Processes that count, number, do once and keep to a schedule, while they are struck at random.

As in `test_torture`, workers are killed, paused and cut off. Each notes what it was told, before
it goes on. What has to hold in the end:

* every named addition that anybody began is counted exactly once, after it was sent again;
* no number was given twice, and those of each worker grow;
* of each round one success was recorded, and everybody who was told of one was told that;
* no time of the schedule began twice, by clocks that are a minute apart.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

import kvi
import pytest
from kvi.conformance.proxy import TcpProxy
from kvi.recipes import Counter, Once, Schedule, Sequence

from tests.recipes.test_torture import WORKERS, between, pause, uri
from tests.support.waiting import until

__all__ = ["uri"]  # the fixture

RECIPES = ("counter", "sequence", "once", "schedule")
PASSING = (kvi.LeaseLost, kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown, kvi.Contention)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Note = Callable[[str], object]
Work = Callable[[str, str, float, str, int], None]
"""What a worker does: its URI, the recipe, the ttl, the file of its notes, its number."""
Check = Callable[[kvi.Kvi, list[list[str]]], None]
"""What must be so of all notes in the end."""


def work(uri: str, recipe: str, ttl: float, notes: str, number: int) -> None:
    """Do it again and again, until somebody says that it is enough."""
    dice = random.Random()
    enough = Path(notes).with_name("enough").exists
    with kvi.open(uri, timeout=5) as store, Path(notes).open("a", buffering=1) as told:

        def note(what: str) -> None:
            told.write(f"{what}\n")

        match recipe:
            case "counter":
                count(Counter(store, "it"), note, enough, dice)
            case "sequence":
                sequence = Sequence(store, "it", block=dice.randint(1, 5))
                while not enough():
                    try:
                        note(f"got {os.getpid()} {sequence.next()}")
                    except PASSING as error:
                        note(f"# {error!r}")
            case "once":
                do(store, ttl, note, enough, dice)
            case _:
                keep(store, ttl, note, enough, (-30.0, 0.0, 30.0)[number % 3])


def count(counter: Counter, note: Note, enough: Callable[[], bool], dice: random.Random) -> None:
    """Add by name; what may have failed is sent again, now or at the end of all."""
    while not enough():
        op, amount = f"{dice.getrandbits(64):x}", dice.randint(-5, 9)
        note(f"adds {op} {amount}")
        try:
            note(f"added {op} {counter.add(amount, op=op)}")
        except PASSING as error:
            note(f"# {error!r}")


def do(
    store: kvi.Kvi, ttl: float, note: Note, enough: Callable[[], bool], dice: random.Random
) -> None:
    """Do what is done once, one thing after the other."""
    turn = 0
    while not enough():
        mine = f"{os.getpid()}-{dice.getrandbits(32):x}"

        def fn(_: kvi.Lock, mine: str = mine) -> str:
            time.sleep(dice.random() / 10)  # the work itself
            if dice.random() < 0.2:
                raise ValueError("it did not work out")
            return mine

        try:
            note(f"done {turn} {Once(store, f'it/{turn}', ttl=ttl).run(fn).decode()}")
        except (*PASSING, ValueError) as error:
            note(f"# {error!r}")
        else:
            turn += 1


def keep(store: kvi.Kvi, ttl: float, note: Note, enough: Callable[[], bool], offset: float) -> None:
    """Keep to a schedule, by a clock of its own."""
    schedule = Schedule(store, "it", 0.1, missed="all", ttl=ttl)
    schedule._flow.wall = lambda: time.time() + offset

    def run(due: datetime) -> None:
        note(f"ran {due.timestamp()!r}")
        if enough():
            schedule.close()

    def end() -> None:
        until(enough, within=500)
        schedule.close()

    threading.Thread(target=end, daemon=True).start()
    schedule.run(run)


@pytest.mark.parametrize("recipe", RECIPES)
def test_short(uri: str, recipe: str, tmp_path: Path) -> None:
    """A few faults."""
    torture(uri, recipe, work, CHECKS[recipe], tmp_path, seconds=4.0)


@pytest.mark.soak
@pytest.mark.parametrize("recipe", RECIPES)
def test_long(uri: str, recipe: str, tmp_path: Path) -> None:
    """A minute of faults."""
    torture(uri, recipe, work, CHECKS[recipe], tmp_path, seconds=60.0)


def torture(
    uri: str,
    recipe: str,
    work: Work,
    check: Check,
    folder: Path,
    seconds: float,
    enough: Callable[[list[list[str]]], object] = bool,
) -> None:
    """Let them work, strike them, and check what came out, once that is ``enough``."""
    ttl = 10.0 if uri.startswith("consul") else 2.0
    context, dice = multiprocessing.get_context("spawn"), random.Random(7)
    with kvi.open(uri, timeout=60) as store, between(uri) as (address, proxy):

        def start(number: int) -> BaseProcess:
            notes = str(folder / f"worker-{number}")
            Path(notes).touch()
            process = context.Process(
                target=work, args=(address, recipe, ttl, notes, number), daemon=True
            )
            process.start()
            return process

        workers = [start(number) for number in range(WORKERS)]
        try:
            until(lambda: any(read(folder)), within=120)
            strike(workers, start, proxy, dice, ttl, seconds)
            until(lambda: enough(read(folder)), within=120)
            (folder / "enough").touch()
            for worker in workers:
                worker.join(120)
            assert [worker.exitcode for worker in workers] == [0] * WORKERS
        finally:
            for worker in workers:
                worker.kill()
                worker.join(30)
        notes = read(folder)
        check(store, notes)
    print(f"\n{uri.partition(':')[0]} {recipe}: {len(notes)} notes")


def strike(
    workers: list[BaseProcess],
    start: Callable[[int], BaseProcess],
    proxy: TcpProxy | None,
    dice: random.Random,
    ttl: float,
    seconds: float,
) -> None:
    """Kill, pause and cut off at random."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        victim = dice.randrange(WORKERS)
        match dice.choice(("kills", "pauses", "cuts", "cuts")):
            case "kills":
                workers[victim].kill()
                workers[victim].join(30)
                workers[victim] = start(victim)
            case "pauses":
                pause(workers[victim], min(5.0, ttl * dice.uniform(0.1, 1.3)))
            case _ if proxy is not None:
                proxy.cut()
        time.sleep(dice.random() / 2)  # between two faults


def read(folder: Path) -> list[list[str]]:
    """What all noted; a kill may have cut a line short."""
    lines = [
        line
        for notes in sorted(folder.glob("worker-*"))
        for line in notes.read_text().splitlines(keepends=True)
    ]
    return [line.split() for line in lines if line.endswith("\n") and not line.startswith("#")]


def check_counter(store: kvi.Kvi, notes: list[list[str]]) -> None:
    """Sent again, each addition is counted once, and tells what it told."""
    counter, told = Counter(store, "it"), {}
    for what, op, number in notes:
        if what == "added":
            told[op] = int(number)
    begun = {op: int(amount) for what, op, amount in notes if what == "adds"}
    assert set(told) <= set(begun)
    for op, amount in begun.items():
        total = counter.add(amount, op=op)
        assert told.get(op, total) == total
    assert counter.value() == sum(begun.values())


def check_sequence(_: kvi.Kvi, notes: list[list[str]]) -> None:
    """Numbers are unique, and grow for each worker."""
    given = [int(number) for _, _, number in notes]
    assert len(set(given)) == len(given)
    for worker in {worker for _, worker, _ in notes}:
        mine = [int(number) for _, who, number in notes if who == worker]
        assert mine == sorted(mine)


def check_once(store: kvi.Kvi, notes: list[list[str]]) -> None:
    """Everybody was told the same, and that is what is recorded."""
    for _, turn, result in notes:
        assert Once(store, f"it/{turn}").result() == result.encode()


def check_schedule(_: kvi.Kvi, notes: list[list[str]]) -> None:
    """No time began twice."""
    times = [float(time) for _, time in notes]
    assert len(set(times)) == len(times)


CHECKS: dict[str, Check] = {
    "counter": check_counter,
    "sequence": check_sequence,
    "once": check_once,
    "schedule": check_schedule,
}
