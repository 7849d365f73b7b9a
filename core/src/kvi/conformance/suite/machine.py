"""The contract against programs that nobody thought of.

hypothesis makes up programs: calls of every kind, on two handles of a store and on views of them
below a namespace, with keys and values that go wrong easily. Beside the store runs the model of
`kvi.conformance.model`. Every answer must be the model's, and after every write the *other* handle
must see the model's state. A program that shows a difference is cut down to the calls that matter,
and the error tells it as Python, ready to be pasted::

    a = kvi.open(URI)
    b = kvi.open(URI)
    a.store('a', b'')  # -> 1
    a.tas('b', b'', b'')
    # expected: False
    # came:     True

The same programs are run every time. A soak has others, and more: ``KVI_CONFORMANCE_EXAMPLES``
multiplies their number, ``KVI_CONFORMANCE_SEED`` (an integer, or ``random``) chooses them.

*Where the contract leaves things open*, so does the comparison: revisions are compared by their
order; watches without history, range deletes that are not atomic and revisions that the store does
not tell as the capabilities say; the keys that a lock keeps below its name are taken as they are.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, configuration, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import kvi
from kvi.conformance import contract
from kvi.conformance.model import (
    Bounds,
    Change,
    Differs,
    LeaseId,
    Model,
    Revision,
    Revisions,
    Watching,
    World,
)
from kvi.conformance.rules import Rules
from kvi.conformance.suite.telling import NAMESPACE, Line, Program
from kvi.conformance.suite.words import (
    BACK,
    BRANCH,
    COMPARE,
    HANDLE,
    KEY,
    KEYS,
    LEASE,
    NUMBER,
    OPERATOR,
    PART,
    POOL,
    REVISION,
    SPAN,
    VALUE,
    bad_calls,
)
from kvi.conformance.waiting import no_answer
from kvi.model import Operation

__all__ = ["EXAMPLES", "STEPS", "StoreMachine", "Stores", "TestModel", "run_programs"]

EXAMPLES, STEPS = 220, 30  # measured: 4 seconds in memory, 6 on SQLite, 15 on a server
PATIENCE = 20.0  # seconds within which a watch tells what happened
SHORT_PATIENCE = 0.2  # the same, once a watch has kept silent and the program is being shortened
TTL = 60.0  # seconds: no lease ends by itself
LOCKS = ["lock", "lock/b"]  # with letters that no other key has
OTHERS = {"a": "bd", "b": "ac", "c": "bd", "d": "ac"}  # who must see what was written

PUT, DELETE = kvi.EventType.PUT, kvi.EventType.DELETE


class Stores:
    """Two handles on one store, `a` and `b`, and a view through each, `c` and `d`.

    Attributes:
        handles: by their names in programs.
        patience: how long a watch may keep silent.

    """

    def __init__(self, a: kvi.Kvi, b: kvi.Kvi, *, patience: float = PATIENCE) -> None:
        self.capabilities = a.capabilities
        self.handles = {"a": a, "b": b, "c": a.namespace(NAMESPACE), "d": b.namespace(NAMESPACE)}
        self.patience = patience


_F = TypeVar("_F", bound=Callable[..., None])
_STEPS: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = []


def _step(**arguments: st.SearchStrategy[Any]) -> Callable[[_F], _F]:
    """A method of the machine that is a step of programs, with these arguments."""

    def enter(function: _F) -> _F:
        _STEPS.append(st.tuples(st.just(function.__name__), st.fixed_dictionaries(arguments)))
        return function

    return enter


class HeldLease(NamedTuple):
    """A lease of a program, or the temporary key that it keeps."""

    name: str
    handle: str
    owner: kvi.Lease | kvi.TempKey
    lease: kvi.Lease


class HeldLock(NamedTuple):
    """A lock that was acquired, with the key that it stands on."""

    name: str
    handle: str
    lock: kvi.Lock
    whole_name: str
    key: str
    created: int


class OpenWatch(NamedTuple):
    """A watch, and what it must tell."""

    name: str
    handle: str
    watch: kvi.Watch
    bounds: Bounds
    kinds: Sequence[kvi.EventType]
    model: Watching


class Unanswered(BaseException):
    """The store did not answer a call, whose error is the cause: this says nothing of the store.

    No `Exception`, so that hypothesis does not run the program again to see it fail.
    """


class StoreMachine(RuleBasedStateMachine):
    """One program: each step is a call, compared with the model's."""

    def __init__(self, stores: Stores) -> None:
        super().__init__()
        self.stores = stores
        self.limits = stores.capabilities
        self.root = Model(
            World(
                versions=self.limits.key_version,
                atomic=self.limits.atomic_range_delete,
                past=self.limits.read_at_revision,
            )
        )
        view = self.root.namespace(NAMESPACE)
        self.models = {"a": self.root, "b": self.root, "c": view, "d": view}
        self.revisions = Revisions()
        self.program = Program()
        self.pool: list[str] = KEYS[:4]
        self.leases: list[HeldLease] = []
        self.locks: list[HeldLock] = []
        self.watches: list[OpenWatch] = []
        self.fences: dict[str, int] = {}
        self.names: Counter[str] = Counter()
        stores.handles["a"].delete_range(prefix="")
        if self.limits.snapshot_range:
            self.revisions.learn(0, stores.handles["b"].range(limit=0).revision)

    @initialize(pool=POOL)
    def choose_keys(self, pool: list[str]) -> None:
        """The keys of this program."""
        self.pool = pool

    @_step()
    def nothing(self) -> None:
        """The shortest step: to it hypothesis turns those that it then leaves out."""

    # -- reading ----------------------------------------------------------------------------------

    @_step(h=HANDLE, key=KEY)
    def get(self, h: str, key: int) -> None:
        """One entry, or absence."""
        self.both(h, "get", self.pool[key])

    @_step(
        h=HANDLE,
        span=PART,
        limit=st.sampled_from([None, None, 0, 1, 2]),
        reverse=st.booleans(),
        keys_only=st.booleans(),
    )
    def range(self, h: str, span: Any, limit: int | None, reverse: bool, keys_only: bool) -> None:
        """Entries of a prefix or of bounds, from either end."""
        options = {"limit": limit, "reverse": reverse, "keys_only": keys_only}
        self.both(h, "range", **self.where(span), **options)

    @_step(h=HANDLE, span=PART)
    def count(self, h: str, span: Any) -> None:
        """The number of keys."""
        self.both(h, "count", **self.where(span))

    @_step(h=HANDLE, key=KEY, back=BACK)
    def get_past(self, h: str, key: int, back: int) -> None:
        """One entry as it was."""
        self.both(h, "get", self.pool[key], revision=self.past(back))

    @_step(h=HANDLE, span=PART, limit=st.sampled_from([None, 1]), reverse=st.booleans(), back=BACK)
    def range_past(self, h: str, span: Any, limit: int | None, reverse: bool, back: int) -> None:
        """Entries as they were."""
        options = {"limit": limit, "reverse": reverse, "revision": self.past(back)}
        self.both(h, "range", **self.where(span), **options)

    @_step(h=HANDLE, key=KEY, now_and_then=st.integers(0, 9))
    def history(self, h: str, key: int, now_and_then: int) -> None:
        """The changes of a key in this program, newest first."""
        if now_and_then:  # it may take a store long
            return
        name = self.pool[key]
        line, came = self.call(h, "history", (name,), {})
        if not self.limits.watch_history:
            self.agree(line, kvi.NotSupported(""), came)
            return
        changes = self.models[h].history(name)
        try:
            if not isinstance(came, list) or len(came) < len(changes):
                raise Differs(f"{len(changes)} changes at the least")
            for change, event in zip(changes, came, strict=False):
                self.compare_change(change._replace(key=name), event)
            before = self.revisions.known(0)
            if before is not None and any(e.revision > before for e in came[len(changes) :]):
                raise Differs(f"{len(changes)} changes")
        except Differs as differs:
            self.fail(str(differs), came)
        line.result = self.result(came[: len(changes)])

    # -- writing ----------------------------------------------------------------------------------

    @_step(h=HANDLE, key=KEY, value=VALUE, lease=LEASE)
    def store(self, h: str, key: int, value: bytes | str, lease: int) -> None:
        """Create or replace."""
        self.write(h, "store", self.pool[key], value, lease=self.lease_id(lease))

    @_step(h=HANDLE, keys=st.lists(KEY, min_size=2, max_size=4, unique=True), value=VALUE)
    def store_many(self, h: str, keys: list[int], value: bytes | str) -> None:
        """Several keys in one step."""
        names = dict.fromkeys(self.pool[key] for key in keys)
        self.write(h, "txn", [], [kvi.Put(name, value) for name in names])

    @_step(h=HANDLE, key=KEY)
    def delete(self, h: str, key: int) -> None:
        """Delete one key, there or not."""
        self.write(h, "delete", self.pool[key])

    @_step(h=HANDLE, span=PART)
    def delete_range(self, h: str, span: Any) -> None:
        """Delete many."""
        bounds = self.where(span) or {"prefix": ""}
        if not self.touches_another(h, bounds.get("prefix")):
            self.write(h, "delete_range", **bounds)

    def touches_another(self, h: str, prefix: str | None) -> bool:
        """Whether deleting a prefix in one step may write a key beside it, as declared."""
        if prefix is None or self.limits.atomic_range_delete != "prefix":
            return False
        whole = self.models[h].prefix + prefix
        beside = whole if not prefix else whole[:-1] if whole.endswith("\0") else ""
        return bool(beside) and self.root.get(beside) is not None

    @_step(h=HANDLE, key=KEY, test=st.none() | VALUE, new=st.none() | VALUE)
    def tas(self, h: str, key: int, test: bytes | str | None, new: bytes | str | None) -> None:
        """Test and set."""
        self.write(h, "tas", self.pool[key], test, new)

    @_step(h=HANDLE, key=KEY, revision=REVISION, value=VALUE, lease=LEASE)
    def cas(self, h: str, key: int, revision: str, value: bytes | str, lease: int) -> None:
        """Compare the revision and set."""
        number = self.revision(h, self.pool[key], "revision", revision)
        self.write(h, "cas", self.pool[key], number, value, lease=self.lease_id(lease))

    @_step(h=HANDLE, when=st.lists(COMPARE, max_size=2), then=BRANCH, otherwise=BRANCH)
    def txn(self, h: str, when: list[Any], then: list[Any], otherwise: list[Any]) -> None:
        """A transaction, which may be refused for writing a key twice."""
        compares = [self.comparison(h, *given) for given in when]
        self.write(h, "txn", compares, self.branch(then), self.branch(otherwise))

    @_step(h=HANDLE, keys=st.tuples(KEY, KEY, KEY), op=OPERATOR, value=VALUE)
    def transaction(self, h: str, keys: tuple[int, int, int], op: str, value: bytes | str) -> None:
        """The form of one line."""
        key, yes, no = (self.pool[number] for number in keys)
        self.write(h, "transaction", key, op, value, yes, b"then", no, b"else")

    @_step(h=HANDLE, number=st.integers(0, 99))
    def bad_call(self, h: str, number: int) -> None:
        """What is wrong is refused with its own error, and changes nothing."""
        calls = bad_calls(self.stores.handles[h].capabilities)
        bad = calls[number % len(calls)]
        line, came = self.call(h, bad.method, bad.args, bad.kwargs)
        self.agree(line, bad.error(""), came)
        self.verify(h)

    # -- leases -----------------------------------------------------------------------------------

    @_step(h=HANDLE)
    def lease(self, h: str) -> None:
        """Grant a lease; it will not end by itself."""
        if len(self.leases) >= 3:
            return
        name = self.name("l")
        _, came = self.call(h, "lease", (TTL,), {}, name=name)
        if not isinstance(came, kvi.Lease) or came.id <= 0 or came.ttl < TTL or not came.alive:
            self.fail(f"a lease of at least {TTL:g} seconds, alive", came)
        self.program.leases[came.id] = f"{name}.id"
        self.root.grant(came.id)
        self.leases.append(HeldLease(name, h, came, came))

    @_step(h=HANDLE, key=KEY, value=VALUE)
    def temp_key(self, h: str, key: int, value: bytes | str) -> None:
        """Store a temporary key."""
        if len(self.leases) >= 3:
            return
        name = self.name("t")
        _, came = self.call(h, "temp_key", (self.pool[key], value), {"ttl": TTL}, name=name)
        if not isinstance(came, kvi.TempKey) or came.key != self.pool[key] or not came.alive:
            self.fail("a temporary key, alive", came)
        self.program.leases[came.lease.id] = f"{name}.lease.id"
        self.root.grant(came.lease.id)
        self.models[h].store(self.pool[key], value, lease=came.lease.id)
        self.leases.append(HeldLease(name, h, came, came.lease))
        self.verify(h)

    @_step(number=NUMBER)
    def renew(self, number: int) -> None:
        """Renew a lease, or one that has been revoked."""
        if not self.leases:
            return
        held = self.leases[number % len(self.leases)]
        gone = held.lease.id not in self.root.world.leases
        at = f"{held.name}.renew()" if held.owner is held.lease else f"{held.name}.lease.renew()"
        line = self.program.add(held.handle, at)
        came = _outcome(held.lease.renew)
        if gone and not isinstance(came, kvi.LeaseLost):
            self.fail("LeaseLost", came)
        if not gone and came != held.lease.ttl:
            self.fail(f"{held.lease.ttl}", came)
        line.result = self.result(came)

    @_step(number=NUMBER)
    def end_lease(self, number: int) -> None:
        """Revoke a lease, or close a temporary key; again, too."""
        if not self.leases:
            return
        held = self.leases[number % len(self.leases)]
        temporary = isinstance(held.owner, kvi.TempKey)
        self.program.add(held.handle, f"{held.name}.{'close' if temporary else 'revoke'}()")
        came = _outcome(
            held.owner.close if isinstance(held.owner, kvi.TempKey) else held.owner.revoke
        )
        self.root.revoke(held.lease.id)
        if came is not None:
            self.fail("None", came)
        if held.lease.alive or held.lease.lost.is_set():
            self.fail("a lease that is not alive, and not lost", held.lease)
        self.verify(held.handle)

    # -- locks ------------------------------------------------------------------------------------

    @_step(h=HANDLE, name=st.sampled_from(LOCKS))
    def acquire(self, h: str, name: str) -> None:
        """Try once to take a lock."""
        if len(self.locks) >= 3:
            return
        whole = self.models[h].prefix + name
        free = not any(held.whole_name == whole and self.stands(held) for held in self.locks)
        variable = self.name("m")
        _, lock = self.call(h, "lock", (name,), {"ttl": TTL}, name=variable)
        if not isinstance(lock, kvi.Lock):
            self.fail("a lock", lock)
        came = self.on(h, f"{variable}.acquire(0)", lambda: lock.acquire(0), free)
        self.adopt(h)
        if not came:
            self.on(h, f"{variable}.release()", lock.release, kvi.NotHeld(""))
            self.verify(h)
            return
        key = self.models[h].prefix + lock.guard.key
        entry = self.root.get(key)
        if not lock.held or entry is None or not entry.lease:
            self.fail(f"a lock that is held, and a lease on its key {key!r}", entry)
        if lock.fence <= self.fences.get(whole, 0):
            self.fail(f"{variable}.fence above {self.fences[whole]}", lock.fence)
        self.fences[whole] = lock.fence
        self.locks.append(HeldLock(variable, h, lock, whole, key, entry.create_revision))
        self.verify(h)

    @_step(number=NUMBER, key=KEY)
    def guarded(self, number: int, key: int) -> None:
        """Write under the guard of a lock, which may have been lost."""
        if not self.locks:
            return
        held = self.locks[number % len(self.locks)]
        text = f"{held.handle}.txn([{held.name}.guard], [kvi.Put({self.pool[key]!r}, b'')])"
        put = kvi.Put(self.pool[key], b"")
        never = [] if self.stands(held) else [kvi.Key(LOCKS[0]).exists]
        self.on(
            held.handle,
            text,
            lambda: self.stores.handles[held.handle].txn([held.lock.guard], [put]),
            self.models[held.handle].txn(never, [put]),
        )
        self.verify(held.handle)

    @_step(number=NUMBER)
    def release(self, number: int) -> None:
        """Let go of a lock; one whose key was deleted is lost."""
        if not self.locks:
            return
        held = self.locks.pop(number % len(self.locks))
        expected = None if self.stands(held) else kvi.LeaseLost("")
        self.on(held.handle, f"{held.name}.release()", held.lock.release, expected)
        if held.lock.held:
            self.fail("a lock that is not held", held.lock)
        self.adopt(held.handle)
        self.verify(held.handle)

    # -- watches ----------------------------------------------------------------------------------

    @_step(
        h=HANDLE,
        what=SPAN | KEY,
        initial=st.booleans(),
        events=st.sampled_from([None, PUT, DELETE]),
        start=st.sampled_from(["now", "first", "last", "future"]),
    )
    def watch(
        self, h: str, what: Any, initial: bool, events: kvi.EventType | None, start: str
    ) -> None:
        """Begin to watch."""
        if len(self.watches) >= 3:
            return
        name = self.name("w")
        if isinstance(what, int):
            given = {"key": self.pool[what]}
            bounds = Bounds.of_key(self.pool[what])
        else:
            given = self.where(what) or {"prefix": ""}
            bounds = Bounds(**given)
        first: Revision | None = None
        if self.limits.watch_history and start != "now" and not initial:
            known = [revision for revision in self.revisions.all_known() if revision > 0]
            last = self.root.revision
            chosen = {"first": known[:1], "last": known[-1:], "future": [Revision(last + 2)]}
            first = next(iter(chosen[start]), None)
        options = {"initial": initial, "events": events, "from_revision": first}
        kinds = (PUT, DELETE) if events is None else (events,)
        model = Watching(
            self.models[h],
            bounds,
            self.revisions,
            history=self.limits.watch_history,
            start=None if first is None else self.revisions.theirs(first),
            initial=initial,
            kinds=kinds,
            foreign=_of_a_lock,
        )
        _, came = self.call(h, "watch", (), {**given, **options}, name=name)
        if not isinstance(came, kvi.Watch) or not came.active:
            self.fail("a watch", came)
        self.watches.append(OpenWatch(name, h, came, bounds, kinds, model))

    @_step(number=NUMBER)
    def read(self, number: int) -> None:
        """Take what a watch has to tell."""
        if not self.watches:
            return
        self.take(self.watches[number % len(self.watches)])

    @_step(number=NUMBER)
    def cancel(self, number: int) -> None:
        """End a watch."""
        if not self.watches:
            return
        opened = self.watches.pop(number % len(self.watches))
        self.on(opened.handle, f"{opened.name}.cancel()", opened.watch.cancel, None)
        self.on(
            opened.handle, f"{opened.name}.next(0)", lambda: opened.watch.next(0), kvi.Closed("")
        )

    @rule(step=st.one_of(_STEPS))
    def step(self, step: tuple[str, dict[str, Any]]) -> None:
        """Any of the steps above.

        They are not rules of their own, because hypothesis would switch some of them off in each
        program (swarm testing), and what it draws for that keeps it from leaving steps out again.
        """
        name, arguments = step
        getattr(self, name)(**arguments)

    def teardown(self) -> None:
        """At the end each watch tells what it owes; then all is given back."""
        try:
            if sys.exc_info()[0] is None:
                self.finish()
        finally:
            with suppress(kvi.KviError):
                for opened in self.watches:
                    opened.watch.cancel()
                for lock in self.locks:
                    with suppress(kvi.NotHeld):
                        lock.lock.release()
                for held in self.leases:
                    held.lease.revoke()

    def finish(self) -> None:
        """Make an event that each watch must tell, and nothing that it owes comes after."""
        for opened in self.watches:
            key = opened.bounds.first
            if key is not None:
                self.write(opened.handle, "store", key, b"end")
                if PUT not in opened.kinds:
                    self.write(opened.handle, "delete", key)
        for opened in self.watches:
            self.take(opened)

    # -- what the steps are made of ---------------------------------------------------------------

    def both(self, h: str, method: str, *args: Any, **kwargs: Any) -> None:
        """Call the model and the store; their answers must agree."""
        given = _given(kwargs)
        expected = _outcome(lambda: getattr(self.models[h], method)(*args, **given))
        line, came = self.call(h, method, args, given)
        self.agree(line, expected, came)

    def write(self, h: str, method: str, *args: Any, **kwargs: Any) -> None:
        """The same, and the other handle must see what has become of it."""
        self.both(h, method, *args, **kwargs)
        self.verify(h)

    def verify(self, h: str) -> None:
        """The other handle sees the model's state."""
        for other in OTHERS[h]:
            expected = self.models[other].range()
            came = _outcome(self.stores.handles[other].range)
            entries = came if isinstance(came, Exception) else _outcome(partial(list, came))
            try:
                self.compare(expected, entries)
            except Differs as differs:
                self.program.add(other, f"list({other}.range())")
                self.fail(str(differs), entries)
            try:
                if self.limits.snapshot_range:
                    self.revisions.learn(self.root.revision, came.revision)
            except Differs as differs:
                self.program.add(other, f"{other}.range().revision")
                self.fail(str(differs), came.revision)

    def call(
        self, h: str, method: str, args: Sequence[Any], kwargs: dict[str, Any], *, name: str = ""
    ) -> tuple[Line, Any]:
        """Make a call as the program says it."""
        given = _given(kwargs)
        said = [*map(self.text, args), *(f"{key}={self.text(v)}" for key, v in given.items())]
        call = f"{h}.{method}({', '.join(said)})"
        line = self.program.add(h, f"list({call})" if method == "range" else call, name)
        real = [self.real(value) for value in args]
        options = {key: self.real(value) for key, value in given.items()}

        def run() -> Any:
            result = getattr(self.stores.handles[h], method)(*real, **options)
            return list(result) if method == "range" else result

        return line, _outcome(run)

    def on(self, h: str, text: str, function: Callable[[], Any], expected: Any) -> Any:
        """A call of something else than a handle, with what it must answer."""
        line = self.program.add(h, text)
        came = _outcome(function)
        self.agree(line, expected, came)
        if came is None:
            line.result = ""  # it goes without saying
        return came

    def agree(self, line: Line, expected: Any, came: Any) -> None:
        """The answer of a line is the expected one."""
        try:
            self.compare(expected, came)
        except Differs as differs:
            self.fail(str(differs), came)
        line.result = self.result(came)
        if isinstance(expected, Revision):
            self.program.told(line, came)
        elif isinstance(came, kvi.TxnResult):
            self.program.told(line, came.revision, ".revision")

    def take(self, opened: OpenWatch) -> None:
        """All that a watch owes, and nothing else."""
        line = self.program.add(opened.handle, "")
        number = 0
        while True:
            number += 1
            call = f"{opened.name}.next(1)"
            line.text = call if number == 1 else f"[{call} for _ in range({number})]"
            owed = opened.model.owed()
            patience = 0 if owed is None else self.stores.patience
            came = _outcome(partial(opened.watch.next, patience))
            if isinstance(came, kvi.Timeout):
                if owed is None:
                    break
                self.stores.patience = min(self.stores.patience, SHORT_PATIENCE)
                self.fail(owed, came)
            if not isinstance(came, kvi.Event):
                self.fail(owed or "Timeout", came)
            try:
                opened.model.take(came)
            except Differs as differs:
                self.fail(str(differs), came)
            try:
                opened.model.reached(opened.watch.revision)
            except Differs as differs:
                self.program.add(opened.handle, f"{opened.name}.revision")
                self.fail(str(differs), opened.watch.revision)
        if number == 1:
            self.program.lines.remove(line)
        elif number == 2:
            line.text = f"{opened.name}.next(1)"
        else:
            line.text = f"[{opened.name}.next(1) for _ in range({number - 1})]"

    def adopt(self, h: str) -> None:
        """Take over what a lock did below its name."""
        listing = self.stores.handles[OTHERS[h][0]].range()
        theirs = {entry.key: entry for entry in listing if _of_a_lock(entry.key)}
        ours = {key: e for key, e in self.root.world.entries.items() if _of_a_lock(key)}
        for key in ours.keys() - theirs.keys():
            self.root.adopt(key, None)
        for entry in sorted(theirs.values(), key=lambda entry: entry.revision):
            old = ours.get(entry.key)
            if old is None or self.revisions.known(old.revision) != entry.revision:
                self.revisions.learn(self.root.adopt(entry.key, entry), entry.revision)
        if listing.revision is not None:
            if self.revisions.known(self.root.revision) not in (None, listing.revision):
                self.root.skip()
            self.revisions.learn(self.root.revision, listing.revision)

    def stands(self, held: HeldLock) -> bool:
        """Whether the key of a lock is still the one that it was acquired with."""
        entry = self.root.get(held.key)
        return entry is not None and entry.create_revision == held.created

    def fail(self, expected: str, came: object) -> NoReturn:
        """The store is not as the model: tell the program."""
        if no_answer(came):
            raise Unanswered from cast("kvi.KviError", came)
        cause = came if isinstance(came, BaseException) else None
        raise AssertionError(
            "the store does not do what the contract says:\n\n"
            f"{self.program}\n# expected: {expected}\n# came:     {self.text(came)}\n"
        ) from cause

    # -- comparing --------------------------------------------------------------------------------

    def compare(self, expected: Any, came: Any) -> None:
        """Raise `Differs` unless the store's answer is the model's, and learn its revisions."""
        match expected:
            case kvi.KviError():
                if not isinstance(came, type(expected)):
                    raise Differs(type(expected).__name__)
            case Revision():
                self.revisions.learn(expected, came)
            case kvi.KeyValue():
                self.compare_entry(expected, came)
            case kvi.TxnResult():
                self.compare_result(expected, came)
            case list():
                if not isinstance(came, list) or len(came) != len(expected):
                    raise Differs(self.text(expected))
                for ours, theirs in zip(expected, came, strict=True):
                    try:
                        self.compare_entry(ours, theirs)
                    except Differs as differs:
                        raise Differs(
                            f"[… {differs} …]" if expected[1:] else f"[{differs}]"
                        ) from None
            case _:
                if type(came) is not type(expected) or came != expected:
                    raise Differs(self.text(expected))

    def compare_entry(self, expected: kvi.KeyValue, came: Any) -> None:
        """An entry: all as it is, revisions by their order."""
        if not isinstance(came, kvi.KeyValue) or came != expected._replace(
            revision=came.revision, create_revision=came.create_revision
        ):
            raise Differs(self.text(expected))
        for field in ("create_revision", "revision"):
            try:
                self.revisions.learn(getattr(expected, field), getattr(came, field))
            except Differs as differs:
                raise Differs(f"{self.text(expected)}, its {field} {differs}") from None

    def compare_change(self, expected: Change, came: Any) -> None:
        """An event of a history: what changed, and what was before where it is told."""
        after, before = expected.after, expected.before
        value = None if after is None else after.value
        told = (expected.type, expected.key, value)
        if not isinstance(came, kvi.Event) or (came.type, came.key, came.value) != told:
            raise Differs(f"{expected.type} {expected.key!r} {self.text(value)}")
        if expected.together:
            self.revisions.learn(expected.revision, came.revision)
        if came.previous is not None:
            if before is None:
                raise Differs("no previous entry")
            self.compare_entry(before._replace(key=expected.key), came.previous)

    def compare_result(self, expected: kvi.TxnResult, came: Any) -> None:
        """A result of a transaction; stores without snapshots tell its revision only if it put."""
        if (
            not isinstance(came, kvi.TxnResult)
            or came.succeeded is not expected.succeeded
            or len(came.results) != len(expected.results)
        ):
            raise Differs(self.text(expected))
        put = any(isinstance(result, Revision) for result in expected.results)
        if came.revision is not None or put or self.limits.snapshot_range:
            self.revisions.learn(expected.revision or 0, came.revision)
        for ours, theirs in zip(expected.results, came.results, strict=True):
            self.compare(ours, theirs)

    # -- arguments --------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        """The name of a new variable."""
        self.names[kind] += 1
        return f"{kind}{self.names[kind]}"

    def where(self, span: tuple[int | str | None, ...]) -> dict[str, Any]:
        """The arguments that say a span."""
        names = ("prefix",) if len(span) == 1 else ("start", "end")
        words = [self.pool[word] if isinstance(word, int) else word for word in span]
        return {name: word for name, word in zip(names, words, strict=True) if word is not None}

    def lease_id(self, number: int) -> LeaseId | None:
        """The id of a lease of the program, which may be gone."""
        if not number or not self.leases:
            return None
        return LeaseId(self.leases[(number - 1) % len(self.leases)].lease.id)

    def revision(self, h: str, key: str, target: str, which: str) -> Revision:
        """A revision to compare with."""
        entry = self.models[h].get(key)
        known = self.revisions.all_known()
        match which:
            case "its own" if entry is not None:
                return Revision(getattr(entry, target))
            case "first" if known:
                return known[0]
            case "last" if known:
                return known[-1]
            case "future":
                return Revision(self.root.revision + 1000)
        return Revision(0)

    def past(self, back: int) -> Revision:
        """A revision of this program, so many before the last; or one to come."""
        known = self.revisions.all_known()
        if back < 0 or not known:
            return Revision(self.root.revision + 1000)
        return known[-1 - back % len(known)]

    def comparison(
        self, h: str, target: str, number: int, operator: str, operand: Any
    ) -> kvi.Compare:
        """A compare, of a revision as the model counts them."""
        key = self.pool[number]
        if target in ("revision", "create_revision"):
            operand = self.revision(h, key, target, operand)
        elif target == "lease":
            operand = self.lease_id(operand) or 0
        compare: kvi.Compare = getattr(kvi.Key(key), target).compare(operator, operand)
        return compare

    def branch(self, given: Iterable[tuple[Any, ...]]) -> list[Operation]:
        """The operations of a transaction."""
        operations: list[Operation] = []
        for kind, key, *rest in given:
            match kind:
                case "get":
                    operations.append(kvi.Get(self.pool[key]))
                case "delete":
                    operations.append(kvi.Delete(self.pool[key]))
                case "put":
                    value, lease = rest
                    operations.append(kvi.Put(self.pool[key], value, self.lease_id(lease)))
        return operations

    def real(self, value: Any) -> Any:
        """An argument as the store is to get it: with its own revisions."""
        match value:
            case Revision():
                return self.revisions.theirs(value)
            case LeaseId():
                return int(value)
            case list():
                return [self.real(item) for item in value]
            case kvi.Compare():
                return replace(value, operand=self.real(value.operand))
            case kvi.Put():
                return replace(value, lease=self.real(value.lease))
        return value

    def text(self, value: Any) -> str:
        """A value as Python."""
        match value:
            case BaseException():
                return f"{type(value).__name__}: {value}"
            case Revision():
                return self.program.revision(self.revisions.theirs(value))
            case LeaseId():
                return self.program.leases[value]
            case kvi.EventType():
                return f"kvi.EventType.{value}"
            case str() | bytes() if len(value) > 40 and len(set(value)) == 1:
                return f"{value[:1]!r} * {len(value)}"
            case kvi.KeyValue() | kvi.Event() | kvi.TxnResult():
                return self.record(value)
            case list() | tuple():
                inside = ", ".join(map(self.text, value))
                return f"[{inside}]"
            case kvi.Compare():
                operator = "==" if value.operator == "=" else str(value.operator)
                operand = self.text(value.operand)
                return f"kvi.Key({value.key!r}).{value.target} {operator} {operand}"
            case kvi.Put():
                lease = "" if value.lease is None else f", {self.text(value.lease)}"
                return f"kvi.Put({value.key!r}, {self.text(value.value)}{lease})"
            case kvi.Get() | kvi.Delete():
                return f"kvi.{type(value).__name__}({value.key!r})"
            case float():
                return f"{value:g}"
        return repr(value)

    def record(self, value: kvi.KeyValue | kvi.Event | kvi.TxnResult) -> str:
        """What an answer says; of the model's own revisions the store's name, if it is known."""

        def number(revision: int | None) -> str:
            known = self.revisions.known(revision) if isinstance(revision, Revision) else revision
            return "…" if known is None and revision is not None else f"{known}"

        match value:
            case kvi.KeyValue():
                return (
                    f"KeyValue({value.key!r}, {self.text(value.value)}, {number(value.revision)}, "
                    f"{number(value.create_revision)}, {value.version}, "
                    f"{self.program.leases.get(value.lease or 0, value.lease)})"
                )
            case kvi.Event():
                what = "" if value.value is None else f" {self.text(value.value)}"
                initial = ", initial" if value.initial else ""
                previous = "" if value.previous is None else f", previous {value.previous!r}"
                return (
                    f"{value.type} {value.key!r}{what} at revision {value.revision}"
                    f"{initial}{previous}"
                )
            case kvi.TxnResult():
                results = ", ".join(
                    number(r) if isinstance(r, Revision) else self.text(r) for r in value.results
                )
                return f"TxnResult({value.succeeded}, {number(value.revision)}, [{results}])"

    def result(self, came: Any) -> str:
        """What a line answered, as a comment."""
        return (
            f"raises {type(came).__name__}"
            if isinstance(came, Exception)
            else f"-> {self.text(came)}"
        )


