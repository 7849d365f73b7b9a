"""The two hooks by which kvi finds and opens the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvi.errors import InvalidOption
from kvi.hookspecs import BackendInfo, hookimpl
from kvi.options import Option
from kvi.primitives import Primitives
from kvi.uri import StoreUri

from kvi_directory.store import CAPABILITIES, DirectoryKvi


@hookimpl
def kvi_describe() -> BackendInfo:
    """Name the store, its URI scheme and its only option."""
    return BackendInfo(
        name="directory",
        interface="1.0",
        schemes=("directory",),
        capabilities=CAPABILITIES,
        options=(
            Option(
                name="history",
                kind="integer",
                default=1000,
                minimum=1,
                help="how many of the last commits watches can look back on, unless they are large",
            ),
        ),
        path_is_file=True,
    )


@hookimpl
def kvi_open(uri: StoreUri, options: Mapping[str, Any]) -> Primitives:
    """Open ``directory:PATH``; nothing is read or made before the first operation."""
    if uri.authority and (uri.hosts or uri.username is not None):
        raise InvalidOption("a directory has no host: write directory:PATH or directory:///PATH")
    if not uri.path or "\0" in uri.path:
        raise InvalidOption("the path of a directory is missing, or has a NUL in it")
    folder = Path(uri.path).absolute()  # the same store still after a chdir
    return DirectoryKvi(
        uri.redacted, folder, history=options["history"], timeout=options["timeout"]
    )
