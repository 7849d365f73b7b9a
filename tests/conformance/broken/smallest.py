"""The smallest backend there can be: nine primitives, here the memory store's."""

from __future__ import annotations

from dataclasses import replace

from kvi.primitives import Primitives
from kvi_memory.store import CAPABILITIES, MemoryKvi

SMALLEST = replace(CAPABILITIES, atomic_range_delete="no", max_txn_ops=64)


class Smallest(MemoryKvi):
    """The memory store; everything but the nine is derived, as `Primitives` does it."""

    in_place = frozenset()
    _short_get = None  # type: ignore[assignment]  # as in `Primitives`
    _short_put = None  # type: ignore[assignment]
    _count = Primitives._count
    _put = Primitives._put
    _delete_range = Primitives._delete_range

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self.capabilities = SMALLEST
