"""The stores that the tests work on: emptied, and through one of three ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvi

NAMESPACE = "conformance/ns"
# keys of others around the namespace: none of them may be seen or touched through it
NEIGHBOURS = {
    "conformance": b"above",
    "conformance/ns": b"the name itself",
    "conformance/ns/": b"the mark of a folder",
    "conformance/ns0": b"first behind",
    "conformance/nsx/k": b"longer name",
    "k": b"outside",
}


@pytest.fixture(params=["handle", "namespace", "two handles"])
def via(request: pytest.FixtureRequest) -> str:
    """How a test reaches its store."""
    return str(request.param)


@pytest.fixture
def root(kvi_uri: str) -> Iterator[kvi.Kvi]:
    """A handle on the whole store, which is empty at the start."""
    with kvi.open(kvi_uri) as handle:
        handle.delete_range(prefix="")
        yield handle


@pytest.fixture
def store(root: kvi.Kvi, via: str) -> Iterator[kvi.Kvi]:
    """The store that a test writes to, empty at the start."""
    if via != "namespace":
        yield root
        return
    for key, value in NEIGHBOURS.items():
        root.store(key, value)
    with root.namespace(NAMESPACE) as view:
        yield view
    if not root.closed:
        around = {
            entry.key: entry.value
            for entry in root.range()
            if not (entry.key.startswith(f"{NAMESPACE}/") and entry.key != f"{NAMESPACE}/")
        }
        assert around == NEIGHBOURS, "keys outside of the namespace were changed through it"


@pytest.fixture
def peer(store: kvi.Kvi, via: str, kvi_uri: str) -> Iterator[kvi.Kvi]:
    """The store that a test reads from: ``store`` itself, or another handle on the same data."""
    if via != "two handles":
        yield store
        return
    with kvi.open(kvi_uri) as handle:
        store.store("mark", b"")
        assert handle.get("mark"), "two opens of one URI must be the same store"
        store.delete("mark")
        yield handle


def snapshot(store: kvi.Kvi) -> dict[str, bytes | None]:
    """All keys and values of a store, to show that something left it unchanged."""
    return {entry.key: entry.value for entry in store.range()}
