"""One interface to key-value and coordination stores: memory, SQLite, etcd, Consul and others.

>>> import kvi
>>> with kvi.open("mem:") as store:
...     store.store("greeting", "hello") > 0
...     store.get("greeting").text
True
'hello'
"""

from typing import TYPE_CHECKING, Any

from kvi.capabilities import Capabilities
from kvi.driver.threads import Threads
from kvi.errors import (
    AlreadyHeld,
    AmbiguousBackend,
    AuthenticationFailed,
    BackendLoadError,
    BadRecord,
    BrokenBarrier,
    Closed,
    Compacted,
    Conflict,
    Contention,
    InvalidArgument,
    InvalidKey,
    InvalidOption,
    KviError,
    LeaseLost,
    LockTimeout,
    NotFound,
    NotHeld,
    NotSupported,
    OutcomeUnknown,
    PermissionDenied,
    Timeout,
    Unavailable,
    UnknownBackend,
    UsedAfterFork,
    ValueTooLarge,
    WrongLoop,
)
from kvi.late import imported
from kvi.model import (
    Compare,
    Delete,
    Event,
    EventType,
    Get,
    Key,
    KeyValue,
    Put,
    RangeResult,
    TxnResult,
)
from kvi.policy.retry import RetryPolicy
from kvi.registry import backends
from kvi.sync.kvi import Kvi
from kvi.sync.opening import open

if TYPE_CHECKING:
    from kvi import aio, recipes
    from kvi.entities.codecs import BytesCodec, JsonCodec, ProtobufCodec, TextCodec
    from kvi.sync.backend import Backend
    from kvi.sync.handle import Handle, commit, lock_many
    from kvi.sync.lease import Lease
    from kvi.sync.loader import Loader
    from kvi.sync.lock import Lock
    from kvi.sync.temp_key import TempKey
    from kvi.sync.update import Tx
    from kvi.sync.watch import Watch

__all__ = [
    "AlreadyHeld",
    "AmbiguousBackend",
    "AuthenticationFailed",
    "Backend",
    "BackendLoadError",
    "BadRecord",
    "BrokenBarrier",
    "BytesCodec",
    "Capabilities",
    "Closed",
    "Compacted",
    "Compare",
    "Conflict",
    "Contention",
    "Delete",
    "Event",
    "EventType",
    "Get",
    "Handle",
    "InvalidArgument",
    "InvalidKey",
    "InvalidOption",
    "JsonCodec",
    "Key",
    "KeyValue",
    "Kvi",
    "KviError",
    "Lease",
    "LeaseLost",
    "Loader",
    "Lock",
    "LockTimeout",
    "NotFound",
    "NotHeld",
    "NotSupported",
    "OutcomeUnknown",
    "PermissionDenied",
    "ProtobufCodec",
    "Put",
    "RangeResult",
    "RetryPolicy",
    "TempKey",
    "TextCodec",
    "Timeout",
    "Tx",
    "TxnResult",
    "Unavailable",
    "UnknownBackend",
    "UsedAfterFork",
    "ValueTooLarge",
    "Watch",
    "WrongLoop",
    "aio",
    "backends",
    "commit",
    "lock_many",
    "open",
    "recipes",
]


# What only names types, for the most part, is imported by those who ask for it.
_LATER = {
    "aio": "aio",
    "Backend": "sync.backend",
    "BytesCodec": "entities.codecs",
    "Handle": "sync.handle",
    "JsonCodec": "entities.codecs",
    "Lease": "sync.lease",
    "Loader": "sync.loader",
    "Lock": "sync.lock",
    "ProtobufCodec": "entities.codecs",
    "TempKey": "sync.temp_key",
    "TextCodec": "entities.codecs",
    "Tx": "sync.update",
    "Watch": "sync.watch",
    "commit": "sync.handle",
    "lock_many": "sync.handle",
    "recipes": "recipes",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        # Not by the main thread: an interrupted import leaves Python's own locks taken.
        module = Threads().apart(lambda: imported(f"kvi.{_LATER[name]}"), id)
        globals()[name] = found = module if name == _LATER[name] else getattr(module, name)
        return found
    if name == "__version__":  # importing the metadata costs 20 ms, and few programs ask
        from importlib.metadata import version

        return version("kvi-core")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
