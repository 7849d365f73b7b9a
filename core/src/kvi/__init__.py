"""One interface to key-value and coordination stores: memory, SQLite, etcd, Consul and others.

>>> import kvi
>>> with kvi.open("mem:") as store:
...     store.store("greeting", "hello") > 0
...     store.get("greeting").text
True
'hello'
"""

from kvi.capabilities import Capabilities
from kvi.errors import (
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
from kvi.model import Compare, Delete, Get, Key, KeyValue, Put, RangeResult, TxnResult
from kvi.registry import InstalledBackend, backends, open

__all__ = [
    "AmbiguousBackend",
    "AuthenticationFailed",
    "BackendLoadError",
    "Capabilities",
    "Closed",
    "Compacted",
    "Compare",
    "Contention",
    "Delete",
    "Get",
    "InstalledBackend",
    "InvalidArgument",
    "InvalidKey",
    "InvalidOption",
    "Key",
    "KeyValue",
    "Kvi",
    "KviError",
    "LeaseLost",
    "NotSupported",
    "OutcomeUnknown",
    "PermissionDenied",
    "Put",
    "RangeResult",
    "Timeout",
    "TxnResult",
    "Unavailable",
    "UnknownBackend",
    "UsedAfterFork",
    "ValueTooLarge",
    "backends",
    "open",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # importing the metadata costs 20 ms, and few programs ask
        from importlib.metadata import version

        return version("kvi-core")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
