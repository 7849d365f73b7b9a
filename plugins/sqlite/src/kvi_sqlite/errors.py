"""SQLite's errors, translated: the one place where a native error becomes one of kvi's.

What a caller wants to know is whether a write may have happened. Up to COMMIT nothing can have: a
transaction without its commit record is never read by anybody. At COMMIT the commit record is
written, then synced, then announced to other processes. An error of the disk there says not how
far it came: what was written but not announced stays invisible, until a crash, whose recovery finds
it. So it is `OutcomeUnknown`, except for the errors that come before the commit record can be
whole (``FULL``, ``BUSY``, ``INTERRUPT``).

Whether trying again may help: where another connection is in the way, yes; where the disk is full
or faulty, the file damaged, no database, or out of reach, no (``passing`` is false).
"""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

from kvi.errors import (
    KviError,
    OutcomeUnknown,
    PermissionDenied,
    Timeout,
    Unavailable,
    ValueTooLarge,
)

CLOSED = "the handle was closed"
SETTLED = 0.5  # seconds

# PROTOCOL: the lock of the shared memory could not be had in many tries. LOCKED cannot happen
# without a shared cache, and would pass as well.
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_REFUSED = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})
_BEFORE_COMMIT_RECORD = _PASSING | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_TOOBIG,
}

_MENDS = {
    sqlite3.SQLITE_FULL: "the disk is full, free some space",
    sqlite3.SQLITE_IOERR: "the disk reports an error; check the disk and the free space on it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database; name another path",
    sqlite3.SQLITE_ERROR: "its tables are not those of a store; restore it from a backup",
    sqlite3.SQLITE_SCHEMA: "another program has changed the tables; restore it from a backup",
}


class Incomplete(sqlite3.OperationalError):
    """The store is open somewhere, without a file that belongs to it; the text has the mend."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY  # it also looks so while it is being opened or closed


class Unindexed(sqlite3.OperationalError):
    """There is a log of commits without its index, or a journal, and who opens it may not mend it.

    While the last to have the file open closes it, the index goes before the log. That takes less
    than `SETTLED`.
    """

    sqlite_errorcode = sqlite3.SQLITE_BUSY


def code_of(error: Exception) -> int:
    """The primary result code of ``error``; 0 if SQLite itself did not raise it."""
    extended: int = getattr(error, "sqlite_errorcode", 0)
    return extended & 0xFF


def is_passing(error: sqlite3.Error) -> bool:
    """Whether another connection is in the way, so that trying again soon may help."""
    return code_of(error) in _PASSING


def translate(
    error: sqlite3.Error, path: Path, *, committing: bool = False, closing: bool = False
) -> KviError:
    """The error to raise ``from error``; ``committing`` if it came from COMMIT."""
    code = code_of(error)
    if committing and code not in _BEFORE_COMMIT_RECORD:
        return OutcomeUnknown(
            f"committing to {path} failed and the write may come back after a crash: {error}; "
            f"{_MENDS.get(code, 'read the key to see')}"
        )
    if code == sqlite3.SQLITE_INTERRUPT:
        return Unavailable(CLOSED) if closing else Timeout(f"no end within the time-out on {path}")
    if isinstance(error, Incomplete | Unindexed):
        return Unavailable(str(error), passing=isinstance(error, Incomplete))
    if code in _PASSING:
        return Timeout(f"{path} stayed locked by another process or connection")
    if code == sqlite3.SQLITE_TOOBIG:
        return ValueTooLarge("key and value together are larger than an SQLite row can be")
    if code in _REFUSED:
        return PermissionDenied(
            f"{path} may not be written to ({error}); let this user write to it, its directory, "
            "and its -wal and -shm, if another user has made these"
        )
    # Whoever has to mend these needs longer than any time-out.
    if code == sqlite3.SQLITE_CANTOPEN:
        return Unavailable(f"{path} cannot be opened: {_obstacle(path)}", passing=False)
    mend = _MENDS.get(code)
    return Unavailable(f"{path} cannot serve: {error}; {mend or 'try again'}", passing=not mend)


def _obstacle(path: Path) -> str:
    """Why ``path`` cannot be opened, and the mend; SQLite itself does not tell.

    The file is only looked at, never opened: closing it would drop the locks that SQLite holds on
    it for this process (a rule of POSIX locks).
    """
    folder = path.parent
    try:
        if path.is_dir():
            return "it is a directory; name a file in it"
        # Python 3.14 answers no to exists() where it may not look.
        if not stat.S_ISDIR(folder.stat().st_mode):
            return f"{folder} is not a directory; name another path"
    except (FileNotFoundError, NotADirectoryError):
        return f"the directory {folder} does not exist; create it"
    except OSError as error:
        return f"{error.strerror or error}; let this user search the directories above it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"let this user read and write the directory {folder}"
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return "let this user read and write it"
    return "SQLite does not say why; check the directory, its permissions and the open-file limit"
