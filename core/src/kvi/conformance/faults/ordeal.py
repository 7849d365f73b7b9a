"""Clients at work while the server suffers one kind of fault, and all that they were told.

The ordeal is long and the rules about it are many, so it is run once for each fault: the tests of
a class share what came out.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import kvi
from kvi.conformance.faults.away import (
    BACK,
    PASSING,
    eventually,
    new_place,
    opened,
    strike,
)
from kvi.conformance.faults.record import Fate, State, Write, folded
from kvi.conformance.server import Server
from kvi.conformance.waiting import until

TURNS = {"kill": 3, "stop": 1, "pause": 2, "isolate": 2, "cut": 6}
"""The faults, and how often each strikes."""

WRITERS, READERS = 3, 2
PACE = 0.005  # seconds between the writes of a client: the stores' histories have an end
GOES_ON = 5  # calls of each client between two faults
UNHINDERED = 500  # calls that work while the server is away: another serves in its place
TIMEOUT = 1.0  # seconds, of each call
KEPT = {f"r/{number}": f"kept {number}".encode() for number in range(5)}
SETTLED = 30.0  # seconds within which all watches have told all


class Clients:
    """Threads that write and read until `end`, and what they were told.

    Attributes:
        writes: the log of the writes, in the order in which they ended.
        lies: answers that cannot be true, as text.
        doubts: reads of which it was said that their outcome is unknown, as text.
        failed: how many calls failed, as they may under faults.
        slowest: the time of the slowest call, in seconds.

    """

    def __init__(self, store: kvi.Kvi) -> None:
        self._store = store
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards the numbers
        self._newest = 0
        self._done: Counter[str] = Counter()
        self.writes: list[Write] = []
        self.lies: list[str] = []
        self.doubts: list[str] = []
        self.failed = 0
        self.slowest = 0.0
        self._errors: list[BaseException] = []
        names = [f"writer{n}" for n in range(WRITERS)] + [f"reader{n}" for n in range(READERS)]
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=name) for name in names
        ]

    def start(self) -> None:
        """Set them to work."""
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        """Return once each client's calls have worked again, some times."""
        before = self._done.copy()
        names = [thread.name for thread in self._threads]
        until(
            lambda: (
                self._errors or all(self._done[name] >= before[name] + GOES_ON for name in names)
            ),
            within=BACK,
        )

    def met(self) -> Callable[[], object]:
        """A condition: a call has failed since now, or the fault seems to hinder nobody."""
        failed, done = self.failed, self._done.total()
        return lambda: (
            self._errors or self.failed > failed or self._done.total() > done + UNHINDERED
        )

    def end(self) -> None:
        """Let them end; raises what went wrong with them."""
        self._over.set()
        for thread in self._threads:
            thread.join(BACK)
        assert not any(thread.is_alive() for thread in self._threads), "a call did not end"
        if self._errors:
            raise self._errors[0]

    def _run(self, name: str) -> None:
        step = self._write if name.startswith("writer") else self._read
        try:
            for turn in itertools.count():
                if self._over.wait(PACE):
                    return
                begin = time.monotonic()
                good = step(name, turn)
                with self._lock:
                    self.slowest = max(self.slowest, time.monotonic() - begin)
                    self._done[name] += good
                    self.failed += not good
        except BaseException as error:  # noqa: BLE001  (raised again by `end`)
            self._errors.append(error)

    def _write(self, name: str, turn: int) -> bool:
        store = self._store
        key, value = f"w/{name}/{turn:05}", f"{name} {turn}".encode()
        match turn % 5:
            case 0 | 1:
                return self._log({key: value}, lambda: store.store(key, value))
            case 2:
                return self._log({key: value}, lambda: store.cas(key, 0, value))
            case 3:
                a, b = f"{key}/a", f"{key}/b"
                puts = [kvi.Put(a, value), kvi.Put(b, value)]
                return self._log({a: value, b: value}, lambda: store.txn(then=puts).revision)
            case _:
                key = f"w/{name}/{turn - 4:05}"
                if all(key not in w.changes for w in self._acknowledged()):
                    return True  # nothing that is surely there, to be deleted
                return self._log({key: None}, lambda: 0 if store.delete(key) else None)

    def _log(self, changes: dict[str, bytes | None], write: Callable[[], int | None]) -> bool:
        after, revision, fate = self._newest, None, Fate.ACKNOWLEDGED
        try:
            revision = write()
        except kvi.OutcomeUnknown:
            fate = Fate.UNKNOWN
        except (kvi.Unavailable, kvi.Timeout, kvi.Contention):
            fate = Fate.DENIED
        else:
            if revision is None:  # what nobody else writes cannot have been changed meanwhile
                self.lies.append(f"the write of {changes} says that its key was not as it was")
        with self._lock:
            self._newest = max(self._newest, revision or 0)
            self.writes.append(Write(changes, fate, revision or None, after))
        return fate is Fate.ACKNOWLEDGED

    def _acknowledged(self) -> list[Write]:
        """The last of the writes that were acknowledged."""
        return [write for write in self.writes[-20:] if write.fate is Fate.ACKNOWLEDGED]

    def _read(self, name: str, turn: int) -> bool:
        store = self._store
        key = f"r/{turn % len(KEPT)}"
        pairs = [w for w in self._acknowledged() if len(w.changes) == 2]
        try:
            match turn % 4:
                case 0:
                    self._expect(store.get(key), key, KEPT[key])
                case 1:
                    found = {entry.key: entry.value for entry in store.range(prefix="r/")}
                    if found != KEPT:
                        self.lies.append(f"a range of {KEPT} is {found}")
                case 2:
                    count = store.count(prefix="r/")
                    if count != len(KEPT):
                        self.lies.append(f"{len(KEPT)} keys are counted as {count}")
                case _:
                    for write in pairs[-1:]:
                        read = store.txn(then=[kvi.Get(part) for part in write.changes]).results
                        for entry, (part, value) in zip(read, write.changes.items(), strict=True):
                            self._expect(entry, part, value, write.revision)
        except (kvi.Unavailable, kvi.Timeout):
            return False
        except kvi.OutcomeUnknown as error:
            self.doubts.append(f"{error.operation}: {error}")
            return False
        return True

    def _expect(
        self, entry: object, key: str, value: bytes | None, revision: int | None = None
    ) -> None:
        good = isinstance(entry, kvi.KeyValue) and (entry.key, entry.value) == (key, value)
        if not good or (revision is not None and entry.revision != revision):  # type: ignore[attr-defined]
            self.lies.append(f"{key} is {value!r} at revision {revision}, and was read as {entry}")


