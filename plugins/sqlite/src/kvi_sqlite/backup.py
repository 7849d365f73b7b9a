"""A copy of a store that is in use.

``cp`` takes the file as it happens to be: without what is still in the log, and perhaps while the
log is being copied into it. SQLite reads a snapshot of its own instead, and holds nobody up.

It copies in steps, for between two of them the handlers of signals run: what one raises ends the
copying. The steps are in one read transaction: of one moment, and not begun anew by each write.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from time import monotonic

from kvi.errors import InvalidArgument
from kvi.options import MAX_SECONDS

from kvi_sqlite import schema
from kvi_sqlite.connection import Connection, Pool

PAGES = 1024  # of 4 KiB, in one step: some milliseconds


def backup(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, replace: bool = False
) -> None:
    """Copy the store in the file ``source``, as of one moment, to the new file ``target``.

    Others may read and write the store meanwhile. ``target`` is there once it is whole and on the
    disk; opened, it is a store like another: leases go on as if nobody had renewed them since. No
    more users may read it than the store. With ``replace`` a file that is there is replaced then,
    but not the store itself, nor what seems to be in use.

    Raises `InvalidArgument` if ``target`` is refused or its directory is not there, `Unavailable`
    and `PermissionDenied` as reading a store does.
    """
    origin = Path(source).absolute()
    goal = _checked(origin, Path(target).absolute(), replace)
    # Of nobody else's: threads share a process id, containers with a common folder may.
    part = goal.with_name(f".{goal.name}.{secrets.token_hex(8)}.part")
    pool = Pool(origin, read_only=True)

    def work(connection: Connection) -> None:
        _make(part, origin, goal)
        copy = sqlite3.connect(part)
        try:
            connection.execute("BEGIN")
            connection.execute(schema.REVISION).fetchone()  # the moment
            connection.backup(copy, pages=PAGES, progress=_step)
            connection.execute("COMMIT")
        finally:
            copy.close()

    try:
        pool.read(work, monotonic() + MAX_SECONDS)  # it takes as long as it takes
        _checked(origin, goal, replace)  # it took a while
        part.replace(goal)
    finally:
        pool.close(lambda _: None)
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _checked(source: Path, target: Path, replace: bool) -> Path:
    """Where the copy is to be, behind all links."""
    if not target.parent.is_dir() or (os.path.lexists(target) and not replace):
        raise InvalidArgument(f"{target} is not the name of a new file in a directory that exists")
    goal = Path(os.path.realpath(target))
    if goal.exists():
        if not goal.is_file():
            raise InvalidArgument(f"{goal} is no file, and cannot be replaced")
        if source.exists() and goal.samefile(source):
            raise InvalidArgument(f"{goal} is the store itself")
    for beside in ("-wal", "-shm", "-journal"):  # SQLite would take it for a part of the copy
        if os.path.lexists(f"{goal}{beside}"):
            raise InvalidArgument(
                f"{goal}{beside} is there: {goal} is a store that is in use, or was not closed; "
                "choose another name, or remove both if nobody needs them"
            )
    return goal


def _make(part: Path, source: Path, goal: Path) -> None:
    """An empty file with the permissions of the source, as far as the umask goes."""
    try:
        part.unlink(missing_ok=True)  # of an attempt that came into the middle of a write
        mode = source.stat().st_mode & 0o777 | 0o600
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    except OSError as error:
        raise InvalidArgument(f"{goal} cannot be written: {error.strerror}") from error


def _step(status: int, remaining: int, total: int) -> None:
    """Between two steps: an exception of a signal's handler comes out of here."""
