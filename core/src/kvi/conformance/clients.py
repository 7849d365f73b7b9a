"""Clients that record what they do, and a random workload for them.

A `Client` makes calls on a handle and keeps an `Operation` of each, for the checkers of
`kvi.conformance.checking`. Errors become outcomes: what is surely not applied is DENIED, a write
whose fate is unknown is UNKNOWN; every other error is raised, and until its write is known to be
without effect that counts as UNKNOWN too.

Every value that a random client writes is written once in the history, so that who reads it
tells which write was seen.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Literal

import pytest

import kvi
from kvi.conformance.checking.history import (
    Call,
    Cas,
    Operation,
    Outcome,
    Range,
    Result,
    Tas,
    changes_of,
    observed,
    possible_changes,
)
from kvi.model import Txn

__all__ = ["Client", "History", "Kind", "run_clients", "run_random", "switching"]

Kind = Literal["get", "store", "delete", "tas", "cas", "txn", "range"]

_LONGEST = 100.0  # seconds after which a client that has not ended has failed
_DENIED = (kvi.Unavailable, kvi.Timeout, kvi.Contention)  # surely not applied, may pass
_PAUSE = 0.02  # seconds after a denial: who cannot be served does not ask without rest
_SWITCH = 5e-5  # seconds between switches of threads, so that calls within one process overlap


def run_clients(work: Callable[[int], None], clients: int = 4) -> None:
    """Run ``work(number)`` in so many threads at once; re-raise the first failure."""
    failures: list[BaseException] = []
    start = threading.Barrier(clients)

    def body(number: int) -> None:
        try:
            start.wait(30)
            work(number)
        except BaseException as error:  # noqa: BLE001  (raised again below)
            failures.append(error)

    threads = [
        threading.Thread(target=body, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + _LONGEST
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    for failure in failures:
        if not isinstance(failure, (Exception, pytest.fail.Exception)):
            raise AssertionError(f"a client ended with {failure!r}") from failure
        raise failure
    assert not any(thread.is_alive() for thread in threads), "a client did not end"


class Client:
    """One client: it has one call under way at a time, from one thread.

    Attributes:
        number: which client this is.
        handle: the store that it calls.
        operations: what it did.
        seen: what it last read or wrote of each key, as far as it knows.

    """

    def __init__(
        self, number: int, handle: kvi.Kvi, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.number = number
        self.handle = handle
        self.operations: list[Operation] = []
        self.seen: dict[str, kvi.KeyValue | None] = {}
        self._clock = clock
        self._written = 0

    def fresh(self) -> bytes:
        """A value that no one else writes."""
        self._written += 1
        return f"{self.number}.{self._written}".encode()

    def perform(self, call: Call) -> Operation:
        """Make one call, and return its record."""
        if isinstance(call, Range) and not self.handle.capabilities.snapshot_range:
            return self._perform_range(call)
        outcome, result = Outcome.UNKNOWN, None
        invoked = self._clock()
        try:
            result = _call(self.handle, call)
            outcome = Outcome.OK
        except kvi.OutcomeUnknown:
            pass
        except _DENIED:
            outcome = Outcome.DENIED
        finally:
            ended = self._clock()
            if outcome is Outcome.UNKNOWN and not any(_effects(call)):
                outcome = Outcome.DENIED  # a read without an answer
            returned = inf if outcome is Outcome.UNKNOWN else ended
            self._keep(call, outcome, result, invoked, returned)
        return self.operations[-1]

    def _perform_range(self, call: Range) -> Operation:
        """A range without snapshot: each key is read at some moment of it."""
        invoked = self._clock()
        try:
            answer = _call(self.handle, call)
        except _DENIED:
            return self._keep(call, Outcome.DENIED, None, invoked, self._clock())
        returned = self._clock()
        assert isinstance(answer, kvi.TxnResult)
        for key, entry in zip(call.keys, answer.results, strict=True):
            self._keep(kvi.Get(key), Outcome.OK, entry, invoked, returned)
        return self.operations[-1]

    def _keep(
        self, call: Call, outcome: Outcome, result: Result, invoked: float, returned: float
    ) -> Operation:
        operation = Operation(
            client=self.number,
            call=call,
            outcome=outcome,
            result=result,
            invoked=invoked,
            returned=returned,
        )
        self.operations.append(operation)
        revision, changes = changes_of(operation)
        for key, value in changes.items():
            # of its own writes a client knows value and mostly revision: enough for tas and cas
            self.seen[key] = None if value is None else kvi.KeyValue(key, value, revision or 0, 0)
        if not changes:
            self.seen |= {entry.key: entry for entry in observed(operation)}
            if isinstance(call, kvi.Get) and result is None and outcome is Outcome.OK:
                self.seen[call.key] = None
        return operation


def _effects(call: Call) -> list[dict[str, bytes | None]]:
    return possible_changes(
        Operation(client=0, call=call, outcome=Outcome.UNKNOWN, invoked=0.0, returned=inf)
    )


def _call(handle: kvi.Kvi, call: Call) -> Result:
    match call:
        case kvi.Get(key):
            return handle.get(key)
        case kvi.Put(key, value):
            return handle.store(key, value)
        case kvi.Delete(key):
            return handle.delete(key)
        case Tas(key, test, new):
            return handle.tas(key, test, new)
        case Cas(key, revision, value):
            return handle.cas(key, revision, value)
        case Txn(when, then, otherwise):
            return handle.txn(when, then, otherwise)
        case Range(prefix, keys):
            found = handle.range(prefix=prefix)
            entries = list(found)
            assert [entry.key for entry in entries] == sorted(
                {entry.key for entry in entries}, key=str.encode
            ), f"the range is not in the order of keys: {entries}"
            strangers = [entry for entry in entries if entry.key not in keys]
            assert not strangers, f"the range has keys that nobody wrote: {strangers}"
            by_key = {entry.key: entry for entry in entries}
            return kvi.TxnResult(True, found.revision, tuple(by_key.get(key) for key in keys))


@dataclass(frozen=True, slots=True)
class History:
    """What random clients did, and the seed that chose their calls."""

    operations: tuple[Operation, ...]
    seed: int


def run_random(
    handles: Sequence[kvi.Kvi],
    *,
    keys: Sequence[str] = ("a", "b"),
    kinds: Sequence[Kind] = ("get", "store", "tas", "cas", "delete"),
    prefix: str = "",
    clients: int = 4,
    calls: int = 25,
    until: threading.Event | None = None,
    seed: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> History:
    """Let clients make random calls at the same time, and return what they did.

    Args:
        handles: the clients take turns in choosing one of these.
        keys: what is read and written; for ``range`` all that the prefix holds.
        kinds: the calls, each as likely as it stands here often.
        prefix: what ``range`` reads.
        clients: how many there are, a thread each.
        calls: how many calls each makes.
        until: they go on until this is set, whatever ``calls`` says.
        seed: chooses the calls; without, a new one is made. The threads' timing it does not rule.
        clock: the monotonic clock of the records.

    """
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    crowd = [Client(number, handles[number % len(handles)], clock) for number in range(clients)]

    def work(number: int) -> None:
        client, choice = crowd[number], random.Random(f"{seed} {number}")
        done = 0
        while done < calls if until is None else not until.is_set():
            operation = client.perform(_random_call(client, choice, keys, kinds, prefix))
            done += 1
            if operation.outcome is not Outcome.OK:
                time.sleep(_PAUSE)

    with switching():
        run_clients(work, clients)
    operations = [operation for client in crowd for operation in client.operations]
    return History(tuple(sorted(operations, key=lambda operation: operation.invoked)), seed)


@contextmanager
def switching() -> Iterator[None]:
    """Let threads take turns as often as those of other machines do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _random_call(
    client: Client, choice: random.Random, keys: Sequence[str], kinds: Sequence[Kind], prefix: str
) -> Call:
    key = choice.choice(keys)
    last = client.seen.get(key)
    match choice.choice(kinds):
        case "get":
            return kvi.Get(key)
        case "store":
            return kvi.Put(key, client.fresh())
        case "delete":
            return kvi.Delete(key)
        case "tas":
            new = None if choice.random() < 0.2 else client.fresh()
            return Tas(key, None if last is None else last.value, new)
        case "cas":
            return Cas(key, 0 if last is None else last.revision, client.fresh())
        case "range":
            return Range(prefix, tuple(sorted(keys, key=str.encode)))
        case "txn":
            return _random_txn(client, choice, keys)


def _random_txn(client: Client, choice: random.Random, keys: Sequence[str]) -> Txn:
    one, two = choice.sample(list(keys), 2)
    last = client.seen.get(one)
    unchanged = kvi.Key(one).absent
    if last is not None and last.value is not None:
        unchanged = kvi.Key(one).value == last.value
        if last.revision and choice.random() < 0.5:
            unchanged = kvi.Key(one).revision == last.revision
    both = (kvi.Get(one), kvi.Get(two))
    match choice.randrange(5):
        case 0:
            return Txn(then=both)
        case 1:
            return Txn(then=(kvi.Put(one, client.fresh()), kvi.Put(two, client.fresh())))
        case 2:
            return Txn((unchanged,), (kvi.Put(two, client.fresh()), kvi.Get(one)), both)
        case 3:
            moved = (kvi.Delete(one), kvi.Put(two, client.fresh()))
            return Txn((kvi.Key(one).exists,), moved, (kvi.Put(one, client.fresh()),))
        case _:
            new = (kvi.Put(one, client.fresh()), kvi.Put(two, client.fresh()), *both)
            return Txn((unchanged,), new, both)
