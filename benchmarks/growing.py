"""How the cost of a call and the memory of its process grow with what is there.

Of each subject so many are made in one process, in steps of ten; after each step some calls are
made, and their median is told. A call that has to look at everything would cost ten times as much
at each step; aimed at is that none grows faster than the logarithm of the number.

`python -m benchmarks.growing --json FILE` measures every subject on every store, each in a process
of its own, and takes the servers from ``KVI_TEST_ETCD`` and ``KVI_TEST_CONSUL``; given a SUBJECT
and a URI, it prints a line of JSON for each step of that one. `--page FILE` writes docs/growth.md
from what was measured. Memory is what the process holds more than before the first step, where
Linux's ``/proc`` tells.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import kvi
import kvi.aio
from kvi.recipes import Group, Queue

from benchmarks import charts
from benchmarks.growth import STATUS, memory
from benchmarks.machine import versions
from benchmarks.report import shown

PAGE = Path(__file__).parents[1] / "docs" / "growth.md"

_CALLS = 100  # of each kind after each step
_LONGEST = 2.0  # seconds of them, if that is shorter
_TOGETHER = 50  # keys of a transaction: what every store takes
_TTL = 60.0
_PATIENCE = 60.0
_AT_ONCE = 200  # tasks that line up at once
_VALUE = b"v" * 20

Calls = dict[str, Callable[[], object]]


class Subject:
    """Something of which there may be many.

    Attributes:
        sizes: how many there are after each step.
        most_on: the most that are made on a store, if not all.

    """

    sizes: tuple[int, ...] = (10, 100, 1_000, 10_000)
    most_on: Mapping[str, int] = {}

    def __init__(self, uri: str) -> None:
        self.stack = ExitStack()
        self.store = self.stack.enter_context(kvi.open(uri, timeout=_PATIENCE))

    def grow(self, first: int, last: int) -> None:
        """Make those with these numbers."""
        raise NotImplementedError

    def calls(self, number: int) -> Calls:
        """What is measured when there are so many."""
        raise NotImplementedError

    def close(self) -> None:
        """End all of them."""
        self.stack.close()


class Keys(Subject):
    """Keys with small values."""

    sizes = (1_000, 10_000, 100_000, 1_000_000)

    def grow(self, first: int, last: int) -> None:
        for at in range(first, last, _TOGETHER):
            part = range(at, min(at + _TOGETHER, last))
            self.store.txn(then=[kvi.Put(f"keys/{number:08}", _VALUE) for number in part])

    def calls(self, number: int) -> Calls:
        dice = random.Random(number)
        store = self.store

        def some() -> str:
            return f"keys/{dice.randrange(number - 100):08}"

        return {
            "get": lambda: store.get(some()),
            "store": lambda: store.store(some(), _VALUE),
            "prefix of 100": lambda: list(store.range(prefix=some()[:-2])),
            "100 of the rest": lambda: list(store.range(some(), limit=100)),
        }


class Watches(Subject):
    """Watches of one handle, each on a key of its own."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._seen: SimpleQueue[None] = SimpleQueue()

    def grow(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.store.watch(f"watched/{number}", callback=lambda event, data: self._seen.put(None))

    def calls(self, number: int) -> Calls:
        dice = random.Random(number)

        def put() -> None:
            self.store.store(f"watched/{dice.randrange(number)}", _VALUE)
            self._seen.get(timeout=_PATIENCE)

        return {"put, and its event": put}


class Leases(Subject):
    """Leases that one handle keeps alive."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._leases: list[kvi.Lease] = []

    def grow(self, first: int, last: int) -> None:
        self._leases += [self.store.lease(_TTL) for _ in range(first, last)]

    def calls(self, number: int) -> Calls:
        return {"grant and revoke": lambda: self.store.lease(_TTL).revoke()}


class Members(Subject):
    """Members of one group."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._group = Group(self.store, "growing lock", ttl=_TTL)
        self._members: list[object] = []

    def grow(self, first: int, last: int) -> None:
        self._members += [self._group.join(str(number)) for number in range(first, last)]

    def calls(self, number: int) -> Calls:
        return {"join and leave": lambda: self._group.join("one").leave()}


class Jobs(Subject):
    """Jobs that wait in one queue."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._queue = Queue(self.store, "growing queue")

    def grow(self, first: int, last: int) -> None:
        for number in range(first, last):
            self._queue.put(str(number))

    def calls(self, number: int) -> Calls:
        def one() -> None:
            self._queue.put("last")
            job = self._queue.get(_PATIENCE)
            assert job is not None
            job.ack()

        return {"put, get and ack": one}


class Waiting(Subject):
    """Tasks that wait for one lock; the one that has it hands it over."""

    most_on: Mapping[str, int] = {"etcd": 1_000}  # see the notes

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._runner = self.stack.enter_context(asyncio.Runner())
        self._handle = self._runner.run(self._open(uri))
        self.stack.callback(lambda: self._runner.run(self._end()))
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_line = 0  # and the one that has it; who was told to go does not count
        self._has: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def _open(self, uri: str) -> kvi.aio.AsyncKvi:
        return kvi.aio.open(uri, timeout=_PATIENCE)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._handle.close()

    async def _wait(self, lined_up: asyncio.Event) -> None:
        lock = self._handle.lock("growing lock", ttl=_TTL)
        lined_up.set()
        await lock.acquire(None)
        goes = asyncio.Event()
        self._has.put_nowait(goes)
        await goes.wait()
        await lock.release()

    async def _line_up(self, number: int) -> None:
        begun = [asyncio.Event() for _ in range(number)]
        for event in begun:
            task = asyncio.create_task(self._wait(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for event in begun:
            await event.wait()
        self._in_line += number
        if not self._handle.capabilities.lock_fair:  # there is no line
            return
        deadline = time.monotonic() + 10 * _PATIENCE
        while (await self._handle.count(prefix="growing lock/")) < self._in_line:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    def grow(self, first: int, last: int) -> None:
        for at in range(first, last, _AT_ONCE):
            self._runner.run(self._line_up(min(_AT_ONCE, last - at)))

    async def _hand_over(self) -> float:
        goes = await self._has.get()
        start = time.perf_counter()
        self._in_line -= 1
        goes.set()
        following = await self._has.get()
        took = time.perf_counter() - start
        self._has.put_nowait(following)
        await self._line_up(1)
        return took

    def calls(self, number: int) -> Calls:
        return {"hand over": lambda: self._runner.run(self._hand_over())}


SUBJECTS: dict[str, type[Subject]] = {
    "keys": Keys,
    "watches": Watches,
    "leases": Leases,
    "group members": Members,
    "queued jobs": Jobs,
    "waiting for one lock": Waiting,
}


def measure(subject: Subject, sizes: Iterable[int]) -> Iterable[dict[str, Any]]:
    """A line for each step."""
    known = STATUS.exists()
    gc.collect()
    before = memory("VmRSS") if known else 0
    there = 0
    for size in sizes:
        start = time.perf_counter()
        subject.grow(there, size)
        made = (time.perf_counter() - start) / (size - there)
        there = size
        gc.collect()
        grown = memory("VmRSS") - before if known else None
        seconds = {name: _median(call) for name, call in subject.calls(size).items()}
        yield {"number": size, "made": made, "memory": grown, "seconds": seconds}


def _median(call: Callable[[], object]) -> float:
    call()
    took: list[float] = []
    end = time.perf_counter() + _LONGEST
    while len(took) < 5 or (len(took) < _CALLS and time.perf_counter() < end):
        start = time.perf_counter()
        own = call()
        took.append(own if isinstance(own, float) else time.perf_counter() - start)
    return statistics.median(took)


def faster_than_logarithm(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    """How many times as fast as the logarithm of the number a call has grown; aimed at is 1."""
    first, last = lines[0], lines[-1]
    logarithm = math.log(last["number"]) / math.log(first["number"])
    return float(last["seconds"][name] / first["seconds"][name] / logarithm)


# -- all of them ----------------------------------------------------------------------------------

_HEAD = """# Growth

Made by `make growth`, on one machine with two cores; nothing here is a promise. So many keys,
watches, leases and so on are made in one process; then some calls are made beside them, and their
median is told. What has to look at everything would take ten times as long at each step.

*Growth* is how many times as long the call takes beside the most as beside the fewest, and what
the logarithm of their numbers would allow. *Memory* is what the process of the program has grown
by; that of a server is its own affair.

![Cost of a call by what is there](images/growth.svg)
"""
_NOTES = """## What is in the figures

- etcd counts all keys behind the first at each page of a range, whatever its `limit`, and Consul
  has no `limit` at all: there `range(start, limit=100)` takes as long as there are keys behind.
  Give an end, or a prefix.
- Memory's ranges and SQLite's `get` begin at a key by chance, so that with a million keys what they
  need is in none of the processor's caches. Without kvi it is the same: 100 keys of a sorted list
  and a dict took 7 and then 40 µs, `get` in raw `sqlite3` 8.5 and then 15 µs.
- For each claim of a lock etcd reads and sorts the lock's whole queue, as it does for
  `etcdctl lock`: it has no order by creation. Beside 10,000 who wait it is busy with that alone,
  for minutes until all have lined up; so 1,000 are measured there.
- A group's members and waiting jobs are keys with leases; who waits for a lock has a lease too.
- On Consul a lock is one key, without a queue. Those of one handle who wait stand in a line of
  their own, so that only one of each handle tries when the lock is free.
"""


def main(argv: list[str]) -> int:
    """Measure one subject on one store, or all; or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growing")
    parser.add_argument("subject", nargs="?", choices=SUBJECTS)
    parser.add_argument("uri", nargs="?")
    parser.add_argument("--most", type=int, default=sys.maxsize, help="leave larger numbers out")
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="measure these anew")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    if options.page:
        found = json.loads(options.page.read_text())
        PAGE.write_text(page(found), encoding="utf-8")
        charts.growth(list(_panels(found)), charts.IMAGES / "growth.svg")
        return 0
    if options.subject:
        subject = SUBJECTS[options.subject](options.uri)
        try:
            for line in measure(subject, [n for n in subject.sizes if n <= options.most]):
                print(json.dumps(line), flush=True)
        finally:
            subject.close()
        return 0
    with tempfile.TemporaryDirectory(prefix="kvi-growth-") as folder:
        lines: list[dict[str, Any]] = []
        if options.only:
            known = json.loads(options.json.read_text())["lines"]
            lines = [line for line in known if line["subject"] not in options.only]
        for line in _all(Path(folder), options.only or SUBJECTS, options.most):
            lines.append(line)
            lines.sort(key=lambda line: list(SUBJECTS).index(line["subject"]))
            options.json.write_text(json.dumps({"machine": versions(), "lines": lines}, indent=1))
    return 0


