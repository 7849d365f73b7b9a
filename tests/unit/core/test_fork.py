"""Forks: the child of a process with leases, locks and watches harms nothing, and hangs nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack
from functools import partial
from typing import Any

import kvi
import pytest

from tests.support.faulty import Faulty
from tests.support.forking import in_child, refuses
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

TTL = 60.0


def test_child_has_none_of_it(store: Faulty, peer: kvi.Kvi) -> None:
    """In the child leases and locks are neither alive nor lost, and nothing can be done with them.

    The parent's go on.
    """
    lease, key, lock = store.lease(TTL), store.temp_key("member", ttl=TTL), store.lock("jobs")
    assert lock.acquire(0)
    view = store.namespace("view")
    inner = view.lock("jobs")
    assert inner.acquire(0)
    seen: list[kvi.Event] = []
    watch, called = store.watch("k"), store.watch("k", callback=lambda event, _: seen.append(event))

    def child() -> None:
        for one in (lease, key):
            assert not one.alive
            assert not one.lost.is_set()
        for held in (lock, inner):
            assert not held.held
            assert not held.lost.is_set()
            refuses(partial(held.acquire, 0))
            with pytest.raises(kvi.NotHeld):
                _ = held.guard
            held.release()
        refuses(lease.renew)
        refuses(watch.next)
        refuses(lambda: store.lease(TTL))
        refuses(lambda: view.lease(TTL))
        refuses(lambda: store.watch("k"))
        refuses(lambda: store.lock("other"))
        for lost in (lease.lost, key.lost, lock.lost):
            refuses(lost.wait)
        assert not watch.active
        for text in (lease, key, lock, watch, lease.lost):
            assert repr(text)
        lease.revoke()
        key.close()
        watch.cancel()
        called.cancel()
        view.close()
        store.close()
        with lease, watch:
            pass

    assert in_child(child) == 0
    assert lease.alive
    assert lease.renew()
    assert key.alive
    assert lock.held
    assert inner.held
    assert peer.get("member")
    assert not peer.lock("jobs").acquire(0)
    assert store.txn(when=[lock.guard], then=[kvi.Put("k", b"1")])
    assert watch.next(20).value == b"1"
    until(lambda: seen)
    lock.release()
    assert store.times("lease_revoke") == 0


def test_events_of_the_parent_are_not_the_childs(store: Faulty) -> None:
    """What a watch had ready at the fork is for the parent alone."""
    watch = store.watch(prefix="")
    store.txn(then=[kvi.Put("a", b""), kvi.Put("b", b"")])
    assert watch.next(20).key == "a"

    def child() -> None:
        refuses(lambda: watch.next(1))
        refuses(lambda: next(watch))

    assert in_child(child) == 0
    assert watch.next(20).key == "b"


def test_whatever_was_locked_at_the_fork(store: Faulty) -> None:
    """In the child nothing hangs that is allowed there, though threads of the parent held locks."""
    lease, key, lock = store.lease(TTL), store.temp_key("member", ttl=TTL), store.lock("jobs")
    assert lock.acquire(0)
    watch = store.watch("k")
    called = store.watch("k", callback=lambda *_: None)
    scope, runtime = store._scope, store._runtime
    locks: list[Any] = [
        lease._flow._lock,
        key.lease._flow._lock,
        lock._flow._lock,
        watch._flow._lock,
        called._flow._lock,
        scope.latch,
        scope.ledger._lock,
        runtime._work._lock,
        runtime._callbacks._lock,
    ]
    ready, go = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as held:
            for one in locks:
                held.enter_context(one)
            ready.set()
            go.wait(30)

    def child() -> None:
        assert not lease.alive
        assert not key.alive
        assert not lock.held
        assert not lease.lost.is_set()
        assert not lock.lost.is_set()
        lease.revoke()
        key.close()
        lock.release()
        watch.cancel()
        called.cancel()
        refuses(lambda: lock.acquire(0))
        refuses(lambda: watch.next(1))
        refuses(lease.renew)
        store.close()
        repr((lease, key, lock, watch))

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert ready.wait(20)
        code = in_child(child)
    finally:
        go.set()
        thread.join(20)
    assert code == 0
    assert lease.alive
    assert lock.held
    lock.release()


def test_child_opens_its_own(store: Faulty, uri: str) -> None:
    """A child's own handle has leases, locks and watches of its own, whatever the parent did."""
    lease = store.lease(TTL)
    assert store.lock("jobs").acquire(0)

    def child() -> None:
        seen: list[kvi.Event] = []
        with kvi.open(uri + "-child") as own:
            watch = own.watch("k", callback=lambda event, _: seen.append(event))
            with own.lock("jobs", timeout=0), own.lease(1) as kept, own.watch("k") as other:
                own.store("k", b"", lease=kept)
                assert other.next(20).key == "k"
                until(lambda: seen)
                first = kept._flow.term.deadline
                until(lambda: kept._flow.term.deadline > first)
                assert kept.alive
            watch.cancel()

    assert in_child(child) == 0
    assert lease.alive


