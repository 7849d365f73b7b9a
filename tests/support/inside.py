"""Look into a handle, for tests of what only its backend knows."""

from __future__ import annotations

from typing import Any

import kvi
from kvi import aio


def inmost(store: kvi.Kvi | aio.AsyncKvi) -> Any:
    """The backend's own object below ``store``."""
    return store._scope.primitives


def revoke(store: kvi.Kvi, lease: int) -> None:
    """End a lease behind the back of its holder."""
    inmost(store)._lease_revoke(lease, 5)