def _of_a_lock(key: str) -> bool:
    """Whether a key is where locks keep theirs, which the contract leaves to the stores."""
    return f"{LOCKS[0]}/" in key


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options that say something."""
    return {name: v for name, v in kwargs.items() if v is not None and v is not False}


def _outcome(function: Callable[[], Any]) -> Any:
    """What it returns, or what it raises."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001  (whatever it is, the program shall tell it)
        return error


@contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """Let hypothesis keep what it writes in ``folder``, not in the working directory.

    And let it not take the threads of a store, which draw random numbers at any moment, for a
    strategy that does; nor, on Python 3.14, the source that it keeps for each thread for one that
    nobody keeps.
    """
    configuration.set_hypothesis_home_dir(folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Do not use the `random` module")
            warnings.filterwarnings("ignore", "It looks like `register_random`")
            yield
    finally:
        configuration.set_hypothesis_home_dir(None)


def run_programs(
    a: kvi.Kvi,
    b: kvi.Kvi,
    *,
    folder: Path,
    examples: int = EXAMPLES,
    steps: int = STEPS,
    patience: float = PATIENCE,
    number: int | None = None,
) -> None:
    """Run programs on two handles of one store; a difference is an AssertionError that tells one.

    ``number`` chooses other programs than the usual ones.
    """
    stores = Stores(a, b, patience=patience)

    def machine() -> StoreMachine:
        return StoreMachine(stores)

    if number is not None:
        machine = seed(number)(machine)
    with _surroundings(folder):
        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]  # anything that returns one
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                derandomize=number is None,
                database=None,
                deadline=None,
                report_multiple_bugs=False,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )


class TestModel(Rules):
    """The store and the model answer alike."""

    @contract.rule("program.model")
    def test_programs(self, root: kvi.Kvi, kvi_uri: str, tmp_path: Path) -> None:
        """Whatever is called, the answers, the state and the events are those of the model."""
        factor = float(os.environ.get("KVI_CONFORMANCE_EXAMPLES", "1"))
        chosen = os.environ.get("KVI_CONFORMANCE_SEED")
        number: int | None = None
        if chosen:
            number = random.getrandbits(32) if chosen == "random" else int(chosen)
        with kvi.open(kvi_uri) as one, kvi.open(kvi_uri) as other:
            try:
                run_programs(
                    one,
                    other,
                    folder=tmp_path,
                    examples=max(1, round(EXAMPLES * factor)),
                    number=number,
                )
            except AssertionError as error:
                if number is not None:
                    error.add_note(f"found with KVI_CONFORMANCE_SEED={number}")
                raise
            except Unanswered as silence:
                raise cast("kvi.KviError", silence.__cause__) from None
