"""`kvi.aio` on a store whose primitives are awaited keeps the contract: what the form serves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import (
    TestDelete,
    TestHandles,
    TestLeases,
    TestLocks,
    TestRange,
    TestStore,
)
from kvi.conformance.on_loop import opening_on_loop

from tests.conformance.broken.plugin import install

__all__ = [
    "TestDelete",
    "TestHandles",
    "TestLeases",
    "TestLocks",
    "TestRange",
    "TestStore",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The scheme of the smallest backend, as an installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A store of this test alone."""
    with opening_on_loop():
        yield f"smallest:aio-{abs(hash(request.node.nodeid)):x}"
