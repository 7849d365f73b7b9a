"""When a schedule is due: on the times alone, with clocks of a test's choice."""

from __future__ import annotations

import asyncio
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.aio import recipes as awaited
from kvi.policy.schedule import Decision, decide, times_of
from kvi.recipes import Schedule

from tests.support.faulty import Faulty
from tests.support.looping import in_loop
from tests.support.waiting import until

TEN, _ = times_of(10)
START = 1_000_000.0  # a multiple of ten


@pytest.mark.parametrize("missed", ["last", "all", "skip"])
def test_nothing_is_due(missed: Any) -> None:
    """Before the next time nothing is due, and the next one is told."""
    assert decide(TEN, START, START + 9.9, missed, 5) == Decision(START + 10, False, False)


@pytest.mark.parametrize("missed", ["last", "all", "skip"])
def test_due_in_time(missed: Any) -> None:
    """What is due in time runs."""
    assert decide(TEN, START, START + 10, missed, 5) == Decision(START + 10, True, True)


def test_missed_times() -> None:
    """Of several times the latest runs, or each, or none that is late."""
    now = START + 1007
    assert decide(TEN, START, now, "last", 5) == Decision(START + 1000, True, True)
    assert decide(TEN, START, now, "all", 5) == Decision(START + 10, True, True)
    assert decide(TEN, START, now, "skip", 5) == Decision(START + 1000, True, False)
    assert decide(TEN, START, now, "skip", 7) == Decision(START + 1000, True, True)


def test_years_of_minutes() -> None:
    """The latest of a million missed times is found at once."""
    minutely, _ = times_of("* * * * *")
    found = decide(minutely, 0.0, 1e9, "last", 5)
    assert found == Decision(1e9 - 1e9 % 60, True, True)


@pytest.mark.parametrize("interval", [0.001, 0.1, 0.3, 1 / 3, 0.7, 7, 86400 / 7, 1e9])
def test_times_grow(interval: float) -> None:
    """After a time comes a later one, also where products are rounded, and none is left out."""
    after, _ = times_of(interval)
    for number in range(1_700_000_000, 1_700_000_500):
        time = number * interval
        assert after(time) == (number + 1) * interval
        assert after(time - interval / 2) == time


def test_cron_lines_are_in_utc() -> None:
    """A cron line means times in UTC."""
    after, stored = times_of("30 4 * * *")
    assert stored == "30 4 * * *"
    noon = datetime(2026, 3, 29, 12, tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(after(noon), UTC) == datetime(2026, 3, 30, 4, 30, tzinfo=UTC)


@pytest.mark.parametrize("when", [0, -1, True, float("nan"), float("inf"), "x", "61 * * * *", None])
def test_bad_times(when: Any) -> None:
    """What is no time is refused, and named."""
    with kvi.open("mem:") as store, pytest.raises(kvi.InvalidArgument, match="when="):
        Schedule(store, "s", when)


def test_bad_settings() -> None:
    """So is a bad way with missed times."""
    with kvi.open("mem:") as store, pytest.raises(kvi.InvalidArgument, match="missed="):
        Schedule(store, "s", 1, missed="first")  # type: ignore[arg-type]


class Runner:
    """A process that runs a schedule, with a clock of its own."""

    def __init__(self, store: kvi.Kvi, offset: float = 0.0, **options: Any) -> None:
        self.schedule = Schedule(store, "s", 10, **options)
        self.offset = offset
        self.ran: list[float] = []
        self.fails = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, clock: list[float]) -> Runner:
        """Begin."""
        self.schedule._flow.wall = lambda: clock[0] + self.offset
        self._thread.start()
        return self

    def stop(self) -> None:
        """End it."""
        self.schedule.close()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.schedule.run(self._note)
        except kvi.PermissionDenied:  # of a test that lets it crash
            return

    def _note(self, time: datetime) -> None:
        self.ran.append(time.timestamp())
        if self.fails:
            raise ValueError("as the test wants it")


@pytest.mark.parametrize("again", [False, True])
def test_each_time_runs_once(again: bool) -> None:
    """Among processes whose clocks are a minute apart each time runs once."""
    name, clock = f"mem:{secrets.token_hex(8)}", [START + 5]
    with kvi.open(name) as store, kvi.open(name) as other:
        runners = [
            Runner(handle, offset, at_least_once=again).start(clock)
            for handle, offset in ((store, 0.0), (other, 30.0), (other, -30.0))
        ]
        reader = Schedule(store, "s", 10, at_least_once=again)
        until(lambda: store.get("s/.kvi/last"))
        for _ in range(6):
            clock[0] += 10

            def caught_up() -> bool:
                last = reader.last()
                return last is not None and last.timestamp() >= clock[0] + 30 - 10

            until(caught_up)
        for runner in runners:
            runner.stop()
        ran = sorted(time for runner in runners for time in runner.ran)
    assert len(set(ran)) == len(ran), "a time ran twice"
    assert ran == [ran[0] + 10 * number for number in range(len(ran))]


def test_what_it_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A run that fails is logged, counts as run, and the schedule goes on."""
    clock = [START + 5]
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        runner = Runner(store)
        runner.fails = True
        runner.start(clock)
        until(lambda: store.get("s/.kvi/last"))
        clock[0] += 10
        until(lambda: runner.ran == [START + 10])
        clock[0] += 10
        until(lambda: runner.ran == [START + 10, START + 20])
        runner.stop()
    assert "as the test wants it" in caplog.text


def test_claim_whose_answer_is_lost() -> None:
    """A claim that applied although its answer was lost is this one's, and runs once."""
    clock = [START + 5]
    with kvi.open(f"mem:{secrets.token_hex(8)}") as inner:
        store = Faulty(inner)
        runner = Runner(store).start(clock)
        until(lambda: inner.get("s/.kvi/last"))

        def lose() -> None:
            if '"by"' in inner.get("s/.kvi/last").text:  # type: ignore[union-attr]
                del store.after["schedule"]
                raise kvi.OutcomeUnknown("as the test wants it")

        store.after["schedule"] = lose
        clock[0] += 10
        until(lambda: runner.ran)
        assert "schedule" not in store.after
        runner.stop()
        assert runner.ran == [START + 10]


