"""The contract as a model: a store of plain data, beside which real ones are run.

Nothing here talks to a store, waits, or knows how stores do it; nothing is fast. It is meant to be
read beside the contract, and shares no decision with the code that is tested.

Revisions are the one thing that a model cannot foretell: a store may skip numbers. So the model
counts its own, and `Revisions` says which number of the store is which of the model; all that the
contract promises of them is kept if they come in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kvi.errors import InvalidArgument, LeaseLost, NotSupported
from kvi.model import (
    Compare,
    Delete,
    Event,
    EventType,
    Get,
    KeyValue,
    Operation,
    Put,
    Target,
    TxnResult,
)

__all__ = ["Bounds", "Change", "Differs", "LeaseId", "Model", "Revision", "Revisions", "Watching"]


class Revision(int):
    """A revision as the model counts them."""


class LeaseId(int):
    """The id of a lease, which is the store's: ids mean nothing but themselves."""


class Differs(Exception):
    """Something is not as the model says; the text tells what was expected."""


@dataclass(frozen=True)
class Bounds:
    """Which keys: those from ``start`` on, before ``end``, or those with a prefix."""

    start: str | None = None
    end: str | None = None
    prefix: str | None = None

    @classmethod
    def of_key(cls, key: str) -> Bounds:
        """One key alone."""
        return cls(key, key + "\0")

    def __contains__(self, key: str) -> bool:
        if self.prefix is not None:
            return key.startswith(self.prefix)
        data = key.encode()
        return (self.start or "").encode() <= data and (
            self.end is None or data < self.end.encode()
        )

    @property
    def first(self) -> str | None:
        """The smallest key that lies in it, if one does."""
        key = self.prefix or self.start or "\0"
        return key if key in self else None


class Change(NamedTuple):
    """One key's change, as the log has it: ``None`` is absence.

    ``together`` says whether all changes of its revision are one step of the store; else they come
    one by one, and ``revision`` is that of the last.
    """

    revision: Revision
    key: str
    before: KeyValue | None
    after: KeyValue | None
    together: bool = True

    @property
    def type(self) -> EventType:
        """The kind of event that tells it."""
        return EventType.DELETE if self.after is None else EventType.PUT


@dataclass
class World:
    """What all views of one store have in common."""

    versions: bool = True
    atomic: Literal["any", "prefix", "no"] = "any"
    past: bool = True
    entries: dict[str, KeyValue] = field(default_factory=dict)
    revision: Revision = field(default_factory=Revision)
    leases: set[int] = field(default_factory=set)
    log: list[Change] = field(default_factory=list)


