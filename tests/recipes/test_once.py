"""The once: section 14 of the contract, on every store and both faces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import kvi
import pytest

from tests.recipes.conftest import FaceOf, at_once
from tests.support.waiting import until

WITHIN = 30.0


class Work:
    """What is done once: it goes on until the test lets it end."""

    def __init__(self, face: FaceOf, result: object) -> None:
        self.begun = threading.Event()
        self.goes_on = threading.Event()
        self.held: Any = None
        self.calls = 0
        self._result = result
        self.fn: Callable[[Any], object] = self._awaited if face.name == "aio" else self._called

    def _called(self, held: Any) -> object:
        self._begin(held)
        return self._end()

    async def _awaited(self, held: Any) -> object:
        self._begin(held)
        return await asyncio.to_thread(self._end)

    def _begin(self, held: Any) -> None:
        self.calls, self.held = self.calls + 1, held
        self.begun.set()

    def _end(self) -> object:
        assert self.goes_on.wait(WITHIN)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def standing(store: kvi.Kvi) -> list[int]:
    """The leases of those who would do it, in the order of their coming."""
    found = [one for one in store.range(prefix="m/.kvi/") if one.lease is not None]
    return [one.lease for one in sorted(found, key=lambda one: one.create_revision) if one.lease]


def never(_: object) -> str:
    """It is done already."""
    raise AssertionError("it was done again")


@pytest.mark.parametrize("result", [b"\0\xff", "text", None, ""])
def test_done_once(face: FaceOf, uri: str, result: Any) -> None:
    """One success is recorded, and everybody gets that result from then on."""
    store = face.open(uri)
    once = face.Once(store, "m")
    assert once.result() is None
    expected = result if isinstance(result, bytes) else (result or "").encode()
    assert once.run(lambda _: result) == expected
    assert once.run(never) == expected
    assert face.Once(face.open(uri), "m").run(never, 0) == expected
    assert once.result() == expected
    until(lambda: not standing(store))
    assert store.count(prefix="m/") == 2, "the settings and the result are all that is kept"


def test_one_of_many(face: FaceOf, uri: str) -> None:
    """Of many who come at once one does it, and all others wait for its result."""
    done: list[int] = []
    onces = [face.Once(face.open(uri, timeout=30), "m") for _ in range(4)]

    def run(number: int) -> Any:
        def fn(_: object) -> str:
            done.append(number)
            return f"{number}"

        return onces[number].run(fn, WITHIN)

    given = at_once(partial(run, number) for number in range(4))
    assert len(done) == 1
    assert given == [f"{done[0]}".encode()] * 4


def test_others_wait(face: FaceOf, uri: str) -> None:
    """While one does it, others wait, at most for their time; then they get its result."""
    store = face.open(uri)
    work = Work(face, "result")
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(face.Once(store, "m").run, work.fn)
        assert work.begun.wait(WITHIN)
        for timeout in (0, 0.3):
            with pytest.raises(kvi.LockTimeout):
                face.Once(store, "m").run(never, timeout)
        waiters = [pool.submit(face.Once(face.open(uri), "m").run, never) for _ in range(2)]
        until(lambda: len(standing(store)) == 3)
        assert work.held.held
        work.goes_on.set()
        assert {one.result(WITHIN) for one in (first, *waiters)} == {b"result"}
    assert not work.held.held
    until(lambda: not standing(store))


def test_error_lets_the_next_one_try(face: FaceOf, uri: str) -> None:
    """An error comes out of the call that had it, and the next one does it."""
    store = face.open(uri)
    bad, good = Work(face, ValueError("as the test wants it")), Work(face, "second")
    good.goes_on.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(face.Once(store, "m").run, bad.fn)
        assert bad.begun.wait(WITHIN)
        second = pool.submit(face.Once(store, "m").run, good.fn)
        until(lambda: len(standing(store)) == 2)
        bad.goes_on.set()
        with pytest.raises(ValueError, match="as the test wants it"):
            first.result(WITHIN)
        assert second.result(WITHIN) == b"second"
    assert (bad.calls, good.calls) == (1, 1)


def test_lost_turn(face: FaceOf, uri: str, ttl: float) -> None:
    """Who loses its turn records nothing, and is told; the next one's result is everybody's."""
    store = face.open(uri)
    late, good = Work(face, "late"), Work(face, "second")
    good.goes_on.set()
    with ThreadPoolExecutor(2) as pool:
        first: Future[bytes] = pool.submit(face.Once(store, "m", ttl=ttl).run, late.fn)
        assert late.begun.wait(WITHIN)
        guard = late.held.guard
        second = pool.submit(face.Once(face.open(uri), "m", ttl=ttl).run, good.fn)
        until(lambda: len(standing(store)) == 2)
        with kvi.open(uri) as other:
            other._scope.primitives._lease_revoke(standing(store)[0], 5)
        assert second.result(3 * ttl + WITHIN) == b"second"
        if store.capabilities.lock_delay_factor:
            assert not late.held.held, "where leases may end early, one waits for that"
        assert not store.txn([guard], [kvi.Put("x", "late")]).succeeded
        until(lambda: not late.held.held)
        late.goes_on.set()
        with pytest.raises(kvi.LeaseLost):
            first.result(WITHIN)
    assert face.Once(store, "m").result() == b"second"


def test_guarded_work(face: FaceOf, uri: str) -> None:
    """What is done can be written under the guard, while it is one's turn and no longer."""
    store = face.open(uri)
    work = Work(face, "result")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(face.Once(store, "m").run, work.fn)
        assert work.begun.wait(WITHIN)
        guard = work.held.guard
        assert store.txn([guard], [kvi.Put("x", "1")]).succeeded
        work.goes_on.set()
        assert first.result(WITHIN) == b"result"
    assert not store.txn([guard], [kvi.Put("x", "2")]).succeeded


def test_reset(face: FaceOf, uri: str) -> None:
    """A result that is forgotten is made again; forgetting nothing is no error."""
    once = face.Once(face.open(uri), "m")
    once.reset()
    assert once.run(lambda _: "first") == b"first"
    once.reset()
    assert once.result() is None
    assert once.run(lambda _: "second") == b"second"
