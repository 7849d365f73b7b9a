"""One worker process. Whatever races it loses against the others, it tries again."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Barrier

import kvi

from docs.examples.shared_settings.settings import HITS, QUOTA, SETTINGS, WORKER

REFRESH = 20  # jobs between two looks at the settings


@dataclass(slots=True)
class Job:
    """What a worker is to do; the same for all of them."""

    uri: str
    namespace: str
    increments: int
    transfers: int
    regions: tuple[str, ...]
    total_quota: int


@dataclass(slots=True)
class Tally:
    """What one worker did."""

    name: str
    hits: int = 0
    transfers: int = 0
    lost_hits: int = 0
    lost_transfers: int = 0
    refreshes: int = 0
    torn_reads: int = 0
    seconds: float = 0.0
    hit_seconds: list[float] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Races lost and tried again."""
        return self.lost_hits + self.lost_transfers

    @property
    def quota_reads(self) -> int:
        """How often all quotas were read at one moment and summed up."""
        return self.transfers + self.lost_transfers

    @property
    def operations(self) -> int:
        """Calls of the store: a hit is a read and a write, and so is a transfer."""
        return 2 * (self.hits + self.transfers + self.lost) + self.refreshes + 1


def work(job: Job, name: str, start: Barrier) -> Tally:
    """Open the store, wait for the others, do the job."""
    tally = Tally(name)
    dice = random.Random(name)
    turns = [count] * job.increments + [transfer] * job.transfers
    dice.shuffle(turns)
    with kvi.open(job.uri) as whole, whole.namespace(job.namespace) as store:
        try:
            store.ping()
        except kvi.KviError:
            start.abort()
            raise
        start.wait(timeout=60)
        began = time.perf_counter()
        step = 0
        for number, turn in enumerate(turns):
            if number % REFRESH == 0:
                step = refresh(store, tally)
            turn(store, job, tally, dice, step)
        store.store(WORKER + name, json.dumps({"hits": tally.hits, "transfers": tally.transfers}))
        tally.seconds = time.perf_counter() - began
    tally.plugins = sorted(m for m in sys.modules if m.startswith("kvi_") and "." not in m)
    return tally


def refresh(store: kvi.Kvi, tally: Tally) -> int:
    """Read all settings again; how much quota may move at once."""
    settings = {entry.key: entry.text for entry in store.range(prefix=SETTINGS)}
    tally.refreshes += 1
    return int(settings[SETTINGS + "quota/step"])


def count(store: kvi.Kvi, _job: Job, tally: Tally, _dice: random.Random, _step: int) -> None:
    """Count one request on the counter that all workers share."""
    began = time.perf_counter()

    def attempt() -> bool:
        seen = store.get(HITS)
        return store.tas(HITS, seen.value if seen else None, str(int(seen.text) + 1 if seen else 1))

    tally.lost_hits += until_won(attempt)
    tally.hits += 1
    tally.hit_seconds.append(time.perf_counter() - began)


def transfer(store: kvi.Kvi, job: Job, tally: Tally, dice: random.Random, step: int) -> None:
    """Move quota between two regions, on condition that nobody changed either meanwhile."""
    giver, taker = (QUOTA + region for region in dice.sample(job.regions, 2))

    def attempt() -> bool:
        read = store.txn(then=[kvi.Get(QUOTA + region) for region in job.regions])
        quotas = {entry.key: entry for entry in read.results if isinstance(entry, kvi.KeyValue)}
        tally.torn_reads += sum(int(quota.text) for quota in quotas.values()) != job.total_quota
        has, gets = int(quotas[giver].text), int(quotas[taker].text)
        amount = min(step, has)
        return store.txn(
            when=[kvi.Key(key).revision == quotas[key].revision for key in (giver, taker)],
            then=[kvi.Put(giver, str(has - amount)), kvi.Put(taker, str(gets + amount))],
        ).succeeded

    tally.lost_transfers += until_won(attempt)
    tally.transfers += 1


def until_won(attempt: Callable[[], bool]) -> int:
    """Attempt again while others are quicker; how many races were lost before."""
    lost = 0
    while True:
        try:
            if attempt():
                return lost
        except kvi.Contention:  # the store itself gave up the race; nothing was applied
            pass
        lost += 1
