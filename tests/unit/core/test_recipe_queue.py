"""Queues on a store that fails, whose answers are lost, and whose callers leave."""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi import aio
from kvi.aio import recipes as awaited
from kvi.call import Call
from kvi.ops import Op
from kvi.port import Port
from kvi.recipes import Job, Queue

from tests.support.faulty import Faulty
from tests.support.looping import in_loop
from tests.support.looping import until as until_in_loop
from tests.support.waiting import until

LOST, AWAY = kvi.OutcomeUnknown("lost"), kvi.Unavailable("away")
DENIED = kvi.PermissionDenied("no more")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Faulty]:
    """A store that fails as a test wants it."""
    memory = f"mem:{secrets.token_hex(8)}"
    with kvi.open(memory if request.param == "memory" else f"sqlite:{tmp_path}/store") as handle:
        yield Faulty(handle)


def broken() -> None:
    """What a store says that somebody has to mend."""
    raise kvi.Unavailable("the disk is full", passing=False)


def got(queue: Queue) -> Job:
    """The job that is next."""
    job = queue.get(0)
    assert job is not None
    return job


def end_lease(store: kvi.Kvi, job: Job) -> None:
    """Let the lease of a job end at the store, as an operator does."""
    (entry,) = store.range(prefix="q/.kvi.by/")
    assert entry.key.endswith(job.id)
    assert entry.lease is not None
    store._scope.primitives._lease_revoke(entry.lease, 5)


def leases(store: Faulty) -> int:
    """How many leases were granted and not revoked by this handle."""
    return store.times("lease_grant") - store.times("lease_revoke")


# -- the end of a job -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AWAY, DENIED], ids=["away", "denied"])
@pytest.mark.parametrize("applied", [True, False])
def test_ack_whose_answer_is_lost(store: Faulty, applied: bool, error: kvi.KviError) -> None:
    """It is settled by asking again, within one call or by the next."""
    queue = Queue(store, "q")
    for unsettled in (False, True):
        queue.put("a")
        job = got(queue)
        (store.loses if applied else store.fails)("queue_ack", LOST)
        if unsettled:
            store.fails("queue_ack", *([None] if applied else []), error)
            with pytest.raises(kvi.OutcomeUnknown):
                job.ack()
            assert not job.held
            assert not job.lost.is_set()
            with pytest.raises(kvi.NotHeld):
                _ = job.guard
        job.ack()
        job.ack()
        assert not job.lost.is_set()
        assert queue.count() == 0
        assert queue.get(0) is None


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("delay", [0, 1000])
def test_nack_whose_answer_is_lost(store: Faulty, applied: bool, delay: float) -> None:
    """So is giving back, which then is done once."""
    queue = Queue(store, "q")
    for unsettled in (False, True):
        queue.put("a")
        job = got(queue)
        (store.loses if applied else store.fails)("queue_nack", LOST)
        if unsettled:
            store.fails("queue_nack", *([None] if applied else []), AWAY)
            with pytest.raises(kvi.OutcomeUnknown):
                job.nack(delay)
            assert not job.held
        job.nack(delay)
        with pytest.raises(kvi.NotHeld):
            job.nack(delay)
        assert queue.count() == 1
        again = queue.get(0)
        assert (again is None) is (delay > 0)
        if again is not None:
            assert again.attempt == 2
            again.ack()
        store.delete_range(prefix="q/")
        queue = Queue(store, "q")


@pytest.mark.parametrize("end", ["ack", "nack"])
def test_lost_while_in_doubt(store: Faulty, end: str) -> None:
    """If the one that was lost had not applied, and another has the job, the next one says so."""
    queue = Queue(store, "q")
    queue.put("a")
    job = got(queue)
    store.fails(f"queue_{end}", LOST, AWAY)
    with pytest.raises(kvi.OutcomeUnknown):
        getattr(job, end)()
    end_lease(store, job)
    other = got(queue)
    assert other.attempt == 2
    for _ in range(2):
        with pytest.raises(kvi.LeaseLost):
            getattr(job, end)()
    assert other.held
    other.ack()
    assert queue.count() == 0


