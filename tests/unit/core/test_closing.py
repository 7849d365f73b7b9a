"""Closing wakes who waits, at once and with `Closed`: whatever for, and on whichever thread.

No wait looks around by itself here, so that only being woken ends one.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import kvi
import pytest
from kvi import recipes
from kvi.coroutine import run
from kvi.driver import threads
from kvi.driver.threads import ThreadPort
from kvi.entities import cache

from tests.support.waiting import until
from tests.support.waits import WAITS, World, is_waiting

T = TypeVar("T")
_NEVER = 1000.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks around when it is woken."""
    monkeypatch.setattr(threads, "_SLICE", _NEVER)
    monkeypatch.setattr(cache, "_SLICE", _NEVER)


@pytest.fixture(params=["handle", "view", "view of a view", "store below a backend"])
def world(request: pytest.FixtureRequest) -> Iterator[tuple[World, Callable[[], None]]]:
    """A store, and what closes it."""
    name = f"mem:closing-{secrets.token_hex(6)}"
    with kvi.open(name) as handle, kvi.open(name) as other:
        match request.param:
            case "handle":
                yield World(handle, other, recipes, []), handle.close
            case "view":
                view = handle.namespace("v")
                yield World(view, other.namespace("v"), recipes, []), view.close
            case "view of a view":
                view = handle.namespace("v")
                inner = view.namespace("w")
                yield World(inner, other.namespace("v/w"), recipes, []), view.close
            case "store below a backend":
                yield World(kvi.Backend(handle), other, recipes, []), handle.close


def ended(call: Callable[[], object], *, main: bool, close: Callable[[], None]) -> object:
    """What becomes of a call that waits when something is closed: a result, or an error."""
    told: list[object] = []

    def wait() -> None:
        try:
            told.append(call())
        except kvi.KviError as error:
            told.append(error)

    waiter = threading.main_thread() if main else threading.Thread(target=wait, daemon=True)

    def wake() -> None:
        until(lambda: told or is_waiting(waiter.ident))
        close()

    if main:
        closer = threading.Thread(target=wake, daemon=True)
        closer.start()
        wait()
        closer.join(20)
    else:
        waiter.start()
        wake()
        waiter.join(20)
        assert not waiter.is_alive(), "it still waits"
    return told[0]


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another thread"])
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@pytest.mark.timeout(20)
def test_close_wakes(
    world: tuple[World, Callable[[], None]], wait: Callable[[World], Any], main: bool
) -> None:
    """A call that waits raises `Closed` once its handle, or one around it, is closed."""
    place, close = world
    assert isinstance(ended(lambda: wait(place), main=main, close=close), kvi.Closed)


def _next(world: World) -> object:
    return world.store.watch("k").next()


def _iteration(world: World) -> object:
    return list(world.store.watch("k"))


def _observation(world: World) -> object:
    return list(world.recipes.Election(world.store, "e", b"").observe())


def _members(world: World) -> object:
    return list(world.recipes.Group(world.store, "g").watch())


def _cache(world: World) -> object:
    copy = world.recipes.Cache(world.store, "c/")
    return copy.wait(world.peer.store("c", b"") + 1000)


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another thread"])
@pytest.mark.parametrize("wait", [_next, _iteration, _observation, _members, _cache])
@pytest.mark.timeout(20)
def test_close_ends(
    world: tuple[World, Callable[[], None]], wait: Callable[[World], Any], main: bool
) -> None:
    """Who waits for changes is woken too; an iteration ends."""
    place, close = world
    result = ended(lambda: wait(place), main=main, close=close)
    assert isinstance(result, kvi.Closed | list)


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another thread"])
@pytest.mark.parametrize("below", [True, False], ids=["the store", "the backend"])
@pytest.mark.timeout(20)
def test_close_wakes_readers_of_the_liveness_channel(main: bool, below: bool) -> None:
    """Also if it is the store below that is closed, which knows of no channel."""
    with kvi.open(f"mem:closing-{secrets.token_hex(6)}") as store:
        backend = kvi.Backend(store)
        channel = backend.enable_liveness_channel()
        channel.get()  # the present state
        close = store.close if below else backend.close
        assert isinstance(ended(channel.get, main=main, close=close), kvi.Closed)


def test_wake_before_the_wait() -> None:
    """A flow that is woken right before it waits does not wait."""
    port = ThreadPort()
    signal = port.signal()
    port.wake()
    assert run(signal.wait(_NEVER)) in (True, False)


# -- entities --------------------------------------------------------------------------------------

ENTITY = {"id": 1}


def _ref(entities: kvi.Loader[int, Any]) -> object:
    with kvi.lock_many(entities.at(0), entities.at(1)):
        return None


ENTITIES: dict[str, Callable[[kvi.Loader[int, Any]], object]] = {
    "lock": lambda entities: entities.lock(1),
    "lock with a time-out": lambda entities: entities.lock(1, 1000),
    "lock_or_create": lambda entities: entities.lock_or_create(ENTITY),
    "lock_many of the loader": lambda entities: entities.lock_many([0, 1]),
    "lock_many": _ref,
}


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another thread"])
@pytest.mark.parametrize("what", ["the store", "a view", "the store of a view", "the loader"])
@pytest.mark.parametrize("wait", ENTITIES.values(), ids=ENTITIES)
@pytest.mark.timeout(20)
def test_close_wakes_who_waits_for_an_entity(
    what: str, wait: Callable[[kvi.Loader[int, Any]], object], main: bool
) -> None:
    """Each who waits gets `Closed`, and holds nothing; who holds it can unlock it."""
    with kvi.open(f"mem:closing-{secrets.token_hex(6)}") as store:
        view = store.namespace("v") if "view" in what else store
        entities = kvi.Loader(view, "e", kvi.JsonCodec(), lambda one: int(one["id"]))
        handle = on_a_thread(lambda: entities.lock_or_create(ENTITY)[0])
        slots = entities._flow.records.cache._slots
        second: list[object] = []

        def wait_too() -> None:
            try:
                entities.lock(1)
            except kvi.Closed as error:
                second.append(error)

        behind = threading.Thread(target=wait_too, daemon=True)

        def close() -> None:
            behind.start()  # each who waits is woken, not the first of them only
            until(lambda: len(slots["1"].waiting) == 2)
            {
                "the store": store.close,
                "a view": view.close,
                "the store of a view": store.close,
                "the loader": entities.close,
            }[what]()

        result = ended(lambda: wait(entities), main=main, close=close)
        assert isinstance(result, kvi.Closed)
        assert result.key in ("v/e/1", "e/1", None)
        behind.join(20)
        assert second
        until(lambda: not slots["1"].waiting)
        assert handle._flow.held
        handle.unlock()
        until(lambda: all(slot.hold is None for slot in list(slots.values())))
        if what == "the loader":
            again = kvi.Loader(view, "e", kvi.JsonCodec(), lambda one: int(one["id"]))
            with again.lock_many([0, 1]) as handles:
                assert handles[1].value == ENTITY


def on_a_thread(call: Callable[[], T]) -> T:
    """What a call gives on a thread of its own, which has ended then."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(20)
    return results[0]
