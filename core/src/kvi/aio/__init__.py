"""kvi for asyncio: the same stores, names and promises; whatever talks to the store is awaited.

::

    async with kvi.aio.open("etcd://127.0.0.1:2379") as store:
        await store.store("greeting", "hello")
        async with store.lock("jobs", timeout=5) as held:
            await store.txn([held.guard], [kvi.Put("jobs/last", "42")])

The flows are those of `kvi`; only the faces here differ. A handle belongs to the event loop of its
first use, and its leases are kept alive on threads, however long the loop is blocked.
"""

from typing import TYPE_CHECKING, Any

from kvi.aio.awaited import Beginning
from kvi.aio.backend import AsyncLivenessChannel, Backend
from kvi.aio.handle import AsyncHandle, AsyncHandles, AsyncLocking, AsyncRef, commit, lock_many
from kvi.aio.kvi import AsyncKvi
from kvi.aio.lease import AsyncLease, AsyncTempKey
from kvi.aio.loader import Loader
from kvi.aio.lock import AsyncLock
from kvi.aio.loss import AsyncLoss
from kvi.aio.opening import open
from kvi.aio.ranges import AsyncRange, AsyncRangeResult
from kvi.aio.typed import (
    AsyncTypedRange,
    AsyncTypedRangeResult,
    AsyncTypedWatch,
    TypedView,
)
from kvi.aio.update import AsyncTx
from kvi.aio.watch import AsyncWatch
from kvi.late import imported

if TYPE_CHECKING:
    from kvi.aio import recipes

__all__ = [
    "AsyncHandle",
    "AsyncHandles",
    "AsyncKvi",
    "AsyncLease",
    "AsyncLivenessChannel",
    "AsyncLock",
    "AsyncLocking",
    "AsyncLoss",
    "AsyncRange",
    "AsyncRangeResult",
    "AsyncRef",
    "AsyncTempKey",
    "AsyncTx",
    "AsyncTypedRange",
    "AsyncTypedRangeResult",
    "AsyncTypedWatch",
    "AsyncWatch",
    "Backend",
    "Beginning",
    "Loader",
    "TypedView",
    "commit",
    "lock_many",
    "open",
    "recipes",
]


def __getattr__(name: str) -> Any:
    if name == "recipes":
        return imported("kvi.aio.recipes")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
