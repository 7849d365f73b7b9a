"""Eight processes on one store: what they count and move adds up exactly."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import kvi
import pytest

PROCESSES = 8
FEW, MANY = 120, 500  # rounds of each, in `make test` and in `make soak`

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def increment(uri: str, number: int, rounds: int) -> None:
    """Add one to a shared counter, by tas, until it has worked so many times."""
    with kvi.open(uri, timeout=60) as store:
        for _ in range(rounds):
            while True:
                entry = store.get("counter")
                assert entry is not None
                if store.tas("counter", entry.value, str(int(entry.text) + 1)):
                    break
        store.store(f"done/{number}", str(rounds))


def transfer(uri: str, number: int, rounds: int) -> None:
    """Move random amounts between two accounts, by txn, until it has worked so many times."""
    dice = random.Random(number)
    with kvi.open(uri, timeout=60) as store:
        for _ in range(rounds):
            amount = dice.randint(-50, 50)
            while True:
                a, b = store.txn(then=[kvi.Get("account/a"), kvi.Get("account/b")]).results
                assert isinstance(a, kvi.KeyValue)
                assert isinstance(b, kvi.KeyValue)
                assert int(a.text) + int(b.text) == 1000, "a transfer was seen half done"
                if store.txn(
                    [kvi.Key(a.key).revision == a.revision, kvi.Key(b.key).value == b.text],
                    [
                        kvi.Put(a.key, str(int(a.text) - amount)),
                        kvi.Put(b.key, str(int(b.text) + amount)),
                    ],
                ):
                    break
        store.store(f"done/{number}", str(rounds))


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
        pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
    ]
)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store that processes share."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/totals.db"
    uri = f"{request.getfixturevalue(f'{request.param}_uri')}/totals"
    with kvi.open(uri) as store:
        store.delete_range(prefix="")
    return uri


@pytest.mark.parametrize("work", [increment, transfer], ids=["tas", "txn"])
def test_totals(uri: str, work: object) -> None:
    """8 processes, increments by tas or transfers by txn: the totals are exact at the end."""
    check_totals(uri, work, FEW)


def check_totals(uri: str, work: object, rounds: int) -> None:
    """The same, with so many rounds of each process."""
    with kvi.open(uri) as store:
        store.store("counter", b"0")
        store.txn(then=[kvi.Put("account/a", b"400"), kvi.Put("account/b", b"600")])
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(uri, number, rounds))  # type: ignore[arg-type]
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    with kvi.open(uri) as store:
        assert store.count(prefix="done/") == PROCESSES
        if work is increment:
            assert store.get("counter").text == str(PROCESSES * rounds)  # type: ignore[union-attr]
        else:
            assert sum(int(entry.text) for entry in store.range(prefix="account/")) == 1000