@pytest.mark.parametrize("end", ["ack", "nack"])
def test_applied_and_the_lease_lost_in_doubt(store: Faulty, end: str) -> None:
    """If the one that was lost had applied, the next one says so, whoever has the job by now."""
    queue = Queue(store, "q")
    queue.put("a")
    job = got(queue)
    store.loses(f"queue_{end}", LOST)
    store.fails(f"queue_{end}", None, AWAY)
    with pytest.raises(kvi.OutcomeUnknown):
        getattr(job, end)()
    other = queue.get(0)
    assert (other is None) is (end == "ack")
    job._flow.let_go()  # as when its lease is lost
    getattr(job, end)()
    assert queue.count() == (end == "nack")


@pytest.mark.parametrize(("end", "other"), [("ack", "nack"), ("nack", "ack")])
def test_other_end_after_a_doubt(store: Faulty, end: str, other: str) -> None:
    """Who tries the other way after a lost answer is told what has become of the job."""
    queue = Queue(store, "q")
    queue.put("a")
    job = got(queue)
    store.loses(f"queue_{end}", LOST)
    store.fails(f"queue_{end}", None, AWAY)
    with pytest.raises(kvi.OutcomeUnknown):
        getattr(job, end)()
    with pytest.raises(kvi.NotHeld, match="already") as caught:
        getattr(job, other)()
    assert not isinstance(caught.value, kvi.LeaseLost)
    assert queue.count() == (end == "nack")


def test_truth_is_told_again(store: Faulty) -> None:
    """What was told of a job's end is told to whoever asks again."""
    queue = Queue(store, "q")
    queue.put("a")
    job = got(queue)
    job.nack()
    with pytest.raises(kvi.NotHeld) as caught:
        job.ack()
    assert not isinstance(caught.value, kvi.LeaseLost)
    job = got(queue)
    end_lease(store, job)
    for _ in range(2):
        with pytest.raises(kvi.LeaseLost):
            job.ack()
    with pytest.raises(kvi.NotHeld):
        job.nack()


@pytest.mark.parametrize("error", [AWAY, kvi.Timeout("slow")])
def test_end_that_surely_failed(store: Faulty, error: kvi.KviError) -> None:
    """The job stays held, and can be ended."""
    queue = Queue(store, "q")
    queue.put("a")
    for end in ("nack", "ack"):
        job = got(queue)
        store.fails(f"queue_{end}", error)
        with pytest.raises(type(error)):
            getattr(job, end)()
        assert job.held
        assert store.txn([job.guard], [kvi.Put("x", "")])
        getattr(job, end)()
    assert queue.count() == 0


def test_block_that_raises_after_the_ack(store: Faulty) -> None:
    """The lease of a job that is done serves the next one, and nobody ends it once more."""
    queue = Queue(store, "q")
    queue.put("a")
    queue.put("b")
    following: list[Job] = []

    def work() -> None:
        with got(queue) as job:
            job.ack()
            following.append(got(queue))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    idle = threading.Event()
    store._runtime.post(idle.set)
    assert idle.wait(10)
    assert following[0].held
    following[0].ack()


def test_block_that_ends_the_job_itself(store: Faulty) -> None:
    """A job that the block has given back is not acknowledged at its end."""
    queue = Queue(store, "q")
    queue.put("a")
    with got(queue) as job:
        job.nack()
    with got(queue) as job:
        assert job.attempt == 2
        job.ack()
    assert queue.count() == 0


def test_block_whose_end_is_in_doubt(store: Faulty) -> None:
    """Nobody asks again, so a job that was not acknowledged is had by another soon."""
    queue = Queue(store, "q")
    queue.put("a")
    store.fails("queue_ack", LOST, AWAY)
    with pytest.raises(kvi.OutcomeUnknown) as caught, got(queue):
        pass
    assert caught.traceback  # which keeps the job
    again = queue.get(5)
    assert again is not None
    assert again.attempt == 2
    again.ack()


def test_threads_that_end_a_job_at_once(store: Faulty) -> None:
    """One of them does; the lease, which serves the next job by then, is left alone."""
    queue = Queue(store, "q")
    queue.put("a")
    queue.put("b")
    job = got(queue)
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if not inside.is_set():
            inside.set()
            assert go_on.wait(10)

    store.before["queue_ack"] = wait
    second: list[object] = []

    def end() -> None:
        try:
            second.append(job.ack())  # type: ignore[func-returns-value]
        except kvi.NotHeld as error:
            second.append(error)

    thread = threading.Thread(target=end)
    thread.start()
    assert inside.wait(10)
    job.ack()
    following = got(queue)
    go_on.set()
    thread.join(10)
    assert second == [None], "it is done"
    assert following.held
    following.ack()


