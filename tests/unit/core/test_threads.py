"""The thread driver: errands of the main thread, pools, signals, the scheduler."""

from __future__ import annotations

import _thread
import logging
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any

import kvi
import pytest
from kvi.call import Call
from kvi.clock import now
from kvi.coroutine import run
from kvi.driver import threads as module
from kvi.driver.threads import Errand, ThreadPort, Threads, ThreadSignal, is_main
from kvi.middleware.liveness import Monitored
from kvi.model import Claim, KeyValue, RangeResult, Scan, Txn, TxnResult
from kvi.ops import GetOp, Op, PingOp
from kvi.port import Cancelled, Flow, Port
from kvi.primitives import Primitives

from tests.support.backends import Smallest, opened
from tests.support.waiting import until

MAIN = threading.main_thread().ident


class Handle:
    """What errands are for."""

    closed = False

    def refusal(self) -> BaseException:
        """What the caller gets once it is closed."""
        return kvi.Closed("as the test wants it")


class Step:
    """A flow that goes on when it is told to, and what became of it."""

    def __init__(self, result: object = "result") -> None:
        self.result = result
        self.entered, self.go = threading.Event(), threading.Event()
        self.undone: list[object] = []
        self.thread: int | None = None

    async def __call__(self, port: Port) -> object:
        """Run, as a flow that does not look at its port."""
        self.thread = threading.get_ident()
        self.entered.set()
        assert self.go.wait(20)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def errand(self, handle: Handle, *, lasting: bool = False) -> Errand[object]:
        """An errand that runs it."""
        return Errand(self, self.undone.append, handle, lasting=lasting)


@pytest.fixture
def threads() -> Iterator[Threads]:
    """A runtime, whose threads have ended at the end."""
    threads = Threads()
    yield threads
    threads.stop()
    until(lambda: not alive(threads))


@pytest.fixture
def handle() -> Handle:
    return Handle()


def alive(threads: Threads, name: str = "") -> list[threading.Thread]:
    return [one for one in threads._threads() if one.is_alive() and one.name.startswith(name)]


def at_once(function: Callable[[], object]) -> Callable[[Port], Flow[object]]:
    async def flow(port: Port) -> object:
        return function()

    return flow


class Interrupted(Exception):
    """Raised by a signal handler."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[threading.Event], None]]:
    """Raise `Interrupted` in the main thread a moment after an event was set."""

    def handler(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    helpers: list[threading.Thread] = []

    def later(entered: threading.Event) -> None:
        def work() -> None:
            assert entered.wait(20)
            signal.pthread_kill(MAIN or 0, signal.SIGUSR1)

        helpers.append(threading.Thread(target=work))
        helpers[-1].start()

    yield later
    for helper in helpers:
        helper.join(20)
    signal.signal(signal.SIGUSR1, before)


# -- errands --------------------------------------------------------------------------------------


def test_result_and_error(threads: Threads, handle: Handle) -> None:
    """The caller gets what the flow returned, or the error that it raised; nothing is undone."""
    done = Step()
    done.go.set()
    assert threads.drive(done.errand(handle)) == "result"
    assert done.thread not in (None, threading.get_ident())
    failed = Step(KeyboardInterrupt("of the flow"))
    failed.go.set()
    with pytest.raises(KeyboardInterrupt) as caught:
        threads.drive(failed.errand(handle))
    assert caught.value is failed.result
    assert not done.undone + failed.undone
    assert not threads._ports


def test_context_of_the_caller(threads: Threads, handle: Handle) -> None:
    """The flow sees the caller's context variables, and what it sets stays with it."""
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    variable.set("caller's")

    def look() -> str:
        seen = variable.get()
        variable.set("flow's")
        return seen

    assert threads.drive(Errand(at_once(look), None, handle)) == "caller's"
    assert variable.get() == "caller's"


@pytest.mark.parametrize("result", ["result", kvi.Timeout("x")])
def test_caller_who_leaves_before_the_end(
    threads: Threads, handle: Handle, interrupt: Any, result: object
) -> None:
    """An exception of a signal handler reaches the caller at once; what the flow gets is undone."""
    step = Step(result)
    interrupt(step.entered)
    with pytest.raises(Interrupted):
        threads.drive(step.errand(handle))
    assert not step.undone
    step.go.set()
    if result == "result":
        until(lambda: step.undone)
    until(lambda: not alive(threads) or threads._flows._free)
    assert step.undone == (["result"] if result == "result" else [])
    assert not threads._ports


