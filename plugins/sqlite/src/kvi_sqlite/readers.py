"""Connections that write nothing: of a handle with ``read_only``, or of a user who may not write.

*Nothing is created.* SQLite makes a ``-wal`` and a ``-shm`` beside a file even if it only reads it,
wherever it can. On read-only media it cannot; elsewhere they stay behind, and belong to the reader,
so that the file's owner can no longer write. Therefore:

===========  ============================================  =======================================
``-wal``     means                                         so
===========  ============================================  =======================================
not there,   all that was committed is in the file         it is opened as immutable, without any
or empty                                                   lock; what was read counts if the file
                                                           is the same afterwards and this row
                                                           still holds, else it is read again
has pages    somebody has the file open, or died           both files are used as they are
===========  ============================================  =======================================

A ``-journal`` means that the store is being made, or that whoever made it died: what is in the file
may be torn. It is not read then. (In a store that is made there is never one.)

A reader of the last row who may not write to the file has the ``-shm`` as it is, too. One who may
write has it as a writer has: all connections of a process share one ``-shm``, as the first of them
opened it, and the process's own writers would be refused.

The pages of a long range are of one state as long as the file is the same, whatever the log does.

*Leases.* Nobody can end a lease here. What has expired is hidden by temporary views, which stand
before the tables of the same name: as of the moment at which a call begins. Deadlines of another
boot have not passed, as for whoever opens the file to write.
"""

from __future__ import annotations

import os
import sqlite3
from math import inf
from pathlib import Path
from urllib.parse import quote

from kvi.clock import now
from kvi.errors import Unavailable

from kvi_sqlite import schema
from kvi_sqlite.boot import boot_id
from kvi_sqlite.errors import Unindexed, code_of

_EFFECTIVE = os.access in os.supports_effective_ids

Look = tuple[int, int, int, int]


class Changed(sqlite3.OperationalError):
    """The file was written to while it was read without locks: read it again."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class Reading:
    """How one connection reads its file.

    Attributes:
        uri: what to open.
        moment: what has expired by then is not there.

    """

    __slots__ = ("_journal", "_log", "_path", "_seen", "moment", "uri")

    def __init__(self, path: Path) -> None:
        self._path = path
        real = os.path.realpath(path)
        self._log, self._journal = Path(f"{real}-wal"), Path(f"{real}-journal")
        self._seen: Look | None = None
        self.moment = -inf
        if not _is_empty(self._journal):
            raise Unindexed(
                f"{path} was not made to its end ({self._journal.name} is there), and this process "
                "may not do that; open the store once where it may"
            )
        how = "readonly_shm=" + ("0" if may_write(path) else "1")
        if self._is_quiet():
            how = "immutable=1"
            self._seen = self._look()
        elif not Path(f"{real}-shm").exists():
            raise Unindexed(
                f"{path} has a log of commits that are not in the file yet ({self._log.name}), and "
                "this process may not work them in; open the store once where it may"
            )
        self.uri = f"file:{quote(os.fsencode(path))}?mode=ro&{how}"

    @property
    def shares(self) -> bool:
        """Whether it has the log and the locks in common with those who write."""
        return self._seen is None

    def begin(self) -> None:
        """A call begins to read."""
        self.moment = now()

    def check(self) -> None:
        """After a read: raise `Changed` if it may not have been of one state, or of the last."""
        if not self.is_current():
            raise Changed(f"{self._path} was written to meanwhile")

    def is_current(self) -> bool:
        """Whether what can be read is all that was committed."""
        return self._seen is None or (self.is_unchanged() and self._is_quiet())

    def is_unchanged(self) -> bool:
        """Whether what can be read is what could be read at first."""
        return self._seen is None or self._seen == self._look()

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Make a new connection one of a reader. Raises `Unavailable` if the file is no store."""
        execute = connection.execute
        try:
            schema.check_readable(connection, self._path)
        except (sqlite3.Error, Unavailable) as error:
            self.check()
            if code_of(error) == sqlite3.SQLITE_CANTOPEN and self.shares and self._is_quiet():
                raise Changed(f"{self._path} was closed meanwhile, and its log removed") from error
            raise
        execute("PRAGMA temp_store = MEMORY")
        connection.create_function("moment", 0, self._moment)
        here = boot_id()
        (boot,) = execute("SELECT boot FROM clock").fetchone()
        for statement in schema.OTHER_BOOT_VIEWS if boot != here else schema.VIEWS:
            execute(statement)

    def _moment(self) -> float:
        return self.moment

    def _is_quiet(self) -> bool:
        return _is_empty(self._log) and _is_empty(self._journal)

    def _look(self) -> Look | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return True


def reading(path: Path, *, read_only: bool) -> Reading | None:
    """How to read ``path``; ``None`` if it is to be opened to write as well."""
    if not os.path.exists(path):  # noqa: PTH110  (false where the folder may not be searched)
        if read_only:
            raise Unavailable(
                f"{path} does not exist, and read_only creates nothing; open it once without",
                passing=False,
            )
        return None
    return Reading(path) if read_only or not may_change(path) else None


def may_change(path: Path) -> bool:
    """Whether this user may write to a store that exists: to the file, and to what is beside it."""
    real = os.path.realpath(path)
    return may_write(path) and (
        may_write(Path(real).parent)  # where it can be made anew
        or all(may_write(Path(f"{real}-{end}")) for end in ("wal", "shm"))
    )


def may_write(path: Path) -> bool:
    """Whether this user may write to a file that exists."""
    return os.access(path, os.W_OK, effective_ids=_EFFECTIVE)
