"""Leases and locks while the server is away, and when the program that holds them is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

import kvi
from kvi.clock import now
from kvi.conformance.contract import rule
from kvi.conformance.faults.away import (
    BACK,
    CALL,
    ENDS,
    LONG,
    MARGIN,
    PASSING,
    Faulty,
    at_once,
    away,
    eventually,
    need,
    need_fault,
    opened,
    strike,
)
from kvi.conformance.faults.counting import Counting
from kvi.conformance.faults.ordeal import TURNS
from kvi.conformance.server import Server
from kvi.conformance.waiting import until, untimed

OUTLIVES = 8.0  # seconds: the ttl of what is to outlive a restart of the server
SHORT = 3.0  # seconds: the ttl of what need not

LATE = 1.5  # seconds that answers come late
WITH_LATE = 5.0  # seconds: the ttl of a lease whose renewal is answered late

PROGRAM = """
import sys, kvi
ttl = float(sys.argv[2])
with kvi.open(sys.argv[1], timeout=30) as handle:
    store = handle.namespace(sys.argv[3])
    lock = store.lock("jobs", ttl=ttl)
    lock.acquire()
    member = store.temp_key("member", ttl=ttl)
    print(lock.fence, flush=True)
    for number in range(10**9):
        puts = [kvi.Put(f"w/{number}/{part}", str(number)) for part in "ab"]
        print(number, store.txn(then=puts).revision, flush=True)