def test_caller_who_leaves_after_the_end(threads: Threads, handle: Handle) -> None:
    """The same, if the exception comes when the result was on its way."""
    step = Step()
    step.go.set()
    errand = step.errand(handle)
    errand()
    errand.port.cancelled = True
    threads._leave(errand)
    until(lambda: step.undone)
    errand.give_back()
    assert step.undone == ["result"]


def test_leaving_and_ending_at_once(threads: Threads, handle: Handle) -> None:
    """However they meet, what the caller has not got is given back once."""
    for _ in range(200):
        step = Step()
        errand = step.errand(handle)
        threads._flows.submit(errand)
        assert step.entered.wait(20)
        step.go.set()
        errand.port.cancelled = True
        threads._leave(errand)
        until(lambda: step.undone)  # noqa: B023  (it returns before the next)
        assert step.undone == ["result"]


def test_closing_wakes_the_caller(threads: Threads, handle: Handle) -> None:
    """The caller of what does not end gets the refusal at once; what comes later is undone."""
    step = Step()

    def close() -> None:
        assert step.entered.wait(20)
        handle.closed = True
        threads.wake()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(kvi.Closed):
        threads.drive(step.errand(handle))
    closing.join()
    step.go.set()
    until(lambda: step.undone == ["result"])


def test_lasting_errand(threads: Threads, handle: Handle, interrupt: Any) -> None:
    """One that is to come to its end does, whoever closes or leaves; its port lets it."""
    ended = threading.Event()
    step = Step()

    async def flow(port: Port) -> None:
        await step(port)
        await port.sleep(0)
        await port.perform(GetOp("k"), Smallest(kvi.open("mem:")), 1)
        ended.set()

    handle.closed = True
    threads.wake()
    interrupt(step.entered)
    with pytest.raises(Interrupted):
        threads.drive(Errand(flow, None, handle, lasting=True))
    step.go.set()
    assert ended.wait(20)


def test_cancelled_where_it_waits(threads: Threads, handle: Handle, interrupt: Any) -> None:
    """A flow whose caller has left is cancelled at its next look at the port, also if it waits."""
    waits, ended, done = (threading.Event() for _ in range(3))
    cancels: list[int] = []

    async def flow(port: Port) -> None:
        waits.set()
        try:
            while True:
                await port.sleep(60)
        finally:
            ended.set()

    interrupt(waits)
    with pytest.raises(Interrupted):
        threads.drive(Errand(flow, None, handle))
    assert ended.wait(20)

    class Slow(Smallest):
        def _get(self, key: str, timeout: float) -> KeyValue | None:
            waits.set()
            until(lambda: len(cancels) > 2)
            done.set()
            raise kvi.Unavailable("cancelled")

        def _cancel(self, thread: int) -> None:
            assert thread != threading.get_ident()
            cancels.append(thread)

    waits.clear()
    slow = Slow(kvi.open("mem:"))
    interrupt(waits)
    with pytest.raises(Interrupted):
        threads.drive(Errand(lambda port: port.perform(GetOp("k"), slow, 5), None, handle))
    assert done.wait(20), "its backend is told to end what it does there, until it does"
    told = len(cancels)
    port = ThreadPort()
    port.cancelled = True
    with pytest.raises(Cancelled):
        run(port.perform(GetOp("k"), slow, 5))
    assert len(cancels) == told


