"""Many watches on one handle: memory, threads, the time of an event, of beginning and of closing.

`python -m benchmarks.many NAME URI NUMBER` prints one line of JSON. The floor is one bare stream
with as many watches. Needs Linux's ``/proc``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import kvi

from benchmarks.etcd import Stub
from benchmarks.growth import memory
from benchmarks.measure import FLOOR, KVI

_PREFIX = "benchmark/each/"
_EVENTS = 200
_PATIENCE = 30.0

Seen = SimpleQueue[float]


@contextmanager
def _watches(uri: str, keys: list[str], seen: Seen) -> Iterator[None]:
    with kvi.open(uri, timeout=_PATIENCE) as store:
        for key in keys:
            store.watch(key, callback=lambda event, data: seen.put(time.perf_counter()))
        yield


@contextmanager
def _bare_watches(uri: str, keys: list[str], seen: Seen) -> Iterator[None]:
    with closing(Stub(uri)) as stub:
        answers = stub.watch(*(key.encode() for key in keys), previous=True)

        def read() -> None:
            with suppress(grpc.RpcError):
                for answer in answers:
                    for _ in answer.events:
                        seen.put(time.perf_counter())

        thread = threading.Thread(target=read)
        thread.start()
        yield
        answers.cancel()
        thread.join()


def measure(name: str, uri: str, number: int) -> dict[str, Any]:
    """All figures of the contender called ``name``."""
    contenders: dict[str, Callable[[str, list[str], Seen], Any]] = {
        FLOOR: _bare_watches,
        KVI: _watches,
    }
    keys = [f"{_PREFIX}{count}" for count in range(number)]
    seen: Seen = SimpleQueue()
    with closing(Stub(uri)) as writer:
        writer.store(keys[0], b"")
        resident, threads = memory("VmRSS"), _threads()
        start = time.perf_counter()
        with contenders[name](uri, keys, seen):
            begun = time.perf_counter() - start
            latencies = []
            for key in keys[:: max(1, number // _EVENTS)]:
                start = time.perf_counter()
                writer.store(key, b"2500")
                latencies.append(seen.get(timeout=_PATIENCE) - start)
            used = {"growth": memory("VmRSS") - resident, "threads": _threads() - threads}
            start = time.perf_counter()
        closed = time.perf_counter() - start
    return {"latencies": latencies, "begun": begun, "closed": closed, **used}


def _threads() -> int:
    """All threads of this process, those of C libraries included."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
