"""The tables of a store, the statements on them, and whose file it is.

*Entries* are the present state. The columns stand in the order in which SQLite reads them, the
value last, so that reading keys alone never walks through the pages of big values. The table has a
rowid and an index on the key: a row of a WITHOUT ROWID table spills out of its page from a kilobyte
on.

*Events* are the history: one row for each change of a key, as long as it is among the last
commits. ``id`` is the revision shifted left by `SEQ_BITS`, plus the number of the change within
its revision, so that one B-tree orders both, appending to it is cheap, and **the newest event is
the revision counter**: a counter row of its own would cost one more page written for each commit.
(The newest event is never trimmed.) A commit of more changes than fit into the shifted bits runs
on into the ids of the revisions behind it; these are then skipped, and ``revision``, the column,
stays right: whoever looks for the changes from revision *r* on asks for
``id >= r << SEQ_BITS AND revision >= r``. In events of deletions all but ``id``, ``revision`` and
``key`` is null.

*Undo* has, under the id of an event, what the key was before: no row, if it was not there. So the
state at an earlier revision is the entries that are no newer, and, of each key that has changed
since, what it was before the first of these changes. Both tables can be trimmed from the oldest
event on, for none needs an older one. (Events of before version 4 have no such row, though their
key was there, as their version tells: what they would undo is not known any more.)

*History* is one row: ``trimmed``, the last revision whose changes may be missing from the events;
all later ones are complete.

*Contends* is the lock that an entry stands in the queue of (`kvi.policy.lock`), null for nearly all
of them: the key without a slash and its lease in hexadecimal, if it ends so. It is computed, not
stored; its index finds who is right before a contender, however many wait, and has nothing of other
entries.

*Leases* end at ``deadline``, on the boot clock; see `kvi_sqlite.leases`. An entry's ``lease`` is
the id of a row here or in the tombstones, always. The index that finds a lease's entries has
nothing of entries without lease. *Clock* is one row: the boot that the deadlines belong to.
*Deadlines* are those that leases, not renewed since, have on the clocks of other boots.

*Tombstones* are leases that have ended, at ``revision``, and still have entries here. These entries
are gone, for every statement below: what reads entries leaves them out. Each becomes an event of
that revision when it is deleted, with the id ``next``; so does, at the very end of the lease, its
last entry, with the last of the ids that are kept for the others. `kvi_sqlite.leases` says why.

*Whose file.* Our files carry `APPLICATION_ID` in their header, and the version of the schema. A
file without tables and without these marks is new, and becomes ours; anything else is somebody
else's and is left alone. A file of an older version gets what it lacks. Marks and tables are made
in one transaction, which looks again under the write lock, so that any number of processes can open
a new file at once.

The journal mode is in the file, the others in each connection. ``synchronous=FULL`` makes a commit
outlive the loss of power; NORMAL, in WAL mode, would not. What a statement sets aside, it keeps in
memory: no store depends on a folder for temporary files.
"""

from __future__ import annotations

import sqlite3
from itertools import chain
from pathlib import Path

from kvi.clock import now
from kvi.errors import Unavailable

from kvi_sqlite.boot import boot_id

MIN_SQLITE = (3, 35, 0)  # of 2021, with upserts, window functions and RETURNING

if sqlite3.sqlite_version_info < MIN_SQLITE:
    raise ImportError(
        f"kvi-sqlite needs SQLite {'.'.join(map(str, MIN_SQLITE))} or newer and this Python has "
        f"{sqlite3.sqlite_version}; use a Python built with a newer SQLite library"
    )
if sqlite3.threadsafety == 0:
    raise ImportError("kvi-sqlite needs an SQLite library built for threads (SQLITE_THREADSAFE)")

APPLICATION_ID = 0x6B766931  # "kvi1"
VERSION = 5
READABLE = 4  # the oldest version that has all that reading needs
SEQ_BITS = 20  # a million changes in a commit before any revision is skipped, 2**43 revisions
TRIM_EVERY = 256  # commits: deleting in portions costs next to nothing for each
WAL_KEPT = 16 * 1024 * 1024  # bytes of a WAL file: if it is longer, it is to start over

