"""Processes that hold what stands in line while they are killed, paused and cut off at random.

Each worker holds again and again, and notes when it surely held, by the clock of the machine that
all of them share: between two looks at ``held`` of one holding, both true, it held all the time. A
leader and a writer also write under their guard. What has to hold in the end:

* never more than the limit held at one moment, no reader beside a writer, no index with two;
* guarded writes of one holder are never among those of another: fences grow with the revisions;
* every worker has come to hold, and in the end nothing is left but settings.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import kvi
import pytest
from kvi.clock import now
from kvi.conformance.proxy import TcpProxy
from kvi.recipes import Election, RWLock, Semaphore, Slots

from tests.support.waiting import until

WORKERS, LIMIT = 5, 2
RECIPES = ("semaphore", "slots", "rwlock", "election")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_ETCD = [pytest.mark.etcd, pytest.mark.xdist_group("etcd"), pytest.mark.soak]
_CONSUL = [pytest.mark.consul, pytest.mark.xdist_group("consul"), pytest.mark.soak]


class Held(NamedTuple):
    """A time during which a worker surely held."""

    begin: float
    end: float
    what: str  # the mode, or the index


def make(store: kvi.Kvi, recipe: str, ttl: float, dice: random.Random) -> tuple[Any, str]:
    """What a worker is to hold, and what of it."""
    match recipe:
        case "semaphore":
            return Semaphore(store, "it", LIMIT, ttl=ttl), ""
        case "slots":
            slot = Slots(store, "it", LIMIT, ttl=ttl).claim()
            return slot, str(slot.index)
        case "election":
            return Election(store, "it", str(os.getpid()), ttl=ttl), "leader"
    lock = RWLock(store, "it", ttl=ttl)
    return (lock.write(), "write") if dice.random() < 0.4 else (lock.read(), "read")


def work(uri: str, recipe: str, ttl: float, notes: str) -> None:
    """Hold again and again, until somebody says that it is enough."""
    dice = random.Random()
    with kvi.open(uri, timeout=5) as store, Path(notes).open("a", buffering=1) as told:
        while not Path(notes).with_name("enough").exists():
            try:
                lock, what = make(store, recipe, ttl, dice)
                with lock:
                    hold(store, lock, what, dice, told)
            except (kvi.NotHeld, kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown) as error:
                told.write(f"# {error!r}\n")


def hold(store: kvi.Kvi, lock: Any, what: str, dice: random.Random, told: Any) -> None:
    """Note what was surely held, and write under the guard."""
    begin = now()
    if not lock.held:
        return
    for _ in range(dice.randint(1, 20)):
        moment = now()
        if not lock.held:
            return
        told.write(f"{begin!r} {moment!r} {what}\n")
        if what in ("leader", "write") and dice.random() < 0.3:
            store.txn([lock.guard], [kvi.Put("log", f"{lock.fence}")])
        time.sleep(dice.random() / 100)


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


@contextmanager
def between(uri: str) -> Iterator[tuple[str, TcpProxy | None]]:
    """The store through a proxy that can cut connections, if it is a server."""
    scheme, _, place = uri.partition("://")
    if not place:
        yield uri, None
        return
    with TcpProxy(int(place.rpartition(":")[2])) as proxy:
        yield f"{scheme}://127.0.0.1:{proxy.port}", proxy


@pytest.mark.parametrize("recipe", RECIPES)
def test_short(uri: str, recipe: str, tmp_path: Path) -> None:
    """A few faults."""
    torture(uri, recipe, tmp_path, seconds=4.0)


@pytest.mark.soak
@pytest.mark.parametrize("recipe", RECIPES)
def test_long(uri: str, recipe: str, tmp_path: Path) -> None:
    """A minute of faults."""
    torture(uri, recipe, tmp_path, seconds=60.0)


def torture(uri: str, recipe: str, folder: Path, seconds: float) -> None:
    """Let them work, strike them, and check what came out."""
    ttl = 10.0 if uri.startswith("consul") else 2.0
    context, dice = multiprocessing.get_context("spawn"), random.Random(7)
    faults = dict.fromkeys(("kills", "pauses", "cuts"), 0)
    with kvi.open(uri, timeout=60) as store, between(uri) as (address, proxy):
        watch = store.watch("log")

        def start(number: int) -> BaseProcess:
            notes = folder / f"worker-{number}"
            notes.touch()
            process = context.Process(
                target=work, args=(address, recipe, ttl, str(notes)), daemon=True
            )
            process.start()
            return process

        def busy() -> bool:
            return all((folder / f"worker-{one}").stat().st_size for one in range(WORKERS))

        workers = [start(number) for number in range(WORKERS)]
        try:
            until(busy, within=120)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                victim = dice.randrange(WORKERS)
                match dice.choice(("kills", "pauses", "pauses", "cuts")):
                    case "kills":
                        workers[victim].kill()
                        workers[victim].join(30)
                        workers[victim] = start(victim)
                        faults["kills"] += 1
                    case "pauses":
                        pause(workers[victim], ttl * dice.uniform(0.1, 1.3))
                        faults["pauses"] += 1
                    case _ if proxy is not None:
                        proxy.cut()
                        faults["cuts"] += 1
                time.sleep(dice.random() / 2)  # between two faults
            (folder / "enough").touch()
            for worker in workers:
                worker.join(120)
            assert [worker.exitcode for worker in workers] == [0] * WORKERS
        finally:
            for worker in workers:
                worker.kill()
                worker.join(30)
        fences = written(store, watch)
        until(lambda: leftovers(store) <= {"it/.kvi/settings"}, within=60)
    held = [one for number in range(WORKERS) for one in read(folder / f"worker-{number}")]
    check(recipe, held)
    assert fences == sorted(fences), "a guarded write of an earlier holder came after a later one"
    print(f"\n{uri.partition(':')[0]} {recipe}: {len(held)} looks, {len(fences)} writes, {faults}")


def pause(worker: BaseProcess, seconds: float) -> None:
    """A process that stands still for so long."""
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(seconds)  # the fault itself
    os.kill(worker.pid, signal.SIGCONT)


def written(store: kvi.Kvi, watch: kvi.Watch) -> list[int]:
    """The fences of the guarded writes, in the order of their revisions."""
    store.store("log", "end")
    fences: list[int] = []
    while True:
        event = watch.next(60)
        if event.type is kvi.EventType.RESYNC:
            assert event.snapshot is not None
            text = event.snapshot[0].text if event.snapshot else ""
        else:
            text = (event.value or b"").decode()
        if text == "end":
            return fences
        if text:
            fences.append(int(text))


def leftovers(store: kvi.Kvi) -> set[str]:
    """What is left of the recipe, marks of crashed holders aside: the next contender's work."""
    keys = {entry.key for entry in store.range(prefix="it", keys_only=True)}
    return {key for key in keys if not key.startswith("it/.kvi/held/")}


