"""An exception between any two steps of a call leaves a memory store whole.

CPython looks for signals behind a call, at the entry of a function and at a jump backward. The
tests raise at each such point of a call in turn, until the call ends before its point comes.
"""

from __future__ import annotations

import dis
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import kvi
import pytest
from kvi.feed import Batch, WatchSpec
from kvi.model import EventType, Span, Txn
from kvi.policy.lock import contended
from kvi_memory.state import MemoryState
from kvi_memory.store import MemoryKvi

from tests.support.forking import in_child
from tests.unit.memory import interrupted

WHERE = ("kvi_memory", "sortedcontainers", "kvi/policy", "kvi/mutex")
"""What is interrupted: all that runs while the store's lock is held, apart from `wake`."""

_numbers = itertools.count()


class Interrupt(BaseException):
    """What the handler raises."""


def _raise() -> None:
    raise Interrupt


class _At:
    """A handler that runs at the given point of what runs in the block: 0 is the first."""

    def __init__(self, point: int, handler: Callable[[], object] = _raise) -> None:
        self.left = point
        self._handler = handler

    def __enter__(self) -> None:
        sys.settrace(self._enter)
        sys.setprofile(self._profile)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        sys.settrace(None)

    def _profile(self, frame: FrameType, event: str, arg: object) -> None:
        # What is raised at c_return comes out of the call, as what a handler raises does.
        if event in ("call", "c_return") and _concerns(frame):
            self._count()

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        frame.f_trace_opcodes = True
        return self._step if _concerns(frame) else None

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            opcode = frame.f_code.co_code[frame.f_lasti]
            if dis.opname[opcode].startswith("JUMP_BACKWARD"):
                self._count()
        return self._step

    def _count(self) -> None:
        self.left -= 1
        if self.left == -1:
            self._handler()


def _concerns(frame: FrameType) -> bool:
    return any(part in frame.f_code.co_filename for part in WHERE)


class World:
    """A store with some data, and all that can be said about whether it is whole."""

    def __init__(self) -> None:
        self.name = f"interrupts-{next(_numbers)}"
        self.store = kvi.open(f"mem:{self.name}")
        self.primitives = MemoryKvi(f"mem:{self.name}", self.name, timeout=5)
        self.lease = self.primitives._lease_grant(1000, 5).id
        for number in range(8):
            key = f"k3/{self.lease:x}" if number == 3 else f"k{number}"  # a contender for a lock
            self.store.store(key, b"old", lease=self.lease if number % 2 else None)
        self.store.count()
        self.wakes = 0
        self.feed = self.primitives._watch(WatchSpec(Span("", None)), self._wake, 5)
        self.state: MemoryState = self.primitives._state
        self.before = self.content()

    def _wake(self) -> None:
        self.wakes += 1

    def content(self) -> dict[str, tuple[bytes | None, int]]:
        """What is in the store."""
        return {e.key: (e.value, e.revision) for e in self.primitives._range(_ALL, 5)}

    def check(self) -> None:
        """All parts agree, and nothing stays taken."""
        assert not self.state.own._is_owned()
        assert self.state.own.acquire(timeout=10)  # the reaper may be inside, for a moment
        self.state.own.release()
        for lease in [k for k, found in self.state._leases.items() if not found.deadline]:
            self.primitives._lease_revoke(lease, 5)
        content = self.content()
        assert list(content) == sorted(content)
        assert content == {k: (e.value, e.revision) for k in content if (e := self.store.get(k))}
        assert len(content) == self.store.count() == len(self.state.entries)
        revision = self.store.range(limit=1).revision
        assert revision in (8, 9)  # a call of the test makes one commit or none
        for lease, found in self.state._leases.items():
            assert found.keys == {k for k, e in self.state.entries.items() if e.lease == lease}
        assert all(e.lease in {None, *self.state._leases} for e in self.state.entries.values())
        lines: dict[str, list[tuple[int, str]]] = {}
        for entry in sorted(self.state.entries.values(), key=lambda entry: entry.create_revision):
            if (lock := contended(entry)) is not None:
                lines.setdefault(lock, []).append((entry.create_revision, entry.key))
        assert self.state._lines == lines
        told: Batch | None = self.feed.poll(5)
        assert (told is not None) == (content != self.before)
        if told is not None:
            assert self.wakes
            assert {event.revision for event in told.events} == {9}
            self._replay(told, content)
        history = self.primitives._watch(WatchSpec(Span("", None), start=1), lambda: None, 5)
        everything = history.poll(5)
        assert everything is not None
        self.before = {}
        self._replay(everything, content)
        history.close()
        self.store.store("k0", b"goes on")
        assert self.store.delete("k0")
        assert "k0" not in self.content()

    def _replay(self, told: Batch, content: dict[str, tuple[bytes | None, int]]) -> None:
        state = dict(self.before)
        for event in told.events:
            state.pop(event.key, None)
            if event.type is EventType.PUT:
                state[event.key] = (event.value, event.revision)
        assert state == content


