"""`update` and `atomically` on memory: what the suite cannot show on every store."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import kvi
import pytest
from kvi.loader import TypedView

from tests.support.inside import inmost
from tests.support.waiting import until


@pytest.fixture
def store() -> Iterator[kvi.Kvi]:
    """An empty one."""
    with kvi.open(f"mem:{secrets.token_hex(6)}") as store:
        yield store


@pytest.mark.parametrize("error", [StopIteration("mine"), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_is_raised(store: kvi.Kvi, error: BaseException) -> None:
    """It comes out as it is, also what a coroutine could not raise."""

    def fail(_: object) -> Any:
        raise error

    for call in (lambda: store.update("k", fail), lambda: store.atomically(fail)):
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error
    assert store.count() == 0


def test_coroutine_functions_are_for_asyncio(store: kvi.Kvi) -> None:
    """They are refused with the mend, and nothing is left that was never awaited."""

    async def change(old: object) -> bytes:
        return b"v"

    for call in (
        lambda: store.update("k", change),  # type: ignore[arg-type]
        lambda: store.atomically(change),
    ):
        with pytest.raises(kvi.InvalidArgument, match=r"kvi\.aio"):
            call()
    assert store.count() == 0


def test_the_time_of_the_function_is_not_counted(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the store takes, and the pauses."""
    from kvi.flow import update

    moment = 0.0
    monkeypatch.setattr(update, "now", lambda: moment)

    def slowly(old: bytes) -> bytes:
        nonlocal moment
        moment += 100
        if old == b"0":
            store.store("k", "1")
        return old + b"!"

    entry = store.update("k", slowly, default="0", timeout=1)
    assert entry is not None
    assert entry.value == b"1!"


def test_no_write_is_sent_too_late(store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the time that a read has taken, what is sent might never be answered."""
    from kvi.flow import update

    moment = 0.0
    monkeypatch.setattr(update, "now", lambda: moment)
    real = store._do

    def slow(op: Any, timeout: float | None) -> Any:
        nonlocal moment
        moment += 0.6
        return real(op, timeout)

    monkeypatch.setattr(store, "_do", slow)

    def read_and_write(tx: kvi.Tx) -> None:
        tx.get("k")
        tx.put("k", b"v")

    calls: tuple[Callable[[], object], ...] = (
        lambda: store.update("k", lambda old: b"v", timeout=1),
        lambda: store.atomically(read_and_write, timeout=1),
    )
    for call in calls:
        with pytest.raises(kvi.Timeout, match="before anything was written"):
            call()
    assert store.count() == 0


def test_a_run_too_late_after_one_that_lost(
    store: kvi.Kvi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others were faster, and there is no time to write again: that is what it ends with."""
    from kvi.flow import update

    moment, took = 0.0, iter([0.1, 0.1, 0.6])
    monkeypatch.setattr(update, "now", lambda: moment)
    real = store._do

    def slow(op: Any, timeout: float | None) -> Any:
        nonlocal moment
        moment += next(took)
        return real(op, timeout)

    monkeypatch.setattr(store, "_do", slow)
    with kvi.open(store.uri) as other:

        def change(old: bytes | None) -> bytes:
            other.store("k", "theirs")
            return b"ours"

        with pytest.raises(kvi.Contention, match="1 times"):
            store.update("k", change, timeout=1)
        assert other.get("k").text == "theirs"  # type: ignore[union-attr]


def test_a_ttl_that_is_too_short_to_write(store: kvi.Kvi) -> None:
    """It is stretched by no more than half a second, and ends in one error, soon."""
    began = time.monotonic()
    assert store.store("k", "v", ttl=1e-9, timeout=20) > 0
    assert time.monotonic() - began < 5
    until(lambda: store.get("k") is None, within=5)

    def too_late(key: str, value: bytes, lease: int | None, timeout: float) -> int:
        raise kvi.LeaseLost("it is gone")

    inmost(store)._put = too_late
    with pytest.raises(kvi.Timeout, match="before the key was stored"):
        store.store("k", "v", ttl=0.1, timeout=20)


def test_errors_name_the_place(store: kvi.Kvi) -> None:
    """Those of kvi itself have the operation and the key."""
    with pytest.raises(kvi.InvalidArgument, match=r"\[update 'k' mem:"):
        store.update("k", lambda old: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(kvi.InvalidKey, match=r"\[atomically mem:"):
        store.atomically(lambda tx: tx.get(""))


def test_views_and_wrappers(store: kvi.Kvi) -> None:
    """A view's keys are its own; a `Backend` has them too, and its observers see the names."""
    with store.namespace("n") as view:
        view.update("k", lambda old: b"v")
        view.atomically(lambda tx: tx.put("l", tx.get("k").value))  # type: ignore[union-attr, arg-type]
    assert [entry.key for entry in store.range()] == ["n/k", "n/l"]
    with kvi.Backend(store.uri, path_prefix="b") as backend:
        assert backend.update("k", lambda old: b"v").key == "k"  # type: ignore[union-attr]
        assert backend.atomically(lambda tx: tx.get("k").value) == b"v"  # type: ignore[union-attr]


def test_typed(store: kvi.Kvi) -> None:
    """A view's function gets and gives values of its type; a bad record is an error."""
    view: TypedView[Any] = TypedView(store, kvi.JsonCodec())
    entry = view.update("k", lambda old: {**(old or {}), "b": 2}, default={"a": 1})
    assert entry is not None
    assert entry == view.get("k")
    assert entry.value == {"a": 1, "b": 2}
    assert view.update("k", lambda old: None) is None
    default: list[int] = []

    def append(old: Any) -> Any:
        old.append(1)
        return old

    for key in ("a", "b"):
        entry = view.update(key, append, default=default)
        assert entry is not None
        assert entry.value == [1]
    assert default == []

    async def change(old: object) -> object:
        return old

    with pytest.raises(kvi.InvalidArgument, match=r"kvi\.aio"):
        view.update("k", change)
    store.store("bad", b"{")
    with pytest.raises(kvi.BadRecord):
        view.update("bad", lambda old: 1)
    assert view.put("gone", 1, ttl=0.05) > 0
