"""Locks under interrupts: a `with` that a signal's handler ends gives its lock back."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kvi import mutex

STORM = """
import random, signal, sys
from kvi import mutex

class Interrupt(Exception):
    pass

def handler(number, frame):
    raise Interrupt

lock = getattr(mutex, sys.argv[1])()
taken = getattr(lock, "_is_owned", None) or lock.locked

def call():
    with lock:
        pass

signal.signal(signal.SIGALRM, handler)
chance = random.Random(1)
caught = 0
while caught < 3000:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-4))
            for _ in range(2000):
                call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupt:
        caught += 1
    if taken():
        sys.exit(f"left taken by interrupt {caught}")
print("free")
"""


@pytest.mark.parametrize("which", ["_Mutex", "_OwnedMutex", "Mutex", "OwnedMutex"])
def test_interrupted_block_gives_its_lock_back(which: str) -> None:
    """Whatever point of a `with` an exception comes at, the lock is free after it."""
    done = subprocess.run(
        [sys.executable, "-c", STORM, which],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "free\n", done.stdout + done.stderr


@pytest.mark.parametrize("make", [mutex._OwnedMutex, mutex.OwnedMutex])
def test_its_owner_may_take_it_again(make: Callable[[], Any]) -> None:
    """It tells whether the thread that asks has it, and is free once that has left as often."""
    lock = make()
    told: list[bool] = []

    def ask() -> None:
        told.append(lock._is_owned() or lock.acquire(blocking=False))

    assert not lock._is_owned()
    with lock:
        with lock:
            assert lock._is_owned()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert told == [False]
    assert not lock._is_owned()


@pytest.mark.parametrize("make", [mutex._Mutex, mutex.Mutex])
def test_it_is_a_lock(make: type[mutex._Mutex]) -> None:
    """One is inside at a time, errors come out of the block, and it can be taken by hand."""
    lock = make()
    inside = []
    count = 0.0

    def work() -> None:
        nonlocal count
        for _ in range(500):
            with lock:
                inside.append(1)
                count += len(inside)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 2000
    with pytest.raises(ZeroDivisionError), lock:
        count /= 0
    assert not lock.locked()
    assert lock.acquire(timeout=1)
    assert not lock.acquire(blocking=False)
    lock.release()
