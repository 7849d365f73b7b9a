"""Stores for tests: one of its own for each, emptied at its end."""

from __future__ import annotations

import asyncio
import threading

import kvi
from kvi.aio.kvi import AsyncKvi
from kvi.errors import KviError
from kvi.registry import within
from kvi.uri import StoreUri

__all__ = ["closed", "emptied", "own"]

_PATIENCE = 10.0  # seconds for closing a handle in a loop of another thread


class _Shy(str):
    """A URI that pytest, which shows the arguments of what failed, shows without its secrets."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(StoreUri.parse(str(self)).redacted)


def own(uri: str, name: str) -> str:
    """The URI of a store of that name: in memory one by itself, elsewhere a namespace.

    Raises what `kvi.open` does for a URI of no store.
    """
    return _Shy(f"mem:{name}" if uri == "mem:" else within(uri, name))


def emptied(uri: str) -> None:
    """Delete all that is left in a test's own store. Raises what `kvi.Kvi.delete_range` does."""
    with kvi.open(str(uri)) as store:
        store.delete_range(prefix="")


def closed(store: AsyncKvi) -> None:
    """Close a handle for asyncio from outside of its loop, which may have ended, or go on."""
    if store.closed:
        return
    loop = store._runtime.loop
    if loop is not None and not loop.is_closed():
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(store.close(), loop).result(_PATIENCE)
        else:
            loop.run_until_complete(store.close())
        return
    failed: list[KviError] = []

    def close() -> None:
        try:
            asyncio.run(store.close())
        except KviError as error:
            failed.append(error)

    thread = threading.Thread(target=close)  # this one may have a loop
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
