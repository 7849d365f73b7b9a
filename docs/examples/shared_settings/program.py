"""The whole run: publish the settings, start the workers, check what they left behind."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import secrets
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import BrokenBarrierError

import kvi

from docs.examples.shared_settings.settings import HITS, QUOTA, WORKER, Service
from docs.examples.shared_settings.worker import Job, Tally, work

CODE = ("settings.py", "worker.py", "program.py")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be exactly so, and whether it is."""

    claim: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Account:
    """What a run did and what it left in the store."""

    uri: str
    plugins: list[str]
    code: str
    seconds: float
    tallies: list[Tally]
    entries: list[kvi.KeyValue]
    checks: list[Check]

    @property
    def good(self) -> bool:
        """Whether every total is right."""
        return all(check.holds for check in self.checks)

    @property
    def operations(self) -> int:
        """Calls of the store by all workers."""
        return sum(tally.operations for tally in self.tallies)

    @property
    def lost(self) -> int:
        """Races lost and tried again, by all workers."""
        return sum(tally.lost for tally in self.tallies)

    @property
    def rate(self) -> float:
        """Calls of the store in a second."""
        return self.operations / self.seconds

    def hit_seconds(self, percent: int) -> float:
        """How long counting one hit took in ``percent`` of all cases, lost races included."""
        times = sorted(took for tally in self.tallies for took in tally.hit_seconds)
        if len(times) < 2:
            return sum(times)
        return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]

    def as_json(self) -> dict[str, object]:
        """The figures that runs are compared by."""
        return {
            "uri": self.uri,
            "plugins": self.plugins,
            "code": self.code,
            "processes": len(self.tallies),
            "seconds": self.seconds,
            "operations": self.operations,
            "lost": self.lost,
            "rate": self.rate,
            "hit_seconds": {percent: self.hit_seconds(percent) for percent in (50, 99)},
            "loaded": sorted({name for tally in self.tallies for name in tally.plugins}),
            "shared": {
                entry.key: entry.text for entry in self.entries if not entry.key.startswith(WORKER)
            },
            "good": self.good,
        }


def run(uri: str, processes: int, increments: int, transfers: int) -> Account:
    """Run it on the store at ``uri``, under a namespace of its own that is removed at the end."""
    service = Service.load()
    namespace = f"{service.name}-{secrets.token_hex(4)}"
    job = Job(uri, namespace, increments, transfers, service.regions, service.total_quota)
    with kvi.open(uri) as whole, whole.namespace(namespace) as store:
        if not store.capabilities.shared:
            raise kvi.NotSupported("each process would have a store of its own; name a shared one")
        try:
            service.publish(store)
            seconds, tallies = _all_at_once(job, processes)
            entries = list(store.range())
            checks = check(job, tallies, {entry.key: entry for entry in entries})
        finally:
            with suppress(kvi.KviError):  # it would hide what went wrong before
                store.delete_range(prefix="")
        plugins = [
            f"{found.distribution} {found.version}"
            for found in kvi.backends()
            if found.scheme == uri.partition(":")[0].partition("+")[0]
        ]
        return Account(whole.uri, plugins, digest(), seconds, tallies, entries, checks)


def _all_at_once(job: Job, processes: int) -> tuple[float, list[Tally]]:
    """Start the workers, let them go at the same moment, wait for the last."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        start = manager.Barrier(processes + 1)
        running = [pool.submit(work, job, f"{n}", start) for n in range(1, processes + 1)]
        with suppress(BrokenBarrierError):  # a worker failed before the start, and tells why
            start.wait(timeout=60)
        began = time.perf_counter()
        failures = [error for worker in running if (error := worker.exception()) is not None]
        if failures:
            raise min(failures, key=lambda error: isinstance(error, BrokenBarrierError))
        return time.perf_counter() - began, [worker.result() for worker in running]


def check(job: Job, tallies: list[Tally], left: dict[str, kvi.KeyValue]) -> list[Check]:
    """Compare what is in the store with what must be there."""
    wanted = len(tallies) * job.increments
    hits = int(left[HITS].text) if HITS in left else 0
    quotas = [int(entry.text) for key, entry in left.items() if key.startswith(QUOTA)]
    own = [json.loads(entry.text) for key, entry in left.items() if key.startswith(WORKER)]
    each = {"hits": job.increments, "transfers": job.transfers}
    reads, torn = (sum(getattr(t, name) for t in tallies) for name in ("quota_reads", "torn_reads"))
    return [
        Check(
            f"hits: {hits:,} in the store, {len(tallies)} processes × {job.increments:,} wanted",
            hits == wanted,
        ),
        Check(
            f"hits: the workers' own tallies add up to {sum(o['hits'] for o in own):,}",
            own == [each] * len(tallies) and sum(o["hits"] for o in own) == hits,
        ),
        Check(
            f"quota: {' + '.join(f'{quota:,}' for quota in quotas)} = {sum(quotas):,}, "
            f"{job.total_quota:,} at the start",
            sum(quotas) == job.total_quota and min(quotas) >= 0,
        ),
        Check(
            f"quota: read whole {reads:,} times while it moved, {torn} times with a wrong sum",
            torn == 0,
        ),
    ]


def digest() -> str:
    """What identifies the code that ran."""
    here = Path(__file__).parent
    whole = b"".join((here / name).read_bytes() for name in CODE)
    return hashlib.sha256(whole).hexdigest()[:16]
