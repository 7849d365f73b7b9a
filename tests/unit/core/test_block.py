"""What is held for a ``with`` block: a look ends nothing, and interrupts leave nothing."""

from __future__ import annotations

import gc
import inspect
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import CodeType, FrameType
from typing import Any

import kvi
import pytest
from kvi.flow.lease import LeaseFlow
from kvi.recipes import Group, Queue
from kvi.sync.block import Block, Held, _pending
from kvi.sync.lock import Lock

from tests.support.faulty import Faulty
from tests.support.waiting import until
from tests.unit.core.conftest import Clock

TTL = 60.0


class Interrupt(BaseException):
    """What a signal handler raises."""


class At:
    """Raises at the next entry of a function, as a signal handler may."""

    def __init__(self, code: CodeType) -> None:
        self._code = code

    def arm(self) -> None:
        """From now on."""
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is self._code:
            sys.setprofile(None)
            raise Interrupt


def flow_of(lock: Lock) -> LeaseFlow:
    """The lease that keeps a lock."""
    lease = lock._flow.lease
    assert lease is not None
    return lease


def look(held: object) -> None:
    """Look at all that it has, and keep nothing."""
    assert hasattr(held, "__exit__")
    if not isinstance(held, Lock):  # which has attributes that raise
        inspect.getmembers(held)
    gc.collect()


