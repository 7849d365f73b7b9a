"""The hooks that a backend plugin implements (pluggy project name ``kvi``).

A plugin is a module, named by an entry point of the group ``kvi.backends`` whose name is the part
of the URI scheme before ``+``::

    [project.entry-points."kvi.backends"]
    etcd = "kvi_etcd.plugin"

Hooks serve opening and describing. Operations go straight to the `Primitives` object
that `kvi_open` returns: a hook call is untyped and copies lists, which is too dear for a ``get``.

One more hook, `kvi_operation`, is for those who observe: see `kvi.observers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

from kvi.capabilities import Capabilities
from kvi.errors import KviError
from kvi.options import Option
from kvi.primitives import Primitives
from kvi.uri import StoreUri

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "INTERFACE",
    "BackendInfo",
    "ObservedOperation",
    "hookimpl",
    "kvi_backup",
    "kvi_describe",
    "kvi_open",
    "kvi_operation",
]

PROJECT = "kvi"

INTERFACE = "1.0"
"""The version of the backend interface that this core speaks, as ``major.minor``.

A plugin states, as a literal, the one it was written for. Another major version is refused.
"""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks the functions of a plugin that implement hooks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What a plugin says of itself, without opening anything.

    Attributes:
        name: the store's name for people, such as ``"etcd"``.
        interface: the backend interface it was written for: a literal such as ``"1.0"``.
        schemes: the whole schemes it answers to, such as ``("etcd", "etcd+tls")``.
        capabilities: what its stores can do by default.
        options: what it takes besides ``timeout`` and ``namespace``.
        path_is_namespace: the path of the URI is a namespace, as in ``etcd://host/namespace``.
        path_is_file: the path of the URI is one of the file system, so that a relative one depends
            on the current folder.
        has_passing_faults: the store can fail and be back in a moment, so that `kvi.open` has
            operations tried again. Not so within a process.

    """

    name: str
    interface: str
    schemes: tuple[str, ...]
    capabilities: Capabilities
    options: tuple[Option, ...] = ()
    path_is_namespace: bool = False
    path_is_file: bool = False
    has_passing_faults: bool = True


@hookspec(firstresult=True)
def kvi_describe() -> BackendInfo:  # type: ignore[empty-body]
    """Describe the backend. Must not touch the network or a file."""


@hookspec(firstresult=True)
def kvi_open(uri: StoreUri, options: Mapping[str, Any]) -> Primitives:  # type: ignore[empty-body]
    """Open a store.

    ``options`` has a checked value for every declared option, for ``timeout`` and for
    ``read_only`` (core lets nothing through that could write; a store that is a file may also open
    what it may not write to, and must create nothing); the namespace has been taken off and is
    added by core. Must not block on a server: the first operation does.
    """


@hookspec(firstresult=True)
def kvi_backup(uri: StoreUri, target: Path, replace: bool) -> None:
    """Copy the whole store, while others use it, to the file ``target``, as of one moment.

    Optional: for stores that are a file. ``target`` is there once it is whole; one that was there
    before is refused (`InvalidArgument`) unless ``replace``. The store is only read.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedOperation:
    """One operation that has ended, for those who observe. Values are never told, only keys.

    Attributes:
        name: ``store``, ``get``, ``range``, ``count``, ``delete``, ``delete_range``, ``txn``,
            ``tas``, ``cas``, ``transaction``, ``watch``, ``ping``; ``range_page`` for each further
            page of a range; for leases and locks, also those of kvi itself, ``lease_grant``,
            ``lease_renew``, ``lease_revoke``, ``lock_claim``, ``lock_release``.
        key: the key, the name of a lock, the lower bound of a range, or ``None``.
        uri: the store, with secrets replaced by ``***``.
        began: when, in nanoseconds since the epoch.
        duration: in seconds, with all tries and the waits between them.
        attempts: how often the store was asked.
        error: what it ended with; ``None`` if it worked.

    """

    name: str
    key: str | None
    uri: str
    began: int
    duration: float
    attempts: int
    error: KviError | None

    @property
    def outcome(self) -> str:
        """``"ok"``, or the class of the error, such as ``"Timeout"``."""
        return "ok" if self.error is None else type(self.error).__name__


@hookspec
def kvi_operation(operation: ObservedOperation) -> None:
    """An operation of a `kvi.Backend` has ended; called on its thread, so it should be quick.

    What it raises is logged, and harms nobody.
    """
