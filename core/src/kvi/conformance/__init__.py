"""The contract as tests, which every backend runs.

An author writes one small test file: a fixture `kvi_uri` that gives the URI of a store which
nothing else uses meanwhile, and an import::

    import urllib.parse
    import pytest
    from kvi.conformance import *

    @pytest.fixture
    def kvi_uri(tmp_path):
        return "sqlite:" + urllib.parse.quote(f"{tmp_path}/store.db")

Or derives a class of their own from some of these, with the fixture in it (and imports the module,
not the class, which pytest would run as well)::

    import kvi.conformance

    class TestAcmeLocks(kvi.conformance.TestLocks):
        @pytest.fixture
        def kvi_uri(self):
            return "acme://127.0.0.1:7000"

Or writes nothing, and gives the URI on the command line: `python -m kvi.conformance URI` runs the
suite and reports rule by rule; `pytest -p kvi.conformance.plugin --pyargs kvi.conformance
--kvi-uri URI` runs it with all that pytest can do.

Most tests run twice: on a handle, and through namespaces of two handles, of which one writes and
the other reads (so two opens of the URI must be the same store), and whose surroundings must stay
as they are. Tables of parameters run once (`kvi.conformance.rules` says why). Those that must wait
for something wait side by side. The store is emptied before each test. What a capability denies is
expected to be refused or to behave as declared; what is known to fail is named with its reason (see
`kvi.conformance.rules`); nothing is skipped because it failed. If the author's file can stop, pause
and cut off the server, the tests of `kvi.conformance.faults` do that (see
`kvi.conformance.server`).

A test that fails names the rules of `kvi.conformance.contract` that it checks and shows the calls
that broke them.
"""

from typing import Any

try:
    import hypothesis  # noqa: F401
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the conformance suite needs {error.name}: pip install 'kvi-core[conformance]'",
        name=error.name,
    ) from error

# What asserts something. It must not be imported before: pytest explains the assertions only of
# what is imported after this. So the names below are looked up when they are asked for.
REWRITTEN = tuple(
    f"{__name__}.{part}"
    for part in ("cancelling", "clients", "faults", "processes", "recipes", "suite", "waiting")
)
pytest.register_assert_rewrite(*REWRITTEN)

__all__ = [
    "TestAsyncio",
    "TestAtomically",
    "TestCas",
    "TestCompares",
    "TestConcurrency",
    "TestConsumers",
    "TestDelete",
    "TestHandles",
    "TestHistories",
    "TestHistory",
    "TestInterrupts",
    "TestKeys",
    "TestLeases",
    "TestLocks",
    "TestMeetings",
    "TestModel",
    "TestNamespaces",
    "TestNumbers",
    "TestOptions",
    "TestPast",
    "TestRange",
    "TestReadOnly",
    "TestRecipes",
    "TestRevisions",
    "TestStore",
    "TestTas",
    "TestTempKeys",
    "TestTransactions",
    "TestUpdates",
    "TestValues",
    "TestWatches",
    "TestWork",
]


def __getattr__(name: str) -> Any:
    """The test classes of `kvi.conformance.suite`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvi.conformance import suite

    return getattr(suite, name)