def test_looking_at_a_lease_ends_nothing(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """A lease or a temporary key that somebody has looked at is renewed as before."""
    lease, key = store.lease(TTL), store.temp_key("k", ttl=TTL)
    for held in (lease, key):
        look(held)
    for _ in range(3):
        for flow in (lease._flow, key.lease._flow):
            clock.step(flow)
    assert lease.alive
    assert key.alive
    assert peer.get("k")


def test_looking_at_what_is_held_for_a_block(store: Faulty, peer: kvi.Kvi, clock: Clock) -> None:
    """It goes on to be held for the block, whatever becomes of the look."""
    with (
        store.lease(TTL) as lease,
        store.temp_key("k", ttl=TTL) as key,
        store.lock("l", ttl=TTL) as lock,
    ):
        flows = [lease._flow, key.lease._flow, flow_of(lock)]
        for held in (lease, key, lock):
            look(held)
        for flow in flows:
            clock.step(flow)
        assert lease.alive
        assert key.alive
        assert lock.held
    assert not lease.alive
    assert peer.get("k") is None
    assert not lock.held


@pytest.mark.parametrize("kept", [False, True])
def test_looked_at_before_an_exit_stack(store: Faulty, clock: Clock, kept: bool) -> None:
    """The holder is the object, not what somebody has looked up before."""
    lock, lease = store.lock("l", ttl=TTL), store.lease(TTL)
    looks = [lock.__exit__, lease.__exit__]
    if not kept:
        looks.clear()
    with ExitStack() as stack:
        stack.enter_context(lock)
        stack.enter_context(lease)
        looks.clear()
        gc.collect()
        for flow in (flow_of(lock), lease._flow):
            clock.step(flow)
        assert lock.held
        assert lease.alive
    assert not lock.held
    assert not lease.alive


def test_a_block_that_another_thread_begins_too(store: Faulty, clock: Clock) -> None:
    """Who comes second at one lock is refused, and takes nothing from the first."""
    lock = store.lock("l", ttl=TTL)
    looked, entered = threading.Event(), threading.Event()
    refused: list[BaseException] = []

    def second() -> None:  # what its `with` does
        leave = lock.__exit__
        looked.set()
        assert entered.wait(20)
        try:
            lock.__enter__()
        except kvi.AlreadyHeld as error:
            refused.append(error)
        del leave

    thread = threading.Thread(target=second)
    leave = lock.__exit__
    thread.start()
    assert looked.wait(20)
    lock.__enter__()
    entered.set()
    thread.join(20)
    assert refused
    clock.step(flow_of(lock))
    assert lock.held
    leave(None, None, None)
    assert not lock.held


def begun(store: Faulty, at: At, flows: list[LeaseFlow], kind: str) -> None:
    """Hold something for a block that is interrupted."""
    if kind == "lock":
        with store.lock("l", ttl=TTL) as lock:
            flows.append(flow_of(lock))
            at.arm()
        return
    made: Callable[[], Any] = lambda: store.lease(TTL)  # noqa: E731
    if kind == "temp_key":
        made = lambda: store.temp_key("k", ttl=TTL)  # noqa: E731
    with made() as held:
        flows.append(held._flow if kind == "lease" else held.lease._flow)
        at.arm()


@pytest.mark.parametrize("kind", ["lease", "temp_key", "lock"])
def test_interrupted_as_it_ends(store: Faulty, peer: kvi.Kvi, clock: Clock, kind: str) -> None:
    """An exception before the first step of the end leaves nothing held."""
    flows: list[LeaseFlow] = []
    with pytest.raises(Interrupt):
        begun(store, At(Block.leave.__code__), flows, kind)
    gc.collect()
    for flow in flows:
        clock.step(flow)
        assert flow.ended
    until(lambda: peer.get("k") is None)
    assert peer.lock("l").acquire(20)


@pytest.mark.parametrize("kind", ["member", "job"])
def test_interrupted_as_it_ends_and_kept(store: Faulty, clock: Clock, kind: str) -> None:
    """Neither a membership nor a job goes on by an object that outlives its block."""
    queue = Queue(store, "q")
    queue.put(b"")
    held: Any = Group(store, "g").join() if kind == "member" else queue.get(0)
    at, flow = At(held.__exit__.__func__.__code__), held._flow.lease
    with pytest.raises(Interrupt), held:
        at.arm()
    gc.collect()
    clock.step(flow)
    assert flow.ended


@pytest.mark.parametrize("several", [False, True])
def test_interrupted_as_the_block_of_an_entity_ends(store: Faulty, several: bool) -> None:
    """The entity is another's to have, though somebody keeps the handle, which says so."""
    loader = kvi.Loader(store, "e", kvi.TextCodec(), len)
    loader.lock_or_create("one")[0].unlock()
    one: Any = loader.lock(3)
    if several:
        one.unlock()
        one = loader.lock_many([3])
    at = At(Block.leave.__code__)
    with pytest.raises(Interrupt), one:
        at.arm()
    with ThreadPoolExecutor(1) as other:
        again = other.submit(loader.lock, 3, timeout=20).result(20)
    assert again is not None
    with pytest.raises(kvi.NotHeld):
        (one[3] if several else one).update("two")
    again.unlock()


def test_entity_in_a_block() -> None:
    """It is held to the end of the block, or until it is unlocked; and by itself without one."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        loader = kvi.Loader(store, "e", kvi.TextCodec(), len)
        one, _ = loader.lock_or_create("one")
        gc.collect()
        one.update("1ne")
        with one as same:
            gc.collect()
            same.update("2ne")
            one.unlock()
            with pytest.raises(kvi.NotHeld):
                one.update("3ne")
            with ThreadPoolExecutor(1) as other:
                other.submit(lambda: loader.lock(3, timeout=20).unlock()).result(20)  # type: ignore[union-attr]
        with pytest.raises(kvi.NotHeld), one:
            pytest.fail("it was entered")


@pytest.mark.parametrize("kind", ["lease", "temp_key"])
def test_interrupted_as_it_begins(store: Faulty, peer: kvi.Kvi, clock: Clock, kind: str) -> None:
    """An exception before the block is entered leaves nothing that nobody has."""
    at = At(Held.__enter__.__code__)
    flows: list[LeaseFlow] = []

    def begin() -> None:
        held = store.lease(TTL) if kind == "lease" else store.temp_key("k", ttl=TTL)
        flows.append(held._flow if isinstance(held, kvi.Lease) else held.lease._flow)
        at.arm()
        with held:
            pytest.fail("it was entered")

    with pytest.raises(Interrupt):
        begin()
    gc.collect()
    clock.step(flows[0])
    assert flows[0].ended
    until(lambda: peer.get("k") is None)


def test_nothing_is_kept_of_looks(store: Faulty) -> None:
    """Neither of those that came to nothing, nor of blocks."""
    lease, lock = store.lease(TTL), store.lock("l", ttl=TTL)
    for _ in range(100):
        assert hasattr(lease, "__exit__")
        with lock:
            pass
    assert len(_pending.blocks) <= 1
