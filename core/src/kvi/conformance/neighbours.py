"""What stands around a namespace that tests work in, and must stay as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def within(root: kvi.Kvi, via: str) -> Iterator[kvi.Kvi]:
    """A view among neighbours, whose surroundings must stay as they are; or the store itself."""
    if via != "two views":
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


def snapshot(store: kvi.Kvi) -> dict[str, bytes | None]:
    """All keys and values of a store, to show that something left it unchanged."""
    return {entry.key: entry.value for entry in store.range()}
