"""The contract as tests, which every backend runs.

An author writes one small test file: a fixture `kvi_uri` that gives the URI of a store which
nothing else uses meanwhile, and an import::

    import urllib.parse
    import pytest
    from kvi.conformance import *  # noqa: F403

    @pytest.fixture
    def kvi_uri(tmp_path):
        return "sqlite:" + urllib.parse.quote(f"{tmp_path}/store.db")

Every test runs three times: on a handle, through a namespace whose surroundings must stay as they
are, and with two handles of which one writes and the other reads (so two opens of the URI must be
the same store). What a capability denies is
expected to be refused or to behave as declared; nothing is skipped. The store is emptied before
each test.
"""

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the conformance suite needs pytest: pip install 'kvi-core[conformance]'", name="pytest"
    ) from error

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            "concurrency",
            "fixtures",
            "handles",
            "keys",
            "leases",
            "locks",
            "ranges",
            "txns",
            "watches",
            "writes",
        )
    )
)

from kvi.conformance.concurrency import TestConcurrency  # noqa: E402
from kvi.conformance.fixtures import peer, root, store, via  # noqa: E402
from kvi.conformance.handles import TestHandles, TestNamespaces, TestOptions  # noqa: E402
from kvi.conformance.keys import TestKeys, TestRevisions, TestValues  # noqa: E402
from kvi.conformance.leases import TestLeases, TestTempKeys  # noqa: E402
from kvi.conformance.locks import TestLocks  # noqa: E402
from kvi.conformance.ranges import TestRange  # noqa: E402
from kvi.conformance.txns import TestCompares, TestTransactions  # noqa: E402
from kvi.conformance.watches import TestConsumers, TestHistory, TestWatches  # noqa: E402
from kvi.conformance.writes import TestCas, TestDelete, TestStore, TestTas  # noqa: E402

__all__ = [
    "TestCas",
    "TestCompares",
    "TestConcurrency",
    "TestConsumers",
    "TestDelete",
    "TestHandles",
    "TestHistory",
    "TestKeys",
    "TestLeases",
    "TestLocks",
    "TestNamespaces",
    "TestOptions",
    "TestRange",
    "TestRevisions",
    "TestStore",
    "TestTas",
    "TestTempKeys",
    "TestTransactions",
    "TestValues",
    "TestWatches",
    "peer",
    "root",
    "store",
    "via",
]