def read(notes: Path) -> Iterator[Held]:
    """What a worker noted; a kill may have cut the last line short."""
    for line in notes.read_text().splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[0] != "#":
            yield Held(float(parts[0]), float(parts[1]), parts[2] if len(parts) > 2 else "")


def check(recipe: str, held: list[Held]) -> None:
    """Whoever held at one moment may have done so."""
    # Of the looks of one holding the last one tells all of it.
    whole: dict[tuple[float, str], float] = {}
    for one in held:
        key = (one.begin, one.what)
        whole[key] = max(whole.get(key, 0.0), one.end)
    changes = sorted(
        [(begin, 1, what) for (begin, what), end in whole.items() if end > begin]
        + [(end, 0, what) for (begin, what), end in whole.items() if end > begin]
    )
    now_held: list[str] = []
    for moment, begins, what in changes:
        if not begins:
            now_held.remove(what)
            continue
        now_held.append(what)
        assert admitted(recipe, now_held), f"{now_held} at {moment}"
    assert len(whole) > WORKERS


def admitted(recipe: str, held: list[str]) -> bool:
    """Whether they may hold at once."""
    match recipe:
        case "semaphore":
            return len(held) <= LIMIT
        case "slots":
            return len(set(held)) == len(held) <= LIMIT
        case "rwlock":
            return "write" not in held or len(held) == 1
    return len(held) == 1
