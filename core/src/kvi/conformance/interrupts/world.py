"""What surrounds the calls that are interrupted: other threads, handles, processes and watches."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import monotonic, sleep
from typing import TypeVar

import kvi
from kvi.conformance.interrupts.striking import Broken
from kvi.conformance.waiting import untimed

T = TypeVar("T")

LIMIT = 10.0
"""Seconds within which a call of others must end; the time-out of handles is half of it."""

_LEAST = 1.0  # seconds of a lease: enough for one that is kept alive on a busy machine


def in_time(what: str, work: Callable[[], T], within: float = LIMIT) -> T:
    """What `work` returns in a thread of its own; raises `Broken` if it fails, or does not end."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  (told by the thread that waits)
            failures.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(within)
    if thread.is_alive():
        raise Broken(f"{what}: did not end within {within:g} s")
    if failures:
        if isinstance(failures[0], Broken):
            raise failures[0]
        raise Broken(f"{what}: raised {type(failures[0]).__name__}: {failures[0]}")
    return results[0]


def must(condition: object, what: str) -> None:
    """Raise `Broken` if the condition is not true."""
    if not condition:
        raise Broken(what)


def until(condition: Callable[[], object], what: str, deadline: float) -> None:
    """Wait until it is true; `Broken` after the deadline."""
    while not condition():
        must(monotonic() < deadline, what)
        sleep(0.01)


class Witness:
    """A watch with a call-back, of a handle whose other calls are interrupted, or of another."""

    def __init__(self, name: str, handle: kvi.Kvi) -> None:
        self.name = name
        self.events: list[kvi.Event] = []
        self._handle = handle
        self._history = handle.capabilities.watch_history
        self._watch = handle.watch(prefix="writes/", callback=self._note)

    def _note(self, event: kvi.Event, data: object) -> None:
        self.events.append(event)

    def check(self, acknowledged: Sequence[tuple[str, str]], last: str) -> None:
        """It saw what was acknowledged, in order, and has ended at the last write."""

        def seen() -> list[tuple[str, str]]:
            return [(e.key, (e.value or b"").decode()) for e in list(self.events)]

        deadline = monotonic() + LIMIT
        until(lambda: ("writes/last", last) in seen(), f"{self.name} went quiet", deadline)
        if self._history:
            missing = set(acknowledged) - set(seen())
            must(not missing, f"{self.name} lost the events of {sorted(missing)[:3]}")
            self._compare()

    def _compare(self) -> None:
        """It saw what the store's history has, no more, and in that order."""
        told = [(event.revision, event.key, event.value) for event in list(self.events)]
        with self._handle.watch(prefix="writes/", from_revision=told[0][0]) as watch:
            there = [watch.next(LIMIT) for _ in told]
        for seen, event in zip(told, there, strict=True):
            expected = (event.revision, event.key, event.value)
            must(seen == expected, f"{self.name} told {seen} where the history has {expected}")


