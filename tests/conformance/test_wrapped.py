"""A store in wrappers keeps the contract as the bare one does, in whatever order they stand."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator

import kvi
import pytest
from kvi.backend.liveness import Monitored
from kvi.backend.namespace import Namespace
from kvi.backend.observe import Observed
from kvi.backend.retry import Retrying
from kvi.conformance import *  # noqa: F403

from tests.support.wrapped import opening_backends

pytestmark = pytest.mark.slow

Wrap = Callable[[kvi.Kvi], kvi.Kvi]
WRAPPERS: dict[str, Wrap] = {
    "namespace": lambda store: Namespace(store, "wrapped", owns=True),
    "retry": lambda store: Retrying(store, kvi.RetryPolicy(), owns=True),
    "observe": lambda store: Observed(store, owns=True),
    "liveness": lambda store: Monitored(store, 30, owns=True),
}


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """A memory store of this test alone, opened as a backend."""
    with opening_backends():
        yield f"mem:wrapped-{abs(hash(request.node.nodeid)):x}"


@pytest.mark.parametrize("order", list(itertools.permutations(WRAPPERS)), ids="-".join)
def test_any_order(order: tuple[str, ...]) -> None:
    """Everything works, and errors, keys and events are the caller's own."""
    store: kvi.Kvi = kvi.open(f"mem:{secrets.token_hex(8)}")
    for name in order:
        store = WRAPPERS[name](store)
    with store:
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
