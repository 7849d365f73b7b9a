"""Look into a handle, for tests of what only its backend knows."""

from __future__ import annotations

from typing import Any

import kvi
from kvi.backend.forwarding import Forwarding


def inmost(store: kvi.Kvi) -> Any:
    """The backend's own handle in ``store``, without the wrappers over it."""
    while isinstance(store, Forwarding):
        store = store._inner
    return store
