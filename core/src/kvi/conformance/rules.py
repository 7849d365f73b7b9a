r"""What every class of the suite has: the stores to work on, and the failures that are known.

A test works on a store by one of the ways of `via`:

===========  ==================================================  ==================================
via          the test writes to, and reads from                  which tests run so
===========  ==================================================  ==================================
handle       one handle                                          those without a table of
                                                                 parameters; tables without a peer
two views    a namespace of one handle, and the same namespace   those without a table
             of another, among neighbours that must stay
two handles  one handle, and another one                         tables with a peer
===========  ==================================================  ==================================

More ways find nothing more: `tests.conformance.broken.ways` of kvi's sources counts what each way
sees of the wrong stores by which the suite is tested. A row of a table differs from the next by
what the store is given, which two handles show as well as any.

A test file may name rules that its backend is known to break, each with the reason::

    KNOWN_FAILURES = {
        "TestLocks.test_first_come_first_served": "waiters are served at random, see acme#17",
        "TestKeys.test_odd_key_round_trips[two handles-'\x00']": "the server ends keys at NUL",
    }

A test that is named so is expected to fail, and is an error as soon as it passes: then it is time
to delete the line. Without a bracket all parameters of a test are meant, and each must fail. A name
that fits no test of the file is an error too. Of a class that is derived from one of the suite's,
it is the derived class that is named.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvi
from kvi.conformance import neighbours
from kvi.conformance.trace import TRACE, Trace, plain


class Rules:
    """The fixtures of the suite, for its classes and those that an author derives from them.

    `store` is the store that a test writes to, empty at the start; `peer` the one that it reads
    from; both through one of the ways of `via`. `root` is a handle on the whole store.
    """

    @pytest.fixture(autouse=True)
    def _suite(self, request: pytest.FixtureRequest) -> None:
        from kvi.conformance import plugin  # it imports what imports this

        plugin.ensure(request.config)
        if (reason := known_failure(request)) is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.fixture
    def trace(self, request: pytest.FixtureRequest) -> Trace:
        """The history of this test, which is shown if it fails."""
        trace = Trace()
        request.node.stash[TRACE] = trace
        return trace

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Let a test run in its ways."""
        if "way" in metafunc.fixturenames:
            ways = ["handle", "two views"]
            if any(metafunc.definition.iter_markers("parametrize")):
                ways = ["two handles" if "peer" in metafunc.fixturenames else "handle"]
            metafunc.parametrize("way", ways, indirect=True)

    @pytest.fixture
    def way(self, request: pytest.FixtureRequest) -> str:
        """One of the ways."""
        return str(request.param)

    @pytest.fixture
    def via(self, way: str) -> str:
        """How a test reaches its store; an author may have ways of their own."""
        return way

    @pytest.fixture
    def root(self, kvi_uri: str, trace: Trace) -> Iterator[kvi.Kvi]:
        """A handle on the whole store, which is empty at the start."""
        with kvi.open(kvi_uri) as handle:
            handle.delete_range(prefix="")
            yield trace.handle(handle, "root")

    @pytest.fixture
    def store(self, root: kvi.Kvi, via: str, trace: Trace) -> Iterator[kvi.Kvi]:
        """The store that a test writes to, empty at the start."""
        with neighbours.within(plain(root), via) as store:
            yield trace.handle(store, "store")

    @pytest.fixture
    def peer(self, store: kvi.Kvi, via: str, kvi_uri: str, trace: Trace) -> Iterator[kvi.Kvi]:
        """The store that a test reads from: `store` itself, or another handle on the same data."""
        if via == "handle":
            yield store
            return
        with kvi.open(kvi_uri) as handle:
            other = handle.namespace(neighbours.NAMESPACE) if via == "two views" else handle
            store.store("mark", b"")
            assert other.get("mark"), "two opens of one URI must be the same store"
            store.delete("mark")
            yield trace.handle(other, "peer")


def known_failure(request: pytest.FixtureRequest) -> str | None:
    """The reason why a test is known to fail, if its class or file says so."""
    known: dict[str, str] = {}
    for owner in (request.module, request.cls):
        known |= getattr(owner, "KNOWN_FAILURES", {})
    for name in known:
        group, _, test = name.partition("[")[0].partition(".")
        if not callable(getattr(getattr(request.module, group, None), test, None)):
            pytest.fail(f"KNOWN_FAILURES names {name}, which is no test of this file")
    _check_parameters(request, known)
    function = request.node.originalname
    test = f"{request.cls.__name__}.{function}"
    return known.get(test + request.node.name.removeprefix(function), known.get(test))


def _check_parameters(request: pytest.FixtureRequest, known: dict[str, str]) -> None:
    """Fail for a name with parameters that no test has, where all tests of the file are there."""
    config = request.config
    chosen = bool(config.getoption("keyword")) or any("::" in arg for arg in config.args)
    if chosen or not any("[" in name for name in known):
        return
    names = {
        f"{item.cls.__name__}.{item.name}"
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.cls is not None
        if item.module is request.module
    }
    for name in known:
        if "[" in name and name not in names:
            pytest.fail(f"KNOWN_FAILURES names {name}, which are no parameters of that test")
