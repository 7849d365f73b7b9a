"""Histories of concurrent clients: sections 3, 4, 6 and 7 of the contract, judged as a whole.

Random clients write and read a few keys at the same time, and what they saw is given to the
checkers of `kvi.conformance.checking`. A failure shows the smallest part of the history that no
store that keeps the contract can have given, and the seed of the clients' calls. One whose text
begins with "unknown:" is no such finding: the checker's time was up before it had decided.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import kvi
from kvi.conformance.checking import (
    Holding,
    Verdict,
    by_revision,
    by_search,
    lock_fault,
    watch_fault,
)
from kvi.conformance.clients import History, Kind, run_clients, run_random
from kvi.conformance.contract import rule
from kvi.conformance.rules import Rules

KEYS = ("a", "b", "c")
CLIENTS, CALLS = 6, 40
WAIT = 20.0  # seconds within which what was written is seen


def judge(history: History) -> None:
    """Fail unless the history is linearizable, in the order of revisions and by search."""
    for check in (by_revision, by_search):
        found = check(history.operations)
        if found.verdict is not Verdict.LINEARIZABLE:
            raise AssertionError(f"{found}\n(seed {history.seed})")


def watched(
    watch: kvi.Watch, store: kvi.Kvi, marker: str, last: dict[str, kvi.KeyValue | None]
) -> list[kvi.Event]:
    """All that a watch tells of what was written until now; ``marker`` must be watched, too.

    Without history nothing is promised about the order of keys: then what comes behind the marker
    is taken, too, until each key was left as it is.
    """
    store.store(marker, b"")
    events: list[kvi.Event] = []
    marked = False
    told: dict[str, int | None] = dict.fromkeys(last)
    wanted = {key: entry and entry.revision for key, entry in last.items()}
    while not marked or (not store.capabilities.watch_history and told != wanted):
        try:
            event = watch.next(WAIT)
        except kvi.Timeout:
            break  # what is missing is told by the check
        if event.key == marker:
            marked = True
            continue
        events.append(event)
        told[event.key] = event.revision if event.type is kvi.EventType.PUT else None
    return events


class TestHistories(Rules):
    """What concurrent clients see, taken together, is what one after another could have seen."""

    def check(
        self, handles: Sequence[kvi.Kvi], kinds: Sequence[Kind], keys: Sequence[str] = KEYS
    ) -> None:
        """Run random clients with these calls, and judge what they saw."""
        judge(run_random(handles, keys=keys, kinds=kinds, clients=CLIENTS, calls=CALLS))

    @rule("get.linearizable", "revision.grows")
    def test_get_and_store(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Reads and writes are linearizable, in the order of their revisions."""
        self.check((store, peer), ("get", "store"))

    @rule("get.linearizable", "tas.atomic", "cas.atomic")
    def test_one_key(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Every kind of operation on one key is linearizable."""
        self.check((store, peer), ("get", "get", "store", "delete", "tas", "tas", "cas"), ("a",))

    @rule("delete.tells", "get.linearizable")
    def test_delete(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A delete tells the truth, and nobody sees the key behind it."""
        self.check((store, peer), ("get", "get", "store", "delete"))

    @rule("tas.atomic")
    def test_tas(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Test-and-set is one step: of several on the same value one wins."""
        self.check((store, peer), ("get", "store", "tas", "tas"))

    @rule("cas.atomic")
    def test_cas(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Compare-and-set is one step: of several on the same revision one wins."""
        self.check((store, peer), ("get", "store", "cas", "cas"))

    @rule("txn.atomic")
    def test_txn(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Transactions over two keys are linearizable, together with everything else."""
        self.check((store, peer), ("txn", "txn", "get", "store", "cas"))

    @rule("get.linearizable", "txn.atomic")
    def test_all(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """All operations together are linearizable."""
        self.check((store, peer), ("get", "store", "delete", "tas", "cas", "txn", "range"))

    @rule("get.linearizable")
    def test_range_after_write(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A range or get shows what was written before it through another handle."""
        self.check((store, peer), ("range", "get", "store", "delete"))

    @rule("watch.history", "watch.last-state")
    def test_watch(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """A watch tells what concurrent clients wrote: all of it in order, or newer states."""
        with peer.watch(prefix="") as watch:
            history = run_random(
                (store, peer), keys=KEYS, kinds=("store", "delete", "tas", "cas", "txn")
            )
            last = {key: store.get(key) for key in KEYS}
            events = watched(watch, store, "marker", last)
        fault = watch_fault(
            events,
            history.operations,
            history=store.capabilities.watch_history,
            keys=KEYS,
            last=last,
        )
        assert fault is None, f"{fault}\n(seed {history.seed})"

    @rule("watch.initial")
    def test_watch_with_initial(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """Begun among writes, the present state and what follows have no gap and no duplicate."""
        watches: list[kvi.Watch] = []
        ended = threading.Event()
        histories: list[History] = []

        def work(number: int) -> None:
            if number == 0:
                try:
                    for _ in range(4):
                        watches.append(peer.watch(prefix="", initial=True))
                        time.sleep(0.02)
                finally:
                    ended.set()
            else:
                kinds: tuple[Kind, ...] = ("store", "store", "delete", "txn")
                histories.append(
                    run_random((store, peer), keys=KEYS, kinds=kinds, clients=3, until=ended)
                )

        run_clients(work, 2)
        (history,) = histories
        last = {key: store.get(key) for key in KEYS}
        for watch in watches:
            with watch:
                events = watched(watch, store, "marker", last)
            fault = watch_fault(
                events,
                history.operations,
                history=store.capabilities.watch_history,
                keys=KEYS,
                initial=True,
                last=last,
            )
            assert fault is None, f"{fault}\n(seed {history.seed})"

    @rule("lock.exclusive", "lock.fence")
    def test_locks(self, store: kvi.Kvi, peer: kvi.Kvi) -> None:
        """No two clients hold a lock at once, and fences grow from one holder to the next."""
        holdings: list[Holding] = []

        def work(number: int) -> None:
            lock = (store, peer)[number % 2].lock("jobs", timeout=60)
            for _ in range(5):
                with lock:
                    acquired, fence = time.perf_counter(), lock.fence
                    time.sleep(0.001)
                    holdings.append(Holding(number, acquired, time.perf_counter(), fence))

        run_clients(work)
        assert len(holdings) == 20
        fault = lock_fault(holdings)
        assert fault is None, fault
