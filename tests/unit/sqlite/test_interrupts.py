"""Interrupts of SQLite: a handler's exception in the middle of a get, or of a long statement."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kvi

ALL = """
import json, os, random, signal, sys, threading
import kvi

class Interrupt(Exception):
    pass

def handler(number, frame):
    global fired
    fired += 1
    raise Interrupt

uri, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
fired = 0

def files():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
"""

READS = """
caught = right = 0
store = kvi.open(uri)
store.store("k", "v")
stop = threading.Event()
failures = []

def work():
    try:
        while not stop.is_set():
            store.store("other", "v")
            assert store.get("other").value == b"v"
    except BaseException as error:
        failures.append(repr(error))

worker = threading.Thread(target=work)
worker.start()
signal.signal(signal.SIGALRM, handler)
while caught < 2000:
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-4))
            for _ in range(50):
                right += store.get("k").value == b"v"
                right += [e.value for e in store.range(prefix="k")] == [b"v"]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupt:
        caught += 1
stop.set()
worker.join(30)
print(json.dumps([fired, caught, right, failures, worker.is_alive(), files()]))
store.close()
"""


def test_reads_are_whole_at_every_step(uri: str) -> None:
    """Thousands of interrupted gets and ranges: all exceptions come out, nothing leaks."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALL + READS, uri, "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Exception ignored" not in done.stderr, done.stderr
    fired, caught, right, failures, stuck, files = json.loads(done.stdout)
    assert fired == caught
    assert right > 0
    assert failures == []
    assert not stuck
    assert files < 200  # SQLite keeps some for as long as others read


WRITES = """
caught = stored = 0
store, other = kvi.open(uri), kvi.open(uri)
store.store("k", "0")
failures = []
signal.signal(signal.SIGALRM, handler)
while caught < 1000:
    value = last = int(store.get("k").text)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-3))
            while True:
                store.store("k", str(value + 1))
                value += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupt as interrupt:
        caught += 1
        kept = interrupt  # and with it what its frames hold
        found = store.get("k")
        if int(found.text) not in (value, value + 1) or found.version != int(found.text) + 1:
            failures.append((value, found.text, found.version))
        other.store("other", "v", timeout=5)
        stored += value - last
print(json.dumps([fired, caught, stored, failures, files()]))
store.close()
"""


def test_writes_are_whole_at_every_step(uri: str) -> None:
    """A thousand interrupted stores: each was done or not, and nobody else has to wait for it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALL + WRITES, uri, "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    fired, caught, stored, failures, files = json.loads(done.stdout)
    assert fired == caught
    assert stored > 0
    assert failures == []
    assert files < 200
    with kvi.open(uri) as store:
        assert store.store("k", "v")


LONG = """
import signal, sys, threading, time
import kvi

store = kvi.open(sys.argv[1], timeout=60)
store.ping()
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
began = time.monotonic()
try:
    store.delete_range(prefix="")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - began)
else:
    print("deleted", time.monotonic() - began)
store.close()
"""


def test_interrupt_ends_a_long_statement(uri: str, path: Path) -> None:
    """Ctrl-C in a long deletion comes out at once; nothing is deleted, then or later."""
    with kvi.open(uri, timeout=60) as store:
        store.store("first", "v")
        client = store.client
        client.execute(
            "INSERT INTO entries (key, revision, create_revision, version, value) "
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) "
            "SELECT CAST(printf('k/%07d', i) AS BLOB), 1, 1, 1, x'00' FROM n"
        )
        before = store.count(prefix="")
    done = subprocess.run(
        [sys.executable, "-c", LONG, uri, "0.1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("interrupted"), done.stdout
    with kvi.open(uri) as store:
        assert store.count(prefix="") == before