_FIRST = (
    """
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        create_revision INTEGER NOT NULL,
        version INTEGER NOT NULL,
        lease INTEGER,
        value BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        revision INTEGER NOT NULL,
        key BLOB NOT NULL,
        create_revision INTEGER,
        version INTEGER,
        lease INTEGER,
        value BLOB
    )
    """,
    "CREATE TABLE history (id INTEGER PRIMARY KEY CHECK (id = 1), trimmed INTEGER NOT NULL)",
    "INSERT INTO history VALUES (1, 0)",
)
_LEASES = (  # since version 2
    """
    CREATE TABLE leases (
        id INTEGER PRIMARY KEY,
        ttl REAL NOT NULL,
        deadline REAL NOT NULL
    )
    """,
    "CREATE INDEX leases_by_deadline ON leases (deadline)",
    "CREATE INDEX entries_by_lease ON entries (lease) WHERE lease IS NOT NULL",
    "CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), boot TEXT)",
    "INSERT INTO clock VALUES (1, NULL)",
)
_ENDS = (  # since version 3
    """
    CREATE TABLE tombstones (
        lease INTEGER PRIMARY KEY,
        revision INTEGER NOT NULL,
        next INTEGER NOT NULL
    )
    """,
    """
    CREATE TABLE deadlines (
        lease INTEGER NOT NULL,
        boot TEXT NOT NULL,
        deadline REAL NOT NULL,
        PRIMARY KEY (lease, boot)
    ) WITHOUT ROWID
    """,
)
_UNDO = (  # since version 4
    """
    CREATE TABLE undo (
        id INTEGER PRIMARY KEY,
        revision INTEGER NOT NULL,
        create_revision INTEGER NOT NULL,
        version INTEGER NOT NULL,
        lease INTEGER,
        value BLOB NOT NULL
    )
    """,
)
_QUEUES = (  # since version 5
    """
    ALTER TABLE entries ADD COLUMN contends BLOB GENERATED ALWAYS AS (
        CASE
            WHEN lease IS NULL THEN NULL
            WHEN substr(key, -length(printf('/%x', lease))) = CAST(printf('/%x', lease) AS BLOB)
            THEN substr(key, 1, length(key) - length(printf('/%x', lease)))
        END
    ) VIRTUAL
    """,
    """
    CREATE INDEX entries_by_queue ON entries (contends, create_revision)
    WHERE contends IS NOT NULL
    """,
)
_MARKS = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}")
_PARTS = (_FIRST, _LEASES, _ENDS, _UNDO, _QUEUES)  # by the version that brought them
TABLES = (*chain.from_iterable(_PARTS), *_MARKS)

# One statement, for another process may make the store between two.
_WHOSE = (
    "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
    "FROM pragma_application_id, pragma_user_version"
)

# No statement has numbered parameters, ``?1``: CPython 3.12.0 to 3.12.3 warn of them as of names.

# Each is a step to the end of an index.
_REVISION = "(SELECT revision FROM events ORDER BY id DESC LIMIT 1)"
_NEWEST = "(SELECT max(id) FROM events)"
_DUE = "(SELECT min(deadline) FROM leases)"
_TOMBSTONED = "(SELECT max(lease) FROM tombstones)"
_ORDERS = {False: "ASC", True: "DESC"}
_STATE = "revision, create_revision, version, lease, value"
_THERE = "(lease IS NULL OR lease NOT IN (SELECT lease FROM tombstones))"

REVISION = f"SELECT {_REVISION}"
NEWEST = f"SELECT {_NEWEST}"
STATE = f"SELECT {_NEWEST}, {_DUE}, {_TOMBSTONED}"
SNAPSHOT = f"SELECT {_REVISION}, {_DUE}"
HISTORY = f"SELECT trimmed, {_REVISION}, {_NEWEST} FROM history"  # noqa: S608
COOKIE = "PRAGMA schema_version"  # rises with each backup that is restored into the file
LOOK = f"SELECT trimmed, {_NEWEST}, {_DUE} FROM history"  # noqa: S608

