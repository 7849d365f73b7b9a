"""The plugin's hooks: describe the SQLite store and open it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvi.errors import InvalidOption
from kvi.hookspecs import BackendInfo, hookimpl
from kvi.options import Option
from kvi.primitives import Primitives
from kvi.uri import StoreUri

from kvi_sqlite.store import CAPABILITIES, SqliteKvi

HISTORY = Option(
    name="history",
    kind="integer",
    default=10_000,
    minimum=1,
    maximum=1_000_000_000,
    help="how many of the last commits a watch can go back to; their values stay in the file",
)


@hookimpl
def kvi_describe() -> BackendInfo:
    """Describe the SQLite store."""
    return BackendInfo(
        name="sqlite",
        interface="1.0",
        schemes=("sqlite",),
        capabilities=CAPABILITIES,
        options=(HISTORY,),
        path_is_file=True,
    )


@hookimpl
def kvi_open(uri: StoreUri, options: Mapping[str, Any]) -> Primitives:
    """Open the store in the file that the path names; the first operation opens the file."""
    return SqliteKvi(
        uri.redacted,
        path_of(uri),
        timeout=options["timeout"],
        history=options["history"],
        read_only=options["read_only"],
    )


@hookimpl
def kvi_backup(uri: StoreUri, target: Path, replace: bool) -> None:
    """Copy the file; see `kvi_sqlite.backup`."""
    from kvi_sqlite.backup import backup  # only who copies needs it

    backup(path_of(uri), target, replace=replace)


def path_of(uri: StoreUri) -> Path:
    """The absolute path of the file, as of now: a later change of directory does not move it."""
    if uri.hosts:
        raise InvalidOption(
            "a SQLite store has no host, and what stands behind // is one; "
            "write sqlite:relative/path or sqlite:///absolute/path"
        )
    if not uri.path:
        raise InvalidOption(
            "a SQLite store needs a path; write sqlite:relative/path or sqlite:///absolute/path"
        )
    if uri.path.lstrip("/") == ":memory:":
        raise InvalidOption("a SQLite store is a file; for a store in memory, open mem:")
    if "\0" in uri.path:
        raise InvalidOption("the path has a NUL character, which no file name can have")
    if uri.path.endswith("/"):
        raise InvalidOption("the path ends with a slash, so it names a directory; name a file")
    path = Path(uri.path)
    if path.is_absolute():  # the working directory need not be there
        return path
    try:
        return Path.cwd() / path
    except OSError as error:
        raise InvalidOption(
            f"the path is relative, and there is no working directory ({error.strerror}); change "
            "to one, or write sqlite:///absolute/path"
        ) from error
