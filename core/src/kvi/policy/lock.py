"""Where a claim stands in the queue for a lock, decided on the entries below the lock's name.

*Queue* (stores where ``lock_fair``). A contender is a key ``NAME/`` and its lease's id in
hexadecimal, kept by that lease; the owner is the one with the smallest create revision, and
everybody else waits for the contender right before them. This is the layout of etcd's own locks
(``client/v3/concurrency`` in Go, ``etcdctl lock``), so that they and ours exclude each other.

A key below ``NAME/`` is a contender only if it is named after the very lease that keeps it. So
other data there, and the locks ``NAME/…``, never count.

*Single key* (elsewhere). Whoever puts ``NAME/.lock`` under its lease, while no lease holds it, owns
the lock. Everybody else waits for that key.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from operator import attrgetter

from kvi.capabilities import Capabilities
from kvi.errors import InvalidArgument, is_number, shown
from kvi.model import Claim, Key, KeyValue, Span
from kvi.text import check_key

CLAIM = b"lock"  # what a contender's key says; an election's says what its candidate proclaims
LONGEST_SUFFIX = 1 + 32  # what a lock adds to its name: a slash and a lease of 128 bits


def queue_key(name: str, lease: int) -> str:
    """The key of a contender for the lock ``name``."""
    return f"{name}/{lease:x}"


def queue_span(name: str) -> Span:
    """Where all contenders for ``name`` are: below it, from the first digit to ``f``."""
    return Span(f"{name}/0", f"{name}/g")


def single_key(name: str) -> str:
    """The key of the lock ``name`` where there is no queue."""
    return f"{name}/.lock"


_creation = attrgetter("create_revision")


def is_contender(name: str, entry: KeyValue) -> bool:
    """Whether an entry of `queue_span` stands in the queue: a key of somebody else's may, too."""
    return entry.lease is not None and entry.key == queue_key(name, entry.lease)


def contended(entry: KeyValue) -> str | None:
    """The lock that an entry contends for, if it does."""
    if entry.lease is None:
        return None
    name, _, last = entry.key.rpartition("/")
    return name if name and last == f"{entry.lease:x}" else None


def place(name: str, lease: int, created: int, entries: Iterable[KeyValue], revision: int) -> Claim:
    """The claim of ``lease``, whose key was created at ``created``.

    ``entries`` are those of `queue_span` as of ``revision``; the claim's own may be among them.
    """
    before = [entry for entry in entries if entry.create_revision < created]
    ahead = max(before, key=_creation, default=None)
    if ahead is not None and not is_contender(name, ahead):  # nearly always it is one
        contenders = (entry for entry in before if is_contender(name, entry))
        ahead = max(contenders, key=_creation, default=None)
    key = queue_key(name, lease)
    guard = Key(key).create_revision == created
    return Claim(key, created, guard, None if ahead is None else ahead.key, revision)


def check_lock(name: object, limits: Capabilities) -> str:
    """Return the name of a lock; raises `InvalidKey` if it is none, or too long."""
    longest = None if limits.max_key is None else limits.max_key - LONGEST_SUFFIX
    return check_key(name, longest)


def check_wait(timeout: object) -> float | None:
    """Return how long to wait, in seconds, 0 or more; ``None`` is without end."""
    if timeout is None:
        return None
    if not is_number(timeout) or not timeout >= 0:  # nor is it with NaN
        raise InvalidArgument(
            "timeout= is a number of seconds that is not negative, or None to wait without end, "
            f"not {shown(timeout)}"
        )
    return None if timeout > sys.float_info.max else float(timeout)