GET = f"""
    SELECT value, revision, create_revision, version, lease FROM entries
    WHERE key = ? AND {_THERE}
"""  # noqa: S608
GET_LEASED = f"""
    SELECT value, revision, create_revision, version, lease,
        (SELECT deadline FROM leases WHERE leases.id = lease)
    FROM entries WHERE key = ? AND {_THERE}
"""  # noqa: S608
COUNT = f"""
    SELECT count(*) - (
        SELECT count(*) FROM entries
        WHERE lease IN (SELECT lease FROM tombstones) AND key >= ? AND key < ?
    ), {_DUE} FROM entries WHERE key >= ? AND key < ?
"""  # noqa: S608
UPSERT = """
    INSERT INTO entries (key, revision, create_revision, version, lease, value)
    VALUES (?, ?, ?, 1, ?, ?)
    ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, version = version + 1,
        lease = excluded.lease, value = excluded.value
"""
DELETE = "DELETE FROM entries WHERE key = ?"
DELETE_RANGE = f"DELETE FROM entries WHERE key >= ? AND key < ? AND {_THERE}"  # noqa: S608
EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
EVENT_OF_UPSERT = """
    INSERT INTO events (id, revision, key, create_revision, version, lease, value)
    SELECT ?, revision, key, create_revision, version, lease, value FROM entries WHERE key = ?
"""
EVENT_OF_DELETE = "INSERT INTO events (id, revision, key) VALUES (?, ?, ?)"
EVENTS_OF_DELETE_RANGE = f"""
    INSERT INTO events (id, revision, key)
    SELECT ? + row_number() OVER (ORDER BY key) - 1, ?, key
    FROM entries WHERE key >= ? AND key < ? AND {_THERE}
"""  # noqa: S608
# Each goes before what changes the entries.
UNDO = f"INSERT INTO undo SELECT ?, {_STATE} FROM entries WHERE key = ?"  # noqa: S608
UNDO_DELETE_RANGE = f"""
    INSERT INTO undo SELECT ? + row_number() OVER (ORDER BY key) - 1, {_STATE}
    FROM entries WHERE key >= ? AND key < ? AND {_THERE}
"""  # noqa: S608

# Where a change is looked for, `id` finds it and `revision` excludes the rest of a commit that ran
# on into the ids behind it.
NEWS = "SELECT id, revision, key FROM events WHERE id > ? ORDER BY id LIMIT ?"
_CHANGE = """
    events.revision, key, events.value,
    undo.revision, undo.create_revision, undo.version, undo.lease, undo.value
    FROM events LEFT JOIN undo USING (id)
"""
CHANGES = f"""
    SELECT {_CHANGE} WHERE id >= ? AND id < ? AND events.revision >= ?
    AND key >= ? AND key < ? ORDER BY id
"""
LAST_CHANGES = f"""
    SELECT {_CHANGE} WHERE id >= ? AND events.revision >= ? AND key = ?
    ORDER BY id DESC LIMIT ?
"""
NEXT_REVISION = "SELECT revision FROM events WHERE id >= ? AND revision >= ? ORDER BY id LIMIT 1"

GRANT = "INSERT OR IGNORE INTO leases (id, ttl, deadline) VALUES (?, ?, ?)"
RENEW = "UPDATE leases SET deadline = ? + ttl WHERE id = ? AND deadline > ? RETURNING ttl"
LEASES = "SELECT id, ttl, deadline - ? FROM leases WHERE deadline > ? ORDER BY id"
KEYS_OF_LEASE = "SELECT key FROM entries WHERE lease = ? AND +key >= ? AND +key < ? ORDER BY key"
FORGET_DEADLINES = "DELETE FROM deadlines WHERE lease = ?"
KEEP_DEADLINES = """
    INSERT OR REPLACE INTO deadlines (lease, boot, deadline)
    SELECT leases.id, boot, deadline FROM leases, clock WHERE boot IS NOT NULL
"""
TAKE_DEADLINES = """
    UPDATE leases SET deadline = coalesce((
        SELECT deadlines.deadline FROM deadlines WHERE lease = leases.id AND boot = ?
    ), ? + ttl)
"""
LEASE = "SELECT 1 FROM leases WHERE id = ?"
EXPIRED = "SELECT id FROM leases WHERE deadline <= ? ORDER BY deadline LIMIT ?"
LEASED = """
    SELECT count(*), ifnull(sum(size), 0)
    FROM (SELECT length(value) AS size FROM entries WHERE lease = ? LIMIT ?)
"""
EVENTS_OF_END = """
    INSERT INTO events (id, revision, key)
    SELECT ? + row_number() OVER (ORDER BY key) - 1, ?, key FROM entries WHERE lease = ?
"""
UNDO_END = f"""
    INSERT INTO undo SELECT ? + row_number() OVER (ORDER BY key) - 1, {_STATE}
    FROM entries WHERE lease = ?
"""  # noqa: S608
DELETE_LEASED = "DELETE FROM entries WHERE lease = ?"
END = "DELETE FROM leases WHERE id = ?"
AHEAD = f"""
    SELECT key, NULL, revision, create_revision, version, lease FROM entries
    WHERE contends = ? AND create_revision < ? AND {_THERE}
    ORDER BY create_revision DESC LIMIT 1
"""  # noqa: S608

