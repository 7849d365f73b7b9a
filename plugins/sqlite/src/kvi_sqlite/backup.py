"""A copy of a store that is in use.

``cp`` takes the file as it happens to be: without what is still in the log, and perhaps while the
log is being copied into it. SQLite reads a snapshot of its own instead, and holds nobody up.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from math import inf
from pathlib import Path

from kvi.errors import InvalidArgument

from kvi_sqlite.connection import Connection, Pool


def backup(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy the store in the file ``source``, as of one moment, to the new file ``target``.

    Others may read and write the store meanwhile. ``target`` is there once it is whole and on the
    disk; opened, it is a store like another: leases go on as if nobody had renewed them since.

    Raises `InvalidArgument` if ``target`` is there or its directory is not, `Unavailable` and
    `PermissionDenied` as reading a store does.
    """
    goal = Path(target).absolute()
    if os.path.lexists(goal) or not goal.parent.is_dir():
        raise InvalidArgument(f"{goal} is not the name of a new file in a directory that exists")
    part = goal.with_name(f".{goal.name}.{os.getpid()}.part")
    pool = Pool(Path(source).absolute(), read_only=True)

    def work(connection: Connection) -> None:
        part.unlink(missing_ok=True)  # of an attempt that came into the middle of a write
        copy = sqlite3.connect(part)
        try:
            connection.backup(copy)
        finally:
            copy.close()

    try:
        pool.read(work, inf)
        part.rename(goal)
    finally:
        pool.close(lambda _: None)
        with suppress(OSError):
            part.unlink(missing_ok=True)
