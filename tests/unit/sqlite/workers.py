"""What the tests of the SQLite store run in other processes and threads, and how they wait."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import kvi
from kvi import Get, Key, Put

_spawn = multiprocessing.get_context("spawn")


def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.002)


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Run a function of this module in a fresh process."""
    process = _spawn.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def finish(*processes: BaseProcess, seconds: float = 90.0) -> None:
    """Wait for processes to end well."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        assert process.exitcode == 0, f"exit code {process.exitcode}"


def increment(uri: str, times: int) -> None:
    """Add one to the number under ``counter``, so many times, by test-and-set."""
    with kvi.open(uri, timeout=60) as store:
        for _ in range(times):
            while True:
                entry = store.get("counter")
                assert entry is not None
                if store.tas("counter", entry.value, str(int(entry.text) + 1)):
                    break


def transfer(uri: str, times: int, accounts: int) -> None:
    """Move one from an account to another, so many times, in a transaction of two keys."""
    chance = random.Random()
    with kvi.open(uri, timeout=60) as store:
        for _ in range(times):
            while True:
                names = [f"account/{n}" for n in chance.sample(range(accounts), 2)]
                giver, taker = store.txn(then=[Get(name) for name in names]).results
                assert isinstance(giver, kvi.KeyValue)
                assert isinstance(taker, kvi.KeyValue)
                if store.txn(
                    [Key(e.key).revision == e.revision for e in (giver, taker)],
                    [
                        Put(giver.key, str(int(giver.text) - 1)),
                        Put(taker.key, str(int(taker.text) + 1)),
                    ],
                ):
                    break


def open_first(uri: str, go: float, name: str) -> None:
    """Open a store that may not be there yet, at the agreed time, and write to it."""
    while time.time() < go:
        pass
    with kvi.open(uri, timeout=30) as store:
        store.store(name, name)


def write_pairs(uri: str, said: Any) -> None:
    """Write the same number under two keys, over and over, and say which were acknowledged."""
    with kvi.open(uri, timeout=30) as store:
        for number in range(1_000_000):
            text = str(number)
            store.txn(then=[Put("left", text), Put("right", text), Put(f"n/{number % 50}", text)])
            said.send(number)


def lock_file(path: str, said: Any) -> None:
    """Hold the write lock of the file until told to let go."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    said.send("locked")
    said.recv()
    connection.execute("ROLLBACK")
    connection.close()


def pipe() -> tuple[Any, Any]:
    """Two ends of a pipe between processes."""
    return _spawn.Pipe()


def keep_reading(uri: str, key: str, said: Any) -> None:
    """Read a key until it is gone, and say when that was, on the clock of leases."""
    from kvi.clock import now

    with kvi.open(uri) as store:
        said.send("ready")
        said.recv()
        while store.get(key) is not None:
            time.sleep(0.002)
        said.send(now())


def hold_lease(uri: str, ttl: float, said: Any) -> None:
    """Store keys with a lease, and renew it as fast as possible."""
    with kvi.open(uri) as store:
        lease = store._scope.primitives._lease_grant(ttl, 5).id
        store.txn(then=[Put(f"held/{n}", "v", lease) for n in range(100)])
        store._scope.primitives._lease_renew(lease, 5)
        said.send("held")
        while True:
            store._scope.primitives._lease_renew(lease, 5)


def write_numbers(uri: str, key: str, first: int, last: int) -> None:
    """Store the numbers under a key, one after the other."""
    with kvi.open(uri, timeout=60) as store:
        for number in range(first, last):
            store.store(key, str(number))
