"""The memory store in parts, and the register of those who get a part of it wrong.

=============  ======================================  =========================================
part           what a mutant overrides                 who sees to it that it is used
=============  ======================================  =========================================
primitives     methods of `Correct`                    `tests.conformance.broken.plugin`
feeds          ``class feed(Passing)``                 `Correct._watch`
the interface  ``class face(Handle)``                  `_init`, in place of `Kvi.__init__`
what it makes  ``class kind(Lock)``, of a `Making`     `Handle.begin`
=============  ======================================  =========================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import kvi_memory.state
from kvi.conformance.contract import RULES
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.flow.scope import Scope
from kvi.model import (
    Compare,
    KeyValue,
    Operation,
    Put,
    RangeResult,
    Scan,
    Txn,
    TxnResult,
)
from kvi.policy.txn import holds, perform
from kvi.primitives import Primitives
from kvi.sync.face import Face
from kvi.sync.kvi import Kvi
from kvi_memory.store import MemoryKvi

Results = tuple[KeyValue | int | bool | None, ...]

_notes: dict[str, dict[Any, Any]] = {}


def notes_of(name: str) -> dict[Any, Any]:
    """What the handles of one store share."""
    return _notes.setdefault(name, {})


def forget(name: str) -> None:
    """Free the data of a store, and what its handles share."""
    _notes.pop(name, None)
    kvi_memory.state._states.pop(name, None)


class Passing(Feed):
    """A feed that passes on, batch by batch, what another gives."""

    def __init__(self, inner: Feed) -> None:
        self.inner = inner
        self.revision, self.interval = inner.revision, inner.interval

    def poll(self, timeout: float) -> Batch | None:
        """The next events."""
        batch = self.inner.poll(timeout)
        return None if batch is None else self.change(batch)

    def change(self, batch: Batch) -> Batch:
        """What is told of a batch."""
        return batch

    def close(self) -> None:
        """End it."""
        self.inner.close()


class Handle(Kvi):
    """A handle on a mutant.

    Attributes:
        mutant: the primitives.

    """

    mutant: Any

    def begin(self, store: Correct) -> None:
        """It is of this kind from now on."""
        self.mutant = store
        if isinstance(store, Making):
            make = getattr(self, store.makes)
            setattr(self, store.makes, lambda *args, **kw: store.made(self, make(*args, **kw)))


def _init(self: Kvi, scope: Scope) -> None:
    """`Kvi.__init__`, where there are mutants: their handles and views are of their kind."""
    Face.__init__(self, scope)
    store = scope.primitives
    if isinstance(store, Correct):
        if type(self) is Kvi:
            self.__class__ = store.face
        if isinstance(self, Handle):
            self.begin(store)


Kvi.__init__ = _init  # type: ignore[method-assign, assignment]


class Planted:
    """What the plugin of these tests opens.

    Attributes:
        scheme: the scheme of its URI.
        declares: capabilities that differ from those of the store that it derives from.

    """

    scheme: ClassVar[str] = "broken"
    declares: ClassVar[Mapping[str, Any]] = {}


class Correct(Planted, MemoryKvi):
    """The memory store without its short ways: every call goes through the primitives below.

    They run in the main thread, as those of the memory store do.

    Attributes:
        face: the kind of its handles.
        feed: what the feeds of watches are wrapped in.
        notes: anything that the handles of one store want to share.

    """

    feed: ClassVar[type[Passing]] = Passing
    face: ClassVar[type[Handle]] = Handle

    _short_get = None  # type: ignore[assignment]  # as in `Primitives`
    _short_range = None  # type: ignore[assignment]
    _short_put = None  # type: ignore[assignment]
    _lock_claim = Primitives._lock_claim

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.capabilities = replace(self.capabilities, **self.declares)
        self.notes = notes_of(name)

    def key_in(self, key: str) -> str:
        """A key as it is stored."""
        return key

    def value_in(self, value: bytes) -> bytes:
        """A value as it is stored."""
        return value

    def show(self, entry: KeyValue) -> KeyValue:
        """An entry as it is read."""
        return entry

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        """Whether a compare is true of an entry."""
        return holds(compare, entry)

    def choose(self, txn: Txn) -> tuple[bool, tuple[Operation, ...]]:
        """Which branch runs. The state's lock is held."""
        read = self._state.read
        succeeded = all(self.holds(compare, read(compare.key)) for compare in txn.when)
        return succeeded, txn.then if succeeded else txn.otherwise

    def apply(self, branch: Sequence[Operation]) -> Results:
        """Run a branch. The state's lock is held."""
        state = self._state
        for op in branch:
            if isinstance(op, Put) and isinstance(op.lease, int):
                state.alive(op.lease)
        effect = perform(branch, state.read, state.revision + 1)
        if effect.changes:
            state.commit(effect.changes)
        return effect.results

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        entry = super()._get(self.key_in(key), timeout)
        return None if entry is None else self.show(entry)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        found = super()._range(scan, timeout)
        return found.map_pages(lambda page: map(self.show, page))

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        txn = Txn(
            tuple(replace(compare, key=self.key_in(compare.key)) for compare in txn.when),
            tuple(map(self._in, txn.then)),
            tuple(map(self._in, txn.otherwise)),
        )
        with self._state.lock:
            self._state.finish()
            succeeded, branch = self.choose(txn)
            results = self.apply(branch)
            revision = self._state.revision
        shown = (self.show(one) if isinstance(one, KeyValue) else one for one in results)
        return TxnResult(succeeded, revision, tuple(shown))

    def _in(self, op: Operation) -> Operation:
        key = self.key_in(op.key)
        if isinstance(op, Put):
            assert isinstance(op.value, bytes)  # as a transaction's values are
            return Put(key, self.value_in(op.value), op.lease)
        return replace(op, key=key)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return self.feed(super()._watch(spec, wake, timeout))


class Making(Correct):
    """A store whose leases, locks, temporary keys or watches are of a kind of their own.

    Attributes:
        makes: the method of handles that makes them.
        kind: a subclass of what the library makes.

    """

    makes: ClassVar[str]
    kind: ClassVar[type]

    def made(self, handle: Kvi, made: Any) -> Any:
        """What is returned instead of what was made."""
        made.__class__ = self.kind
        return made


class Mutant(NamedTuple):
    """A store that is broken: the rules that a test must see broken, and how to open it."""

    name: str
    rules: tuple[str, ...]
    store: type[Planted]

    @property
    def uri(self) -> str:
        """The URI that opens it, through the plugin of these tests."""
        return f"{self.store.scheme}:{self.name}"


BROKEN: dict[str, Mutant] = {}

Store = TypeVar("Store", bound=type[Planted])


def broken(*rules: str, **declares: object) -> Callable[[Store], Store]:
    """Register a store that breaks these rules, under its name with hyphens.

    Keywords are capabilities that it declares otherwise than the memory store.
    """

    def register(store: Store) -> Store:
        name = re.sub(r"(?<=.)(?=[A-Z])", "-", store.__name__).lower()
        assert name not in BROKEN, f"two mutants are called {name}"
        assert rules, name
        assert not set(rules) - RULES.keys(), f"{name} breaks what is no rule"
        store.declares = declares
        BROKEN[name] = Mutant(name, rules, store)
        return store

    return register
