"""The contract: a handle that must not write.

Each call of the table that could write is made by each of the ways. What counts is that it could,
not that it would: a test-and-set that fails, a range that is empty, an entity that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.rules import Rules
from kvi.conformance.trace import Trace, plain

Call = Callable[[kvi.Kvi], object]

READS: dict[str, Call] = {
    "get": lambda s: s.get("k").value == b"v",  # type: ignore[union-attr]
    "get of a missing key": lambda s: s.get("none") is None,
    "range": lambda s: [entry.key for entry in s.range()] == ["e/1", "k"],
    "count": lambda s: s.count() == 2,
    "txn that reads": lambda s: s.txn([kvi.Key("k").exists], [kvi.Get("k")]).results[0].key == "k",  # type: ignore[union-attr]
    "txn that compares": lambda s: not s.txn([kvi.Key("k").value == b"w"]),
    "tas that asks": lambda s: s.tas("none", None, None),
    "watch": lambda s: _first(s) == ("k", b"v"),
    "ping": lambda s: s.ping() is None,  # type: ignore[func-returns-value]
    "namespace": lambda s: s.namespace("e").get("1").value == b"1",  # type: ignore[union-attr]
    "lock, which asks nothing yet": lambda s: not s.lock("l").held,
    "Loader.load": lambda s: not _loader(s).load(),
    "Loader.lock": lambda s: _entity(s).value == "1",
}

WRITES: dict[str, Call] = {
    "store": lambda s: s.store("k", b"w"),
    "store of the same value": lambda s: s.store("k", b"v"),
    "store with a lease": lambda s: s.store("k", b"w", lease=1),
    "delete": lambda s: s.delete("k"),
    "delete of a missing key": lambda s: s.delete("none"),
    "delete_range by prefix": lambda s: s.delete_range(prefix=""),
    "delete_range by bounds": lambda s: s.delete_range("a", "z"),
    "delete_range of nothing": lambda s: s.delete_range(prefix="none"),
    "delete_range of empty bounds": lambda s: s.delete_range("k", "k"),
    "delete_range of crossed bounds": lambda s: s.delete_range("z", "a"),
    "tas": lambda s: s.tas("k", b"v", b"w"),
    "tas that deletes": lambda s: s.tas("k", b"v", None),
    "tas that creates": lambda s: s.tas("none", None, b"w"),
    "tas that fails": lambda s: s.tas("k", b"other", b"w"),
    "cas that creates": lambda s: s.cas("none", 0, b"w"),
    "cas that fails": lambda s: s.cas("k", 0, b"w"),
    "txn": lambda s: s.txn(then=[kvi.Put("k", b"w")]),
    "txn that deletes": lambda s: s.txn(then=[kvi.Get("k"), kvi.Delete("none")]),
    "txn with a write in the branch that does not run": lambda s: s.txn(
        [kvi.Key("k").absent], [kvi.Put("k", b"w")], [kvi.Get("k")]
    ),
    "txn with a write in `otherwise`": lambda s: s.txn(
        [kvi.Key("k").absent], [kvi.Get("k")], [kvi.Put("k", b"w")]
    ),
    "txn with a write in `otherwise` that does not run": lambda s: s.txn(
        [kvi.Key("k").exists], [kvi.Get("k")], [kvi.Delete("k")]
    ),
    "transaction": lambda s: s.transaction("k", "=", b"v", "k", b"w", "none", b"w"),
    "store with a ttl": lambda s: s.store("k", b"w", ttl=_ttl(s)),
    "update": lambda s: s.update("k", lambda old: b"w"),
    "update that does nothing": lambda s: s.update("none", lambda old: None),
    "atomically": lambda s: s.atomically(lambda tx: tx.put("k", b"w")),
    "atomically, without a write": lambda s: s.atomically(lambda tx: tx.get("k")),
    "lease": lambda s: s.lease(_ttl(s)),
    "lease that nobody renews": lambda s: s.lease(_ttl(s), keep_alive=False),
    "temp_key": lambda s: s.temp_key("t", b"w", ttl=_ttl(s)),
    "lock": lambda s: s.lock("l", ttl=_ttl(s)).acquire(timeout=0),
    "lock that waits": lambda s: s.lock("l", ttl=_ttl(s)).acquire(timeout=5),
    "lock in a view": lambda s: s.namespace("e").lock(ttl=_ttl(s)).acquire(timeout=0),
    "Loader.lock_or_create": lambda s: _loader(s).lock_or_create("2"),
    "Loader.lock_or_create of what is there": lambda s: _loaded(s).lock_or_create("1"),
    "Handle.update": lambda s: _entity(s).update("1"),
    "Handle.delete": lambda s: _entity(s).delete(),
    "commit": lambda s: _staged(s),
}

OF_BACKENDS: dict[str, Call] = {
    "Backend.reserve": lambda s: _backend(s).reserve("r", b"w", _ttl(s)),
    "Backend.reserve of what is there": lambda s: _backend(s).reserve("k", b"w", _ttl(s)),
}


class TestReadOnly(Rules):
    """A handle that was opened with ``read_only`` changes nothing."""

    @pytest.fixture(params=["handle", "option", "view", "backend", "view of a backend"])
    def reader(
        self, request: pytest.FixtureRequest, kvi_uri: str, root: kvi.Kvi, trace: Trace
    ) -> Iterator[kvi.Kvi]:
        """A handle that must not write, where ``k`` is ``v`` and ``e/1`` is ``1``."""
        within = {"view": "n/", "backend": "n/", "view of a backend": "n/m/"}
        prefix = within.get(request.param, "")
        root.store(f"{prefix}k", b"v")
        root.store(f"{prefix}e/1", b"1")
        with ExitStack() as stack:
            if request.param == "option":
                mark = "&" if "?" in kvi_uri else "?"
                reader = kvi.open(f"{kvi_uri}{mark}read_only=yes")
            else:
                reader = kvi.open(kvi_uri, read_only=True)
            reader = stack.enter_context(reader)
            if request.param == "view":
                reader = stack.enter_context(reader.namespace("n"))
            elif request.param == "backend":
                reader = stack.enter_context(kvi.Backend(reader, "n"))
            elif request.param == "view of a backend":
                backend = stack.enter_context(kvi.Backend(reader, "n"))
                reader = stack.enter_context(backend.namespace("m"))
            yield trace.handle(reader, "reader")

    @rule("handle.read-only")
    def test_reads_work(self, reader: kvi.Kvi) -> None:
        """Reading and watching is as through any other handle."""
        for name, read in READS.items():
            try:
                found = read(reader)
            except kvi.PermissionDenied as error:
                pytest.fail(f"{name}: reads nothing, but {error}")
            assert found, name

    @rule("handle.read-only")
    def test_nothing_can_be_written(self, reader: kvi.Kvi, root: kvi.Kvi) -> None:
        """Whatever could write is PermissionDenied, and the store is as it was.

        No key changes, nobody is told of a change, and reading goes on as before.
        """
        before = list(root.range())
        calls = WRITES | (OF_BACKENDS if isinstance(reader, kvi.Backend) else {})
        with root.watch(prefix="") as watch:
            for name, write in calls.items():
                try:
                    write(reader)
                except kvi.PermissionDenied:
                    continue
                except kvi.KviError as error:
                    pytest.fail(f"{name}: {type(error).__name__} instead of PermissionDenied")
                pytest.fail(f"{name}: done by a handle with read_only")
            assert list(root.range()) == before, "a call was refused, and wrote all the same"
            root.store("last", b"")
            assert watch.next(20).key == "last", "a call was refused, and made an event"
        assert reader.get("k").value == b"v"  # type: ignore[union-attr]


def _ttl(store: kvi.Kvi) -> float:
    return max(1.0, store.capabilities.lease_min_ttl)


def _first(store: kvi.Kvi) -> tuple[str, bytes | None]:
    with store.watch("k", initial=True) as watch:
        event = watch.next(20)
        return event.key, event.value


def _loader(store: kvi.Kvi) -> kvi.Loader[str, str]:
    return kvi.Loader(plain(store), "e", kvi.TextCodec(), lambda text: text)


def _loaded(store: kvi.Kvi) -> kvi.Loader[str, str]:
    loader = _loader(store)
    loader.load()
    return loader


def _entity(store: kvi.Kvi) -> kvi.Handle[str]:
    handle = _loader(store).lock("1", timeout=5)
    assert handle is not None
    return handle


def _staged(store: kvi.Kvi) -> None:
    handle = _entity(store)
    handle.stage("1")
    kvi.commit(handle)


def _backend(store: kvi.Kvi) -> kvi.Backend:
    assert isinstance(store, kvi.Backend)
    return store
