"""Watches on etcd: one event, a great many, and many watches; beside a bare gRPC stream.

A thread waits for each event and notes when it came. The time runs from the beginning of the put,
by the bare stub for everybody: what is longer than the floor's is what kvi adds between the arrival
of the event and its consumer.

The many events were written beforehand, in transactions of 128 puts: of single puts etcd tells a
thousand in a tenth of a second, whoever reads. The time includes that of etcd, which reads its
history for both alike; what the client itself does is told as its processor time. Of each event the
floor takes the kind, key, value and revision, and the value before.

Many watches are measured by `benchmarks.many`, in processes of their own. The other stores stand
beside for information; their floor is the write alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import kvi

from benchmarks.consul import Http
from benchmarks.etcd import Stub
from benchmarks.growth import STATUS
from benchmarks.measure import FLOOR, KVI, QUICK, Comparison, Effort, Run, calls, compare
from benchmarks.memory import Dict
from benchmarks.report import Row, Target, faster, shown, within
from benchmarks.sqlite import Raw

_PREFIX, _VALUE = "benchmark/watched/", b"2500"
_UNBOUNDED = (("grpc.max_receive_message_length", -1),)  # etcd tells any number of events at once
_PATIENCE = 30.0  # seconds for one event
_LATER = 0.0003  # seconds
_RATE = 0.8
_HISTORY = 50_000  # events
_GROWTH, _THREADS, _LATENCY = 100_000_000, 8, 0.005

Put = Callable[[str, bytes], object]
Seen = SimpleQueue[float]


def rows(effort: Effort, uris: Mapping[str, str]) -> Iterator[Row]:
    """On etcd, then for information on the others."""
    if uri := uris.get("etcd"):
        with kvi.open(uri) as store, closing(Stub(uri, _UNBOUNDED)) as floor:
            yield _one(effort, store, floor)
            yield _history(effort, store, floor)
            store.delete_range(prefix="benchmark/", timeout=60)
            floor.settle()
        if STATUS.exists():
            yield _many(uri, 2_000 if effort is QUICK else 10_000)
    with tempfile.TemporaryDirectory(prefix="kvi-benchmark-") as folder, ExitStack() as stack:
        raw = stack.enter_context(closing(Raw(Path(folder) / "raw.db")))
        others: dict[str, tuple[str, Put]] = {
            "memory": ("mem:benchmark", Dict().store),
            "sqlite": (f"sqlite:{folder}/kvi.db", raw.store),
        }
        if uri := uris.get("consul"):
            http = stack.enter_context(closing(Http(uri)))
            others["consul"] = uri, http.store
        for name, (uri, write) in others.items():
            with kvi.open(uri) as store, kvi.open(uri) as writer:
                key, beside = _PREFIX + "kvi", _PREFIX + "floor"
                with _reader(store, key) as seen:
                    bare = calls(write, beside, _VALUE)
                    runs = {FLOOR: bare, KVI: _until(seen, writer.store, key)}
                    compared = compare(effort, runs)
                store.delete_range(prefix="benchmark/")
            yield Row("watches", f"{name}, put → event", compared, remark="floor: the write alone")


@contextmanager
def _reader(store: kvi.Kvi, key: str) -> Iterator[Seen]:
    """A thread that waits for the events of ``key``: the times at which it had them."""
    seen: Seen = SimpleQueue()
    with store.watch(key) as watch:

        def read() -> None:
            for _ in watch:
                seen.put(time.perf_counter())

        thread = threading.Thread(target=read)
        thread.start()
        yield seen
    thread.join()


@contextmanager
def _called(store: kvi.Kvi, key: str) -> Iterator[Seen]:
    """The same with a call-back."""
    seen: Seen = SimpleQueue()
    with store.watch(key, callback=lambda event, data: seen.put(time.perf_counter())):
        yield seen


@contextmanager
def _bare_reader(floor: Stub, key: str) -> Iterator[Seen]:
    """The same on a bare stream."""
    seen: Seen = SimpleQueue()
    answers = floor.watch(key.encode(), previous=True)

    def read() -> None:
        with suppress(grpc.RpcError):
            for answer in answers:
                for _ in answer.events:
                    seen.put(time.perf_counter())

    thread = threading.Thread(target=read)
    thread.start()
    yield seen
    answers.cancel()
    thread.join()


def _until(seen: Seen, put: Put, key: str) -> Run:
    """Put, and wait for the event; the time is that at which it was seen."""

    def run(number: int) -> float:
        took = 0.0
        for _ in range(number):
            start = time.perf_counter()
            put(key, _VALUE)
            took += seen.get(timeout=_PATIENCE) - start
        return took

    return run


def _one(effort: Effort, store: kvi.Kvi, floor: Stub) -> Row:
    keys = {name: f"{_PREFIX}{name}" for name in (FLOOR, KVI, "kvi by call-back")}
    with ExitStack() as stack:
        enter = stack.enter_context
        seen = {
            FLOOR: enter(_bare_reader(floor, keys[FLOOR])),
            KVI: enter(_reader(store, keys[KVI])),
            "kvi by call-back": enter(_called(store, keys["kvi by call-back"])),
        }
        runs = {name: _until(seen[name], floor.store, keys[name]) for name in keys}
        compared = compare(effort, runs)
    return Row("watches", "etcd, put → event", compared, (within(compared, _LATER),))


def _history(effort: Effort, store: kvi.Kvi, floor: Stub) -> Row:
    prefix = _PREFIX + "many/"
    floor.fill(prefix, _HISTORY, _VALUE)
    start = store.store(_PREFIX + "start", "") + 1
    floor.fill(prefix, _HISTORY, _VALUE)  # again, so that each change has a state before
    runs = {
        FLOOR: calls(_read_bare, floor, prefix, start, _HISTORY),
        KVI: calls(_read, store, prefix, start, _HISTORY),
    }
    compared = compare(Effort(max(7, effort.rounds // 3), 0.0), runs)
    spent = {name: min(_processor(run) for _ in range(3)) / _HISTORY for name, run in runs.items()}
    told = ", ".join(f"{name} {shown(spent[name])}" for name in (KVI, FLOOR))
    return Row(
        "watches",
        f"etcd, {_HISTORY:,} events",
        compared,
        (faster(compared, _RATE, FLOOR),),
        remark=f"the client's processor time an event: {told}",
    )


def _read(store: kvi.Kvi, prefix: str, start: int, number: int) -> None:
    with store.watch(prefix=prefix, from_revision=start) as watch:
        for _ in range(number):
            watch.next(_PATIENCE)


def _read_bare(floor: Stub, prefix: str, start: int, number: int) -> None:
    low = prefix.encode()
    answers = floor.watch(low, end=low[:-1] + b"0", start=start, previous=True)
    seen: list[object] = []
    for answer in answers:
        for change in answer.events:
            kv = change.kv
            seen.append((change.type, kv.key, kv.value, kv.mod_revision, change.prev_kv.value))
        if len(seen) >= number:
            answers.cancel()
            return


def _processor(run: Run) -> float:
    start = time.process_time()
    run(1)
    return time.process_time() - start


def _many(uri: str, number: int) -> Row:
    told = {name: _in_a_process(name, uri, number) for name in (FLOOR, KVI)}
    ours, theirs = told[KVI], told[FLOOR]
    compared = Comparison({name: told[name]["latencies"] for name in told})
    grown, threads = ours["growth"], ours["threads"]
    latency = compared.seconds(KVI)
    targets = (
        Target(f"< {_GROWTH // 1_000_000} MB growth", f"{grown / 1e6:.0f} MB", grown < _GROWTH),
        Target(f"≤ {_THREADS} threads", f"{threads}", threads <= _THREADS),
        Target(f"< {shown(_LATENCY)}", shown(latency), latency < _LATENCY),
    )
    remark = "; ".join(
        f"{name}: {each['growth'] / 1e6:.0f} MB, {each['threads']} threads, "
        f"begun in {shown(each['begun'])}, closed in {shown(each['closed'])}"
        for name, each in ((KVI, ours), (FLOOR, theirs))
    )
    return Row("watches", f"etcd, event with {number:,} watches", compared, targets, remark=remark)


def _in_a_process(name: str, uri: str, number: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.many", name, uri, str(number)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told
