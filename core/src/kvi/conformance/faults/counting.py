"""Clients that add to one number, with nothing but a lock between them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import kvi
from kvi.conformance.faults.away import BACK, PASSING, opened
from kvi.conformance.waiting import until

CLIENTS = 4
GOES_ON = 10  # additions between two faults
UNHINDERED = 200  # additions while the server is away: another serves in its place
PACE = 0.002  # seconds between two turns of a client


class Counting:
    """Threads with a handle each that read the number and write it back, by turns.

    A write is conditional on the lock's guard alone: if two ever held the lock, the number would
    miss an addition, or its log would. Who does not learn the fate of a write lets go of the lock
    before anything else, so that the guard stops a late one.

    Attributes:
        acknowledged: the additions that were told to be done, each by a name of its own.
        unknown: those whose fate was not told.
        failed: how many turns failed, as they may under faults.

    """

    def __init__(self, uri: str, place: str, ttl: float) -> None:
        self._uri = uri
        self._place = place
        self._ttl = ttl
        self._over = threading.Event()
        self._locks: dict[int, kvi.Lock] = {}
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)
        ]
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.failed = 0

    def start(self) -> None:
        """Begin at nought."""
        with opened(self._uri, self._place) as store:
            store.store("counter", b"0")
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        """Return once some more additions have been acknowledged."""
        enough = len(self.acknowledged) + GOES_ON
        until(lambda: self._errors or len(self.acknowledged) >= enough, within=BACK)

    def met(self) -> Callable[[], object]:
        """A condition: a turn has failed since now, or the fault seems to hinder nobody."""
        failed, done = self.failed, len(self.acknowledged)
        return lambda: (
            self._errors or self.failed > failed or len(self.acknowledged) > done + UNHINDERED
        )

    def end(self) -> None:
        """Let them end; raises what went wrong with them."""
        self._over.set()
        for thread in self._threads:
            thread.join(BACK)
        assert not any(thread.is_alive() for thread in self._threads), "a client did not end"
        if self._errors:
            raise self._errors[0]

    def check(self) -> None:
        """The number and its log are exactly what the clients were told."""
        with opened(self._uri, self._place) as store, store.lock("jobs", timeout=BACK):
            entry = store.get("counter")
            assert entry is not None
            log = {e.key.removeprefix("log/"): e.text for e in store.range(prefix="log/")}
        assert sorted(map(int, log)) == list(range(1, int(entry.text) + 1))
        names = [log[number] for number in sorted(log)]
        assert len(set(names)) == len(names), "one addition was done twice"
        lost = set(self.acknowledged) - set(names)
        assert not lost, f"acknowledged additions were lost: {lost}"
        assert set(names) <= {*self.acknowledged, *self.unknown}, "what was denied was done"
        fences = [int(name.rpartition(" ")[2]) for name in names]
        assert fences == sorted(set(fences)), "a later holder has no larger fence"

    def _run(self, number: int) -> None:
        try:
            with opened(self._uri, self._place, timeout=1) as store:
                for turn in itertools.count():
                    if self._over.wait(PACE):
                        return
                    self._take_turn(store, number, turn)
        except BaseException as error:  # noqa: BLE001  (raised again by `end`)
            self._errors.append(error)

    def _take_turn(self, store: kvi.Kvi, number: int, turn: int) -> None:
        lock = self._locks[number] = store.lock("jobs", ttl=self._ttl, timeout=2)
        try:
            with lock:
                self._add_one(store, lock, f"client {number} turn {turn} fence {lock.fence}")
        except kvi.LockTimeout:
            pass
        except (*PASSING, kvi.Contention, kvi.LeaseLost):
            self.failed += 1

    def _add_one(self, store: kvi.Kvi, lock: kvi.Lock, name: str) -> None:
        entry = store.get("counter")
        assert entry is not None, "a key that is there was not found"
        count = int(entry.text) + 1
        for other in list(self._locks.values()):
            # What was false stays false, so the middle one was asked while this one was held.
            two = other is not lock and lock.held and other.held and lock.held
            assert not two, "two hold the lock at once"
        puts = [kvi.Put("counter", str(count)), kvi.Put(f"log/{count:06}", name)]
        try:
            done = store.txn(when=[lock.guard], then=puts)
        except kvi.OutcomeUnknown:
            self.unknown.append(name)
            raise
        if done:
            self.acknowledged.append(name)