class Model:
    """A store, or what a namespace shows of it; its methods are those of `kvi.Kvi`."""

    def __init__(self, world: World | None = None, prefix: str = "") -> None:
        self.world = World() if world is None else world
        self.prefix = prefix

    def namespace(self, name: str) -> Model:
        """The keys below ``name/``, as if they were all."""
        return Model(self.world, f"{self.prefix}{name}/")

    @property
    def revision(self) -> Revision:
        """Of the last change of any key."""
        return self.world.revision

    # -- reading ----------------------------------------------------------------------------------

    def get(self, key: str, *, revision: int | None = None) -> KeyValue | None:
        """The entry, if it is there, or was at a revision."""
        entry = self._entries(revision).get(self.prefix + key)
        return None if entry is None else self._seen(entry)

    def range(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        revision: int | None = None,
    ) -> list[KeyValue]:
        """The entries between the bounds, in the order of their keys' bytes."""
        bounds = Bounds(start, end, prefix)
        entries = self._entries(revision)
        keys = sorted(filter(self._sees, entries), key=str.encode, reverse=reverse)
        found = [self._seen(entries[key]) for key in keys]
        found = [entry for entry in found if entry.key in bounds][:limit]
        return [entry._replace(value=None) for entry in found] if keys_only else found

    def count(
        self, start: str | None = None, end: str | None = None, *, prefix: str | None = None
    ) -> int:
        """How many a range would give."""
        return len(self.range(start, end, prefix=prefix))

    def history(self, key: str) -> list[Change]:
        """The changes of the key, newest first."""
        whole = self.prefix + key
        return [change for change in reversed(self.world.log) if change.key == whole]

    # -- writing ----------------------------------------------------------------------------------

    def store(self, key: str, value: bytes | str, *, lease: int | None = None) -> Revision:
        """Always a new revision; without a lease the key is permanent."""
        self._run([Put(key, value, lease)])
        return self.revision

    def delete(self, key: str) -> bool:
        """True only if it was there."""
        return self._run([Delete(key)]) == [True]

    def delete_range(
        self, start: str | None = None, end: str | None = None, *, prefix: str | None = None
    ) -> int:
        """How many there were; one step as far as the store can."""
        keys = [entry.key for entry in self.range(start, end, prefix=prefix)]
        atomic = {"any": True, "prefix": prefix is not None, "no": False}[self.world.atomic]
        self._run([Delete(key) for key in keys], together=atomic)
        return len(keys)

    def tas(self, key: str, test: bytes | str | None, new: bytes | str | None) -> bool:
        """If the value is ``test``, make it ``new``; ``None`` is absence, for both."""
        entry = self.get(key)
        if (None if entry is None else entry.value) != (None if test is None else _data(test)):
            return False
        self._run([Delete(key) if new is None else Put(key, new)])
        return True

    def cas(
        self, key: str, revision: int, value: bytes | str, *, lease: int | None = None
    ) -> Revision | None:
        """Store if this is the key's revision; 0 is that of an absent one."""
        entry = self.get(key)
        if (0 if entry is None else entry.revision) != revision:
            return None
        return self.store(key, value, lease=lease)

    def txn(
        self,
        when: Sequence[Compare] = (),
        then: Sequence[Operation] = (),
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        """One of the branches, whole."""
        for compare in when:
            if compare.target is Target.VERSION and not self.world.versions:
                raise NotSupported("the store counts no versions")
        for branch in (then, otherwise):
            written = [operation.key for operation in branch if not isinstance(operation, Get)]
            if len(set(written)) < len(written):
                raise InvalidArgument("a key is written twice")
        succeeded = all(map(self._holds, when))
        results = self._run(then if succeeded else otherwise)
        return TxnResult(succeeded, self.revision, tuple(results))

    def transaction(
        self,
        key: str,
        op: str,
        value: bytes | str,
        then_key: str,
        then_value: bytes | str,
        else_key: str,
        else_value: bytes | str,
    ) -> bool:
        """One of two keys is stored; a missing key compares with nothing."""
        entry = self.get(key)
        holds = entry is not None and _relation(op, entry.value, _data(value))
        self._run([Put(then_key, then_value) if holds else Put(else_key, else_value)])
        return holds

    # -- leases and others ------------------------------------------------------------------------

    def grant(self, lease: int) -> None:
        """The store has granted a lease with this id."""
        self.world.leases.add(lease)

    def revoke(self, lease: int) -> None:
        """The lease ends, and its keys in one step with it."""
        world = self.world
        world.leases.discard(lease)
        keys = [key for key, entry in world.entries.items() if entry.lease == lease]
        Model(world)._run([Delete(key) for key in keys])

    def adopt(self, key: str, entry: KeyValue | None) -> Revision:
        """Somebody else made the key what it is, in a revision of its own."""
        world = self.world
        revision = Revision(world.revision + 1)
        after = entry and entry._replace(revision=revision, create_revision=revision)
        self._apply(Change(revision, key, world.entries.get(key), after))
        return revision

    def skip(self) -> Revision:
        """Somebody used a revision up, and left nothing."""
        self.world.revision = Revision(self.world.revision + 1)
        return self.revision

    # -- inside -----------------------------------------------------------------------------------

    def _entries(self, revision: int | None) -> dict[str, KeyValue]:
        """All entries, with what came after ``revision`` undone."""
        world = self.world
        if revision is None:
            return world.entries
        if not world.past:
            raise NotSupported("the store cannot be read as it was")
        if revision > world.revision:
            raise InvalidArgument("the revision is in the future")
        entries = dict(world.entries)
        for change in reversed(world.log):
            if change.revision > revision:
                entries.pop(change.key, None)
                if change.before is not None:
                    entries[change.key] = change.before
        return entries

    def _sees(self, key: str) -> bool:
        return key.startswith(self.prefix) and key != self.prefix

    def _seen(self, entry: KeyValue) -> KeyValue:
        return entry._replace(key=entry.key[len(self.prefix) :])

    def _holds(self, compare: Compare) -> bool:
        entry = self.get(compare.key)
        if compare.target is Target.VALUE:
            if entry is None:
                return False
            return _relation(compare.operator, entry.value, compare.operand)
        number = 0 if entry is None else getattr(entry, compare.target) or 0
        return _relation(compare.operator, number, compare.operand)

    def _run(
        self, branch: Sequence[Operation], *, together: bool = True
    ) -> list[KeyValue | int | bool | None]:
        """The operations in order, all that is written at the next revision."""
        world = self.world
        for operation in branch:
            if isinstance(operation, Put) and operation.lease is not None:
                assert isinstance(operation.lease, int)
                if operation.lease not in world.leases:
                    raise LeaseLost("the lease is gone")
        at = Revision(world.revision + 1)
        results: list[KeyValue | int | bool | None] = []
        for operation in branch:
            key = self.prefix + operation.key
            old = world.entries.get(key)
            match operation:
                case Get():
                    results.append(self.get(operation.key))
                case Delete():
                    results.append(old is not None)
                    if old is not None:
                        self._apply(Change(at, key, old, None, together))
                case Put():
                    results.append(at)
                    lease = operation.lease
                    assert lease is None or isinstance(lease, int)
                    created = at if old is None else old.create_revision
                    version = 1 if old is None else (old.version or 0) + 1
                    new = KeyValue(
                        key,
                        _data(operation.value),
                        at,
                        created,
                        version if world.versions else None,
                        lease,
                    )
                    self._apply(Change(at, key, old, new, together))
        return results

    def _apply(self, change: Change) -> None:
        if change.before is None and change.after is None:
            return
        if change.after is None:
            del self.world.entries[change.key]
        else:
            self.world.entries[change.key] = change.after
        self.world.revision = change.revision
        self.world.log.append(change)


def _data(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _relation(operator: str, stored: bytes | int | None, operand: bytes | int) -> bool:
    left, right = (stored, operand)
    return {
        "=": left == right,
        "!=": left != right,
        "<": left < right,  # type: ignore[operator]
        ">": left > right,  # type: ignore[operator]
    }[operator]


class Revisions:
    """Which of the store's revisions is which of the model's, as far as the store told."""

    def __init__(self) -> None:
        self._told: dict[int, int] = {}

    def learn(self, ours: int, theirs: object) -> None:
        """The store says that ``ours`` is ``theirs``; raises `Differs` if that cannot be."""
        if type(theirs) is not int:
            raise Differs("a revision")
        known = self._told.get(ours)
        if known is not None and theirs != known:
            raise Differs(f"revision {known}")
        low = self.before(ours)
        high = min((t for o, t in self._told.items() if o > ours), default=None)
        if theirs <= low or (high is not None and theirs >= high):
            raise Differs(
                f"a revision above {low}" + ("" if high is None else f" and below {high}")
            )
        self._told[ours] = theirs

    def before(self, ours: int) -> int:
        """The last revision before it that the store has told, or -1."""
        return max((theirs for o, theirs in self._told.items() if o < ours), default=-1)

    def known(self, ours: int) -> int | None:
        """What the store calls it, if it has told."""
        return self._told.get(ours)

    def all_known(self) -> list[Revision]:
        """The model's revisions whose name in the store is known, in order."""
        return [Revision(ours) for ours in sorted(self._told)]

    def theirs(self, ours: int) -> int:
        """What the store calls it, or will: 0 is 0, and what is ahead is as far ahead."""
        if ours == 0:
            return 0
        known = self._told.get(ours)
        if known is not None:
            return known
        last = max(self._told, default=0)
        assert ours > last, "a revision that the store did not tell"
        return self._told.get(last, 0) + ours - last


class Watching:
    """What a watch must tell, and may.

    With history: every change since ``start``, once, in order of revisions; within a revision, in
    any order. Without: per key newer and newer states that existed, and in the end the last. Among
    them may be a write on its way, if it takes the store more than one step: the value that was
    written, at a revision before the one that the writer was told.

    ``foreign`` names the keys that others write as they like: no event of them is looked at.
    """

    def __init__(
        self,
        model: Model,
        bounds: Bounds,
        revisions: Revisions,
        *,
        history: bool,
        start: int | None = None,
        initial: bool = False,
        kinds: Collection[EventType] = (EventType.PUT, EventType.DELETE),
        foreign: Callable[[str], bool] = lambda key: False,
    ) -> None:
        """``start`` is a revision as the store counts them."""
        self._model = model
        self._bounds = bounds
        self._revisions = revisions
        self._history = history
        self._start = start
        self._kinds = kinds
        self._foreign = foreign
        log = model.world.log
        self._begin = len(log) if start is None else 0  # where in the log the watch begins
        self._known = {entry.key: entry for entry in model.range() if self._spans(entry.key)}
        self._initial = list(self._known.values()) if initial and EventType.PUT in kinds else []
        self._told: set[int] = set()  # positions in the log
        self._latest: dict[str, int] = {}  # without history: the position told last, by key
        self._deleted: set[str] = set()  # without history: the keys of which a DELETE was told

    def owed(self) -> str | None:
        """What has to come yet, if anything; what may come instead is not said."""
        if self._initial:
            return f"the initial state, next {self._initial[0].key!r}"
        if self._history:
            change = next((change for _, change in self._pending()), None)
            return None if change is None else self._text(change)
        for key, last in self._lasts().items():
            if not self._settled(key, last):
                return self._text(last)
        return None

    def take(self, event: Event) -> None:
        """An event came; raises `Differs` if it should not have, or not yet."""
        if event.type is EventType.RESYNC:
            raise Differs("no RESYNC, for nothing was lost")
        if self._foreign(self._model.prefix + event.key):
            return
        if self._initial:
            self._take_initial(event)
        elif self._history:
            self._take_next(event)
        else:
            self._take_newer(event)

    def reached(self, revision: int | None) -> None:
        """``Watch.revision`` after what was taken; raises `Differs` if it is ahead or behind.

        A watch from the next revision on must lose and repeat nothing.
        """
        if not self._history or (revision is None and not self._told):
            return
        waiting = next((change for _, change in self._pending()), None)
        ahead = None if waiting is None else self._revisions.known(waiting.revision)
        if (waiting and waiting.together and ahead is not None) and (
            revision is None or revision >= ahead
        ):
            raise Differs(f"a revision below {ahead}, which is not told yet")
        log = self._model.world.log
        told = max((log[position].revision for position in self._told), default=None)
        if told is None or (waiting is not None and waiting.revision == told):
            return
        if any(self._foreign(change.key) for change in log if change.revision == told):
            return  # its events are not counted here
        least = self._revisions.known(told)
        if least is not None and (revision is None or revision < least):
            raise Differs(f"{least}, which has been told, or above")

    # -- inside -----------------------------------------------------------------------------------

    def _spans(self, key: str) -> bool:
        return key in self._bounds and not self._foreign(self._model.prefix + key)

    def _changes(self) -> Iterator[tuple[int, Change]]:
        """The changes that concern the watch, by position, with keys as it sees them."""
        size = len(self._model.prefix)
        for position, change in enumerate(self._model.world.log):
            if position >= self._begin and self._model._sees(change.key):
                key = change.key[size:]
                if self._spans(key):
                    yield position, change._replace(key=key)

    def _pending(self) -> Iterator[tuple[int, Change]]:
        for position, change in self._changes():
            if position in self._told or change.type not in self._kinds:
                continue
            known = self._revisions.known(change.revision)
            if self._start is None or (known is not None and known >= self._start):
                yield position, change

    def _take_initial(self, event: Event) -> None:
        entry = self._initial[0]
        known = self._revisions.known(entry.revision)
        if (event.type, event.key, event.value, event.initial) != (
            EventType.PUT,
            entry.key,
            entry.value,
            True,
        ) or event.revision != known:
            raise Differs(f"PUT {entry.key!r} {entry.value!r} at revision {known}, initial")
        del self._initial[0]

    def _take_next(self, event: Event) -> None:
        pending = list(self._pending())
        if not pending:
            raise Differs("no event")
        at = pending[0][1].revision
        for position, change in pending:
            if change.revision == at and self._tells(event, change):
                if change.together:
                    self._revisions.learn(at, event.revision)
                before = change.before
                if event.previous is not None or before is None:
                    self._check_previous(event, [before])
                self._told.add(position)
                return
        raise Differs(
            " or ".join(self._text(change) for _, change in pending if change.revision == at)
        )

    def _take_newer(self, event: Event) -> None:
        after = self._latest.get(event.key, -1)
        changes = [(p, c) for p, c in self._changes() if c.key == event.key]
        for position, change in changes:
            if position <= after or not self._tells(event, change):
                continue
            known = self._revisions.known(change.revision)
            if change.type is EventType.PUT:
                if known is not None and known != event.revision:
                    if self._revisions.before(change.revision) < event.revision < known:
                        return  # the write on its way: a state that existed, and not the last
                    continue  # another one of the same value, perhaps
                self._revisions.learn(change.revision, event.revision)
            else:
                self._deleted.add(event.key)
            if event.previous is not None:
                begin = self._known.get(event.key)
                self._check_previous(event, [begin, *(c.after for _, c in changes)])
            self._latest[event.key] = position
            return
        raise Differs(self.owed() or "no event")

    def _tells(self, event: Event, change: Change) -> bool:
        value = None if change.after is None else change.after.value
        return (event.type, event.key, event.value, event.initial) == (
            change.type,
            change.key,
            value,
            False,
        ) and change.type in self._kinds

    def _check_previous(self, event: Event, states: Iterable[KeyValue | None]) -> None:
        """``previous`` is one of these."""
        came = event.previous
        for state in states:
            if came is None or state is None:
                if came is state:
                    return
            elif came.value == state.value and came.revision == self._revisions.known(
                state.revision
            ):
                if came.key != event.key:
                    raise Differs(f"previous of {event.key!r}")
                return
        raise Differs("previous as the key was before")

    def _lasts(self) -> dict[str, Change]:
        return {change.key: change for _, change in self._changes()}

    def _settled(self, key: str, last: Change) -> bool:
        """Whether the last state of the key was told, or need not be."""
        told = self._latest.get(key)
        if last.after is not None:
            return EventType.PUT not in self._kinds or (
                told is not None and self._model.world.log[told].revision == last.revision
            )
        if EventType.DELETE not in self._kinds:
            return True
        if EventType.PUT not in self._kinds:
            return key in self._deleted or key not in self._known
        if told is None:
            return key not in self._known
        return self._model.world.log[told].after is None

    def _text(self, change: Change) -> str:
        at = self._revisions.known(change.revision) if change.together else None
        value = "" if change.after is None else f" {change.after.value!r}"
        return f"{change.type} {change.key!r}{value}" + ("" if at is None else f" at revision {at}")
