"""A store below middleware keeps the contract as the bare one does, in whatever order it stands.

Of the suite what middleware has a part in: every operation of random programs, what was, changes by
functions, what is kept alive, and what a closed handle says. All of it, on all stores, is in
`tests.conformance.wrapped`.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator

import kvi
import pytest
from kvi.conformance import (
    TestAtomically,
    TestHandles,
    TestLeases,
    TestLocks,
    TestModel,
    TestPast,
    TestReadOnly,
    TestUpdates,
    TestWatches,
)
from kvi.flow.scope import Scope
from kvi.middleware.liveness import Monitored
from kvi.middleware.namespace import Prefixed
from kvi.middleware.observe import Observed
from kvi.middleware.retry import Retrying
from kvi.ops import Executor

from tests.support.wrapped import opening_backends

__all__ = [
    "TestAtomically",
    "TestHandles",
    "TestLeases",
    "TestLocks",
    "TestModel",
    "TestPast",
    "TestReadOnly",
    "TestUpdates",
    "TestWatches",
]

pytestmark = pytest.mark.slow

Wrap = Callable[[Scope], Executor]
MIDDLEWARE: dict[str, Wrap] = {
    "namespace": lambda scope: Prefixed(scope.executor, "wrapped/"),
    "retry": lambda scope: Retrying(
        scope.executor, kvi.RetryPolicy(), scope.uri, lambda: scope.closed
    ),
    "observe": lambda scope: Observed(scope.executor, scope.uri),
    "liveness": lambda scope: Monitored(scope.executor, 30, lambda: scope.closed),
}


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A memory store of this test alone, opened as a backend."""
    with opening_backends():
        yield f"mem:wrapped-{abs(hash(request.node.nodeid)):x}"


@pytest.mark.parametrize("order", list(itertools.permutations(MIDDLEWARE)), ids="-".join)
def test_any_order(order: tuple[str, ...]) -> None:
    """Everything works, and errors, keys and events are the caller's own."""
    scope = kvi.open(f"mem:{secrets.token_hex(8)}")._scope
    for name in order:
        scope.executor = MIDDLEWARE[name](scope)
    with kvi.Kvi(scope) as store:
        with store.watch(prefix="a") as watch:
            revision = store.store("a1", "1")
            assert store.cas("a1", revision, "2")
            assert store.tas("a1", "2", "3")
            assert store.txn([kvi.Key("a1").value == "3"], [kvi.Put("a2", "x"), kvi.Get("a1")])
            assert [e.key for e in store.range(prefix="a", reverse=True)] == ["a2", "a1"]
            assert [watch.next(10).key for _ in range(4)] == ["a1", "a1", "a1", "a2"]
        with store.lock("jobs") as lock, store.lease(30) as lease:
            assert store.txn([lock.guard], [kvi.Put("b", "1", lease=lease)])
            assert store.namespace("n").count() == 0
        assert store.get("b") is None
        with pytest.raises(kvi.InvalidKey) as caught:
            store.get("")
        assert (caught.value.operation, caught.value.key) == ("get", "")
        assert store.delete_range(prefix="a") == 2
        store.ping()
    with pytest.raises(kvi.Closed):
        store.get("a1")
