"""Handles that were opened with read_only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import kvi
import pytest
from kvi import Delete, Get, Key, Put
from kvi.model import Span
from kvi.ops import LeasesOp

WRITES: list[Callable[[kvi.Kvi], object]] = [
    lambda s: s.store("k", "w"),
    lambda s: s.delete("k"),
    lambda s: s.delete("none"),
    lambda s: s.delete_range(prefix="k"),
    lambda s: s.delete_range("k", "k"),
    lambda s: s.delete_range(end=""),
    lambda s: s.tas("k", "v", "w"),
    lambda s: s.tas("k", "not this", "w"),
    lambda s: s.cas("k", 10_000, "w"),
    lambda s: s.txn(then=[Put("k", "w")]),
    lambda s: s.txn([Key("k").absent], [Delete("k")]),
    lambda s: s.txn([Key("k").exists], [Get("k")], [Put("k", "w")]),
    lambda s: s.transaction("k", "=", "v", "a", "b", "c", "d"),
    lambda s: s.lease(10),
    lambda s: s.temp_key("t"),
    lambda s: s.lock("l").acquire(timeout=0),
]

READS: list[Callable[[kvi.Kvi], object]] = [
    lambda s: s.get("k"),
    lambda s: list(s.range()),
    lambda s: s.count() == 1,
    lambda s: s.txn([Key("k").exists], [Get("k")]).succeeded,
    lambda s: s.tas("none", None, None),
    lambda s: next(s.watch("k", initial=True)),
    lambda s: s._do(LeasesOp((1,), Span()), None) == [],
]


@pytest.fixture(params=["option", "keyword", "view", "backend", "backend on a view"])
def handle(request: pytest.FixtureRequest) -> Iterator[kvi.Kvi]:
    """A handle that must not write, made in every way, on a store where ``k`` is ``v``."""
    name = "mem:read_only"
    with ExitStack() as stack:
        writer = stack.enter_context(kvi.open(name))
        writer.delete_range(prefix="")
        for key in ("k", "a/k", "a/b/k"):
            writer.store(key, "v")
        match request.param:
            case "option":
                made = kvi.open(f"{name}?read_only=yes&namespace=a/b")
            case "keyword":
                made = kvi.open(name, read_only=True, namespace="a/b", retry=None)
            case "view":
                made = stack.enter_context(kvi.open(name, read_only=True)).namespace("a/b")
            case "backend":
                made = kvi.Backend(f"{name}?read_only=on", "a/b")
            case _:
                outer = stack.enter_context(kvi.open(name, read_only=True))
                made = kvi.Backend(outer.namespace("a"), "b")
        yield stack.enter_context(made)
        assert writer.count() == 3
        assert {entry.revision for entry in writer.range()} == set(
            range(writer.range().revision - 2, writer.range().revision + 1)  # type: ignore[operator]
        )


@pytest.mark.parametrize("write", WRITES)
def test_what_could_write_is_refused(handle: kvi.Kvi, write: Callable[[kvi.Kvi], object]) -> None:
    """Whatever could write is PermissionDenied, also where it would not write this time."""
    with pytest.raises(kvi.PermissionDenied, match="read_only"):
        write(handle)


@pytest.mark.parametrize("read", READS)
def test_what_reads_works(handle: kvi.Kvi, read: Callable[[kvi.Kvi], object]) -> None:
    """Reading and watching is as ever."""
    assert read(handle)


def test_reservations_are_refused() -> None:
    """A backend on a store that must not be written to reserves nothing."""
    with (
        kvi.Backend("mem:read_only?read_only=yes") as backend,
        pytest.raises(kvi.PermissionDenied),
    ):
        backend.reserve("k", "v", 10)


def test_a_refusal_is_no_sign_of_life() -> None:
    """What is refused here proves nothing of the store, and no observer sees it."""
    with kvi.Backend("etcd://127.0.0.1:1?read_only=yes") as backend:
        with pytest.raises(kvi.PermissionDenied):
            backend.store("k", "w")
        assert not backend.alive
    with kvi.Backend("mem:read_only?read_only=yes") as backend:
        with pytest.raises(kvi.PermissionDenied):
            backend.store("k", "w")
        assert not backend.alive
        backend.ping()
        assert backend.alive


def test_entities_that_are_known_are_not_created() -> None:
    """`Loader.lock_or_create` could write, and is told so on any data."""
    with kvi.open("mem:read_only") as writer, kvi.open("mem:read_only", read_only=True) as store:
        writer.store("e/1", "1")
        loader = kvi.Loader(store, "e", kvi.TextCodec(), lambda text: text)
        loader.load()
        with pytest.raises(kvi.PermissionDenied) as caught:
            loader.lock_or_create("1")
        assert (caught.value.operation, caught.value.key) == ("lock_or_create", "e/1")
        handle = loader.lock("1", timeout=0)
        assert handle is not None
        assert handle.value == "1"


@pytest.mark.parametrize("value", ["maybe", 7, ""])
def test_bad_value_is_refused(value: object) -> None:
    """The option is true or false, and says so."""
    with pytest.raises(kvi.InvalidOption, match="read_only"):
        kvi.open("mem:", read_only=value)


def test_uri_is_shown_with_it() -> None:
    """The option is no secret."""
    with kvi.open("mem:x?read_only=yes") as store:
        assert "read_only=yes" in store.uri
