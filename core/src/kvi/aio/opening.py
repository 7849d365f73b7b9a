"""`kvi.aio.open`: from a URI to a handle for asyncio."""

from __future__ import annotations

from kvi.aio.kvi import AsyncKvi
from kvi.driver.loop import Loop
from kvi.errors import KviError
from kvi.registry import open_scope


def open(uri: str, **options: object) -> AsyncKvi:  # noqa: A001  (kvi.aio.open, as kvi.open)
    """Open the store at ``uri``; URIs, options and errors are those of `kvi.open`.

    Asks no store and needs no event loop, so that it may stand at module level; the handle belongs
    to the loop of its first use. The first open of a scheme imports its plugin.
    """
    runtime = Loop()
    try:
        scope = runtime.apart(
            lambda: open_scope(runtime, uri, options), lambda made: made.primitives._close()
        )
    except KviError:
        runtime.stop()
        raise
    return AsyncKvi(scope)
