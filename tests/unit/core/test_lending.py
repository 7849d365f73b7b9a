"""What is on its way to the main thread when an exception ends the call goes to whoever asks next.

The exception is raised in the place of the step that ends the loan, the last one of the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import kvi
import pytest
from kvi.flow.watch import WatchFlow
from kvi.model import Event


class Interrupt(BaseException):
    """What a handler raises."""


def elsewhere(call: Callable[[], object]) -> object:
    """What a call gives in another thread, or its error."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:  # noqa: BLE001  (told to the test)
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return result[0] if result else "nothing in time"


def interrupted(flow: WatchFlow, event: Event) -> None:
    """The main thread is hit before it has the event."""
    raise Interrupt


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> kvi.Watch:
    """A watch with three events, the first of which is on its way."""
    store = kvi.open("mem:lending")
    watch = store.watch("k", initial=False)
    for number in range(3):
        store.store("k", f"{number}")
    with monkeypatch.context() as patch:
        patch.setattr(WatchFlow, "got", interrupted)
        with pytest.raises(Interrupt):
            watch.next(5)
    return watch


def number_of(event: object) -> bytes | None:
    """The value that was told."""
    assert isinstance(event, Event), event
    return event.value


def test_next_call_has_it(watch: kvi.Watch) -> None:
    """It is told once, in its place, and counts as told only then."""
    before = watch.revision
    assert number_of(watch.next(5)) == b"0"
    assert watch.revision == (before or 0) + 1
    assert [number_of(watch.next(5)) for _ in range(2)] == [b"1", b"2"]


def test_another_thread_has_it(watch: kvi.Watch) -> None:
    """It is told once, in its place, whichever thread asks next."""
    before = watch.revision
    assert number_of(elsewhere(lambda: watch.next(5))) == b"0"
    assert watch.revision == (before or 0) + 1
    assert number_of(watch.next(5)) == b"1"
    assert number_of(elsewhere(lambda: watch.next(5))) == b"2"


def test_who_waits_already_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for an event gets the one that the main thread could not take."""
    store = kvi.open("mem:lending")
    watch = store.watch("k")
    waits = threading.Event()
    got: list[Event] = []

    def take() -> None:
        waits.set()
        got.append(watch.next(10))

    thread = threading.Thread(target=take)
    with monkeypatch.context() as patch:

        def hit(flow: WatchFlow, event: Event) -> None:
            thread.start()
            waits.wait(10)
            raise Interrupt

        patch.setattr(WatchFlow, "got", hit)
        store.store("k", "only")
        with pytest.raises(Interrupt):
            watch.next(5)
    thread.join(10)
    assert [event.value for event in got] == [b"only"]


def test_no_event_behind_it_counts(watch: kvi.Watch) -> None:
    """The revision of a watch whose call was interrupted is that of what was told."""
    store = kvi.open("mem:lending")
    revision = watch.revision
    assert revision is not None
    watch.cancel()
    again = store.watch("k", from_revision=revision + 1)
    assert number_of(again.next(5)) == b"0"


def test_liveness_too() -> None:
    """An item of a liveness channel that was on its way goes to whoever asks next."""
    with kvi.Backend("mem:lending") as backend:
        channel = backend.enable_liveness_channel()
        assert len(channel) == 1
        # as `get` leaves it when it is hit before its last step
        item = channel._news.take(main=True)
        assert item is not None
        assert elsewhere(lambda: channel.get(0)) is item
        assert channel._news.take(main=True) is None
