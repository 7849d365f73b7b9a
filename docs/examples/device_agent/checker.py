"""The proof: what must be true of the store, whoever was killed, and when.

Reads the store itself, past all caches.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import kvi

from docs.examples.device_agent.device import POOL, TEMPLATES, unpack
from docs.examples.device_agent.device_pb2 import Flow, Group, Meter, Pool, ResourceRecord


@dataclass(frozen=True, slots=True)
class Findings:
    """What there is, and what is wrong with it."""

    contents: list[tuple[str, bytes]]
    flows: int
    meters: int
    profiles: int
    stored: int
    """Bytes of all profiles, as records."""
    whole: int
    """Bytes of all profiles, if they were stored whole."""
    wrong: list[str] = field(default_factory=list)


def check(store: kvi.Kvi) -> Findings:
    """Read everything, at one revision where the store can, and compare."""
    contents = [(entry.key, entry.value or b"") for entry in store.range()]
    kinds: dict[str, dict[int, bytes]] = {
        path: {} for path in ("flows", "groups", "meters", "pools", "profiles")
    }
    for key, value in contents:
        path, _, name = key.partition("/")
        kinds[path][int(name)] = value
    flows = {id: Flow.FromString(value) for id, value in kinds["flows"].items()}
    meters = {id: Meter.FromString(value) for id, value in kinds["meters"].items()}
    groups = {id: Group.FromString(value) for id, value in kinds["groups"].items()}
    records = {id: ResourceRecord.FromString(value) for id, value in kinds["profiles"].items()}
    wrong: list[str] = []

    used = Counter(flow.meter for flow in flows.values())
    for id, meter in sorted(meters.items()):
        if meter.flows != used[id]:
            wrong.append(f"meter {id} counts {meter.flows} flows, {used[id]} use it")
    wrong += [
        f"{count} flows use meter {id}, which is not there"
        for id, count in used.items()
        if id not in meters
    ]
    wrong += [f"a flow stands under {id}" for id, flow in flows.items() if flow.id != id]
    wrong += [f"a meter stands under {id}" for id, meter in meters.items() if meter.id != id]
    wrong += [f"a group stands under {id}" for id, group in groups.items() if group.id != id]

    for id, record in records.items():
        if record.subscriber != id:
            wrong.append(f"a profile stands under {id}")
        if len(record.ports) != len(TEMPLATES[record.template].queues):
            wrong.append(f"subscriber {id} has {len(record.ports)} ports")

    pool = Pool.FromString(kinds["pools"].get(POOL, Pool(id=POOL, next=1).SerializeToString()))
    given = Counter(pool.free)
    for record in records.values():
        given.update(record.ports)
    wrong += [
        f"port {port} was given out {times} times" for port, times in given.items() if times > 1
    ]
    unknown = [port for port in sorted(given) if not 0 < port < pool.next]
    wrong += [f"port {port} was never in the pool" for port in unknown]
    lost = set(range(1, pool.next)) - set(given)
    wrong += [f"port {port} is nobody's" for port in sorted(lost)]
    return Findings(
        contents,
        len(flows),
        len(meters),
        len(records),
        sum(map(len, kinds["profiles"].values())),
        sum(len(unpack(record).SerializeToString()) for record in records.values()),
        wrong,
    )
