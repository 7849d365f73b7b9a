"""The plugin's hooks: describe the memory store and open it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvi.errors import InvalidOption
from kvi.hookspecs import BackendInfo, hookimpl
from kvi.primitives import Primitives
from kvi.uri import StoreUri

from kvi_memory.store import CAPABILITIES, MemoryKvi


@hookimpl
def kvi_describe() -> BackendInfo:
    """Describe the memory store."""
    return BackendInfo(
        name="memory",
        interface="1.0",
        schemes=("mem",),
        capabilities=CAPABILITIES,
        has_passing_faults=False,
    )


@hookimpl
def kvi_open(uri: StoreUri, options: Mapping[str, Any]) -> Primitives:
    """Open the store that the path names; the empty name is a store like any other."""
    if uri.authority:
        raise InvalidOption("a memory store has no host; write mem: or mem:NAME, without slashes")
    if any("\udc80" <= each <= "\udcff" for each in uri.path):
        raise InvalidOption(
            "the name of a memory store is text, and has percent-encoded bytes that are no UTF-8"
        )
    return MemoryKvi(uri.redacted, uri.path, timeout=options["timeout"])
