"""Leases: rows with a deadline, which whoever comes by finds expired.

*Theory.* No process has to be alive for a lease to end. Its keys stay in the file until somebody
*sweeps*: deletes them, in one revision with its events, together with the lease. What keeps them
from being seen after the deadline is that **every access looks first**. A write sweeps in its own
transaction, before anything else. A read asks its own snapshot for the nearest deadline (a `get`
only if the entry has a lease); if that has passed, it raises `Expired`, and is made again after a
sweep. So absence is always a commit, which others can read the events of, and nobody ever sees a
key gone that a later reader still sees. A handle with watches looks all the time, see
`kvi_sqlite.watching`.

A lease's keys go in one transaction, however many. Once begun, a sweep is not bound by the time-out
of the call that it holds up: else a lease of a million keys would fail every call, for ever.

==========  ============================================  ====================================
state       meaning                                       left by
==========  ============================================  ====================================
``ALIVE``   in the table, deadline ahead                  `renew`: ALIVE, deadline anew;
                                                          `end`: GONE; time: EXPIRED
``EXPIRED`` in the table, deadline passed; `renew` and    the next access: GONE
            `require` refuse it already
``GONE``    not in the table; no entry has it             final
==========  ============================================  ====================================

*Clock.* Deadlines are on the boot clock (`kvi.clock`), which counts on while the machine
sleeps, never jumps, and is the same in all processes. (Containers with a time namespace of their
own are the exception; they must not share a store.) It starts anew when the machine boots. So the
file remembers the id of the boot, and the first to open it in another boot gives every lease its
full time again: none ends early. No connection outlives a boot, so that opening is the only place
that has to look (`kvi_sqlite.schema.prepare`). Where the system has no such id, a deadline further
ahead than its ttl is what gives an earlier boot away. Others may be taken for deadlines of this
boot, and are still not early: since its last renewal at *u* on the old clock, the machine was up
for *u* + ttl on the new one before it gets to the deadline.

*Cost.* A renewal is not synced to the disk: only the loss of power could undo it, and then every
lease has its full time again anyway.
"""

from __future__ import annotations

import secrets
from time import monotonic

from kvi.clock import now
from kvi.errors import LeaseLost
from kvi.model import MAX_NUMBER

from kvi_sqlite import schema
from kvi_sqlite.connection import Connection

BATCH = 500  # leases that end in one transaction, so that any backlog is cleared within time-outs
MANY = 10_000  # keys that are not deleted on the way, in somebody else's transaction


class Expired(Exception):
    """A lease has expired that is still in what was read: sweep, and begin again."""


def check_due(due: float | None, moment: float) -> None:
    """Raise `Expired` if ``due``, the nearest deadline, is not behind ``moment``."""
    if due is not None and due <= moment:
        raise Expired


def next_revision(connection: Connection) -> int:
    """The revision that the next commit gets. Hold the write lock."""
    newest, _ = connection.execute(schema.STATE).fetchone()
    return _behind(newest)


def first_id(revision: int) -> int:
    """The id of the first event of ``revision``."""
    return revision << schema.SEQ_BITS


def begin(connection: Connection, history: int) -> tuple[int, bool]:
    """Begin the work of a write transaction: its revision, and whether leases were swept first.

    Raises `Expired` if that is too much to do in a transaction that a time-out would undo.
    """
    newest, due = connection.execute(schema.STATE).fetchone()
    if due is None or due > (moment := now()):
        return _behind(newest), False
    (keys,) = connection.execute(schema.EXPIRED_KEYS, (moment, MANY)).fetchone()
    if keys == MANY or sweep(connection, history, moment) == BATCH:
        raise Expired
    return next_revision(connection), True


def trim(connection: Connection, revision: int, history: int, changes: int = 1) -> None:
    """After the ``changes`` of ``revision``: delete events that are too old, every now and then.

    However many there are, a write deletes a bounded number: twice what it adds if that is much,
    else, every `schema.TRIM_EVERY` commits, more than these have added. So the backlog shrinks, and
    it never takes more than half of the time that the write has left. What is to go counts as gone.
    """
    every = schema.TRIM_EVERY
    many = changes * every > 2 * schema.TRIM_ROWS
    if revision <= history or not (many or revision % every == 0):
        return
    trimmed = revision - history
    end = first_id(trimmed + 1)
    begun = monotonic()
    half = (connection.deadline.moment - begun) / 2
    for _ in range(3 + 2 * changes // schema.TRIM_ROWS):
        last, count = connection.execute(schema.OLD_EVENTS, (end, schema.TRIM_ROWS)).fetchone()
        if count:
            connection.execute(schema.TRIM, (last,))
        if count < schema.TRIM_ROWS or monotonic() - begun > half:
            break
    connection.execute(schema.TRIMMED, (trimmed,))


def sweep(connection: Connection, history: int, moment: float) -> int:
    """End the leases that have expired by ``moment``, at most `BATCH`; how many. In a write."""
    leases = connection.execute(schema.EXPIRED, (moment, BATCH)).fetchall()
    for (lease,) in leases:
        end(connection, lease, history)
    return len(leases)


def end(connection: Connection, lease: int, history: int) -> None:
    """End a lease and delete its keys, in a revision of their own if there are any. In a write."""
    execute = connection.execute
    revision = next_revision(connection)
    execute(schema.EVENTS_OF_END, (first_id(revision), revision, lease))
    if deleted := execute(schema.DELETE_LEASED, (lease,)).rowcount:
        trim(connection, revision, history, deleted)
    execute(schema.END, (lease,))


def grant(connection: Connection, ttl: float) -> int:
    """Make a lease; its id. In a write."""
    while True:
        lease = secrets.randbits(63)
        if lease and connection.execute(schema.GRANT, (lease, ttl, now() + ttl)).rowcount:
            return lease


def renew(connection: Connection, lease: int) -> float | None:
    """Let the time of a lease begin anew; its ttl, or ``None`` if it has ended. In a write."""
    rows = connection.execute(schema.RENEW, (now(), lease)).fetchall()
    return float(rows[0][0]) if rows else None


def exists(connection: Connection, lease: int) -> bool:
    """Whether a lease has not ended. In a write, after `begin`."""
    return lease <= MAX_NUMBER and connection.execute(schema.LEASE, (lease,)).fetchone() is not None


def require(connection: Connection, lease: int) -> None:
    """Raise `LeaseLost` if a lease has ended. In a write, after `begin`."""
    if not exists(connection, lease):
        raise LeaseLost("no lease with this id is alive; grant a new one")


def _behind(newest: int | None) -> int:
    return 1 if newest is None else (newest >> schema.SEQ_BITS) + 1
