"""`TypedView`: a store of values of one type."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import kvi
import pytest
from kvi.loader import Entry, TypedView


@pytest.fixture
def store() -> Iterator[kvi.Kvi]:
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        yield store


@pytest.fixture
def view(store: kvi.Kvi) -> TypedView[Any]:
    return TypedView(store, kvi.JsonCodec())


def test_reads_and_writes(store: kvi.Kvi, view: TypedView[Any]) -> None:
    """Values go in and come out decoded; all else is as the store says."""
    revision = view.put("k", {"n": 1})
    plain = store.get("k")
    assert plain is not None
    assert plain.json() == {"n": 1}
    entry = view.get("k")
    assert entry == Entry("k", {"n": 1}, revision, *plain[3:])
    assert view.decode(plain) == entry
    assert view.get("absent") is None
    assert view.cas("k", revision, {"n": 2}) is not None
    assert view.cas("k", revision, {"n": 3}) is None
    assert view.tas("k", {"n": 2}, {"n": 4})
    assert not view.tas("k", {"n": 2}, {"n": 5})
    assert view.tas("new", None, [])
    assert [(one.key, one.value) for one in view.range()] == [("k", {"n": 4}), ("new", [])]
    assert [one.key for one in view.range(prefix="n", reverse=True, limit=5)] == ["new"]
    assert view.range().revision == store.range().revision


def test_past(store: kvi.Kvi, view: TypedView[Any]) -> None:
    """What was comes out decoded, too; a bad record of the past is told with its key."""
    first = view.put("k", [1])
    view.put("k", [2])
    store.delete("k")
    assert view.get("k", revision=first) == Entry("k", [1], first, first, 1, None)
    assert [one.value for one in view.range(revision=first)] == [[1]]
    assert [event.value for event in view.history("k")] == [None, [2], [1]]
    assert [event.value for event in view.history("k", limit=2)] == [None, [2]]
    store.store("k", b"{")
    with pytest.raises(kvi.BadRecord) as caught:
        view.history("k")
    assert caught.value.key == "k"


def test_in_transactions(store: kvi.Kvi, view: TypedView[Any]) -> None:
    """Conditions and puts take typed values."""
    view.put("k", [1])
    assert store.txn([view.equals("k", [1])], [view.put_op("k", [2])])
    assert not store.txn([view.equals("k", [1])], [view.put_op("k", [3])])
    lease = store.lease(60)
    assert store.txn([], [view.put_op("leased", 1, lease=lease)])
    view.put("leased", 2, lease=lease)
    lease.revoke()
    assert view.get("leased") is None


def test_bad_records(store: kvi.Kvi, view: TypedView[Any]) -> None:
    """What cannot be decoded is told with its key; a range can go on."""
    view.put("a", 1)
    store.store("b", b"{")
    view.put("c", 3)
    with pytest.raises(kvi.BadRecord, match="'b'") as caught:
        view.get("b")
    assert (caught.value.key, caught.value.operation) == ("b", "decode")
    with pytest.raises(kvi.BadRecord, match="'b'"):
        list(view.range())
    bad: list[kvi.BadRecord] = []
    assert [entry.value for entry in view.range(bad=bad.append)] == [1, 3]
    assert [error.key for error in bad] == ["b"]


def test_nothing_is_sent_that_cannot_be_encoded(store: kvi.Kvi, view: TypedView[Any]) -> None:
    """The error names the key, and the store is as it was."""
    with pytest.raises(kvi.InvalidArgument, match="'k'"):
        view.put("k", object())
    with pytest.raises(kvi.InvalidArgument, match="'k'"):
        view.tas("k", None, {1, 2})
    assert store.count() == 0


def test_watch(store: kvi.Kvi, view: TypedView[Any]) -> None:
    """Changes come decoded; a bad one raises, and the next one is the next."""
    view.put("a", 1)
    with view.watch(prefix="", initial=True) as watch:
        view.put("b", 2)
        store.store("c", b"{")
        store.delete("a")
        first, second = watch.next(5), next(watch)
        assert (first.key, first.value, first.initial) == ("a", 1, True)
        assert (second.key, second.value, second.initial) == ("b", 2, False)
        with pytest.raises(kvi.BadRecord, match="'c'"):
            watch.next(5)
        event = watch.next(5)
        assert (event.type, event.key, event.value) == (kvi.EventType.DELETE, "a", None)
        watch.cancel()
        assert list(watch) == []
    with view.watch("k") as watch, pytest.raises(kvi.Timeout):
        watch.next(0)


def test_resync_with_a_bad_record(view: TypedView[Any]) -> None:
    """The whole state comes, without what is bad, which is told beside."""
    snapshot = [kvi.KeyValue("a", b"1", 5, 5), kvi.KeyValue("b", b"{", 6, 6)]
    event = view._event(kvi.Event(kvi.EventType.RESYNC, "", None, 7, snapshot=snapshot))
    assert event.snapshot == [Entry("a", 1, 5, 5)]
    assert [error.key for error in event.bad] == ["b"]


def test_repr_tells_codec_and_store(view: TypedView[Any]) -> None:
    """Without secrets, as the handle does."""
    assert repr(view) == f"<TypedView JsonCodec() {view.store.uri}>"
