"""The fixtures of kvi for the tests of programs. pytest finds them by itself.

Needs the extra ``kvi-core[pytest]``. Where kvi is installed, every run of pytest loads this module,
also one that has nothing to do with kvi. So it imports nothing: kvi comes with the first fixture
that is asked for. ``pytest -p no:kvi`` leaves it out.

==================  ===============================================================================
fixture             what it gives
==================  ===============================================================================
``kvi_store``       an open handle on a store of the test's own
``kvi_aio_store``   the same store, for asyncio
``kvi_store_uri``   its URI, for programs that open it themselves
``kvi_faults``      a `kvi.testing.Faults` that is on, for every handle of the test
``kvi_server_uri``  where those stores are: by the option ``--kvi-store``, or ``kvi_store`` in the
                    configuration, else ``mem:``; override it to start a server
==================  ===============================================================================

*Whose store it is.* In memory each test has a store by a name of its own. Anywhere else it has a
namespace by a name of its own, which is emptied at the end; what else is in the store stays as it
is, and tests may run side by side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvi import Kvi
    from kvi.aio import AsyncKvi
    from kvi.testing import Faults

__all__: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option, and the setting."""
    where = "the URI of the store for the fixture kvi_store (default: mem:)"
    group = parser.getgroup("kvi", "kvi")
    group.addoption("--kvi-store", metavar="URI", dest="kvi_store", help=where)
    parser.addini("kvi_store", where, default="mem:")


@pytest.fixture(scope="session")
def kvi_server_uri(pytestconfig: pytest.Config) -> str:
    """Where the stores of tests are; a fixture of the same name in a conftest.py overrides it."""
    given = pytestconfig.getoption("kvi_store") or pytestconfig.getini("kvi_store")
    return str(given)


@pytest.fixture
def kvi_store_uri(kvi_server_uri: str, kvi_faults: Faults) -> Iterator[str]:
    """The URI of a store that is this test's own; it is emptied at the end.

    Shown without its secrets.
    """
    from kvi.testing.place import emptied, own

    uri = own(kvi_server_uri, f"pytest-{os.urandom(6).hex()}")
    yield uri
    kvi_faults.clear()  # emptying it is not what is tested
    emptied(uri)


@pytest.fixture
def kvi_store(kvi_store_uri: str, kvi_faults: Faults) -> Iterator[Kvi]:
    """An open handle on a store of this test's own, with the faults of ``kvi_faults``."""
    import kvi

    with kvi.open(kvi_store_uri) as store:
        yield store
        kvi_faults.clear()  # closing is not what is tested


@pytest.fixture
def kvi_aio_store(kvi_store_uri: str, kvi_faults: Faults) -> Iterator[AsyncKvi]:
    """A handle of `kvi.aio` on the same store. It belongs to the event loop of its first use.

    No plugin for asyncio is needed: it is made without a loop, and closed in its own if that goes
    on still.
    """
    import kvi.aio
    from kvi.testing.place import closed

    store = kvi.aio.open(kvi_store_uri)
    yield store
    kvi_faults.clear()
    closed(store)


@pytest.fixture
def kvi_faults() -> Iterator[Faults]:
    """Faults on order, for every handle that is opened in this test from now on."""
    from kvi.testing import Faults

    with Faults() as faults:
        yield faults
