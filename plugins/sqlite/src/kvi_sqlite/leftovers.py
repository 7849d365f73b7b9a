"""What is beside a file that is about to be opened to write, or is not.

*In the way of its owner* may be what somebody left who may only read the store. SQLite's own tools
make an empty ``-wal`` and a ``-shm`` to read a file in a folder that they may write to, and cannot
take them away again. They belong to the reader; the owner of the file may not write to them, and so
not to the file. Who may write to the file removes them, holding a lock on it that says that nobody
has it open.

*Missing* may be a ``-wal`` or a ``-shm`` that somebody removed while the file is open. SQLite would
make it anew, and whoever has the new one shares neither commits nor locks with those who have the
former. So it is with a second name of the file: a hard link, or a mount of the file alone. SQLite
itself leaves none of the two alone, or both away, while the file is open, except for the moments of
opening and of closing it.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from kvi_sqlite import schema
from kvi_sqlite.errors import Incomplete, is_passing
from kvi_sqlite.readers import may_write


def remove(path: Path) -> None:
    """Remove what is in the way of writing to ``path``, if that is possible now.

    While somebody has the file open, or where this user may not remove it, it stays: the file can
    be read, and a write says that it is refused.
    """
    real = os.path.realpath(path)
    log, memory = Path(f"{real}-wal"), Path(f"{real}-shm")
    if all(may_write(file) or not os.path.lexists(file) for file in (log, memory)):
        return
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    with closing(connection), suppress(OSError, sqlite3.Error):
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # held from the first read on
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if application == schema.APPLICATION_ID and mode == "wal":
            memory.unlink(missing_ok=True)  # it is made anew from the log
            if log.exists() and log.stat().st_size == 0:
                log.unlink()


def check_whole(path: Path) -> None:
    """Raise `Incomplete` if ``path`` is open somewhere, and its ``-wal`` or ``-shm`` is not there.

    What a crash left is worked into the file, so that both are made anew together.
    """
    real = os.path.realpath(path)
    beside = [f"{real}-wal", f"{real}-shm"]
    missing = [file for file in beside if not os.path.lexists(file)]
    if not missing or not os.path.exists(real):  # noqa: PTH110  (false where none may look)
        return
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        with closing(connection):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # held from the first read on
            connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.Error as error:
        if not is_passing(error):
            return  # who opens it is told
        if not _is_store(path):  # but locked by its own program
            raise
        raise Incomplete(
            f"{path} is open in this process or another without {' and '.join(missing)}: "
            "removed, or beside another name of the file; put back what was removed, keep to "
            "one name, or close the store everywhere and open it anew"
        ) from error


def _is_store(path: Path) -> bool:
    """Whether the file has a store's mark; takes no lock, and makes nothing."""
    uri = f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.Error:
        return False
    return bool(application == schema.APPLICATION_ID)