def _all(folder: Path, names: Iterable[str], most: int) -> Iterator[dict[str, Any]]:
    for name in names:
        kind = SUBJECTS[name]
        stores = {
            "memory": "mem:growing",
            "sqlite": f"sqlite:{folder}/{name.replace(' ', '-')}.db",
            "etcd": os.environ["KVI_TEST_ETCD"],
            "consul": os.environ["KVI_TEST_CONSUL"],
        }
        for store, uri in stores.items():
            bound = min(most, kind.most_on.get(store, most))
            command = [sys.executable, "-m", "benchmarks.growing", name, uri, "--most", str(bound)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            yield {
                "subject": name,
                "store": store,
                "steps": [json.loads(line) for line in done.stdout.splitlines()],
            }
            print(f"measured: {name}, {store}", file=sys.stderr, flush=True)


def page(found: dict[str, Any]) -> str:
    """The page."""
    lines = [_HEAD, "Measured on:", "", *(f"- {line}" for line in found["machine"])]
    for name, measured in groupby(found["lines"], key=lambda line: str(line["subject"])):
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        rows = list(measured)
        sizes = [step["number"] for step in max((row["steps"] for row in rows), key=len)]
        numbers = " | ".join(f"{size:,}" for size in sizes)
        lines += [f"| store | call | {numbers} | growth | memory |"]
        lines += [f"|---|---|{'---:|' * len(sizes)}---|---:|"]
        lines += [line for row in rows for line in _rows(row, len(sizes))]
    return "\n".join([*lines, "", _NOTES])


def _rows(row: dict[str, Any], columns: int) -> Iterator[str]:
    steps = row["steps"]
    held = steps[-1]["memory"]
    memory_of = "" if held is None else f"{held / 1e6:,.0f} MB"
    for call in steps[0]["seconds"]:
        cells = [shown(step["seconds"][call]) for step in steps]
        cells += [""] * (columns - len(cells))
        grown = steps[-1]["seconds"][call] / steps[0]["seconds"][call]
        allowed = grown / faster_than_logarithm(steps, call)
        mark = "✓" if grown <= allowed else "✗"
        times = f"{grown:.2g}" if grown < 100 else f"{grown:,.0f}"
        yield (
            f"| {row['store']} | {call} | {' | '.join(cells)} "
            f"| {mark} {times}×, log {allowed:.2g}× | {memory_of} |"
        )
        memory_of = ""


def _panels(found: dict[str, Any]) -> Iterator[tuple[str, str, list[charts.Line]]]:
    for name, measured in groupby(found["lines"], key=lambda line: str(line["subject"])):
        lines = []
        calls: list[str] = []
        for colour, row in enumerate(measured):
            calls = list(row["steps"][0]["seconds"])
            for dashes, call in enumerate(calls):
                points = [(step["number"], step["seconds"][call] * 1e6) for step in row["steps"]]
                label = f"{row['store']}, {call}" if len(calls) > 1 else row["store"]
                lines.append(charts.Line(label, colour, dashes, points))
        title = name if len(calls) > 1 else f"{name}: {calls[0]}"
        yield title, "µs a call", lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
