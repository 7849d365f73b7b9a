"""The event that something was lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from math import inf, nan
from typing import Any

import kvi
import pytest
from kvi.aio.loss import AsyncLoss
from kvi.flow.loss import LossState
from kvi.sync.loss import Loss


class Held:
    """Something held, with its loss; call-backs run in the end, by `run`."""

    def __init__(self) -> None:
        self.gone = False
        self.closed = False
        self.called: list[Callable[[], object]] = []
        self.state = LossState(self, lambda: self.gone)  # type: ignore[arg-type]  # all it needs
        self.loss = Loss(self.state, self)  # type: ignore[arg-type]  # all it needs

    def placed(self, error: kvi.KviError, operation: str, key: object) -> kvi.KviError:
        """An error with its place; for either face."""
        return error.located(operation, key, "mem:")

    _placed = placed

    def refusal(self) -> kvi.Closed:
        """What is raised once it is closed."""
        return kvi.Closed("it is closed")

    def post(self, function: Callable[[], object]) -> None:
        """What is soon, is now."""
        function()

    def call_back(self, function: Callable[[], object]) -> None:
        """Hand over."""
        self.called.append(function)

    def run(self) -> None:
        """Run the call-backs that were handed over."""
        while self.called:
            self.called.pop(0)()


class Waiter(threading.Thread):
    """Waits for a loss."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss
        self.result: bool | type[BaseException] | None = None
        self.start()

    def run(self) -> None:
        """Wait."""
        try:
            self.result = self.loss.wait(20)
        except kvi.KviError as error:
            self.result = type(error)


def test_computed_when_asked() -> None:
    """It is set from the moment when the clock says so, before anybody has noticed."""
    held = Held()
    assert not held.loss.is_set()
    assert "not lost" in repr(held.loss)
    held.gone = True
    assert held.loss.is_set()
    assert "not lost" not in repr(held.loss)
    held.gone = False
    assert held.loss.is_set(), "what was lost stays lost"


def test_call_backs() -> None:
    """Each is handed over once, in order, when the loss is noticed; a later one at once."""
    held = Held()
    order: list[int] = []
    for number in range(3):
        held.loss.add_callback(partial(order.append, number))
    held.run()
    assert not order
    held.gone = True
    assert not held.called, "nobody has looked yet"
    assert held.loss.is_set()
    assert held.loss.is_set()
    held.state.set()
    held.run()
    assert order == [0, 1, 2]
    held.loss.add_callback(lambda: order.append(3))
    held.run()
    assert order == [0, 1, 2, 3]


def test_giving_up_is_no_loss() -> None:
    """After the end nothing is lost, no call-back runs, and none is kept."""
    held = Held()
    held.loss.add_callback(lambda: None)
    held.state.end()
    held.gone = True
    held.state.set()
    held.loss.add_callback(lambda: None)
    assert not held.loss.is_set()
    assert not held.loss.wait(20), "at once: it cannot happen any more"
    assert not held.called
    assert not held.state._callbacks


def test_end_after_the_loss() -> None:
    """Giving up what is lost already does not make the loss undone."""
    held = Held()
    held.state.set()
    held.state.end()
    assert held.loss.is_set()
    assert held.loss.wait(0)


def test_forget() -> None:
    """For the next holder the call-backs of the last one are forgotten; the loss is not."""
    held = Held()
    held.loss.add_callback(lambda: None)
    held.state.forget()
    held.state.set()
    assert not held.called
    assert held.loss.is_set()


def test_wait() -> None:
    """Waiting ends with the loss, also if only the clock knows of it, or when the time is up."""
    held = Held()
    assert not held.loss.wait(0)
    assert not held.loss.wait(0.01)
    waiters = [Waiter(held.loss) for _ in range(3)]
    held.state.set()
    for waiter in waiters:
        waiter.join(20)
        assert waiter.result is True
    unnoticed = Held()
    waiter = Waiter(unnoticed.loss)
    unnoticed.gone = True
    waiter.join(20)
    assert waiter.result is True
    assert unnoticed.loss.wait()


@pytest.mark.parametrize("bad", [nan, -1, -inf, "1", [], True])
def test_bad_waits(bad: Any) -> None:
    """They are told apart from a wait, on both faces; nothing is left of them."""
    held = Held()
    with pytest.raises(kvi.InvalidArgument, match="timeout="):
        held.loss.wait(bad)
    with pytest.raises(kvi.InvalidArgument, match="timeout="):
        asyncio.run(AsyncLoss(held, held.state).wait(bad))  # type: ignore[arg-type]  # all it needs
    assert not held.state._callbacks


@pytest.mark.parametrize(("how", "result"), [("end", False), ("close", kvi.Closed)])
def test_waiting_for_what_will_not_come(how: str, result: object) -> None:
    """Who waits is woken when the holder gives it up, and gets Closed when the handle is closed."""
    held = Held()
    waiter = Waiter(held.loss)
    if how == "end":
        held.state.end()
    else:
        held.closed = True
    waiter.join(20)
    assert waiter.result is result


def test_loss_and_end_at_once() -> None:
    """However a loss and the giving up meet, each call-back runs once if lost, else never."""
    for _ in range(200):
        held = Held()
        held.loss.add_callback(lambda: None)
        threads = [
            threading.Thread(target=held.state.set),
            threading.Thread(target=held.state.set),
            threading.Thread(target=held.state.end),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held.called) == (1 if held.loss.is_set() else 0)


def test_errors_have_their_place() -> None:
    """Errors of what is no call to the store say where they come from as well."""
    store = kvi.open("mem:places")
    channel = kvi.Backend(store).enable_liveness_channel()
    channel.get()  # the present state
    lost = store.lease(20).lost
    sequence = kvi.recipes.Sequence(store, "numbers")
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: channel.get(0), "liveness"),
        (lambda: channel.get(-1), "liveness"),
        (lambda: lost.wait(-1), "wait"),
        (lambda: kvi.recipes.Semaphore(store, "few", 1).resize(0), "resize"),
    ]
    closed: list[tuple[Callable[[], object], str]] = [
        (channel.get, "liveness"),
        (sequence.next, "next"),
    ]
    for some in (calls, closed):
        for call, operation in some:
            with pytest.raises(kvi.KviError) as caught:
                call()
            error = caught.value
            assert (error.operation, error.uri) == (operation, "mem:places"), error
        store.close()