def test_no_loss_is_told_of_a_job_that_is_done(store: Faulty) -> None:
    """A renewal between an acknowledgement and its answer finds no claim, and that is no loss."""
    queue = Queue(store, "q", ttl=3)
    queue.put("a")
    job = got(queue)
    told: list[object] = []
    job.lost.add_callback(lambda: told.append(1))
    calls = store.times("lease_renew")

    def renewed() -> None:
        until(lambda: store.times("lease_renew") >= calls + 2, within=30)

    store.after["queue_ack"] = renewed
    job.ack(timeout=60)
    assert not told
    assert not job.lost.is_set()


def test_dropped_before_anybody_has_it(store: Faulty) -> None:
    """A job whose caller is interrupted before it has it is given back."""
    queue = Queue(store, "q", ttl=0.3)
    queue.put("a")
    found = store._drive(lambda port: queue._flow.get(port, 0))
    assert found is not None
    del found
    gc.collect()
    again = queue.get(10)
    assert again is not None
    assert again.attempt == 2
    again.ack()


# -- getting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [True, False])
def test_claim_whose_answer_is_lost(store: Faulty, applied: bool) -> None:
    """It is settled: the first job is had, at its first attempt."""
    queue = Queue(store, "q")
    queue.put("a")
    queue.put("b")
    (store.loses if applied else store.fails)("queue_get", LOST)
    job = got(queue)
    assert (job.value, job.attempt) == (b"a", 1)
    job.ack()
    assert got(queue).value == b"b"


@pytest.mark.parametrize("applied", [True, False])
def test_claim_that_cannot_be_settled(store: Faulty, applied: bool) -> None:
    """The caller has no job, and is told so; the job is had by the next."""
    queue = Queue(store, "q")
    queue.put("a")
    (store.loses if applied else store.fails)("queue_get", LOST)
    store.fails("get", AWAY)
    with pytest.raises(kvi.Unavailable):
        queue.get(0)
    job = queue.get(10)
    assert job is not None
    assert job.attempt == 1 + applied
    job.ack()


@pytest.mark.parametrize("name", ["queue_recover", "lease_grant"])
def test_doubt_of_what_claims_nothing(store: Faulty, name: str) -> None:
    """What is done on the way to a job leaves no doubt whether there was one."""
    queue = Queue(store, "q")
    queue.put("a")
    if name == "queue_recover":
        end_lease(store, got(queue))
        store.loses(name, LOST)
    else:
        store.fails(name, LOST)
    with pytest.raises(kvi.Unavailable):
        queue.get(0)
    got(queue).ack()


def test_lease_that_has_ended_before_its_job(store: Faulty) -> None:
    """A lease that waited for a job, and was ended meanwhile, does not change whose turn it is."""
    queue = Queue(store, "q")
    queue.put("x")
    job = got(queue)
    lease = job._flow.lease.id
    job.ack()
    store._scope.primitives._lease_revoke(lease, 5)
    queue.put("a")
    queue.put("b")
    assert [got(queue).value, got(queue).value] == [b"a", b"b"]


def test_last_look(store: Faulty) -> None:
    """Who stands behind a waiter that hangs is not told that there is no job while there is one."""
    queue, hanging = Queue(store, "q"), Queue(store, "q")
    inside = threading.Event()
    real, gate = hanging._flow._patiently, threading.Event()

    async def hang(port: Port, deadline: float) -> Any:
        inside.set()
        while not gate.is_set():
            await port.sleep(0.01)
        return await real(port, deadline)

    hanging._flow._patiently = hang  # type: ignore[method-assign]
    first = threading.Thread(target=hanging.get, args=(20,))
    first.start()
    assert inside.wait(10)
    found: list[Job | None] = []
    second = threading.Thread(target=lambda: found.append(queue.get(1)))
    second.start()
    until(lambda: store.count(prefix="q/.kvi/") == 3)
    queue.put("a")
    second.join(20)
    assert [one.value for one in found if one] == [b"a"]
    gate.set()
    queue.put("b")
    first.join(20)


