"""`kvi.aio`, against a bare `grpc.aio` stub, ``aetcd`` and ``etcetra``; in memory, against a dict.

All run in one event loop, by one or many tasks. The floor is ``channel.unary_unary`` of `grpc.aio`
on messages made from kvi's own ``wire.proto``, over a channel with default options, without a
time-out: the least that can ask etcd. Beside it runs the same stub with what kvi sends along with
each call: its time-out, and that it wants a leader.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import grpc
import kvi
from kvi_etcd import wire_pb2 as pb

from benchmarks.aio_peer import PEERS, Call
from benchmarks.machine import address, has
from benchmarks.measure import FLOOR, KVI, Effort, Run, compare
from benchmarks.memory import Dict
from benchmarks.report import Row, at_most, faster

_KEY, _VALUE = "benchmark/aio", b"2500"
_TASKS = (1, 32, 256)
_ASKED = "stub with time-out and leader"


class Stub:
    """The floor: bare calls, nothing around them. Made in a loop."""

    def __init__(self, uri: str, **options: Any) -> None:
        """``options`` go with each call."""
        host, port = address(uri)
        self._options = options
        self.channel = grpc.aio.insecure_channel(f"{host}:{port}")
        self._range = self.channel.unary_unary(
            "/etcdserverpb.KV/Range",
            request_serializer=pb.RangeRequest.SerializeToString,
            response_deserializer=pb.RangeResponse.FromString,
        )
        self._put = self.channel.unary_unary(
            "/etcdserverpb.KV/Put",
            request_serializer=pb.PutRequest.SerializeToString,
            response_deserializer=pb.PutResponse.FromString,
        )

    async def get(self) -> bytes:
        answer = await self._range(pb.RangeRequest(key=_KEY.encode()), **self._options)
        return answer.kvs[0].value  # type: ignore[no-any-return]

    async def store(self) -> int:
        answer = await self._put(pb.PutRequest(key=_KEY.encode(), value=_VALUE), **self._options)
        return answer.header.revision  # type: ignore[no-any-return]


def rows(effort: Effort, uris: dict[str, str]) -> Iterator[Row]:
    """Get and store, by one task and by many."""
    with asyncio.Runner() as runner:
        yield _memory(effort, runner)
        if "etcd" in uris:
            yield from _etcd(effort, runner, uris["etcd"])


async def measured(call: Call, count: int, number: int) -> float:
    """Await ``call`` by ``count`` tasks at once; the time of ``number`` at their joint rate."""

    async def work(number: int) -> None:
        for _ in range(number):
            await call()

    each = max(1, round(number / count))
    start = time.perf_counter()
    await asyncio.gather(*(work(each) for _ in range(count)))
    return (time.perf_counter() - start) * number / (each * count)


def _tasks(runner: asyncio.Runner, count: int, call: Call) -> Run:
    return lambda number: runner.run(measured(call, count, number))


def _memory(effort: Effort, runner: asyncio.Runner) -> Row:
    floor, store = Dict(), kvi.aio.open("mem:benchmark-aio")
    floor.store(_KEY, _VALUE)

    async def bare(number: int) -> float:
        get = floor.get
        start = time.perf_counter()
        for _ in range(number):
            get(_KEY)
        return time.perf_counter() - start

    runner.run(_finish(store.store(_KEY, _VALUE)))
    compared = compare(
        effort,
        {
            FLOOR: lambda number: runner.run(bare(number)),
            KVI: _tasks(runner, 1, lambda: store.get(_KEY)),
        },
    )
    runner.run(store.close())
    return Row("memory", "await get", compared, (at_most(compared, 12),))


def _etcd(effort: Effort, runner: asyncio.Runner, uri: str) -> Iterator[Row]:
    async def begin(**options: Any) -> Stub:
        return Stub(uri, **options)

    with ExitStack() as stack:
        floor = runner.run(begin())
        leader = grpc.aio.Metadata(("hasleader", "true"))
        asked = runner.run(begin(timeout=30.0, metadata=leader))
        stack.callback(lambda: runner.run(asked.channel.close()))
        store = kvi.aio.open(uri, grpc_aio=True)
        stack.callback(lambda: runner.run(floor.channel.close()))
        stack.callback(lambda: runner.run(store.close()))
        runner.run(_finish(store.store(_KEY, _VALUE)))
        peers = {name: stack.enter_context(_Peer(name, uri)) for name in PEERS if has(name)}
        for count in _TASKS:
            for case, bare, same, ours in (
                ("get", floor.get, asked.get, lambda: store.get(_KEY)),
                ("store", floor.store, asked.store, lambda: store.store(_KEY, _VALUE)),
            ):
                calls = {FLOOR: bare, KVI: ours, _ASKED: same}
                runs = {name: _tasks(runner, count, call) for name, call in calls.items()}
                runs |= {name: peer.run(case, count) for name, peer in peers.items()}
                compared = compare(Effort(effort.rounds, effort.turn * 4), runs)
                tasks = "1 task" if count == 1 else f"{count} tasks"
                targets = at_most(compared, 1.25), *(faster(compared, 1, name) for name in peers)
                yield Row("etcd", f"await {case}, {tasks}", compared, targets)
        runner.run(_finish(store.delete(_KEY)))


class _Peer:
    """Another client in a process of its own; a context manager."""

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


async def _finish(call: Awaitable[object]) -> None:
    await call