MANY_LEASED = "SELECT 1 FROM entries WHERE lease = ? LIMIT 1 OFFSET ?"
LAST_LEASED = "SELECT max(id) FROM entries WHERE lease = ?"
EVENT_OF_ROW = "INSERT INTO events (id, revision, key) SELECT ?, ?, key FROM entries WHERE id = ?"
UNDO_ROW = f"INSERT INTO undo SELECT ?, {_STATE} FROM entries WHERE id = ?"  # noqa: S608
DELETE_ROW = "DELETE FROM entries WHERE id = ?"
ENTOMB = "INSERT INTO tombstones (lease, revision, next) VALUES (?, ?, ?)"
TOMBSTONE = "SELECT lease, revision, next FROM tombstones ORDER BY revision LIMIT 1"
TOMBSTONE_OF = """
    SELECT entries.id, tombstones.lease, tombstones.revision, next
    FROM entries JOIN tombstones ON tombstones.lease = entries.lease WHERE key = ?
"""
NEXT_ID = "UPDATE tombstones SET next = next + ? WHERE lease = ?"
EVENTS_OF_PART = """
    INSERT INTO events (id, revision, key)
    SELECT ? + row_number() OVER () - 1, ?, key
    FROM (SELECT key FROM entries WHERE lease = ? ORDER BY id LIMIT ?)
"""
UNDO_PART = f"""
    INSERT INTO undo SELECT ? + row_number() OVER () - 1, {_STATE}
    FROM (SELECT {_STATE} FROM entries WHERE lease = ? ORDER BY id LIMIT ?)
"""  # noqa: S608
SIZES_OF_PART = "SELECT length(value) FROM entries WHERE lease = ? ORDER BY id LIMIT ?"
DELETE_PART = """
    DELETE FROM entries
    WHERE id IN (SELECT id FROM entries WHERE lease = ? ORDER BY id LIMIT ?)
"""
BURIED = "DELETE FROM tombstones WHERE lease = ?"
TOMBSTONE_REVISIONS = "SELECT revision FROM tombstones"
DELETED_BY_TOMBSTONES = """
    SELECT tombstones.revision, key, NULL, entries.revision, create_revision, version,
        entries.lease, value
    FROM tombstones JOIN entries ON entries.lease = tombstones.lease
    WHERE tombstones.revision >= ? AND tombstones.revision < ? AND key >= ? AND key < ?
    ORDER BY tombstones.revision
"""

OLD_EVENTS = """
    SELECT id, ifnull(length(events.value), 0) + ifnull(length(undo.value), 0)
    FROM events LEFT JOIN undo USING (id) WHERE id < ? ORDER BY id LIMIT ?
"""
TRIM = "DELETE FROM events WHERE id <= ?"
TRIM_UNDO = "DELETE FROM undo WHERE id <= ?"
TRIMMED = "UPDATE history SET trimmed = ? WHERE trimmed < ?"
TRIMMED_TO = "SELECT trimmed FROM history"
CHORES = f"SELECT trimmed, (SELECT min(id) FROM events), {_TOMBSTONED} FROM history"  # noqa: S608


def few_sql(*, reverse: bool, keys_only: bool) -> str:
    """The statement that reads a few entries: ``(longest[, longest], low, high, limit)``.

    The first ``longest`` is of keys, the second, unless ``keys_only``, of values: what is longer
    comes as null. Behind its entry, each row has the store's revision, the nearest deadline and
    whether there are tombstones; nothing is left out.
    """
    value = "NULL" if keys_only else "CASE WHEN length(value) <= ? THEN value END"
    order = _ORDERS[reverse]
    return (
        f"SELECT CASE WHEN length(key) <= ? THEN key END, {value}, "  # noqa: S608
        f"revision, create_revision, version, lease, {_REVISION}, {_DUE}, {_TOMBSTONED} "
        f"FROM entries WHERE key >= ? AND key < ? ORDER BY entries.key {order} LIMIT ?"
    )


# ``(low, high, id, revision, limit)``: keys that were there at that revision, each with the first
# event behind it, which has an id from that one on.
CHANGED_SINCE = {
    reverse: f"""
        SELECT key, min(id), version FROM events
        WHERE key >= ? AND key < ? AND id >= ? AND revision > ?
        GROUP BY key HAVING version IS NOT 1 ORDER BY key {order} LIMIT ?
    """  # noqa: S608
    for reverse, order in _ORDERS.items()
}
BEFORE = "SELECT value, revision, create_revision, version, lease FROM undo WHERE id = ?"