def test_no_herd(store: Faulty) -> None:
    """A job wakes one of those who wait; the others ask the store nothing."""
    queue = Queue(store, "q")
    found: list[Job | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(Queue(store, "q").get(30))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    until(lambda: store.count(prefix="q/.kvi/") == 9)  # settings, and those who wait
    asked = store.times("range")
    for number in range(8):
        queue.put(f"{number}")
    for thread in threads:
        thread.join(30)
    assert sorted(one.value for one in found if one) == [b"%d" % number for number in range(8)]
    assert store.times("range") - asked <= 8 * 10, "each asks a few times, in its turn"


def test_wait_survives_the_store(store: Faulty) -> None:
    """Who waits already goes on waiting while the store cannot be reached."""
    queue = Queue(store, "q")
    found: list[Job | None] = []
    thread = threading.Thread(target=lambda: found.append(queue.get(30)))
    thread.start()
    until(lambda: store.times("watch"))
    store.fails("range", *[AWAY] * 10)
    queue.put("a")
    thread.join(10)
    assert [one.value for one in found if one] == [b"a"]


def test_wait_ends_where_somebody_has_to_mend_the_store(store: Faulty) -> None:
    """Waiting on would be for ever, and nobody would know why."""
    queue = Queue(store, "q")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.get)
        until(lambda: store.times("watch"))
        store.before["range"] = broken
        store.store("q/.kvi.items/r/wake", b"")
        try:
            with pytest.raises(kvi.Unavailable, match="the disk is full"):
                waiting.result(10)
        finally:
            store.before.clear()
    until(lambda: not [one for one in store.range(prefix="q/") if one.lease])


# -- putting --------------------------------------------------------------------------------------


@in_loop
async def test_puts_whose_answers_come_in_another_order() -> None:
    """Tasks, as threads, that share a `Queue` never give two jobs one id."""
    late: dict[str, list[asyncio.Event]] = {}  # by task: what the answers of its puts wait for
    waits: list[str] = []

    class Late:
        is_short = False

        async def execute(self, op: Op[Any], call: Call) -> Any:
            found = await inner.execute(op, call)
            task = asyncio.current_task()
            assert task is not None
            if op.name == "queue_put" and late.get(task.get_name()):
                waits.append(task.get_name())
                await late[task.get_name()].pop(0).wait()
            return found

    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        inner, store._scope.executor = store._scope.executor, Late()
        queue, other = awaited.Queue(store, "q"), awaited.Queue(store, "q")
        ids = [await queue.put(b"1"), await other.put(b"2")]
        first, second, third = (asyncio.Event() for _ in range(3))
        late |= {"refused": [first, second], "put": [third]}
        refused = asyncio.create_task(queue.put(b"3"), name="refused")
        await until_in_loop(lambda: waits == ["refused"])
        ids.append(await queue.put(b"4"))
        put = asyncio.create_task(queue.put(b"5"), name="put")
        await until_in_loop(lambda: waits == ["refused", "put"])
        first.set()
        await until_in_loop(lambda: waits == ["refused", "put", "refused"])
        third.set()
        ids += [await put, await queue.put(b"6")]
        second.set()
        ids.append(await refused)
        assert len(set(ids)) == len(ids)
        assert await queue.count() == len(ids)


@pytest.mark.parametrize("error", [AWAY, DENIED], ids=["away", "denied"])
def test_put_in_doubt_that_cannot_be_settled(store: Faulty, error: kvi.KviError) -> None:
    """What keeps a job with ``dedup`` from being settled does not make it sure that it failed."""
    queue = Queue(store, "q")
    queue.put("x")
    store.loses("queue_put", LOST)
    store.fails("queue_put", None, error)
    store.fails("get", AWAY)
    with pytest.raises(kvi.OutcomeUnknown):
        queue.put("a", dedup="a")
    assert queue.put("a", dedup="a").endswith("1")
    assert queue.count() == 2


@pytest.mark.parametrize("applied", [True, False])
def test_put_whose_answer_is_lost(store: Faulty, applied: bool) -> None:
    """With ``dedup`` it is put once, else its fate is unknown."""
    queue = Queue(store, "q")
    lose = store.loses if applied else store.fails
    lose("queue_put", LOST)
    queue.put("a", dedup="a")
    queue.put("b")
    assert queue.count() == 2
    lose("queue_put", LOST)
    with pytest.raises(kvi.OutcomeUnknown):
        queue.put("c")
    assert queue.count() == 2 + applied