@dataclass(frozen=True)
class Ordeal:
    """What came out.

    Attributes:
        place: the namespace of it all.
        keeps_history: whether the store has watch history.
        clients: who wrote and read, and what they were told.
        state: what was written, as it is in the end.
        unread: the events of a watch begun before, that nobody read until the end.
        called: those of a call-back begun before.
        joined: those of a watch with the initial state, begun amid the writes.
        resumed: those of many watches, each begun where the one before had got to.
        history: those of a watch begun in the end, from the first write on. Like `resumed`, empty
            where the store has no watch history.

    """

    place: str
    keeps_history: bool
    clients: Clients
    state: State
    unread: list[kvi.Event]
    called: list[kvi.Event]
    joined: list[kvi.Event]
    resumed: list[kvi.Event]
    history: list[kvi.Event]


class Resuming:
    """A consumer that begins a new watch after every few events, where the last one had got to."""

    def __init__(self, store: kvi.Kvi, start: int) -> None:
        self._store = store
        self._start = start
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self.events: list[kvi.Event] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        """Let it end; raises what went wrong with it."""
        self._over.set()
        self._thread.join(BACK)
        assert not self._thread.is_alive(), "a watch did not end"
        if self._errors:
            raise self._errors[0]

    def _run(self) -> None:
        reached = self._start
        try:
            while not self._over.is_set():
                try:
                    watch = self._store.watch(prefix="w/", from_revision=reached + 1, timeout=1)
                except PASSING:
                    continue
                with watch:
                    events = self._take(watch)
                    assert watch.revision is not None
                    reached = watch.revision
                # The rest of a revision comes with the next watch, and so does its beginning.
                self.events += [event for event in events if event.revision <= reached]
        except BaseException as error:  # noqa: BLE001  (raised again by `end`)
            self._errors.append(error)

    def _take(self, watch: kvi.Watch) -> list[kvi.Event]:
        events: list[kvi.Event] = []
        with suppress(kvi.Timeout):
            while len(events) < 20:
                events.append(watch.next(0.1))
        return events


def run(server: Server, fault: str) -> Ordeal:
    """Let clients work and watches run while the server suffers; all of it is compared later."""
    place = new_place()
    with (
        opened(server.uri, place, timeout=TIMEOUT) as store,
        opened(server.uri, place) as other,
    ):
        history = other.capabilities.watch_history
        start = max(other.store(key, value) for key, value in KEPT.items())
        called: list[kvi.Event] = []
        other.watch(prefix="w/", callback=lambda event, _: called.append(event))
        unread = other.watch(prefix="w/")
        resuming = Resuming(other, start) if history else None
        clients = Clients(store)
        clients.start()
        try:
            clients.go_on()
            joined = other.watch(prefix="w/", initial=True)
            for _ in range(TURNS[fault]):
                strike(server, fault, clients.met())
                clients.go_on()
        finally:
            clients.end()
        last = eventually(lambda: other.store("w/last", b"last"))
        clients.writes.append(Write({"w/last": b"last"}, Fate.ACKNOWLEDGED, last, 0))
        told = {"unread": Told(watch=unread), "joined": Told(watch=joined), "called": Told(called)}
        if resuming is not None:
            told["resumed"] = Told(resuming.events)
            told["history"] = Told(watch=other.watch(prefix="w/", from_revision=start + 1))
        state = settled(other, list(told.values()))
        if resuming is not None:
            resuming.end()
        events = {name: each.events for name, each in told.items()}
        nothing: dict[str, list[kvi.Event]] = {"resumed": [], "history": []}
        return Ordeal(place, history, clients, state, **{**nothing, **events})


class Told:
    """What one consumer was told up to now; from a list that grows, or from a watch."""

    def __init__(self, source: list[kvi.Event] | None = None, watch: kvi.Watch | None = None):
        self._source = [] if source is None else source
        self._watch = watch
        self.events: list[kvi.Event] = []
        self._state: State = {}

    def state(self) -> State:
        """The state that all leads to that has come."""
        new = self._source[len(self.events) :]
        if self._watch is not None:
            with suppress(kvi.Timeout):
                while True:
                    new.append(self._watch.next(0))
        self.events += new
        return folded(new, self._state)


def settled(store: kvi.Kvi, told: list[Told]) -> State:
    """The present state, as soon as it is what all were told; or as it is after long enough.

    Writes of unknown fate may come late, so that one look is not enough.
    """
    deadline = time.monotonic() + SETTLED
    while True:
        state = {entry.key: (entry.value, entry.revision) for entry in store.range(prefix="w/")}
        states = [each.state() for each in told]
        if states == [state] * len(told) or time.monotonic() > deadline:
            return state
        time.sleep(0.02)
