"""What `Primitives` derives from nine primitives keeps the contract too."""

from __future__ import annotations

from dataclasses import replace

import kvi
import pytest
from kvi.conformance import *  # noqa: F403

from tests.unit.core.test_interface import Smallest


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A memory store of this test alone, opened as the smallest backend."""
    real = kvi.open

    def open_smallest(uri: str, **options: object) -> kvi.Kvi:
        namespace = options.pop("namespace", None)
        if "namespace=" in uri or namespace is not None:
            return real(uri, namespace=namespace, **options)
        inner = real(uri, **options)
        limits = replace(inner.capabilities, atomic_range_delete="no", max_txn_ops=64)
        return Smallest(inner, limits)

    monkeypatch.setattr(kvi, "open", open_smallest)
    return f"mem:smallest-{abs(hash(request.node.nodeid)):x}"
