"""What `Primitives` derives from nine primitives keeps the contract too.

Of the suite what the derived ones serve; the rest runs on such a backend in `test_documented`,
whose locks and watches are of the other kind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kvi.conformance import TestDelete, TestLocks, TestStore
from kvi.conformance.suite import TestModel as Model

from tests.conformance.broken.plugin import install

__all__ = ["TestDelete", "TestLocks", "TestModel", "TestStore"]


@pytest.mark.slow
class TestModel(Model):
    """As the suite has it."""


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The scheme of the smallest backend, as an installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> str:
    """A store of this test alone."""
    return f"smallest:{abs(hash(request.node.nodeid)):x}"
