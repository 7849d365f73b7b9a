"""A queue whose workers are killed, paused and cut off: no job is lost, none is done for nothing.

A producer puts numbers; workers note what they got, and acknowledge it. In the end this must hold:

* every number that was put was acknowledged, and the queue is empty;
* a number was delivered again only where somebody was struck, or gave it back;
* without faults each was delivered once, in the order of the puts to each worker.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import kvi
import pytest
from kvi.recipes import Queue

from tests.support.waiting import until

WORKERS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_ETCD = [pytest.mark.etcd, pytest.mark.xdist_group("etcd")]
_CONSUL = [pytest.mark.consul, pytest.mark.xdist_group("consul"), pytest.mark.soak]


def work(uri: str, ttl: float, notes: str) -> None:
    """Do jobs until somebody says that it is enough."""
    with kvi.open(uri, timeout=5) as store, Path(notes).open("a", buffering=1) as told:
        queue = Queue(store, "jobs", ttl=ttl)
        while not Path(notes).with_name("enough").exists():
            try:
                job = queue.get(1)
                if job is None:
                    continue
                told.write(f"got {job.value.decode()} {job.attempt}\n")
                job.ack()
                told.write(f"acked {job.value.decode()}\n")
            except (kvi.NotHeld, kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown) as error:
                told.write(f"# {error!r}\n")


@pytest.fixture(
    params=["sqlite", pytest.param("etcd", marks=_ETCD), pytest.param("consul", marks=_CONSUL)]
)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store that processes share."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/store.db"
    address: str = request.getfixturevalue(f"{request.param}_uri")
    with kvi.open(address) as store:
        store.delete_range(prefix="")
    return address


def test_without_faults(uri: str, tmp_path: Path) -> None:
    """Each job is delivered once."""
    torture(uri, tmp_path, jobs=150, faults=0)


def test_short(uri: str, tmp_path: Path) -> None:
    """A few faults."""
    torture(uri, tmp_path, jobs=150, faults=1 if uri.startswith("consul") else 4)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_long(uri: str, tmp_path: Path) -> None:
    """Many jobs, and faults for as long as they last."""
    torture(uri, tmp_path, jobs=20_000, faults=60)


def torture(uri: str, folder: Path, jobs: int, faults: int) -> None:
    """Put, let them work, strike them, and check what came out."""
    # Where nobody is struck, no worker may lose its job because the machine is busy.
    ttl = 30.0 if not faults else 10.0 if uri.startswith("consul") else 2.0
    context, dice = multiprocessing.get_context("spawn"), random.Random(3)

    def start(number: int) -> BaseProcess:
        notes = folder / f"worker-{number}"
        notes.touch()
        process = context.Process(target=work, args=(uri, ttl, str(notes)), daemon=True)
        process.start()
        return process

    with kvi.open(uri, timeout=60) as store:
        queue = Queue(store, "jobs", ttl=ttl)
        workers = [start(number) for number in range(WORKERS)]
        try:
            struck = 0
            for number in range(jobs):
                queue.put(str(number))
                if struck < faults and number >= (struck + 1) * jobs // (faults + 1):
                    strike(workers, start, dice, ttl)
                    struck += 1
            until(lambda: queue.count() == 0, within=600)
            (folder / "enough").touch()
            for worker in workers:
                worker.join(120)
            assert [worker.exitcode for worker in workers] == [0] * WORKERS
        finally:
            for worker in workers:
                worker.kill()
                worker.join(30)
        assert queue.dead() == []
    got: list[tuple[int, int]] = []
    for number in range(WORKERS):
        mine = [
            (int(parts[1]), int(parts[2]))
            for parts in map(str.split, (folder / f"worker-{number}").read_text().splitlines())
            if len(parts) == 3 and parts[0] == "got"
        ]
        if not faults:
            assert mine == sorted(mine), "jobs came in another order"
        got += mine
    # A worker that is killed may have claimed a job without noting it.
    assert len({job for job, _ in got}) >= jobs - faults
    again = [attempt for _, attempt in got if attempt > 1]
    assert len(again) <= 2 * faults, "a job was delivered again for nothing"
    print(f"\n{uri.partition(':')[0]}: {jobs} jobs, {len(got)} deliveries, {faults} faults")


def strike(workers: list[BaseProcess], start: object, dice: random.Random, ttl: float) -> None:
    """Kill a worker, or pause it past its ttl."""
    victim = dice.randrange(WORKERS)
    worker = workers[victim]
    assert worker.pid is not None
    if dice.random() < 0.5:
        worker.kill()
        worker.join(30)
        workers[victim] = start(victim)  # type: ignore[operator]
    else:
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(ttl * 1.2)  # the fault itself
        os.kill(worker.pid, signal.SIGCONT)