class World:
    """The handles, and what is to be seen at the end.

    Attributes:
        store: the handle whose calls are interrupted.
        peer: another handle of the process, on the same store.
        ttl: of the leases that calls take.
        where: the last interrupt was raised.

    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.store = self.open()
        self.peer = self.open()
        self.capabilities = self.store.capabilities
        self.store.delete_range(prefix="")
        self.ttl = max(_LEAST, self.capabilities.lease_min_ttl)
        delay = self.capabilities.lock_delay_factor
        self._bound = (self.capabilities.lease_expiry_factor + delay) * self.ttl + 1 + _LEAST
        self.where = "no call"
        self._numbers = count(1)
        self._hits: list[tuple[int, str]] = []  # numbers given before, and where it was raised
        self._gone: dict[str, float] = {}
        self._later: dict[str, tuple[float, Callable[[], object]]] = {}
        self._locks: dict[str, tuple[float, str]] = {}
        self._acknowledged: list[tuple[str, str]] = []
        self._witnesses = [
            Witness("a watch of the same handle", self.store),
            Witness("a watch of another handle", self.peer),
        ]
        self._companion: subprocess.Popen[str] | None = None
        if self.capabilities.shared:
            self._companion = subprocess.Popen(
                [sys.executable, "-m", __package__, uri, "--companion"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def open(self) -> kvi.Kvi:
        """Another handle."""
        return kvi.open(untimed(self.uri), timeout=LIMIT / 2)

    def number(self) -> int:
        """A number that was not given before."""
        return next(self._numbers)

    def acknowledge(self, key: str, value: str) -> None:
        """A write below ``writes/`` has returned, whose value no other one has."""
        self._acknowledged.append((key, value))

    def gone(self, prefix: str) -> None:
        """What the interrupted call stored at ``prefix``, a number and under a lease, must go.

        That is within the bounds of a crash.
        """
        self._hits.append((self.number(), self.where))
        self._gone[prefix] = monotonic() + self._bound

    def free(self, lock: str) -> None:
        """A lock that the interrupted call was after must be free within the bounds of a crash."""
        self._locks[lock] = monotonic() + self._bound, self.where

    def eventually(self, what: str, condition: Callable[[], object]) -> None:
        """It must be true within the bounds of a crash."""
        self._later[what] = monotonic() + self._bound, condition

    def go_on(self) -> None:
        """Other threads, by the same handle and by another, and other processes go on."""
        for name, handle in (("the same handle", self.store), ("another handle", self.peer)):
            in_time(f"another thread, {name}", partial(self._use, handle))
        self.ask(f"use {self.number()}")

    def _use(self, handle: kvi.Kvi) -> None:
        value = str(self.number())
        handle.store("probe/other", value)
        found = handle.txn(then=[kvi.Put("probe/txn", value), kvi.Get("probe/other")]).results[1]
        must(
            isinstance(found, kvi.KeyValue) and found.text == value,
            "reads are not what was written",
        )
        must(handle.get("probe/other") is not None, "what was written is not there")
        must(handle.count(prefix="probe/") >= 2, "count does not count what was written")

    def ask(self, what: str, within: float = LIMIT) -> None:
        """Let the other process do something, if there is one."""
        companion = self._companion
        if companion is None:
            return
        assert companion.stdin is not None
        assert companion.stdout is not None
        companion.stdin.write(f"{what}\n")
        companion.stdin.flush()
        answer = in_time(f"another process, {what}", companion.stdout.readline, within)
        must(answer == "done\n", f"another process, {what}: {answer.strip() or 'it ended'}")

    def witness(self) -> None:
        """Watches have seen all that was acknowledged."""
        last = str(self.number())
        self.peer.store("writes/last", last)
        for witness in self._witnesses:
            witness.check(self._acknowledged, last)

    def finish(self) -> None:
        """Nothing stays taken, and handles can be closed."""
        for lock, (deadline, where) in self._locks.items():
            left = max(0.5, deadline - monotonic())
            what = f"a lock, after an interrupt in {where}"
            in_time(what, partial(self._take, lock, left), left + LIMIT)
            self.ask(f"lock {lock}")
        for prefix, deadline in self._gone.items():
            in_time("keys", partial(self._see_gone, prefix, deadline), self._bound + LIMIT)
        for what, (deadline, condition) in self._later.items():
            in_time(what, partial(until, condition, what, deadline), self._bound + LIMIT)
        self.go_on()
        for handle in (self.store, self.peer):
            in_time("close()", handle.close)
        if self._companion is not None:
            self.ask("close")

    def _see_gone(self, prefix: str, deadline: float) -> None:
        while entries := list(self.peer.range(prefix=prefix, limit=1)):
            number = int(entries[0].key.removeprefix(prefix))
            where = next((where for hit, where in self._hits if hit > number), "no call")
            must(
                monotonic() < deadline,
                f"{entries[0].key} stays for ever, after an interrupt in {where}",
            )
            sleep(0.05)

    def _take(self, name: str, timeout: float) -> None:
        lock = self.peer.lock(name, ttl=self.ttl)
        must(lock.acquire(timeout), f"{name} stays taken with nobody holding it")
        lock.release()


def accompany(uri: str) -> None:
    """The other process: does what each line of its input says, and answers, until its end."""
    store = kvi.open(untimed(uri), timeout=LIMIT / 2)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        try:
            if word == "use":
                store.store("probe/process", rest)
                found = store.get("probe/process")
                must(found is not None and found.text == rest, "reads are not what was written")
            elif word == "lock":
                with store.lock(
                    rest, ttl=max(_LEAST, store.capabilities.lease_min_ttl), timeout=LIMIT / 2
                ):
                    pass
            elif word == "close":
                store.close()
            answer = "done"
        except (kvi.KviError, Broken) as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
