"""What somebody who may only read a store leaves beside it, in the way of its owner.

SQLite's own tools make an empty ``-wal`` and a ``-shm`` to read a file in a folder that they may
write to, and cannot take them away again. They belong to the reader; the owner of the file may not
write to them, and so not to the file. Who may write to the file removes them, holding a lock on it
that says that nobody has it open.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from kvi_sqlite import schema
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