def test_delay_that_is_over_before_the_job_is_there(store: Faulty) -> None:
    """The job is put, or given back, at once."""
    queue = Queue(store, "q")

    def end() -> None:
        store._scope.primitives._lease_revoke(granted[-1], 5)

    granted: list[int] = []
    real = store._scope.primitives._lease_grant

    def grant(ttl: float, timeout: float) -> Any:
        found = real(ttl, timeout)
        granted.append(found.id)
        return found

    store._scope.primitives._lease_grant = grant  # type: ignore[method-assign]
    store.before["queue_put"] = end
    queue.put("a", delay=5)
    del store.before["queue_put"]
    job = got(queue)
    store.before["queue_nack"] = end
    job.nack(5)
    assert got(queue).attempt == 2


def test_delay_of_nothing(store: Faulty) -> None:
    """If nothing is put, no lease is left; one that a job stands on outlives the handle."""
    queue = Queue(store, "q")
    queue.put("a", dedup="a")
    queue.put("b", dedup="a", delay=1000)
    until(lambda: leases(store) == 0)
    store.fails("queue_put", AWAY)
    with pytest.raises(kvi.Unavailable):
        queue.put("c", delay=1000)
    until(lambda: leases(store) == 0)


def test_delay_outlives_the_handle() -> None:
    """A job that was put with a delay, or given back with one, is delayed beyond `close`."""
    name = f"mem:{secrets.token_hex(8)}"
    with kvi.open(name) as other:
        with kvi.open(name) as store:
            queue = Queue(store, "q")
            queue.put("a")
            queue.put("b", delay=1000)
            got(queue).nack(1000)
        assert Queue(other, "q").get(0) is None
        assert Queue(other, "q").count() == 2


@pytest.mark.parametrize("dedup", ["\x01" * 512, "ä" * 256], ids=["control", "umlauts"])
def test_largest(dedup: str) -> None:
    """A job of the largest value, and with the longest ``dedup``, can be put and had."""
    with kvi.open(f"mem:{secrets.token_hex(8)}") as handle:
        store = Faulty(handle)
        most = 4096
        store._scope.capabilities = replace(store._scope.capabilities, max_value=most)
        queue = Queue(store, "q")
        queue.put(b"v" * (most - 1024), dedup=dedup)
        for _ in range(11):
            got(queue).nack()
            assert max(len(one.value or b"") for one in store.range(prefix="q/")) <= most
        with pytest.raises(kvi.ValueTooLarge):
            queue.put(b"v" * (most - 1023))


@pytest.mark.parametrize("delay", [-1, float("nan"), True, "1"])
def test_bad_delay(store: Faulty, delay: Any) -> None:
    """A delay that is none is refused by its name."""
    queue = Queue(store, "q")
    queue.put("a")
    job = got(queue)
    calls: list[Callable[[], object]] = [
        lambda: queue.put("b", delay=delay),
        lambda: job.nack(delay),
    ]
    for call in calls:
        with pytest.raises(kvi.InvalidArgument, match="delay="):
            call()
    job.ack()


# -- asyncio --------------------------------------------------------------------------------------


@in_loop
async def test_cancelled_anywhere() -> None:
    """Whatever is cancelled, wherever: no job is lost, and all is gone in the end."""
    async with aio.open(f"mem:{secrets.token_hex(8)}") as store:
        queue = awaited.Queue(store, "q", ttl=5)

        async def work() -> None:
            job = await queue.get(0)
            if job is not None:
                async with job:
                    await asyncio.sleep(0)

        gc.freeze()  # what the other tests have left is not looked at each time
        for number in range(60):
            for flow in (queue.put(f"{number}", dedup=f"{number}", delay=number % 2), work()):
                task = asyncio.create_task(flow)
                for _ in range(number % 11):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await queue.put(f"{number}", dedup=f"{number}")
            gc.collect()
        gc.unfreeze()
        done = set[bytes]()
        while await queue.count():
            job = await queue.get(20)
            assert job is not None
            done.add(job.value)
            await job.ack()
        assert [one.key async for one in store.range()] == ["q/.kvi/next", "q/.kvi/settings"]
