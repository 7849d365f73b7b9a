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
from kvi.errors import (
    AlreadyHeld,
    AmbiguousBackend,
    AuthenticationFailed,
    BackendLoadError,
    Closed,
    Compacted,
    Contention,
    InvalidArgument,
    InvalidKey,
    InvalidOption,
    KviError,
    LeaseLost,
    LockTimeout,
    NotHeld,
    NotSupported,
    OutcomeUnknown,
    PermissionDenied,
    Timeout,
    Unavailable,
    UnknownBackend,
    UsedAfterFork,
    ValueTooLarge,
)
from kvi.interface import Kvi
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
from kvi.registry import backends, open

if TYPE_CHECKING:
    from kvi.recipes.lease import Lease
    from kvi.recipes.lock import Lock
    from kvi.recipes.temp_key import TempKey
    from kvi.recipes.watch import Watch
    from kvi.service import Backend

__all__ = [
    "AlreadyHeld",
    "AmbiguousBackend",
    "AuthenticationFailed",
    "Backend",
    "BackendLoadError",
    "Capabilities",
    "Closed",
    "Compacted",
    "Compare",
    "Contention",
    "Delete",
    "Event",
    "EventType",
    "Get",
    "InvalidArgument",
    "InvalidKey",
    "InvalidOption",
    "Key",
    "KeyValue",
    "Kvi",
    "KviError",
    "Lease",
    "LeaseLost",
    "Lock",
    "LockTimeout",
    "NotHeld",
    "NotSupported",
    "OutcomeUnknown",
    "PermissionDenied",
    "Put",
    "RangeResult",
    "RetryPolicy",
    "TempKey",
    "Timeout",
    "TxnResult",
    "Unavailable",
    "UnknownBackend",
    "UsedAfterFork",
    "ValueTooLarge",
    "Watch",
    "backends",
    "open",
]


# What only names types, for the most part, is imported by those who ask for it.
_LATER = {
    "Backend": "service",
    "Lease": "recipes.lease",
    "Lock": "recipes.lock",
    "TempKey": "recipes.temp_key",
    "Watch": "recipes.watch",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"kvi.{_LATER[name]}"), name)
    if name == "__version__":  # importing the metadata costs 20 ms, and few programs ask
        from importlib.metadata import version

        return version("kvi-core")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
