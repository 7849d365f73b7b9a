"""Leases: rows with a deadline, which whoever comes by finds expired.

*Theory.* No process has to be alive for a lease to end. Its keys stay in the file until somebody
*sweeps*: ends it, in one revision with their events. What keeps them from being seen after the
deadline is that **every access looks first**. A write sweeps in its own transaction, before
anything else. A read asks its own snapshot for the nearest deadline (a `get` only if the entry has
a lease); if that has passed, it raises `Expired`, and is made again after a sweep. So absence is
always a commit, which others can read the events of, and nobody ever sees a key gone that a later
reader still sees. A handle with watches looks all the time, see `kvi_sqlite.watching`.

*Many keys.* They all are gone with that one commit, but deleting a million rows would take longer
than anybody's time-out. So who ends a lease with more than a few small keys writes a **tombstone**,
with the revision of the end, and the event of one of the keys. From then on no statement sees the
others, and whoever reads the changes of that revision finds their deletions, as events or as
entries below the tombstone. `kvi_sqlite.upkeep` makes events of them, portion by portion, and a
write of one of these keys does so first with the one (`bury`). A sweep ends up to `BATCH` leases at
a time, which is quick whatever they hold.

==========  ============================================  ====================================
state       meaning                                       left by
==========  ============================================  ====================================
``ALIVE``   in the table, deadline ahead                  `renew`: ALIVE, deadline anew;
                                                          `end`: BURIED or GONE; time: EXPIRED
``EXPIRED`` in the table, deadline passed; `renew` and    the next access: BURIED or GONE
            `require` refuse it already
``BURIED``  a tombstone; its entries are gone for all     `bury_part` of the last one: GONE
``GONE``    in no table; no entry has it                  final
==========  ============================================  ====================================

*Clock.* Deadlines are on the boot clock (`kvi.clock`), which counts on while the machine
sleeps, never jumps, and is the same in all processes. (Containers with a time namespace of their
own are the exception; they must not share a store.) It starts anew when the machine boots. So the
file remembers the id of the boot, and the first to open it in another boot gives every lease its
full time again: none ends early. No connection outlives a boot, so that opening is the only place
that has to look (`kvi_sqlite.schema.prepare`). Some containers have an id of their own, and take
turns: the deadlines of the boot before are kept, until the lease is renewed, and stand again when
it is back, so that the time that passed there counts. Where the system has no such id, a deadline
further ahead than its ttl is what gives an earlier boot away. Others may be taken for deadlines of
this boot, and are still not early: since its last renewal at *u* on the old clock, the machine was
up for *u* + ttl on the new one before it gets to the deadline.

*Cost.* A renewal is not synced to the disk: only the loss of power could undo it, and then every
lease has its full time again anyway.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from math import isfinite
from typing import NamedTuple

from kvi.clock import now
from kvi.errors import LeaseLost
from kvi.model import MAX_NUMBER, LeaseInfo

from kvi_sqlite import schema
from kvi_sqlite.connection import Connection

BATCH = 100  # leases that end in one transaction: a few milliseconds
FEW, SMALL = 256, 1024 * 1024  # keys, and bytes, that are deleted in somebody else's transaction


class Begun(NamedTuple):
    """A write transaction that has begun.

    Attributes:
        revision: what the commit gets.
        swept: leases were ended, so that there is something to commit.
        buried: there are tombstones: `bury` a key before writing it.

    """

    revision: int
    swept: bool
    buried: bool


class Expired(Exception):
    """A lease has expired that is still in what was read: sweep, and begin again."""


def check_due(due: float | None, moment: float) -> None:
    """Raise `Expired` if ``due``, the nearest deadline, is not behind ``moment``."""
    if due is not None and due <= moment:
        raise Expired


def next_revision(connection: Connection) -> int:
    """The revision that the next commit gets. Hold the write lock."""
    return _behind(connection.execute(schema.NEWEST).fetchone()[0])


def first_id(revision: int) -> int:
    """The id of the first event of ``revision``."""
    return revision << schema.SEQ_BITS


def begin(connection: Connection, history: int) -> Begun:
    """Begin the work of a write transaction, with a sweep if a lease has expired.

    Raises `Expired` if that is too much to do on the way.
    """
    newest, due, buried = connection.execute(schema.STATE).fetchone()
    swept = due is not None and due <= (moment := now())
    if swept:
        if sweep(connection, history, moment) == BATCH:
            raise Expired
        newest, _, buried = connection.execute(schema.STATE).fetchone()
    if buried is not None:
        connection.chores = True
    return Begun(_behind(newest), swept, buried is not None)


def trim(connection: Connection, revision: int, history: int, changes: int = 1) -> None:
    """After the ``changes`` of ``revision``: what is too old is gone; every now and then.

    So it counts, at least; upkeep deletes it.
    """
    every = schema.TRIM_EVERY
    if revision > history and (revision % every == 0 or changes * 8 > every):
        connection.execute(schema.TRIMMED, (revision - history,) * 2)
        connection.chores = True


def sweep(connection: Connection, history: int, moment: float) -> int:
    """End the leases that have expired by ``moment``, at most `BATCH`; how many. In a write."""
    leases = connection.execute(schema.EXPIRED, (moment, BATCH)).fetchall()
    room = FEW
    for (lease,) in leases:
        room -= end(connection, lease, history, room)
    return len(leases)


def end(connection: Connection, lease: int, history: int, room: int = FEW) -> int:
    """End a lease, in a revision of its own if it has keys. In a write.

    Deletes the keys itself if there are at most ``room``, and small; returns how many it deleted.
    """
    execute = connection.execute
    revision = next_revision(connection)
    few = max(room, 1)  # one is deleted anyway
    keys, size = execute(schema.LEASED, (lease, few + 1)).fetchone()
    if keys == 1 or (0 < keys <= few and size <= SMALL):
        execute(schema.EVENTS_OF_END, (first_id(revision), revision, lease))
        execute(schema.UNDO_END, (first_id(revision), lease))
        execute(schema.DELETE_LEASED, (lease,))
    elif keys:
        _entomb(connection, lease, revision)
        keys = 1
    if keys:
        trim(connection, revision, history, keys)
    execute(schema.END, (lease,))
    execute(schema.FORGET_DEADLINES, (lease,))
    return int(keys)


def _entomb(connection: Connection, lease: int, revision: int) -> None:
    """End a lease whose entries are to be deleted later."""
    execute = connection.execute
    longest = 1 << schema.SEQ_BITS
    more = execute(schema.MANY_LEASED, (lease, longest)).fetchone() is not None
    # Behind the ids of all its events, so that the revisions behind it begin there.
    last = first_id(revision + (longest if more else 1)) - 1
    (row,) = execute(schema.LAST_LEASED, (lease,)).fetchone()
    _delete_row(connection, last, revision, row)
    execute(schema.ENTOMB, (lease, revision, first_id(revision)))
    connection.chores = True


def bury(connection: Connection, name: bytes) -> None:
    """Delete the entry of a key if its lease has ended. In a write."""
    execute = connection.execute
    found = execute(schema.TOMBSTONE_OF, (name,)).fetchone()
    if found is not None:
        row, lease, revision, event = found
        _delete_row(connection, event, revision, row)
        execute(schema.NEXT_ID, (1, lease))


def _delete_row(connection: Connection, event: int, revision: int, row: int) -> None:
    execute = connection.execute
    execute(schema.EVENT_OF_ROW, (event, revision, row))
    execute(schema.UNDO_ROW, (event, row))
    execute(schema.DELETE_ROW, (row,))


def bury_part(connection: Connection, rows: int, size: int) -> int:
    """Delete some entries whose lease has ended; about how many bytes, 0 if there were none.

    These are at most so many ``rows``, and as many as have ``size`` bytes. In a write.
    """
    execute = connection.execute
    found = execute(schema.TOMBSTONE).fetchone()
    if found is None:
        return 0
    lease, revision, event = found
    sizes: list[int] = [one for (one,) in execute(schema.SIZES_OF_PART, (lease, rows))]
    part = few(sizes, size)
    execute(schema.EVENTS_OF_PART, (event, revision, lease, part))
    execute(schema.UNDO_PART, (event, lease, part))
    deleted = execute(schema.DELETE_PART, (lease, part)).rowcount
    if part == len(sizes) < rows:
        execute(schema.BURIED, (lease,))
    else:
        execute(schema.NEXT_ID, (deleted, lease))
    return sum(sizes[:part]) + 1


def few(sizes: list[int], most: int) -> int:
    """How many of the first have ``most`` bytes together: one at least, if there is one."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if total > most:
            return max(1, number)
    return len(sizes)


