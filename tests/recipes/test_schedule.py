"""The schedule: section 14 of the contract, on every store and both faces.

Clocks are set by the tests, so that nothing depends on when they run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import kvi
import pytest

from tests.recipes.conftest import FaceOf
from tests.support import looping
from tests.support.waiting import until

START = 1_000_000.0  # a multiple of ten
WITHIN = 60.0


class Clock:
    """What processes take for the time, each a bit off."""

    def __init__(self) -> None:
        self.time = START + 5

    def off_by(self, seconds: float) -> Callable[[], float]:
        """The clock of a machine."""
        return lambda: self.time + seconds


class Runner:
    """A process that runs a schedule."""

    def __init__(
        self,
        face: FaceOf,
        store: kvi.Kvi,
        clock: Callable[[], float],
        fn: Callable[[datetime], object] = lambda _: None,
        **options: Any,
    ) -> None:
        self.schedule = face.Schedule(store, "s", options.pop("when", 10), **options)
        self.schedule._flow.wall = clock
        self.ran: list[float] = []
        self._fn = fn
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether `run` has come to its end."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Close it; `run` ends soon."""
        self.schedule.close()
        until(lambda: self.ended, within=WITHIN)
        assert self.error is None

    def _run(self) -> None:
        try:
            self.schedule.run(self._note)
        except kvi.KviError as error:
            self.error = error

    def _note(self, time: datetime) -> object:
        assert time.tzinfo is UTC
        self.ran.append(time.timestamp())
        return self._fn(time)


def begun(store: kvi.Kvi) -> None:
    """Wait for the first run to have begun."""
    until(lambda: store.get("s/.kvi/last"), within=WITHIN)


def _has_run(runner: Runner, times: int) -> bool:
    return len(runner.ran) == times


def _tells(store: kvi.Kvi, time: float) -> bool:
    entry = store.get("s/.kvi/last")
    return entry is not None and b"%.1f" % time in (entry.value or b"")


@pytest.mark.parametrize("again", [False, True])
def test_each_time_runs_once(face: FaceOf, uri: str, ttl: float, again: bool) -> None:
    """Among processes whose clocks are a minute apart each time runs once, and none is missing."""
    clock = Clock()
    runners = [
        Runner(face, face.open(uri), clock.off_by(off), at_least_once=again, ttl=ttl, missed="all")
        for off in (0.0, 30.0, -30.0)
    ]
    store = face.open(uri)
    begun(store)

    def ran() -> list[float]:
        return sorted(time for runner in runners for time in runner.ran)

    for _ in range(5):
        clock.time += 10
        until(lambda: ran() and ran()[-1] >= clock.time + 30 - 10, within=WITHIN)
    for runner in runners:
        runner.stop()
    assert ran() == [ran()[0] + 10 * number for number in range(len(ran()))]


@pytest.mark.parametrize(
    ("missed", "expected"), [("last", [30]), ("all", [10, 20, 30]), ("skip", [])]
)
def test_missed_times(
    face: FaceOf, uri: str, ttl: float, missed: str, expected: list[float]
) -> None:
    """Of times that came while nobody ran: the latest, each, or none."""
    clock = Clock()
    store = face.open(uri)
    first = Runner(face, store, clock.off_by(0), missed=missed, ttl=ttl, when=100)
    begun(store)
    first.stop()
    assert first.ran == [], "nothing is missed before the first run"
    clock.time = START + 300 + ttl + 30
    last = START + 300
    second = Runner(face, store, clock.off_by(0), missed=missed, ttl=ttl, when=100)
    until(lambda: _tells(store, last), within=WITHIN)
    assert second.schedule.next_time().timestamp() == START + 400
    until(lambda: len(second.ran) >= len(expected))
    ran = second.schedule.last()
    second.stop()
    assert second.ran == [START + 10 * time for time in expected]
    assert ran == (datetime.fromtimestamp(last, UTC) if expected else None)


def test_cron_line(face: FaceOf, uri: str) -> None:
    """A cron line is in UTC; the next time and the last one are told."""
    clock = Clock()
    clock.time = datetime(2026, 3, 29, 4, 29, 50, tzinfo=UTC).timestamp()
    store = face.open(uri)
    due = datetime(2026, 3, 29, 4, 30, tzinfo=UTC)
    runner = Runner(face, store, clock.off_by(0), when="30 4 * * *")
    begun(store)
    assert runner.schedule.next_time() == due
    assert runner.schedule.last() is None
    clock.time += 20
    until(lambda: runner.ran == [due.timestamp()], within=WITHIN)
    assert runner.schedule.last() == due
    assert runner.schedule.next_time() == datetime(2026, 3, 30, 4, 30, tzinfo=UTC)
    runner.stop()


