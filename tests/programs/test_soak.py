"""Long torture, for `make soak`: processes and servers killed, and totals still exact."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import threading
import time
from multiprocessing.process import BaseProcess

import kvi
import pytest

from tests.programs import test_totals as totals
from tests.programs.test_totals import PROCESSES, increment, transfer, uri
from tests.servers import ConsulServer, EtcdServer
from tests.support.waiting import until

__all__ = ["uri"]  # the fixture

SECONDS = 60
REPEATS = 3

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def shuffle_forever(uri: str, number: int) -> None:
    """Move random amounts among ten accounts until killed; never sees a wrong sum."""
    dice = random.Random(f"{number}{time.time_ns()}")
    names = [f"account/{i}" for i in range(10)]
    with kvi.open(uri, timeout=60) as store:
        while True:
            entries = store.txn(then=[kvi.Get(name) for name in names]).results
            held = [int(entry.text) for entry in entries if isinstance(entry, kvi.KeyValue)]
            assert (len(held), sum(held)) == (10, 10_000)
            a, b = dice.sample(entries, 2)
            assert isinstance(a, kvi.KeyValue)
            assert isinstance(b, kvi.KeyValue)
            amount = dice.randint(-20, 20)
            done = store.txn(
                [kvi.Key(a.key).value == a.text, kvi.Key(b.key).revision == b.revision],
                [
                    kvi.Put(a.key, str(int(a.text) - amount)),
                    kvi.Put(b.key, str(int(b.text) + amount)),
                ],
            )
            if done:
                store.store(f"last/{number}", str(done.revision))


def test_killed_at_random(uri: str) -> None:
    """8 processes move amounts for a minute; every half second one is killed and replaced."""
    with kvi.open(uri) as store:
        store.txn(then=[kvi.Put(f"account/{i}", b"1000") for i in range(10)])
    context = multiprocessing.get_context("spawn")

    def start(number: int) -> BaseProcess:
        process = context.Process(target=shuffle_forever, args=(uri, number), daemon=True)
        process.start()
        return process

    processes = [start(number) for number in range(PROCESSES)]
    dice, kills = random.Random(7), 0
    deadline = time.monotonic() + SECONDS
    with kvi.open(uri, timeout=60) as store:
        while time.monotonic() < deadline:
            victim = dice.randrange(PROCESSES)
            processes[victim].join(0.5)
            processes[victim].kill()
            processes[victim].join(30)
            assert processes[victim].exitcode == -signal.SIGKILL, "a worker saw a wrong sum"
            kills += 1
            processes[victim] = start(victim)
        for process in processes:
            process.kill()
            process.join(30)
            assert process.exitcode == -signal.SIGKILL, "a worker saw a wrong sum"
        accounts = {entry.key: int(entry.text) for entry in store.range(prefix="account/")}
        revision = max(entry.revision for entry in store.range(prefix="account/"))
    assert len(accounts) == 10
    assert sum(accounts.values()) == 10_000
    print(f"\n{uri.partition(':')[0]}: {kills} kills in {SECONDS} s, revision {revision:,}")


@pytest.mark.parametrize("turn", range(REPEATS))
@pytest.mark.parametrize("work", [increment, transfer], ids=["tas", "txn"])
def test_totals_again(uri: str, work: object, turn: int) -> None:
    """The totals of `make test`, with 500 rounds, several times in a row."""
    began = time.monotonic()
    totals.check_totals(uri, work, totals.MANY)
    print(f"\n{uri.partition(':')[0]}: 8 × 500 exact in {time.monotonic() - began:.1f} s")


def present(store: kvi.Kvi) -> dict[str, int]:
    """The keys and their revisions, once the server serves again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return {entry.key: entry.revision for entry in store.range()}
        except (kvi.Unavailable, kvi.Timeout):
            assert time.monotonic() < deadline, "the server did not come back"


@pytest.mark.parametrize("make", [EtcdServer, ConsulServer])
def test_restarts_under_load(make: type[EtcdServer] | type[ConsulServer]) -> None:
    """8 writers while the server is killed 6 times: none acknowledged is lost."""
    with make() as server, kvi.open(server.uri, timeout=2) as store:
        acknowledged: dict[str, int] = {}
        uncertain: set[str] = set()
        denied: set[str] = set()
        failures: list[BaseException] = []
        done = threading.Event()

        def write(name: int) -> None:
            for number in itertools.count():
                if done.is_set():
                    return
                key = f"{name}/{number:06}"
                try:
                    acknowledged[key] = store.store(key, b"v")
                except kvi.OutcomeUnknown:
                    uncertain.add(key)
                except (kvi.Unavailable, kvi.Timeout):
                    denied.add(key)
                    done.wait(0.01)  # lets the server come back, not a condition
                except BaseException as error:  # noqa: BLE001  (shown by the main thread)
                    failures.append(error)
                    return

        writers = [threading.Thread(target=write, args=(name,)) for name in range(8)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(6):
                enough = len(acknowledged) + 300
                until(lambda enough=enough: len(acknowledged) > enough, within=60)  # type: ignore[misc]
                server.kill()
                server.start()
        finally:
            done.set()
            for writer in writers:
                writer.join(30)
        assert failures == []
        found = present(store)
        assert {key: found.get(key) for key in acknowledged} == acknowledged
        assert not denied & set(found)
        print(
            f"\n{server.uri.partition(':')[0]} {server.version}: 6 kills under 8 writers, "
            f"{len(acknowledged)} acknowledged, {len(uncertain)} unknown "
            f"({len(uncertain & set(found))} of them applied), {len(denied)} denied"
        )
