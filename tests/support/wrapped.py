"""Opens every store as a `Backend`, for suites of wrapped stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import kvi
import pytest
from kvi import observers
from kvi.hookspecs import ObservedOperation, hookimpl


class Nobody:
    """An observer, so that observing is done at all."""

    @hookimpl
    def kvi_operation(self, operation: ObservedOperation) -> None:
        """See it."""


def as_backend(store: kvi.Kvi) -> kvi.Kvi:
    """All wrappers together, as a service has them, with the store to close."""
    backend = kvi.Backend(store, timeout=store._scope.timeout)
    backend._owned = store
    return backend


@contextmanager
def opening_backends() -> Iterator[None]:
    """For the block, `kvi.open` gives backends, which are observed."""
    real = kvi.open

    def open_wrapped(uri: str, **options: object) -> kvi.Kvi:
        return as_backend(real(uri, **options))

    observer = Nobody()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvi, "open", open_wrapped)
        observers.register(observer)
        try:
            yield
        finally:
            observers.unregister(observer)