"""


class Program:
    """Another program, which holds the lock ``jobs`` and a temporary key, and writes until killed.

    Attributes:
        fence: of its lock.
        acknowledged: what it had told of its writes when it was killed: number and revision.

    """

    def __init__(self, uri: str, place: str, ttl: float) -> None:
        command = [sys.executable, "-c", PROGRAM, untimed(uri), str(ttl), place]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self.acknowledged: list[tuple[int, int]] = []
        line = self._output.readline()
        if not line:
            self.kill()
            pytest.fail("the program ended by itself; its error is above")
        self.fence = int(line)

    def kill(self, after: int = 0) -> None:
        """End it at once (SIGKILL), after this many writes; killing it again does nothing."""
        if self._process.returncode is not None:
            return
        lines = [self._output.readline() for _ in range(after)]
        self._process.kill()
        self._process.wait(BACK)
        with self._output:
            lines += self._output.readlines()
        if after and not lines[after - 1]:
            pytest.fail("the program ended by itself; its error is above")
        for line in lines:
            if line.endswith("\n"):  # the last one may be half written
                number, revision = line.split()
                self.acknowledged.append((int(number), int(revision)))


@contextmanager
def another_program(uri: str, place: str, ttl: float) -> Iterator[Program]:
    """Run it for the block, at the longest."""
    running = Program(uri, place, ttl)
    try:
        yield running
    finally:
        running.kill()


def bound(store: kvi.Kvi, ttl: float) -> float:
    """Seconds within which what nobody renews has ended, and a busy machine has shown it."""
    limits = store.capabilities
    return (limits.lease_expiry_factor + limits.lock_delay_factor) * ttl + 1 + MARGIN


def check_killed(other: Program, store: kvi.Kvi, ttl: float) -> None:
    """What the program holds is free within the bound after it was killed."""
    lock = store.lock("jobs")
    assert not lock.acquire(0)
    with store.watch("member") as watch:
        assert store.get("member")
        other.kill()
        killed = now()
        assert lock.acquire(BACK)
        assert now() < killed + bound(store, ttl), "a dead holder's lock was kept for too long"
        assert lock.fence > other.fence
        assert watch.next(BACK).type is kvi.EventType.DELETE
        assert now() < killed + bound(store, ttl), "a dead program's key was kept for too long"
    assert store.get("member") is None
    lock.release()


def _doubtful(lock: kvi.Lock, *others: kvi.Lease | kvi.TempKey) -> bool:
    """Whether one of them lives, but has not been renewed for half its time."""
    leases = [one if isinstance(one, kvi.Lease) else one.lease for one in others]
    held = [lock._flow.lease, *(lease._flow for lease in leases)]
    return any(
        one is not None and one.alive and one.term.deadline - now() < one.term.ttl / 2
        for one in held
    )


class Holders(Faulty):
    """What is held is kept by the living, and by nobody else."""

    @rule("error.acknowledged", "txn.atomic")
    def test_killed_program_loses_nothing(self, server: Server, store: kvi.Kvi, place: str) -> None:
        """What a program was told to be written is there after it was killed amid its writes."""
        if not store.capabilities.shared:
            pytest.skip("the capabilities of this store say that no other program can open it")
        with another_program(server.uri, place, OUTLIVES) as other:
            other.kill(after=50)
        present = {entry.key: entry for entry in store.range(prefix="w/")}
        assert len(other.acknowledged) >= 50
        for number, revision in other.acknowledged:
            for part in "ab":
                entry = present.pop(f"w/{number}/{part}")
                assert (entry.text, entry.revision) == (str(number), revision)
        # What it did not come to tell, whole.
        left = [(entry.text, entry.revision) for entry in present.values()]
        assert len(left) in (0, 2)
        assert len(set(left)) <= 1

    @rule("lease.kept-alive", "lease.not-late", "temp-key.lives", "temp-key.crash", "lock.crash")
    def test_the_living_keep_what_the_dead_lose(
        self, server: Server, store: kvi.Kvi, place: str
    ) -> None:
        """Leases, locks and temporary keys outlive short faults, and end with a killed program.

        Those of the killed program are gone within the declared bound. The others are there when
        that much time has passed since the last fault: only renewals can have kept them. A fault
        that was not short, on a machine that is slow, may end them, and then they say so. What
        nobody renews is gone by then, whatever the server was at when its time was up.
        """
        faults = [f for f in TURNS if server.offers(f, *([ENDS[f]] if f in ENDS else []))]
        if not store.capabilities.durable:
            faults = [fault for fault in faults if fault != "kill"]
        ttl = max(store.capabilities.lease_min_ttl, OUTLIVES if faults else SHORT)
        # Where a holder counts on a part of its ttl only, that part is as long.
        for_lock = ttl / (store.capabilities.lock_delay_factor or 1)
        lock, lease = store.lock("mine", ttl=for_lock), store.lease(ttl)
        assert lock.acquire(LONG)
        for value in (b"", b"again"):
            store.store("leased", value, lease=lease)
        store.store("unrenewed", b"", lease=store.lease(ttl, keep_alive=False))
        member = store.temp_key("mine/member", ttl=ttl)
        keys = ("leased", "mine/member")
        before = [store.get(key) for key in keys]
        for fault in faults:
            began = now()
            # One call meets the fault, however that ends.
            strike(server, fault, lambda: at_once({"get": lambda: store.get("k", timeout=CALL)}))
            found = [eventually(lambda key=key: store.get(key)) for key in keys]  # type: ignore[misc]
            took = now() - began
            # The next fault finds them renewed, so that each is endured by itself.
            until(lambda: not _doubtful(lock, lease, member), within=BACK)
            alive = (lock.held, lease.alive, member.alive)
            if took > ttl / 3 and not all(alive):  # a renewal has two thirds, and needs its moment
                lost = (lock.lost.is_set(), lease.lost.is_set(), member.lost.is_set())
                assert [not one for one in lost] == list(alive)
                return
            assert all(alive), f"lost by a {fault} of {took:.1f} s: lock, lease, key alive: {alive}"
            assert found == before
        settled = now()
        if store.capabilities.shared:
            with another_program(server.uri, place, ttl) as other:
                check_killed(other, store, ttl)
        until(lambda: now() > settled + bound(store, ttl) - MARGIN, within=BACK)
        until(lambda: store.get("unrenewed") is None, within=MARGIN)
        assert [store.get(key) for key in keys] == before
        assert store.txn(when=[lock.guard])
        assert lock.held
        assert lease.alive
        assert member.alive
        assert [held.lost.is_set() for held in (lock, lease, member)] == [False] * 3
        lock.release()

    @rule("lease.alive", "lock.exclusive", "lock.fence", "lock.guard", "lock.lost")
    def test_holder_knows_of_its_loss_first(
        self, server: Server, store: kvi.Kvi, place: str
    ) -> None:
        """Who is cut off for longer than the ttl is no holder any more before somebody else is."""
        need(server, "isolate", "rejoin", "direct_uri")
        ttl = max(store.capabilities.lease_min_ttl, SHORT)
        lock, lease = store.lock("jobs", ttl=ttl), store.lease(ttl)
        assert lock.acquire(LONG)
        store.store("leased", b"", lease=lease)
        member = store.temp_key("member", ttl=ttl)
        fence, guard, lost = lock.fence, lock.guard, lock.lost
        told = threading.Event()
        lost.add_callback(told.set)
        entered: list[tuple[bool, bool]] = []
        with ExitStack() as stack:
            direct = stack.enter_context(opened(server.direct_uri, place))
            heir, watch = direct.lock("jobs", ttl=LONG), direct.watch("leased")

            def wait() -> None:
                got = heir.acquire(BACK)
                entered.append((got, lock.held))

            waiting = threading.Thread(target=wait)
            with away(server, "isolate"):
                begin = now()
                waiting.start()
                assert watch.next(BACK).type is kvi.EventType.DELETE
                assert not lease.alive, "alive, while its key is gone"
                waiting.join(BACK)
                assert entered == [(True, False)]
                assert now() < begin + bound(store, ttl)
                assert not lock.held
                assert lost.is_set()
                assert lease.lost.is_set()
                assert told.wait(MARGIN)
                assert member.lost.wait(ttl + MARGIN)
                assert heir.fence > fence
                assert not direct.txn(when=[guard], then=[kvi.Put("k", b"late")])
                assert direct.txn(when=[heir.guard], then=[kvi.Put("k", b"next")])
            assert not eventually(lambda: store.txn(when=[guard], then=[kvi.Put("k", b"late")]))
            with pytest.raises(kvi.LeaseLost):
                _ = lock.guard
            with pytest.raises(kvi.LeaseLost):
                lock.release()
            with pytest.raises(kvi.LeaseLost):
                store.store("leased", b"", lease=lease)
            assert [lock.held, lease.alive, member.alive] == [False] * 3, "it stays lost"
            until(lambda: store.get("member") is None, within=bound(store, ttl))
            assert heir.held
            heir.release()
            assert direct.get("k").text == "next"  # type: ignore[union-attr]

    @rule("lease.alive")
    def test_late_answers_make_no_lease_longer(
        self, server: Server, store: kvi.Kvi, place: str
    ) -> None:
        """A lease whose grant or renewal is answered late is no longer alive than the store has it.

        So its holder counts from the sending: the store may begin as soon as it is asked.
        """
        need(server, "slow", "direct_uri")
        ttl = max(store.capabilities.lease_min_ttl, WITH_LATE)
        with opened(server.direct_uri, place) as direct:
            renewed = store.lease(ttl, keep_alive=False)
            direct.store("renewed", b"", lease=renewed.id)
            watch = direct.watch(prefix="", events=kvi.EventType.DELETE)
            server.slow(LATE)
            try:
                outcomes = at_once(
                    {
                        "grant": lambda: store.lease(ttl, keep_alive=False, timeout=LONG),
                        "renewal": lambda: renewed.renew(timeout=LONG),
                    }
                )
            finally:
                server.slow(0)
            for name, outcome in outcomes.items():
                assert outcome.error is None, f"a {name} whose answer came late"
                assert outcome.seconds > LATE / 2, "slow() does not make answers late"
            granted = outcomes["grant"].result
            assert isinstance(granted, kvi.Lease)
            direct.store("granted", b"", lease=granted.id)
            leases = {"granted": granted, "renewed": renewed}
            with watch:
                while leases:
                    lease = leases.pop(watch.next(BACK).key)
                    assert not lease.alive, "alive, while its key is gone"

    @rule("watch.survives", "error.recovers")
    def test_silent_connections_are_given_up(
        self, server: Server, store: kvi.Kvi, place: str
    ) -> None:
        """Connections that nothing comes by any more, and that nobody resets, hold nothing up.

        Calls end in their time and work again, a watch tells what it missed, a lease is renewed.
        """
        need(server, "silence", "direct_uri")
        lease = store.lease(2 * BACK, keep_alive=False)
        with opened(server.direct_uri, place) as direct, store.watch(prefix="k/") as watch:
            store.store("k/before", b"")
            assert watch.next(BACK).key == "k/before"
            server.silence()
            direct.store("k/missed", b"")
            calls = {
                "get": lambda: store.get("k/missed", timeout=CALL),
                "renewal": lambda: lease.renew(timeout=CALL),
            }
            for name, outcome in at_once(calls).items():
                assert outcome.seconds < CALL + MARGIN, f"{name} took {outcome.seconds:.1f} s"
                assert outcome.error is None or type(outcome.error) in PASSING, name
            assert watch.next(BACK).key == "k/missed"
            for call in calls.values():
                assert eventually(call)
            assert lease.alive
            direct.store("k/after", b"")
            assert watch.next(BACK).key == "k/after"

    @rule("lock.late-claim", "lock.no-ghost")
    def test_late_claim_keeps_nobody_out(self, server: Server, store: kvi.Kvi, place: str) -> None:
        """A claim that was answered by none, and arrives when its lock is free, holds nothing.

        Its holder may have claimed again meanwhile, which nobody may hide who does it.
        """
        need(server, "hold_back", "deliver")
        ttl = max(store.capabilities.lease_min_ttl, SHORT)
        with opened(server.direct_uri, place) as direct:
            for turn in range(3):  # what is held back may have been something else
                with store.lock(f"before/{turn}", ttl=ttl, timeout=LONG):
                    pass  # leaves a lease for the next lock, whose first call then is a claim
                lock = store.lock(f"jobs/{turn}", ttl=ttl)
                server.hold_back()
                try:
                    assert eventually(lambda lock=lock: lock.acquire(LONG))  # type: ignore[misc]
                    lock.release()
                    behind = store.lock(f"behind/{turn}", ttl=ttl)
                    assert eventually(lambda behind=behind: behind.acquire(LONG))  # type: ignore[misc]
                finally:
                    server.deliver()
                settled = now() + 1
                while now() < settled:  # it arrives at some moment of these
                    heir = direct.lock(lock.name, ttl=ttl)
                    assert heir.acquire(bound(store, ttl)), "a late claim keeps others out"
                    heir.release()
                behind.release()

    @rule("lock.fence")
    @pytest.mark.parametrize("fault", ["stop", "kill"])
    def test_fences_outgrow_a_restart(self, server: Server, store: kvi.Kvi, fault: str) -> None:
        """A holder after a restart of the server has a larger fence than those before it."""
        need_fault(server, fault)
        fences: list[int] = []
        for _ in range(2):
            lock = store.lock("jobs", ttl=OUTLIVES)
            for _ in range(2):
                assert eventually(lambda lock=lock: lock.acquire(LONG))  # type: ignore[misc]
                fences.append(lock.fence)
                eventually(lambda lock=lock: lock.release())  # type: ignore[misc]
            with away(server, fault):
                pass
        assert fences == sorted(set(fences)), "a later holder's fence is not larger"

    @rule("lock.exclusive", "lock.fence", "lock.guard", "error.acknowledged")
    @pytest.mark.parametrize(("fault", "turns"), [("kill", 2), ("pause", 1), ("cut", 3)])
    def test_lock_never_has_two_holders(
        self, server: Server, store: kvi.Kvi, place: str, fault: str, turns: int
    ) -> None:
        """Additions under a lock, made with its guard, add up exactly through faults."""
        need_fault(server, fault)
        ttl = max(store.capabilities.lease_min_ttl, OUTLIVES)
        clients = Counting(server.uri, place, ttl)
        clients.start()
        try:
            clients.go_on()
            for _ in range(turns):
                strike(server, fault, clients.met())
                clients.go_on()
        finally:
            clients.end()
        clients.check()