def test_forks_amid_everything(store: Faulty, uri: str) -> None:
    """Forks at any moment of locks, leases and watches: the children end, and nothing is lost."""
    stop = threading.Event()
    seen: list[int] = []
    stored = [0]
    store.watch("counter", callback=lambda event, _: seen.append(event.revision))

    def lock() -> None:
        while not stop.is_set():
            with store.lock("jobs", timeout=20):
                stored[0] += 1
                store.store("counter", str(stored[0]))

    def lease() -> None:
        while not stop.is_set():
            with store.lease(TTL), store.watch("counter"):
                pass

    threads = [threading.Thread(target=work) for work in (lock, lock, lease)]
    for thread in threads:
        thread.start()

    def child() -> None:
        refuses(lambda: store.get("counter"))
        store.close()
        with kvi.open(uri) as own, own.lease(TTL), own.lock("another", timeout=20):
            own.store("k", b"")

    try:
        for _ in range(10):
            assert in_child(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    until(lambda: len(seen) == stored[0])


def run(program: str) -> tuple[str, str, int]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "pass"])
def test_childs_exit_touches_nothing(end: str) -> None:
    """A child that ends, normally or not, leaves the parent's leases, locks and watches alone."""
    program = f"""
        import gc, os, sys, warnings, kvi
        warnings.simplefilter("ignore", DeprecationWarning)
        store = kvi.open("mem:")
        lease, lock = store.lease(60), store.lock("jobs")
        assert lock.acquire()
        watch = store.watch("k")
        called = store.watch("k", callback=lambda *_: None)
        child = os.fork()
        if child == 0:
            del lease, lock, watch, called, store
            gc.collect()
            {end}
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert lease.alive and lock.held and lease.renew()
            store.store("k", "v", lease=lease)
            assert watch.next(5).key == "k"
            store.close()
            print("fine")
    """
    assert run(program) == ("fine\n", "", 0)


PROGRAMS: dict[str, str] = {
    "leases": "lease = store.lease(60); key = store.temp_key('member')",
    "short leases, being renewed": "leases = [store.lease(0.05) for _ in range(20)]",
    "a lock": "lock = store.lock(); lock.acquire()",
    "a waiter": """
lock = store.lock(); lock.acquire()
import threading
threading.Thread(target=store.lock().acquire, daemon=True).start()""",
    "watches": "watch = store.watch('k'); store.store('k', 'v'); watch.next()",
    "call-backs": """
import threading
called = threading.Event()
watch = store.watch('k', callback=lambda *_: called.set())
store.store('k', 'v'); called.wait(5)""",
    "a call-back that never ends": """
import threading
called = threading.Event()
def callback(event, data):
    called.set()
    threading.Event().wait()
watch = store.watch('k', callback=callback)
store.store('k', 'v'); called.wait(5)""",
    "an exception": "lock = store.lock(); lock.acquire(); raise SystemExit(0)",
    "close at exit": """
import atexit
lock = store.lock(); lock.acquire(); lease = store.lease(60)
watch = store.watch('k', callback=lambda *_: None)
atexit.register(store.close)""",
    "first use at exit": """
import atexit
def late():
    try:
        with store.lock(timeout=0): pass
        with store.watch('k', callback=lambda *_: None): store.store('k', 'v')
    except RuntimeError: pass  # no threads can be started any more
atexit.register(late)""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_that_leaves_without_closing(name: str) -> None:
    """A program that ends with leases, locks and watches open ends at once, and in silence."""
    assert run("import kvi\nstore = kvi.open('mem:')\n" + PROGRAMS[name]) == ("", "", 0)