_ALL = kvi.model.Scan(Span("", None))


def _many(world: World) -> None:
    puts = [kvi.Put(f"k{n}", b"new", world.lease if n % 3 else None) for n in range(4, 12)]
    world.store.txn(then=[kvi.Delete("k1"), kvi.Get("k4"), *puts, kvi.Delete("k2")])


def _expired(world: World) -> None:
    world.state._leases[world.lease].deadline = 0
    with pytest.raises(kvi.LeaseLost):
        world.primitives._lease_renew(world.lease, 5)


def _poll_behind(world: World) -> None:
    feed = world.primitives._watch(WatchSpec(Span("", None), start=1), lambda: None, 5)
    feed.poll(5)
    feed.close()


CALLS: dict[str, Callable[[World], object]] = {
    "get": lambda w: w.primitives._get("k1", 5),
    "store": lambda w: w.store.store("k0", b"new"),
    "store-leased": lambda w: w.store.store("k1", b"new"),
    "store-new": lambda w: w.store.store("new", b"new"),
    "store-with-lease": lambda w: w.store.store("new", b"new", lease=w.lease),
    "txn": _many,
    "delete": lambda w: w.store.delete("k1"),
    "delete-range": lambda w: w.store.delete_range("k2", "k6"),
    "range": lambda w: list(w.store.range()),
    "range-reverse": lambda w: list(w.store.range("k1", reverse=True)),
    "count": lambda w: w.store.count(prefix="k"),
    "grant": lambda w: w.primitives._lease_grant(1000, 5),
    "renew": lambda w: w.primitives._lease_renew(w.lease, 5),
    "revoke": lambda w: w.primitives._lease_revoke(w.lease, 5),
    "expired": _expired,
    "leases": lambda w: w.primitives._leases(None, Span("", None), 5),
    "claim": lambda w: w.primitives._lock_claim("lock", w.lease, 5),
    "release": lambda w: w.primitives._lock_release(w.primitives._lock_claim("k3", w.lease, 5), 5),
    "history": lambda w: w.primitives._get_history("k1", None, 5),
    "watch": _poll_behind,
}


def _interrupted(call: Callable[[World], object], prepare: Callable[[World], object]) -> int:
    for point in itertools.count():
        world = World()
        prepare(world)
        came = False
        try:
            with _At(point):
                call(world)
        except Interrupt:
            came = True
        world.check()
        world.feed.close()
        world.primitives._lease_revoke(world.lease, 5)
        if not came:
            return point
    raise AssertionError


@pytest.mark.parametrize("name", CALLS)
def test_any_point_of_a_call(name: str) -> None:
    """A transaction is applied whole or not at all, every part agrees, no event is lost."""
    assert _interrupted(CALLS[name], lambda world: None) > 3


@pytest.mark.parametrize("name", ["range", "count", "txn"])
def test_keys_that_were_taken_out(name: str) -> None:
    """The same where an earlier interrupt has cost the keys in order."""

    def lose(world: World) -> None:
        world.state._keys = None

    assert _interrupted(CALLS[name], lose) > 3


@pytest.mark.slow
def test_interrupt_while_a_commit_is_completed() -> None:
    """Who completes the commit of an interrupted call may be interrupted as well."""
    total = 0
    for first in itertools.count():
        world = World()
        try:
            with _At(first):
                _many(world)
            break
        except Interrupt:
            pass
        if world.state.pending is None:
            continue
        for second in itertools.count():
            try:
                with _At(second):
                    world.store.count()
                break
            except Interrupt:
                total += 1
            if world.state.pending is None:
                break
        world.check()
    assert total > 50


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_lease_of_an_interrupted_grant_ends() -> None:
    """A lease that nobody came to know ends by the clock, and with it the reaper."""
    ended = []
    for point in itertools.count():
        name = f"interrupts-{next(_numbers)}"
        store = MemoryKvi(f"mem:{name}", name, timeout=5)
        try:
            with _At(point):
                lease = store._lease_grant(0.5, 5).id
                store._txn(Txn(then=(kvi.Put("leased", b"", lease),)), 5)
            break
        except Interrupt:
            ended.append(store._state)
    _until(lambda: not any(state._leases or state._reaping for state in ended))
    assert not any(state.entries for state in ended)