def grant(connection: Connection, ttl: float) -> int:
    """Make a lease; its id. In a write."""
    while True:
        lease = secrets.randbits(63)
        if lease and connection.execute(schema.GRANT, (lease, ttl, now() + ttl)).rowcount:
            return lease


def renew(connection: Connection, lease: int) -> float | None:
    """Let the time of a lease begin anew; its ttl, or ``None`` if it has ended. In a write."""
    moment = now()
    rows = connection.execute(schema.RENEW, (moment, lease, moment)).fetchall()
    if not rows:
        return None
    connection.execute(schema.FORGET_DEADLINES, (lease,))
    return float(rows[0][0])


def exists(connection: Connection, lease: int) -> bool:
    """Whether a lease has not ended. In a write, after `begin`."""
    return lease <= MAX_NUMBER and connection.execute(schema.LEASE, (lease,)).fetchone() is not None


def require(connection: Connection, lease: int) -> None:
    """Raise `LeaseLost` if a lease has ended. In a write, after `begin`."""
    if not exists(connection, lease):
        raise LeaseLost("no lease with this id is alive; grant a new one")


def told(
    connection: Connection, ids: Collection[int] | None, bounds: tuple[bytes, bytes] | None
) -> list[LeaseInfo]:
    """The leases that have not ended, of ``ids`` or all, and their keys within ``bounds``."""
    execute = connection.execute
    execute("BEGIN")
    found = []
    for lease, ttl, left in execute(schema.LEASES, (now(),) * 2).fetchall():
        if ids is not None and lease not in ids:
            continue
        keys = None
        if bounds is not None:
            keys = [str(key, "utf-8") for (key,) in execute(schema.KEYS_OF_LEASE, (lease, *bounds))]
        # Of another boot, for those who can let none begin anew, nothing counts them down.
        found.append(LeaseInfo(lease, ttl, left if isfinite(left) else None, keys))
    execute("COMMIT")
    return found


def _behind(newest: int | None) -> int:
    return 1 if newest is None else (newest >> schema.SEQ_BITS) + 1
