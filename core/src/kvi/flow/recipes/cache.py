"""The cache: a live copy of the keys below a prefix.

A watch is begun first, then all keys are read as of one moment; what the watch told meanwhile is
applied to that. From then on each event changes the copy, if it is newer than what the copy has
of that key. A ``RESYNC`` brings all keys, and what differs is told as changes. One that comes while
all keys are read may be newer or older than they are, so that they are read again.

*How far it is.* The watch tells up to which revision it has told everything, but not that nothing
has happened since. So whoever must know that (`wait`, and ``max_age``) compares: the present
revision of the store, asked for anew, with that of the watch; and where something was written
elsewhere meanwhile, the keys and their revisions with those of the copy. If they are the same, the
copy is the truth as of that moment.

An event counts once it is in the copy, not when the watch hands it out. A store that was restored
to an older state may have a revision below that of the copy: then only the keys tell. It is the
watch that tells of the restore, soon.

*Two changes.* A key that was deleted and created anew between two looks has been created after its
revision in the copy. Both are told.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from math import inf
from typing import NamedTuple

from kvi.call import Call
from kvi.errors import (
    Closed,
    InvalidArgument,
    KviError,
    NotSupported,
    Unavailable,
    is_number,
    is_whole,
    shown,
)
from kvi.feed import WatchSpec
from kvi.flow.recipes.state import entries_of
from kvi.flow.scope import PASSING, Scope, is_final
from kvi.flow.watch import WatchFlow
from kvi.log import log
from kvi.model import Event, EventType, KeyValue, Scan, Span
from kvi.mutex import Mutex
from kvi.port import Port, Signal
from kvi.text import check_bound

_PATIENCE = 0.05  # seconds that an event may take before somebody asks whether it will come
_PAUSE, _LONGEST = 0.1, 1.0  # seconds between questions


class CacheChange(NamedTuple):
    """A change of one key of a cache.

    Attributes:
        key: without the prefix.
        before: the value before it, ``None`` if the key was not there.
        value: the value now, ``None`` if the key is gone.
        revision: of the change, as far as known.

    """

    key: str
    before: bytes | None
    value: bytes | None
    revision: int


class CacheFlow:
    """The copy, and what keeps it. Safe for threads.

    Attributes:
        values: by key, without the prefix.
        told: what is called with each change, by one thread at a time.
        confirmed: when the copy was the truth, the last time that this was known.
        closed: it was asked to end; nothing more is told.

    """

    closed = False

    def __init__(self, scope: Scope, prefix: object, max_age: object) -> None:
        limits = scope.capabilities
        if not limits.atomic_range:
            raise NotSupported("this store's ranges are not of one moment: nothing can be copied")
        self.scope = scope
        self.prefix = check_bound("prefix", prefix, limits.max_key)
        self.max_age = check_age(max_age)
        self.values: dict[str, bytes] = {}
        self.told: list[Callable[[CacheChange], object]] = []
        self.confirmed = -inf
        self.loaded = False
        self._span = Span.of_prefix(self.prefix)
        self._watch = WatchFlow(scope, None, self._on_event, None)
        self._revisions: dict[str, int] = {}
        self._lock = Mutex()  # guards the copy
        self._early: list[Event] = []  # told before all was read
        self._seen = 0  # the revision as of which the copy was found to be the truth
        self._reached = 0  # the watch's, after the last event
        self._signals: list[Signal] = []
        self._sorted: tuple[str, ...] | None = None

    @property
    def ended(self) -> bool:
        """Whether it was closed, or its watch has ended."""
        return self._watch.ended

    @property
    def error(self) -> KviError | None:
        """What ended its watch, if it was an error."""
        return self._watch.error

    @property
    def revision(self) -> int:
        """Every change up to this revision is in the copy."""
        return max(self._seen, self._reached, self._watch.delivered or 0)

    @property
    def age(self) -> float:
        """Seconds since the copy was surely the truth."""
        return max(0.0, self.scope.runtime.now() - self.confirmed)

    def ensure_fresh(self) -> None:
        """Raise `Unavailable` if it is not loaded, or older than it may be."""
        if not self.loaded:
            raise Unavailable("the cache is not loaded yet; await it, or use it as a block")
        if self.max_age is not None and self.age > self.max_age:
            raise Unavailable(
                f"the cache may be {self.age:.1f} seconds old, more than max_age={self.max_age:g}: "
                "the store has not been reached since"
            )

    def keys(self) -> tuple[str, ...]:
        """The keys, in their order."""
        found = self._sorted
        if found is None:
            with self._lock:
                found = self._in_order()
        return found

    def copy(self) -> dict[str, bytes]:
        """All of it as of one moment, in the order of the keys."""
        with self._lock:
            return {key: self.values[key] for key in self._in_order()}

    async def load(self, port: Port) -> None:
        """Read everything, and follow it from then on."""
        scope = self.scope
        if self.closed:
            raise Closed("the cache was closed; make another one")
        spec = WatchSpec(self._span, None, False)
        await self._watch.begin(port, spec, scope.timeout)
        try:
            call = Call(port, port.now() + scope.timeout)
            while not self.loaded:
                asked = port.now()
                self._load(asked, *await entries_of(scope, call, Scan(self._span)))
        except BaseException:
            self._watch.end()
            if not self.closed:  # it may be tried again, with another watch
                self._watch, self._early = WatchFlow(scope, None, self._on_event, None), []
            raise
        if self.max_age is not None:
            scope.runtime.keep(self, port.now() + self.max_age / 3)

    async def wait(self, port: Port, revision: int, seconds: float) -> bool:
        """Wait until every change up to ``revision`` is in the copy; whether it is, in time."""
        deadline, signal = port.now() + seconds, port.signal()
        self._signals.append(signal)
        try:
            pause = _PATIENCE
            while self.revision < revision:
                self._watch.ensure_going()
                left = deadline - port.now()
                if left <= 0:
                    return False
                if await signal.wait(min(pause, left)) or self.revision >= revision:
                    continue
                pause = min(2 * max(pause, _PAUSE / 2), _LONGEST)
                try:
                    await self.confirm(Call(port, port.now() + min(left, self.scope.timeout)))
                except PASSING as error:
                    if is_final(error):
                        raise
                    log().debug("a cache of %s asks again: %s", self.scope.uri, error)
        finally:
            self._signals.remove(signal)
        return True

    async def confirm(self, call: Call) -> bool:
        """Ask whether the copy is the truth at this moment; whether it is."""
        asked, scope, known = call.port.now(), self.scope, self.revision
        if scope.capabilities.snapshot_range:
            look = Scan(self._span, limit=1, keys_only=True)
            revision = (await entries_of(scope, call, look))[0]
            assert revision is not None  # snapshots have one
            if known <= revision <= self.revision:
                self.confirmed = max(self.confirmed, asked)
                return True
        revision, entries = await entries_of(scope, call, Scan(self._span, keys_only=True))
        skip = len(self.prefix)
        there = {entry.key[skip:]: entry.revision for entry in entries}
        with self._lock:
            same = there == self._revisions
            if same:
                self.confirmed = max(self.confirmed, asked)
                self._seen = max(self._seen, revision or 0)
        return same

    def end(self) -> None:
        """Follow it no more."""
        self.closed = True
        self._watch.end()
        for signal in list(self._signals):
            signal.set()

    # -- kvi.port.Kept ----------------------------------------------------------------------------

    async def step(self, port: Port) -> float | None:
        """Look whether the copy is the truth, so that it does not grow too old."""
        assert self.max_age is not None  # else nobody looks
        again = self.max_age / 3
        try:
            if not await self.confirm(Call(port, port.now() + min(again, self.scope.timeout))):
                again = min(again, _PAUSE)
        except KviError as error:
            log().debug("a cache of %s may be old: %s", self.scope.uri, error)
        return None if self.ended else port.now() + again

    # -- events -----------------------------------------------------------------------------------

    def _on_event(self, event: Event, _: object) -> None:
        """Apply an event, on a thread for call-backs, one at a time."""
        with self._lock:
            if self.closed:
                return
            if not self.loaded:
                self._early.append(event)
                return
            changes = self._apply(event)
            self._reached = self._watch.revision or 0  # every event that was handed out is applied
        for signal in list(self._signals):
            signal.set()
        for change in changes:
            self._tell(change)

    def _tell(self, change: CacheChange) -> None:
        for tell in list(self.told):
            if self.closed:  # by one of them, perhaps
                return
            try:
                tell(change)
            except Exception:  # noqa: BLE001  (whatever a program's function raises)
                log().exception("the call-back of a cache failed; the cache goes on")

    def _load(self, asked: float, revision: int | None, entries: list[KeyValue]) -> None:
        """Begin with what was read, unless the watch has told a state meanwhile."""
        with self._lock:
            early, self._early = self._early, []
            if any(event.type is EventType.RESYNC for event in early):
                return
            for entry in entries:
                self._keep(entry)
            self._seen = revision or 0
            for event in early:
                self._apply(event)
            self.confirmed, self.loaded = asked, True

    def _apply(self, event: Event) -> list[CacheChange]:
        """What an event changes. Hold the lock."""
        if event.type is EventType.RESYNC:
            return self._resync(event)
        key = event.key[len(self.prefix) :]
        if event.revision <= self._revisions.get(key, self._seen):
            return []
        before = self.values.get(key)
        if event.type is EventType.DELETE:
            if before is None:
                return []
            self._drop(key)
            return [CacheChange(key, before, None, event.revision)]
        assert event.value is not None  # it is a PUT
        changes: list[CacheChange] = []
        if before is None:
            self._sorted = None
        elif event.created is not None and event.created > self._revisions[key]:
            changes, before = [CacheChange(key, before, None, event.created)], None
        self.values[key], self._revisions[key] = event.value, event.revision
        return [*changes, CacheChange(key, before, event.value, event.revision)]

    def _resync(self, event: Event) -> list[CacheChange]:
        entries = event.snapshot or []
        there = {entry.key[len(self.prefix) :] for entry in entries}
        gone = [key for key in self.values if key not in there]
        changes = [CacheChange(key, self._drop(key), None, event.revision) for key in gone]
        for entry in entries:
            key = entry.key[len(self.prefix) :]
            before, known = self.values.get(key), self._revisions.get(key, -1)
            if entry.revision == known and entry.value == before:
                continue  # after a restore one revision may be of another change
            if before is not None and entry.create_revision > known:
                changes.append(CacheChange(key, before, None, entry.create_revision))
                before = None
            self._keep(entry)
            changes.append(CacheChange(key, before, entry.value, entry.revision))
        self._seen = event.revision  # it may have gone back
        return changes

    def _in_order(self) -> tuple[str, ...]:
        """The keys. Hold the lock."""
        if self._sorted is None:
            self._sorted = tuple(sorted(self.values))
        return self._sorted

    def _keep(self, entry: KeyValue) -> None:
        key = entry.key[len(self.prefix) :]
        assert entry.value is not None  # it was asked for
        self.values[key], self._revisions[key] = entry.value, entry.revision
        self._sorted = None

    def _drop(self, key: str) -> bytes:
        del self._revisions[key]
        self._sorted = None
        return self.values.pop(key)


class CacheFace(Mapping[str, bytes]):
    """The copy as a program reads it, of either face."""

    _flow: CacheFlow

    def __getitem__(self, key: str) -> bytes:
        self._look()
        return self._flow.values[key]

    def __iter__(self) -> Iterator[str]:
        self._look()
        return iter(self._flow.keys())

    def __len__(self) -> int:
        self._look()
        return len(self._flow.values)

    def __contains__(self, key: object) -> bool:
        self._look()
        return key in self._flow.values

    def items(self) -> ItemsView[str, bytes]:
        """All as of one moment, sorted; what changes later is not in it."""
        self._look()
        return self._flow.copy().items()

    def values(self) -> ValuesView[bytes]:
        """The values of all as of one moment, in the order of their keys."""
        self._look()
        return self._flow.copy().values()

    @property
    def revision(self) -> int:
        """Every change up to this revision is in it. Where ``watch_history`` is false: about."""
        return self._flow.revision

    @property
    def age(self) -> float:
        """Seconds since it was surely the truth: at its beginning, by `wait`, by ``max_age``."""
        return self._flow.age

    @property
    def error(self) -> KviError | None:
        """What ended it, if it was an error."""
        return self._flow.error

    def __repr__(self) -> str:
        flow = self._flow
        return f"<Cache {flow.prefix!r} at revision {flow.revision} {flow.scope.uri}>"

    def _look(self) -> None:
        try:
            self._flow.ensure_fresh()
        except KviError as error:
            raise self._flow.scope.placed(error, "cache", self._flow.prefix)


def check_age(max_age: object) -> float | None:
    """Return how old a cache may be, in seconds; raises `InvalidArgument`."""
    if max_age is None:
        return None
    if not is_number(max_age) or not 0 < max_age < inf:
        raise InvalidArgument(
            f"max_age= is a positive number of seconds, or None, not {shown(max_age)}"
        )
    return float(max_age)


def check_revision(revision: object) -> int:
    """Return a revision; raises `InvalidArgument`."""
    if not is_whole(revision) or revision < 0:
        raise InvalidArgument(f"a revision is a whole number from 0, not {shown(revision)}")
    return revision
