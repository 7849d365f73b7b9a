"""The state of a recipe as one directory, and who stands where in its line: pure decisions.

*Layout.* All that a recipe called ``NAME`` decides on is in the directory ``NAME/.kvi/``, which is
read in one answer, as of one moment:

=======================  ==========================================================================
key                      what it is
=======================  ==========================================================================
``settings``             JSON: which recipe it is, and what all who use it must agree on. Stays
``LEASE`` (hexadecimal)  a contender: JSON, kept by that very lease. Its place is its create
                         revision: who came first is first
``member/ID``            a member of a group
``held/ID``              a mark without a lease: what a contender holds. JSON: its lease, and its
                         ttl in seconds
=======================  ==========================================================================

What there may be much of is beside it, in ``NAME/.kvi.WHAT/``, which is never read as a whole. No
part of a name may begin with ``.kvi``, so ``a`` and ``a/b`` never share a key, and what a
program stores below ``NAME/`` is never taken for a part of the recipe.

*Orphans.* A store that may end a lease early takes a contender out of the line while its holder
still counts on it. The mark stays: it is an orphan from then on, and stands for its holder until
that has surely noticed, which is one ttl after somebody saw the orphan for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from kvi.capabilities import Capabilities
from kvi.errors import BadRecord, InvalidArgument, InvalidKey, NotSupported, is_whole, shown
from kvi.model import Claim, Compare, Key, KeyValue, Span
from kvi.text import check_key

DIRECTORY, MEMBER = ".kvi", "member/"
HIGHEST = 2**31 - 1  # number in a setting; of priorities, the lowest is as far below zero
_LONGEST = len(f"/{DIRECTORY}/held/") + 64  # bytes that a recipe adds to its name


class Contender(NamedTuple):
    """One who stands in line."""

    key: str
    lease: int
    created: int
    revision: int
    said: dict[str, Any]  # its value

    @property
    def guard(self) -> Compare:
        """True as long as it stands there."""
        return Key(self.key).create_revision == self.created

    def claim(self, ahead: str | None, revision: int) -> Claim:
        """Its claim, as it stood at ``revision``."""
        return Claim(self.key, self.created, self.guard, ahead, revision)


class Mark(NamedTuple):
    """What a contender holds."""

    key: str
    id: str
    lease: int
    ttl: float
    revision: int
    said: dict[str, Any]


class State(NamedTuple):
    """A recipe's directory at one moment."""

    revision: int  # 0 where the store has no snapshots
    settings: KeyValue | None
    line: list[Contender]  # first come, first
    marks: dict[str, Mark]  # by id
    others: dict[str, KeyValue]  # by what follows the directory's name

    @property
    def orphans(self) -> list[Mark]:
        """Marks whose contender is gone."""
        standing = {one.lease for one in self.line}
        return [mark for mark in self.marks.values() if mark.lease not in standing]


class Place:
    """Where a recipe of some name has its keys."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = f"{name}/{DIRECTORY}/"
        self.settings = f"{self.root}settings"
        self.span = Span.of_prefix(self.root)

    def contender(self, lease: int) -> str:
        """The key of who contends with a lease."""
        return f"{self.root}{lease:x}"

    def mark(self, id: str) -> str:
        """The key of the mark ``id``."""
        return f"{self.root}held/{id}"

    def aside(self, what: str) -> str:
        """A directory for what there may be much of, which is never read with the rest."""
        return f"{self.name}/{DIRECTORY}.{what}/"

    def read(self, revision: int | None, entries: Iterable[KeyValue]) -> State:
        """The state that the entries of the directory tell."""
        settings: KeyValue | None = None
        line: list[Contender] = []
        marks: dict[str, Mark] = {}
        others: dict[str, KeyValue] = {}
        skip = len(self.root)
        for entry in entries:
            rest, said = entry.key[skip:], loads(entry.value)
            if rest == "settings":
                settings = entry
            elif entry.lease is not None and rest == f"{entry.lease:x}":
                line.append(
                    Contender(entry.key, entry.lease, entry.create_revision, entry.revision, said)
                )
            elif rest.startswith("held/"):
                id, lease, ttl = rest[5:], said.get("lease"), said.get("ttl")
                if not isinstance(lease, int) or not isinstance(ttl, (int, float)):
                    others[rest] = entry
                else:
                    marks[id] = Mark(entry.key, id, lease, float(ttl), entry.revision, said)
            else:
                others[rest] = entry
        line.sort(key=lambda one: one.created)
        return State(revision or 0, settings, line, marks, others)


def dumps(said: dict[str, Any]) -> bytes:
    """A value as recipes write it."""
    return json.dumps(said, separators=(",", ":"), sort_keys=True).encode()


def loads(value: bytes | None) -> dict[str, Any]:
    """What `dumps` wrote; empty for anything else."""
    try:
        said = json.loads(value or b"{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def record(entry: KeyValue | None, **kinds: Any) -> dict[str, Any]:
    """What `dumps` wrote under a key that counts, with members of these kinds; empty for no entry.

    Raises `BadRecord` for anything else: to go on without it would begin anew unseen.
    """
    if entry is None:
        return {}
    said = loads(entry.value)
    if not all(isinstance(said.get(name), kind) for name, kind in kinds.items()):
        raise BadRecord(
            "another program has written this key of a recipe: put back what was there, or delete "
            "it to begin anew",
            key=entry.key,
        )
    return said


def same(key: str, revision: int) -> Compare:
    """True as long as an entry is as it was; 0: as long as there is none."""
    return Key(key).revision == revision if revision else Key(key).absent


def check_count(name: str, count: object, least: int = 1) -> int:
    """Return a whole number from ``least`` to `HIGHEST`. Raises `InvalidArgument`."""
    if not is_whole(count) or not least <= count <= HIGHEST:
        raise InvalidArgument(f"{name}= is a whole number from {least}, not {shown(count)}")
    return count


def check_recipe(name: object, limits: Capabilities) -> str:
    """Return the name of a recipe. Raises `InvalidKey`, and `NotSupported` where none can run."""
    longest = None if limits.max_key is None else limits.max_key - _LONGEST
    text = check_key(name, longest)
    if any(part.startswith(DIRECTORY) for part in text.split("/")):
        raise InvalidKey(
            f"no part of a recipe's name begins with {DIRECTORY!r}; kvi keeps its state there"
        )
    if not limits.atomic_range:
        raise NotSupported(
            "this store's ranges are not of one moment, so nobody could tell who is first"
        )
    return text