def test_no_thread_for_an_errand(
    threads: Threads, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of threads the caller's own has to do."""

    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        errand = Errand(at_once(threading.get_ident), None, handle)
        assert threads.drive(errand) != MAIN, "the one that was to start it does it"
        limited.setattr(_thread, "start_new_thread", refuse)
        until(lambda: not threads._flows._free)
        errand = Errand(at_once(threading.get_ident), None, handle)
        assert threads.drive(errand) == MAIN
    assert threads.drive(Errand(at_once(threading.get_ident), None, handle)) != MAIN


# -- the main thread ------------------------------------------------------------------------------


class Located(Smallest):
    """Notes in which thread each primitive runs."""

    in_place = frozenset(("get",))

    def __init__(self, store: kvi.Kvi) -> None:
        super().__init__(store)
        self.seen: list[tuple[str, bool]] = []

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        self.seen.append(("get", is_main()))
        return super()._get(key, timeout)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        self.seen.append(("range", is_main()))
        found = super()._range(scan, timeout)

        def pages() -> Iterator[list[KeyValue]]:
            for entry in found:
                self.seen.append(("page", is_main()))
                yield [entry]

        return RangeResult(found.revision, pages)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        self.seen.append(("txn", is_main()))
        return super()._txn(txn, timeout)

    def _watch(self, *args: Any) -> Any:
        self.seen.append(("watch", is_main()))
        return super()._watch(*args)

    def _lease_grant(self, *args: Any) -> Any:
        self.seen.append(("grant", is_main()))
        return super()._lease_grant(*args)

    def _lease_renew(self, *args: Any) -> Any:
        self.seen.append(("renew", is_main()))
        return super()._lease_renew(*args)

    def _lease_revoke(self, *args: Any) -> None:
        self.seen.append(("revoke", is_main()))
        super()._lease_revoke(*args)

    def _ping(self, timeout: float) -> None:
        self.seen.append(("ping", is_main()))
        super()._ping(timeout)

    def _close(self) -> None:
        self.seen.append(("close", is_main()))
        super()._close()


def use(store: kvi.Kvi) -> None:
    """Everything that a program can ask of a store."""
    store.get("k")
    store.store("k", "v")
    store.store("l", "v")
    assert len(list(store.range())) == 2
    store.count()
    store.tas("k", "v", "w")
    store.txn([kvi.Key("k").value == "w"], [kvi.Put("k", "x")])
    store.ping()
    with store.lease(60) as lease:
        lease.renew()
    store.temp_key("t").close()
    with store.lock("a"), store.watch("k", initial=True) as watch:
        watch.next(20)
    store.delete("k")
    store.delete_range(prefix="")
    view = store.namespace("view")
    view.get("k")
    view.store("k", "v")


def test_main_thread_is_never_inside_a_primitive() -> None:
    """It runs those alone that the backend has named as safe to be interrupted anywhere."""
    primitives = Located(kvi.open(f"mem:{secrets.token_hex(8)}"))
    with opened(primitives) as store:
        use(store)
    where = set(primitives.seen)
    assert {name for name, main in where if main} == {"get"}
    assert {name for name, main in where if not main} == {
        *("range", "page", "txn", "watch", "grant", "renew", "revoke", "ping", "close"),
    }


def test_other_threads_run_their_own_calls() -> None:
    """A point operation of another thread needs no hop."""
    seen: list[str] = []

    class Noting(Smallest):
        def _get(self, key: str, timeout: float) -> KeyValue | None:
            seen.append(threading.current_thread().name)
            return super()._get(key, timeout)

    with opened(Noting(kvi.open("mem:noting"))) as store:
        thread = threading.Thread(target=lambda: store.get("k"), name="caller's")
        thread.start()
        thread.join(20)
        store.get("k")
    assert seen == ["caller's", "kvi-flow"]


class _Claims(Smallest):
    """Notes the threads that claims are made on."""

    def __init__(self, store: kvi.Kvi) -> None:
        super().__init__(store)
        self.seen: list[str] = []

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        self.seen.append(threading.current_thread().name)
        return super()._lock_claim(name, lease, timeout)


class _Ends(_Claims):
    def _cancel(self, thread: int) -> None: ...


class _NeverWaits(_Claims):
    in_place = frozenset(["lock_claim"])


@pytest.mark.parametrize(
    ("kind", "where"), [(_Claims, "kvi-flow"), (_Ends, "caller's"), (_NeverWaits, "caller's")]
)
def test_other_threads_acquire_where_closing_ends_it(kind: type[_Claims], where: str) -> None:
    """A claim that closing cannot end is made on a thread of kvi's, as any of the main thread."""
    primitives = kind(kvi.open("mem:claims"))
    with opened(primitives) as store:
        thread = threading.Thread(target=store.lock("l").acquire, name="caller's")
        thread.start()
        thread.join(20)
        store.lock("other").acquire()
    assert primitives.seen == [where, "kvi-flow"]


class _CannotEnd(Smallest):
    """Its claims wait for the end of the handle; whoever tells them to end gets an error."""

    def __init__(self, store: kvi.Kvi) -> None:
        super().__init__(store)
        self.claims, self.over = threading.Event(), threading.Event()

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        self.claims.set()
        assert self.over.wait(20)
        raise kvi.Unavailable("the connection was closed")

    def _cancel(self, thread: int) -> None:
        raise OSError("the connection is gone by itself")

    def _close(self) -> None:
        self.over.set()
        super()._close()


def test_close_of_what_cannot_be_ended() -> None:
    """A store that raises where it is told to end a call is closed all the same, and in order."""
    primitives = _CannotEnd(kvi.open("mem:cannot-end"))
    ended: list[type[BaseException]] = []

    def acquire() -> None:
        try:
            store.lock("l").acquire()
        except kvi.KviError as error:
            ended.append(type(error))

    store = opened(primitives)
    lease = store.lease(60)
    store.store("leased", b"", lease=lease)
    thread = threading.Thread(target=acquire)
    thread.start()
    assert primitives.claims.wait(20)
    store.close()
    thread.join(20)
    assert ended == [kvi.Closed]
    assert primitives.over.is_set()
    with kvi.open("mem:cannot-end") as other:
        assert other.get("leased") is None


# -- signals --------------------------------------------------------------------------------------


def test_signal() -> None:
    """Set before or during a wait, once or often: one wait ends."""
    one = ThreadSignal()
    assert not run(one.wait(0))
    assert not run(one.wait(0.01))
    for _ in range(3):
        one.set()
    assert run(one.wait(20))
    assert not run(one.wait(0))
    setter = threading.Timer(0.02, one.set)
    setter.start()
    assert run(one.wait(20))
    setter.join()
    assert not one.wait_here(0)


def test_nothing_that_was_set_is_missed() -> None:
    """Who looks after each wait sees what was there before it was set."""
    one, seen = ThreadSignal(), 0
    total = [0]

    def work() -> None:
        for _ in range(5000):
            total[0] += 1
            one.set()

    thread = threading.Thread(target=work)
    thread.start()
    while seen < 5000:
        assert one.wait_here(20)
        seen = total[0]
    thread.join()


# -- threads for flows ----------------------------------------------------------------------------


def test_flows_never_wait_for_one_another(threads: Threads, handle: Handle) -> None:
    """However many block, the next has a thread; those without work end."""
    steps = [Step() for _ in range(50)]
    for step in steps:
        threads._flows.submit(step.errand(handle))
    for step in steps:
        assert step.entered.wait(20)
    assert len(alive(threads, "kvi-flow")) == 50
    assert threads.drive(Errand(at_once(lambda: 1), None, handle)) == 1
    for step in steps:
        step.go.set()
    until(lambda: len(threads._flows._free) == len(alive(threads, "kvi-flow")))
    many = len(alive(threads, "kvi-flow"))
    for _ in range(100):
        assert threads.drive(Errand(at_once(lambda: 1), None, handle)) == 1
    assert len(alive(threads, "kvi-flow")) <= many


@pytest.mark.parametrize("linger", [0.0005, 0.005])
def test_threads_that_come_and_go(
    threads: Threads, handle: Handle, monkeypatch: pytest.MonkeyPatch, linger: float
) -> None:
    """A thread that ends just when work comes leaves none of it behind."""
    monkeypatch.setattr(module, "LINGER", linger)
    done: list[int] = []
    work: list[int] = []
    for number in range(300):
        assert threads.drive(Errand(at_once(lambda: number), None, handle)) == number  # noqa: B023
        threads.call_back(partial(done.append, number))
        threads.spawn_call(partial(work.append, number))
        if number % 10 == 0:
            until(lambda: len(done) == len(work) == number + 1)  # noqa: B023

    def all_gone() -> bool:
        if alive(threads):
            for pool in (threads._flows, threads._callbacks, threads._work):
                pool._queue.put(None)  # see `module.LINGER`
        return not alive(threads)

    until(lambda: len(done) == len(work) == 300)
    until(all_gone)
    assert sorted(done) == sorted(work) == list(range(300))  # two may take turns
    assert not threads._flows._free


def test_no_thread_is_left_waiting(threads: Threads, handle: Handle) -> None:
    """A thread that was started for work which another one took ends too, in `LINGER` at most."""
    for _ in range(30):
        own = Threads()
        callers = [
            threading.Thread(
                target=lambda: [own.drive(Errand(at_once(nothing), None, handle)) for _ in range(5)]  # noqa: B023
            )
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        own.stop()
        until(lambda: not alive(own))  # noqa: B023


def nothing() -> None:
    """Do nothing."""


def test_stopped_flows(threads: Threads, handle: Handle) -> None:
    """After stop the threads end as soon as they can; a late errand still comes to its end."""
    step = Step()
    threads._flows.submit(step.errand(handle))
    assert step.entered.wait(20)
    threads.drive(Errand(at_once(lambda: 1), None, handle))
    threads.stop()
    until(lambda: len(alive(threads)) == 1)
    for _ in range(20):
        assert threads.drive(Errand(at_once(lambda: 1), None, handle)) == 1
    step.go.set()
    until(lambda: not alive(threads))


# -- threads for what nobody waits for ------------------------------------------------------------


def test_no_thread_before_its_use() -> None:
    """A runtime that nobody uses costs no thread, and can be stopped."""
    threads = Threads()
    assert not alive(threads)
    threads.stop()
    threads.join()


def test_burst_needs_few_threads(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand quick call-backs at once are done by two threads."""
    monkeypatch.setattr(module, "STALL", 60)  # none of them takes as long, however busy we are
    done: list[int] = []
    for number in range(10_000):
        threads.call_back(partial(done.append, number))
    until(lambda: len(done) == 10_000)
    assert len(alive(threads, "kvi-callbacks")) <= 2
    assert sorted(done) == list(range(10_000))


@pytest.mark.parametrize("kind", ["call_back", "spawn_call", "read"])
def test_what_is_stuck_gets_company(threads: Threads, kind: str) -> None:
    """However many block, the last is run."""
    go, quick = threading.Event(), threading.Event()

    def submit(function: Callable[[], object]) -> None:
        if kind == "read":
            threads.read(at_once(function))
        else:
            getattr(threads, kind)(function)

    for _ in range(6):
        submit(lambda: go.wait(60))
    submit(quick.set)
    assert quick.wait(20)
    go.set()


def test_at_most_so_many(threads: Threads) -> None:
    """Of call-backs that block, so many at most have a thread; the others come when they end."""
    threads._callbacks._most = 32
    entered, go = threading.Semaphore(0), threading.Event()

    def block() -> None:
        entered.release()
        assert go.wait(60)

    last = threading.Event()
    for _ in range(32):
        threads.call_back(block)
    for _ in range(32):
        assert entered.acquire(timeout=30)
    threads.call_back(last.set)
    assert not last.wait(0.1)
    assert len(alive(threads, "kvi-callbacks")) == 32
    go.set()
    assert last.wait(20)


def test_what_is_raised_is_logged(threads: Threads, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a call-back or kvi's own work raises is logged, and ends no thread."""

    def fail(error: BaseException) -> None:
        raise error

    done = threading.Event()
    with caplog.at_level(logging.ERROR, "kvi"):
        threads.call_back(partial(fail, ValueError("first")))
        threads.call_back(partial(fail, SystemExit("second")))
        threads.spawn_call(partial(fail, KeyboardInterrupt("third")))
        threads.post(partial(fail, ValueError("fourth")))
        until(lambda: len(caplog.records) == 4)
        threads.spawn_call(done.set)
        assert done.wait(20)
    assert {str(record.exc_info[1]) for record in caplog.records if record.exc_info} == {
        *("first", "second", "third", "fourth"),
    }


def test_stop(threads: Threads) -> None:
    """After stop nothing begins, of what waits or comes; what runs is waited for a while."""
    threads._callbacks._most = 32
    entered, go = threading.Semaphore(0), threading.Event()
    ran: list[int] = []

    def block() -> None:
        entered.release()
        assert go.wait(20)

    for submit, count in ((threads.call_back, 32), (threads.spawn_call, 8)):
        for _ in range(count):
            submit(block)
    for _ in range(40):
        assert entered.acquire(timeout=30)
    threads.call_back(lambda: ran.append(1))
    threads.spawn_call(lambda: ran.append(2))
    threads.stop()
    threads.call_back(lambda: ran.append(4))
    threads.spawn_call(lambda: ran.append(5))
    go.set()
    threads.join()
    until(lambda: not alive(threads))
    assert not ran


def test_stopped_and_joined_by_a_call_back(threads: Threads) -> None:
    """A call-back, or a step, may close the handle that it is of: it does not wait for itself."""
    ended = threading.Semaphore(0)

    def end() -> None:
        threads.stop()
        began = now()
        threads.join()
        assert now() - began < module.PATIENCE
        ended.release()

    threads.call_back(end)
    assert ended.acquire(timeout=20)


def test_no_thread_can_be_started(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the limit of threads nothing is raised, and what was submitted is run later."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    first, second = threading.Event(), threading.Event()
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        threads.post(partial(threads.call_back, first.set))
        until(lambda: "can't start new thread" in caplog.text)
        assert not alive(threads)
    threads.call_back(second.set)
    assert first.wait(20)
    assert second.wait(20)


def test_call_backs_that_block_delay_nothing_else() -> None:
    """32 of them: losses are known, leases kept, events read; other watches' call-backs run."""
    go, entered = threading.Event(), threading.Semaphore(0)
    uri = "mem:blocked-call-backs"

    def block(event: kvi.Event, data: object) -> None:
        entered.release()
        go.wait(60)

    with kvi.open(uri) as store, kvi.open(uri) as other:
        for _ in range(32):
            store.watch("k", callback=block)
        store.store("k", "v")
        for _ in range(32):
            assert entered.acquire(timeout=30)
        try:
            kept, lock = store.lease(1), store.lock("jobs", ttl=1)
            assert lock.acquire(20)
            watch, deadline = store.watch("l"), kept._flow.term.deadline
            other.store("l", "v")
            assert watch.next(20).key == "l"
            until(lambda: kept._flow.term.deadline > deadline)
            lease = lock._flow.lease
            assert lease is not None
            other._scope.primitives._lease_revoke(lease.id, 5)
            assert lock.lost.wait(20)
            assert kept.alive
            for handle in (store, other):
                called = threading.Event()
                with handle.watch("m", callback=lambda *_, told=called: told.set()):
                    other.store("m", "v")
                    assert called.wait(20)
        finally:
            go.set()


# -- the scheduler --------------------------------------------------------------------------------


class Fake:
    """What is kept: each step calls ``piece``, whose answer is when to come again."""

    def __init__(self, piece: Callable[[], float | None] = lambda: None) -> None:
        self.piece = piece
        self.ended = False
        self.steps = 0

    async def step(self, port: Port) -> float | None:
        """Count, and do it."""
        self.steps += 1
        return self.piece()


def test_in_the_order_of_time(threads: Threads) -> None:
    """What is due first comes first, in whatever order it was said; nothing comes too early."""
    order: list[tuple[str, bool]] = []
    start = now()
    for name, seconds in (("third", 0.3), ("second", 0.2), ("past", -1.0), ("first", 0.1)):

        def note(name: str = name, due: float = start + seconds) -> None:
            order.append((name, now() >= due))

        if name == "second":
            threads.keep(Fake(note), start + seconds)
        else:
            threads.at(start + seconds, note)
    until(lambda: len(order) == 4)
    assert order == [("past", True), ("first", True), ("second", True), ("third", True)]


def test_called_again(threads: Threads) -> None:
    """A step says when the next one is; without, it was the last."""
    fake = Fake()
    fake.piece = lambda: now() if fake.steps < 5 else None
    threads.keep(fake, now())
    until(lambda: fake.steps == 5)
    other = Fake()
    threads.keep(other, now())
    until(lambda: other.steps == 1)
    assert fake.steps == 5


def test_ends_and_starts_again(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after the last of those kept the thread is gone; the next one starts another."""
    monkeypatch.setattr(module, "LINGER", 0.01)
    for _ in range(3):
        fake = Fake()
        threads.keep(fake, now())
        until(lambda: fake.steps == 1)  # noqa: B023  (it returns before the next)
        until(lambda: not alive(threads))
    forgotten = Fake()
    threads.keep(forgotten, now() + 3600)
    until(lambda: threads._timers)
    assert alive(threads, "kvi-scheduler")
    forgotten.ended = True
    threads.forget()
    until(lambda: not alive(threads))
    assert not forgotten.steps


def test_forgotten_ones_do_not_pile_up(threads: Threads) -> None:
    """Those that ended are let go of before their time; the others are not."""
    fakes = [Fake() for _ in range(1000)]
    for fake in fakes:
        threads.keep(fake, now() + 3600)
    until(lambda: len(threads._timers) == 1000)
    for fake in fakes[1:]:
        fake.ended = True
        threads.forget()
    until(lambda: len(threads._timers) <= 2)
    assert any(timer[2] is fakes[0] for timer in threads._timers)


def test_step_that_raises(threads: Threads, caplog: pytest.LogCaptureFixture) -> None:
    """A step that raises is logged, and the others go on."""

    def fail() -> None:
        raise ValueError("a mistake")

    other = Fake()
    with caplog.at_level(logging.ERROR, "kvi"):
        threads.keep(Fake(fail), now())
        threads.keep(other, now())
        until(lambda: other.steps)
    assert "a mistake" in caplog.text


def test_steps_that_block_get_company(threads: Threads) -> None:
    """What is due does not wait for those before it: more threads help."""
    together = threading.Barrier(4)

    def meet() -> None:
        together.wait(20)

    fakes = [Fake(meet) for _ in range(4)]
    for fake in fakes:
        threads.keep(fake, now())
    until(lambda: not together.n_waiting and all(fake.steps for fake in fakes))


def test_no_step_after_stop(threads: Threads) -> None:
    """After stop no step begins, not even one that was asked for by one that runs."""
    entered, go = threading.Event(), threading.Event()

    def block() -> float:
        entered.set()
        assert go.wait(20)
        return now()

    running, waiting = Fake(block), Fake()
    threads.keep(running, now())
    assert entered.wait(20)
    threads.keep(waiting, now() + 0.05)
    threads.stop()
    go.set()
    threads.keep(waiting, now())
    until(lambda: not alive(threads))
    assert (running.steps, waiting.steps) == (1, 0)


def test_what_ends_a_cancelled_primitive_is_no_fault() -> None:
    """Nobody learns from it that the store is dead, and nothing is tried again."""
    port = ThreadPort()

    class Ended(PingOp):
        __slots__ = ()

        def run(self, primitives: Primitives, timeout: float) -> None:
            port.cancelled = True
            raise kvi.Unavailable("the connection was shut down, for nobody waits for it")

    class Bottom:
        is_short = False

        async def execute(self, op: Op[Any], call: Call) -> Any:
            """Ask it."""
            return await call.port.perform(op, primitives, call.left())

    with kvi.open("mem:cancelled-primitive") as store:
        primitives = store._scope.primitives
        told: list[bool] = []
        monitored = Monitored(Bottom(), 60.0, lambda: False)
        run(monitored.execute(PingOp(), Call(ThreadPort(), port.now() + 5)))
        monitored.start(told.append)
        with pytest.raises(Cancelled):
            run(monitored.execute(Ended(), Call(port, port.now() + 5)))
        assert monitored.alive
        assert told == [True]


class Interrupting(SimpleQueue[Any]):
    """A queue behind whose first put a signal's handler raises."""

    left = 1

    def put(self, item: object, *_: object) -> None:
        """Put it."""
        super().put(item)
        if self.left:
            self.left = 0
            raise KeyboardInterrupt


def test_pool_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given to it later is run, also once its threads have gone."""
    monkeypatch.setattr(module, "LINGER", 0.05)
    runtime = Threads()
    pool = runtime._work
    pool._queue = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        pool.submit(int)
    for _ in range(3):
        ran = threading.Event()
        assert pool.submit(ran.set)
        assert ran.wait(20)
        until(lambda: not pool.threads)
    runtime.stop()
    assert not pool.submit(int)
