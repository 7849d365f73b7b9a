"""The public types as `make types` checks them; run once, so that they are true too."""

from __future__ import annotations

from typing import Any, assert_type

import kvi
from kvi.registry import InstalledBackend


def test_types() -> None:
    """What a type checker believes of the interface is what programs get."""
    with kvi.open("mem:typing", timeout=3) as store:
        assert_type(store, kvi.Kvi)
        assert_type(store.store("k", "v"), int)
        assert_type(store.get("k"), kvi.KeyValue | None)
        assert_type(store.range(prefix="k"), kvi.RangeResult)
        for entry in store.range():
            assert_type(entry, kvi.KeyValue)
            assert_type(entry.value, bytes | None)
            assert_type(entry.text, str)
        assert_type(store.count(), int)
        assert_type(store.delete("x"), bool)
        assert_type(store.delete_range(prefix="x"), int)
        assert_type(store.tas("k", b"v", None), bool)
        assert_type(store.cas("k", 0, b"v"), int | None)
        done = store.txn([kvi.Key("k").exists], [kvi.Put("k", b"w"), kvi.Get("k")])
        assert_type(done, kvi.TxnResult)
        assert_type(done.results, tuple[kvi.KeyValue | int | bool | None, ...])
        assert_type(kvi.Key("k").value == b"v", kvi.Compare)
        assert_type(kvi.Key("k").revision > 3, kvi.Compare)
        assert_type(store.transaction("k", "=", "v", "a", "1", "b", "2"), bool)
        assert_type(store.namespace("n"), kvi.Kvi)
        assert_type(store.capabilities, kvi.Capabilities)
        assert_type(store.client, Any)
        store.ping()
    assert_type(kvi.backends(), list[InstalledBackend])
