"""A `Loader` of many entities, against reading and parsing the same records without it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import kvi

from benchmarks.measure import FLOOR, KVI, QUICK, Effort, compare
from benchmarks.report import Row, at_most

_TOGETHER = 1_000


def rows(effort: Effort) -> Iterator[Row]:
    """Loading protobuf messages from memory, where the store itself costs the least."""
    from docs.examples.device_agent import device_pb2 as pb

    number = 10_000 if effort is QUICK else 100_000
    with kvi.open("mem:benchmark-entities") as store:
        for at in range(0, number, _TOGETHER):
            flows = (
                pb.Flow(id=id, in_port=1, vlan=7, out_port=2) for id in range(at, at + _TOGETHER)
            )
            store.txn(then=[kvi.Put(f"flows/{f.id}", f.SerializeToString()) for f in flows])

        def read(calls: int) -> float:
            took = 0.0
            for _ in range(calls):
                start = time.perf_counter()
                found = {}
                for entry in store.range(prefix="flows/"):
                    message = pb.Flow()
                    message.ParseFromString(entry.value or b"")
                    found[entry.key] = message
                took += time.perf_counter() - start
            return took

        def load(calls: int) -> float:
            took = 0.0
            for _ in range(calls):
                loader = kvi.Loader(
                    store, "flows", kvi.ProtobufCodec(pb.Flow), key=lambda f: f.id, follow=False
                )
                start = time.perf_counter()
                loader.load()
                took += time.perf_counter() - start
                loader.close()
            return took

        compared = compare(effort.few(), {FLOOR: read, KVI: load})
        yield Row("entities", f"load {number:,} messages", compared, (at_most(compared, 2),))
        store.delete_range(prefix="")