CALLED: dict[str, Callable[[World], int]] = {
    "store": lambda w: w.store.store("k0", b"handler"),
    "txn": lambda w: w.store.txn(then=[kvi.Put("k9", b"handler"), kvi.Delete("k4")]).revision or 0,
    "range": lambda w: len(list(w.store.range())) and 0,
    "lease": lambda w: w.store.lease(1000, keep_alive=False).id and 0,
    "open": lambda w: kvi.open(f"mem:{w.name}").delete("nothing"),
}


AMID = ("store", "store-new", "store-with-lease", "txn", "range", "count", "claim")


@pytest.mark.parametrize("called", CALLED)
def test_handler_that_calls_the_store(called: str) -> None:
    """It is done between two calls, or refused: it never waits, and what it interrupts is whole."""
    done, refused = 0, 0
    for name in AMID:
        for point in itertools.count():
            world = World()
            written: list[int] = []

            def handler(world: World = world, written: list[int] = written) -> None:
                nonlocal done, refused
                try:
                    revision = CALLED[called](world)
                except kvi.NotSupported as error:
                    assert error.operation  # noqa: PT017
                    refused += 1
                else:
                    done += 1
                    if revision:
                        written.append(revision)

            at = _At(point, handler)
            with at:
                CALLS[name](world)
            state, content = world.state, world.content()
            assert not state.own._is_owned()
            assert content == {k: (e.value, e.revision) for k, e in state.entries.items()}
            assert list(content) == sorted(content)
            history = world.primitives._watch(WatchSpec(Span("", None), start=1), lambda: None, 5)
            told = history.poll(5)
            assert told is not None
            revisions = [event.revision for event in told.events]
            assert revisions == sorted(revisions)
            assert set(revisions) == set(range(1, state.revision + 1)), name
            for revision in written:
                assert any(e.revision == revision and e.value == b"handler" for e in told.events)
            world.before = {}
            world._replay(told, content)
            history.close()
            world.feed.close()
            world.primitives._lease_revoke(world.lease, 5)
            if at.left >= 0:
                break
    assert done > 20
    assert refused > 20 or called == "open"


@pytest.fixture
def locked() -> Iterator[World]:
    """A store in whose lock the calling thread is, as a handler finds it."""
    world = World()
    with world.state.lock:
        yield world


def test_fork_inside_of_a_call(locked: World) -> None:
    """A handler may fork within a call: the child has its own copy, and can use it."""

    def work() -> None:
        assert kvi.open(f"mem:{locked.name}").store("child", b"") == 9

    assert in_child(work) == 0
    assert "child" not in locked.state.entries


def test_fork_in_the_middle_of_a_commit() -> None:
    """A child completes the commit that its copy holds."""
    world = World()
    world.state.pending = (
        (9, (kvi.policy.txn.Change("new", None, kvi.KeyValue("new", b"", 9, 9, 1)),), 0),
        600,
        (),
        None,
    )
    world.state.forked()
    found = world.store.get("new")
    assert found is not None
    assert found.revision == world.state.revision == 9


def test_history_counts_all_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and the values before count too: also of deletes the history keeps a bounded amount."""
    monkeypatch.setattr("kvi_memory.state.HISTORY_BYTES", 100_000)
    world = World()
    for number in range(100):
        key = f"{number:04}" + "x" * 1000
        world.store.store(key, bytes(5000))
        world.store.delete(key)
    kept = sum(
        len(change.key) + sum(len(entry.value or b"") for entry in change[1:] if entry)
        for _, changes, _ in world.state.history
        for change in changes
    )
    assert 50_000 < kept <= 100_000


@pytest.mark.parametrize(
    ("seed", "hits"),
    [(1, 500), *(pytest.param(seed, 20_000, marks=pytest.mark.soak) for seed in range(2, 7))],
)
def test_process_that_is_interrupted(seed: int, hits: int) -> None:
    """The same by real signals, while another thread writes and looks."""
    command = [sys.executable, "-m", interrupted.__name__, str(seed), str(hits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout == "whole\n", done.stdout + done.stderr