def test_errors_are_logged(face: FaceOf, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """What the function raises is logged, and the schedule goes on."""
    clock = Clock()
    store = face.open(uri)

    def fail(_: datetime) -> None:
        raise ValueError("as the test wants it")

    runner = Runner(face, store, clock.off_by(0), fail)
    begun(store)
    for number in (1, 2):
        clock.time += 10
        until(partial(_has_run, runner, number), within=WITHIN)
    runner.stop()
    assert caplog.text.count("as the test wants it") >= 2


def test_cancelled_within_the_function(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """A task that the function waits for is cancelled: the schedule goes on; it itself: it ends."""

    async def main() -> None:
        ran = list[datetime]()

        async def fail(time: datetime) -> None:
            ran.append(time)
            child = asyncio.create_task(asyncio.sleep(60))
            if len(ran) < 3:
                child.cancel()
            await child

        async with kvi.aio.open(uri) as store:
            schedule = kvi.aio.recipes.Schedule(store, "cancelled", 0.2)
            task = asyncio.create_task(schedule.run(fail))
            await looping.until(lambda: len(ran) == 3 or task.done(), within=WITHIN)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(ran) == 3
        assert caplog.text.count("'cancelled' failed") == 2

    asyncio.run(main())


def test_claimed_before_it_runs(face: FaceOf, uri: str) -> None:
    """A time is claimed before it runs: who looks meanwhile finds it done."""
    clock = Clock()
    store = face.open(uri)
    seen: list[bytes | None] = []
    with kvi.open(uri) as other:

        def look(_: datetime) -> None:
            entry = other.get("s/.kvi/last")
            seen.append(None if entry is None else entry.value)

        runner = Runner(face, store, clock.off_by(0), look)
        begun(store)
        clock.time += 10
        until(lambda: seen, within=WITHIN)
        runner.stop()
    assert b"1000010.0" in (seen[0] or b"")


def test_recorded_after_it_ran(face: FaceOf, uri: str, ttl: float) -> None:
    """At least once: what was lost before it was recorded runs again, by another."""
    clock, goes_on = Clock(), threading.Event()
    options: dict[str, Any] = {"at_least_once": True, "ttl": ttl}

    def wait(_: datetime) -> None:
        assert goes_on.wait(WITHIN)

    async def wait_in_loop(time: datetime) -> None:
        await asyncio.to_thread(wait, time)

    fn = wait_in_loop if face.name == "aio" else wait
    lost = Runner(face, face.open(uri), clock.off_by(0), fn, **options)
    store = face.open(uri)
    begun(store)
    clock.time += 10
    until(lambda: lost.ran, within=WITHIN)
    assert lost.schedule.last() is None
    other = Runner(face, store, clock.off_by(0), **options)
    with kvi.open(uri) as third:
        for entry in third.range(prefix="s/.kvi/"):
            if entry.lease is not None and b"holds" in (entry.value or b""):
                third._scope.primitives._lease_revoke(entry.lease, 5)
    until(lambda: other.ran == [START + 10], within=3 * ttl + WITHIN)
    until(lambda: other.schedule.last() == datetime.fromtimestamp(START + 10, UTC))
    goes_on.set()
    for runner in (lost, other):
        runner.stop()
    assert (lost.ran, other.ran) == ([START + 10], [START + 10])


def test_settings_are_of_all(face: FaceOf, uri: str) -> None:
    """Whoever comes with other times, or other ways, is refused, and told which."""
    store = face.open(uri)
    runner = Runner(face, store, Clock().off_by(0))
    begun(store)
    runner.stop()
    for when, options, told in (
        (20, {}, "when=10"),
        ("* * * * *", {}, "when=10"),
        (10, {"missed": "all"}, "missed='last'"),
        (10, {"at_least_once": True}, "at_least_once=False"),
    ):
        with pytest.raises(kvi.InvalidArgument, match=told):
            face.Schedule(store, "s", when, **options).next_time()
    with pytest.raises(kvi.InvalidArgument, match="when=10"):
        face.Schedule(store, "s", 20).run(lambda _: pytest.fail("not to be run"))


def test_closed_handle(face: FaceOf, uri: str) -> None:
    """Closing the handle ends `run` with `Closed`."""
    store = face.open(uri)
    runner = Runner(face, store, Clock().off_by(0))
    begun(store)
    store.close()
    until(lambda: runner.ended)
    assert isinstance(runner.error, kvi.Closed)


def test_what_is_left_is_bounded(face: FaceOf, uri: str) -> None:
    """Many times leave what one leaves."""
    clock = Clock()
    store = face.open(uri)
    runner = Runner(face, store, clock.off_by(0), missed="all")
    begun(store)
    clock.time += 300
    until(lambda: len(runner.ran) == 30, within=WITHIN)
    runner.stop()
    assert store.count(prefix="s") == 2
