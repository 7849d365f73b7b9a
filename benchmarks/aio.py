"""`kvi.aio`, against a bare `grpc.aio` stub, ``aetcd`` and ``etcetra``; in memory, against a dict.

One or many tasks of one event loop call at once. On etcd each contender has a process of its own
(`benchmarks.aio_peer`), which all are asked in turn. The floor is ``channel.unary_unary`` of
`grpc.aio` on messages made from kvi's own ``wire.proto``, over a channel with default options,
without a time-out: the least that can ask etcd. Beside it runs the same stub with what kvi sends
along with each call: its time-out, and that it wants a leader.

``etcetra`` wants one release of grpcio alone, and no other library of these does: ``make bench``
puts it aside, where it is used with the grpcio that is here.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import kvi

from benchmarks.aio_peer import LIBRARIES, contenders, measured
from benchmarks.measure import FLOOR, KVI, Effort, Run, compare
from benchmarks.memory import Dict
from benchmarks.report import Row, at_most, faster

_KEY, _VALUE = "benchmark/aio", b"2500"
_TASKS = (1, 32, 256)


def rows(effort: Effort, uris: dict[str, str]) -> Iterator[Row]:
    """Get and store, by one task and by many."""
    with asyncio.Runner() as runner:
        yield _memory(effort, runner)
    if "etcd" in uris:
        yield from _etcd(effort, uris["etcd"])


def _memory(effort: Effort, runner: asyncio.Runner) -> Row:
    floor, store = Dict(), kvi.aio.open("mem:benchmark-aio")
    floor.store(_KEY, _VALUE)

    async def bare(number: int) -> float:
        get = floor.get
        start = time.perf_counter()
        for _ in range(number):
            get(_KEY)
        return time.perf_counter() - start

    runner.run(store.store(_KEY, _VALUE))
    compared = compare(
        effort,
        {
            FLOOR: lambda number: runner.run(bare(number)),
            KVI: lambda number: runner.run(measured(lambda: store.get(_KEY), 1, number)),
        },
    )
    runner.run(store.close())
    return Row("memory", "await get", compared, (at_most(compared, 12),))


def _etcd(effort: Effort, uri: str) -> Iterator[Row]:
    with ExitStack() as stack:
        asked = {name: stack.enter_context(_Contender(name, uri)) for name in contenders()}
        for count in _TASKS:
            for case in ("get", "store"):
                runs = {name: one.run(case, count) for name, one in asked.items()}
                compared = compare(Effort(effort.rounds, effort.turn * 4), runs)
                tasks = "1 task" if count == 1 else f"{count} tasks"
                others = [name for name in LIBRARIES if name in asked]
                targets = at_most(compared, 1.25), *(faster(compared, 1, name) for name in others)
                yield Row("etcd", f"await {case}, {tasks}", compared, targets)
    with kvi.open(uri) as store:
        store.delete(_KEY)


class _Contender:
    """One of them, in its process; a context manager."""

    def __init__(self, name: str, uri: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.aio_peer", name, uri, _KEY, _VALUE.decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.communicate(timeout=30)  # the end of its input ends it

    def run(self, case: str, tasks: int) -> Run:
        asks, tells = self._process.stdin, self._process.stdout
        assert asks is not None
        assert tells is not None

        def ask(number: int) -> float:
            print(case, tasks, number, file=asks, flush=True)
            return float(tells.readline())

        return ask