def test_claim_that_arrives_late() -> None:
    """A claim that nobody hears of until it has been sent again is this one's all the same."""
    clock = [START + 5]
    with kvi.open(f"mem:{secrets.token_hex(8)}") as inner:
        store = Faulty(inner)
        runner = Runner(store).start(clock)
        until(lambda: inner.get("s/.kvi/last"))
        late: list[kvi.Txn] = []
        execute = store._below.execute

        async def hold_back(op: Any, call: Any) -> Any:
            txn = getattr(op, "txn", None)
            if txn is not None and any(b'"by"' in getattr(one, "value", b"") for one in txn.then):
                late.append(txn)
                if len(late) == 1:
                    raise kvi.OutcomeUnknown("as the test wants it")
                inner._scope.primitives._txn(late[0], 5)  # the first comes right before it
            return await execute(op, call)

        store._below = SimpleNamespace(execute=hold_back)
        clock[0] += 10
        until(lambda: runner.ran)
        runner.stop()
        assert len(late) == 2
        assert runner.ran == [START + 10]


def test_store_that_somebody_has_to_mend() -> None:
    """What may pass is waited for; what does not is told to who runs it."""
    away, broken = kvi.Unavailable("away"), kvi.Unavailable("the disk is full", passing=False)
    with kvi.open(f"mem:{secrets.token_hex(8)}") as handle:
        store = Faulty(handle)
        store.fails("schedule", away, *[broken] * 1000)
        schedule = Schedule(store, "s", 10)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(schedule.run, lambda _: None)
            try:
                with pytest.raises(kvi.Unavailable, match="the disk is full"):
                    running.result(20)
            finally:
                schedule.close()


def test_skipped_times_did_not_run() -> None:
    """The last time that ran is told, not one that was skipped after it."""
    clock = [START + 5]
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        runner = Runner(store, missed="skip", ttl=6).start(clock)
        until(lambda: store.get("s/.kvi/last"))
        clock[0] += 10
        until(lambda: runner.ran)
        clock[0] += 1004
        before = store.get("s/.kvi/last")
        until(lambda: store.get("s/.kvi/last") != before)
        last = runner.schedule.last()
        runner.stop()
        assert runner.ran == [START + 10]
        assert last == datetime.fromtimestamp(START + 10, UTC)


def test_turn_that_was_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Who lost its turn while it ran records nothing, and another runs it."""
    clock = [START + 5]
    name = f"mem:{secrets.token_hex(8)}"
    with kvi.open(name) as handle, kvi.open(name) as inner:
        slow = Runner(handle, at_least_once=True)

        def lose(time: datetime) -> None:
            slow.ran.append(time.timestamp())
            slow.schedule.close()
            (mine,) = (one for one in inner.range(prefix="s/.kvi/") if one.lease is not None)
            inner.delete(mine.key)

        slow._note = lose  # type: ignore[method-assign]
        slow.start(clock)
        until(lambda: inner.get("s/.kvi/last"))
        clock[0] += 10
        until(lambda: not slow._thread.is_alive())
        assert slow.ran == [START + 10]
        assert "was not recorded" in caplog.text
        other = Runner(inner, at_least_once=True).start(clock)
        until(lambda: other.ran == [START + 10])
        other.stop()


def test_crash_before_it_is_recorded() -> None:
    """With ``at_least_once``, what was not recorded runs again, by another."""
    clock = [START + 5]
    name = f"mem:{secrets.token_hex(8)}"
    with kvi.open(name) as handle, kvi.open(name) as inner:
        store = Faulty(handle)
        broken = Runner(store, at_least_once=True).start(clock)
        until(lambda: inner.get("s/.kvi/last"))

        def crash() -> None:
            if broken.ran:
                raise kvi.PermissionDenied("as the test wants it")

        store.before["schedule"] = crash
        clock[0] += 10
        until(lambda: broken.ran)
        broken._thread.join(20)
        other = Runner(inner, at_least_once=True).start(clock)
        until(lambda: other.ran == [START + 10])
        other.stop()


def test_looking(caplog: pytest.LogCaptureFixture) -> None:
    """The last time and the next one are told in UTC."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as store:
        schedule = Schedule(store, "s", 10)
        schedule._flow.wall = lambda: START + 5
        assert schedule.last() is None
        assert schedule.next_time() == datetime.fromtimestamp(START + 10, UTC)
        schedule.close()
        schedule.run(lambda _: pytest.fail("it is closed"))


@in_loop
async def test_in_a_loop() -> None:
    """A coroutine function is awaited; closing the schedule ends `run`."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        schedule, clock = awaited.Schedule(store, "s", 10), [START + 5]
        schedule._flow.wall = lambda: clock[0]
        ran: list[datetime] = []

        async def note(time: datetime) -> None:
            await asyncio.sleep(0)
            ran.append(time)
            schedule.close()

        task = asyncio.create_task(schedule.run(note))
        while await store.get("s/.kvi/last") is None:
            await asyncio.sleep(0)
        clock[0] += 10
        await task
        assert ran == [datetime.fromtimestamp(START + 10, UTC)]
        assert await schedule.last() == ran[0]