# Temporary views of those who can end no lease stand before the tables; see kvi_sqlite.readers.
VIEWS = (
    """
    CREATE TEMP VIEW tombstones AS SELECT lease, revision, next FROM main.tombstones
    UNION ALL SELECT id, NULL, NULL FROM main.leases WHERE deadline <= moment()
    """,
    "CREATE TEMP VIEW leases AS SELECT * FROM main.leases WHERE deadline > moment()",
)
OTHER_BOOT_VIEWS = (
    "CREATE TEMP VIEW leases AS SELECT id, ttl, 9e999 AS deadline FROM main.leases",
)


def range_sql(*, reverse: bool, keys_only: bool) -> str:
    """The statement that reads a page: ``(low, high, limit)`` to rows made like `KeyValue`."""
    value = "NULL" if keys_only else "value"
    return (
        f"SELECT key, {value}, revision, create_revision, version, lease FROM entries "  # noqa: S608
        f"WHERE key >= ? AND key < ? AND {_THERE} ORDER BY key {_ORDERS[reverse]} LIMIT ?"
    )


def past_sql(*, reverse: bool, keys_only: bool) -> str:
    """As `range_sql`, of what has not changed: ``(low, high, revision, revision, limit)``."""
    value = "NULL" if keys_only else "value"
    return (
        f"SELECT key, {value}, revision, create_revision, version, lease FROM entries "  # noqa: S608
        "WHERE key >= ? AND key < ? AND revision <= ? AND (lease IS NULL OR lease NOT IN "
        "(SELECT lease FROM tombstones WHERE revision <= ?)) "
        f"ORDER BY key {_ORDERS[reverse]} LIMIT ?"
    )


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make a new connection one of a store's: check whose file it is, create what is missing.

    Raises `Unavailable` if the file is not ours, and ``sqlite3.Error``.
    """
    execute = connection.execute
    if _missing(connection, path):
        execute("BEGIN IMMEDIATE")
        for statement in _missing(connection, path):
            execute(statement)
        execute("COMMIT")
    (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise Unavailable(
            f"{path} is on a file system without shared memory; use a local disk", passing=False
        )
    execute("PRAGMA synchronous = FULL")
    execute("PRAGMA temp_store = MEMORY")
    execute("PRAGMA wal_autocheckpoint = 0").close()  # it would be in a commit; see upkeep
    execute(f"PRAGMA journal_size_limit = {WAL_KEPT}").close()
    if _is_of_another_boot(connection):
        execute("BEGIN IMMEDIATE")
        if _is_of_another_boot(connection):
            here = boot_id()
            execute(KEEP_DEADLINES)
            execute(TAKE_DEADLINES, (here, now()))
            execute("DELETE FROM deadlines WHERE boot = ?", (here,))
            execute("UPDATE clock SET boot = ?", (here,))
        execute("COMMIT")


def has_chores(connection: sqlite3.Connection) -> bool:
    """Whether there is something for upkeep: tombstones, or events that count as gone."""
    trimmed, oldest, buried = connection.execute(CHORES).fetchone()
    return buried is not None or (oldest is not None and oldest >> SEQ_BITS <= trimmed)


def check_readable(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `Unavailable` if the file is no store, or lacks what reading needs."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()  # it never falls
    if _missing(connection, path) and version < READABLE:
        raise Unavailable(
            f"{path} is an empty file or has an older layout, and this process must not write to "
            "it; open the store once where it may",
            passing=False,
        )


def _missing(connection: sqlite3.Connection, path: Path) -> tuple[str, ...]:
    """The statements that make the file a store's of this version; raises if it is not ours."""
    application, version, tables = connection.execute(_WHOSE).fetchone()
    if application == APPLICATION_ID:
        if version > VERSION:
            raise Unavailable(
                f"{path} has schema {version} and this kvi-sqlite knows up to {VERSION}; "
                "install a newer kvi-sqlite",
                passing=False,
            )
        return () if version == VERSION else (*chain.from_iterable(_PARTS[version:]), *_MARKS)
    if application or version or tables:
        raise Unavailable(
            f"{path} is the SQLite database of another program; name another path for the store",
            passing=False,
        )
    return TABLES


def _is_of_another_boot(connection: sqlite3.Connection) -> bool:
    """Whether the deadlines are of an earlier boot; see `kvi_sqlite.leases`."""
    here = boot_id()
    (boot,) = connection.execute("SELECT boot FROM clock").fetchone()
    if boot != here:
        return True
    if here is not None:
        return False
    far = "SELECT EXISTS (SELECT 1 FROM leases WHERE deadline > ? + ttl)"
    return bool(connection.execute(far, (now(),)).fetchone()[0])
