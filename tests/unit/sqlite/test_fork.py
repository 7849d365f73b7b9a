"""Forks: the parent's store stays whole, the child opens its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import queue
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from pathlib import Path
from typing import TypeVarTuple

import kvi
import kvi.aio
import pytest
from kvi.driver import threads

from tests.support.forking import in_child, refuses

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


def test_parents_handle_is_refused_in_the_child(store: kvi.Kvi) -> None:
    """Every use in the child raises UsedAfterFork; the parent goes on."""
    store.store("k", "v")

    def child() -> None:
        refuses(lambda: store.get("k"))
        refuses(lambda: store.store("k", "w"))
        refuses(lambda: store.client)
        store.close()

    assert in_child(child) == 0
    entry = store.get("k")
    assert entry is not None
    assert entry.text == "v"
    assert store.store("k", "w") == 2


def test_childs_writes_outlive_the_parents_close(path: Path, uri: str) -> None:
    """A child's own handle keeps all it writes, also after the parent has closed everything.

    SQLite's state, inherited with the parent's connections, would make the child believe to hold
    locks that it does not hold, and the parent would delete the WAL that the child writes to.
    """
    store = kvi.open(uri)
    store.store("parent", "1")
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with kvi.open(uri) as own:
                own.store("before", "1")
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                own.store("after", "1")
                code = 0
        finally:
            os._exit(code)
    assert os.read(ready[0], 1) == b"x"
    store.close()
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (*ready, *go):
        os.close(end)
    with kvi.open(uri) as again:
        assert [entry.key for entry in again.range()] == ["after", "before", "parent"]
        assert again.range().revision == 3


def test_child_can_write_whatever_the_parents_threads_do(uri: str) -> None:
    """Forks amid the writes of other threads: children can write, and nothing is lost."""
    stop = threading.Event()
    with kvi.open(uri, timeout=30) as store:
        written = [0, 0]

        def write(who: int) -> None:
            while not stop.is_set():
                store.store(f"thread/{who}", "v")
                written[who] += 1

        threads = [threading.Thread(target=write, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()

        def child() -> None:
            with kvi.open(uri, timeout=30) as own:
                for number in range(5):
                    own.store("child", str(number))

        try:
            for _ in range(10):
                assert in_child(child) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert store.range().revision == sum(written) + 50


def test_child_with_a_half_read_range_refuses_the_file(tmp_path: Path, uri: str) -> None:
    """What cannot be closed before the fork makes the child refuse this file, and no other.

    The parent reads on, in its snapshot, and writes.
    """
    with kvi.open(uri) as store:
        store.txn(then=[kvi.Put(f"{n:05d}", "v") for n in range(3000)], timeout=60)
        result = store.range()
        iterator = iter(result)
        next(iterator)

        def child() -> None:
            with kvi.open(uri) as own, pytest.raises(kvi.Unavailable, match="forked"):
                own.get("k")
            with kvi.open(f"sqlite:{tmp_path}/other.db") as other:
                other.store("k", "v")
            refuses(lambda: list(held[0]))
            refuses(lambda: list(held[1]))

        held = [result, iterator]
        assert in_child(child) == 0
        held.clear()
        assert store.delete("02999")
        assert sum(1 for _ in iterator) == 2999
        del result, iterator
        assert in_child(lambda: kvi.open(uri).store("k", "v")) == 0


Ts = TypeVarTuple("Ts")

MORE_THAN_A_PAGE = [kvi.Put(f"{n:05d}", "v") for n in range(3000)]


HELD = threading.Event()


class Slow(queue.SimpleQueue[None]):
    """A queue whose writers are held up right behind each of their words."""

    def put(self, item: None, block: bool = True, timeout: float | None = None) -> None:
        """Put it, and stay."""
        super().put(item)
        HELD.wait(30)


def test_dropped_range_is_not_in_the_way_whatever_its_thread_does(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of kvi's that is slow behind a page that it has read holds nothing of the range."""
    HELD.clear()
    with kvi.open(uri) as store:
        store.txn(then=MORE_THAN_A_PAGE, timeout=60)
        monkeypatch.setattr(threads, "SimpleQueue", Slow)
        try:
            iterator = iter(store.range())
            assert sum(1 for _ in iterator) == 3000
            del iterator
            monkeypatch.undo()
            assert in_child(lambda: kvi.open(uri).store("k", "v")) == 0
        finally:
            HELD.set()


def test_range_dropped_by_a_task_is_not_in_the_way(uri: str) -> None:
    """As above, with asyncio."""
    behind = threading.Event()

    class Loop(asyncio.SelectorEventLoop):
        """A loop whose threads are held up right behind each of their words."""

        def call_soon_threadsafe(
            self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
        ) -> asyncio.Handle:
            handle = super().call_soon_threadsafe(callback, *args, context=context)
            if threading.current_thread() is not threading.main_thread():
                behind.wait(30)
            return handle

    async def main() -> None:
        async with kvi.aio.open(uri) as store:
            try:
                await store.txn(then=MORE_THAN_A_PAGE, timeout=60)
                entries = await store.range()
                assert len([entry async for entry in entries]) == 3000
                del entries
                assert in_child(lambda: kvi.open(uri).store("k", "v")) == 0
            finally:
                behind.set()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


def left(store: kvi.Kvi) -> None:
    """Leave a range early."""
    for _ in store.range():
        break


def cancelled(store: kvi.Kvi) -> None:
    """Cancel a watch amid the state that it begins with."""
    watch = store.watch(prefix="", initial=True)
    watch.next(5)
    watch.cancel()


@pytest.mark.parametrize("end", [left, cancelled])
def test_what_was_left_early_is_not_in_the_way(uri: str, end: Callable[[kvi.Kvi], None]) -> None:
    """What it holds is freed before a fork that comes right behind."""
    with kvi.open(uri) as store:
        store.txn(then=MORE_THAN_A_PAGE, timeout=60)
        for _ in range(10):
            end(store)
            assert in_child(lambda: kvi.open(uri).store("k", "v")) == 0


def fail(value: object) -> None:
    """What a program's function may do."""
    raise LookupError


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nobody looks for cycles meanwhile: what is dropped is gone, or it is not."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


FAILURES: dict[str, Callable[[kvi.Kvi], object]] = {
    "lock": lambda store: store.lock("taken", timeout=0).__enter__(),
    "update": lambda store: store.update("k", fail),
    "atomically": lambda store: store.atomically(fail),
    "lease": lambda store: store.store("k", "v", lease=1),
    "past": lambda store: store.get("k", revision=10**9),
    "time": lambda store: store.count(timeout=1e-9),
    "next": lambda store: store.watch("k").next(0),
}


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.usefixtures("uncollected")
def test_range_dropped_by_an_error_is_not_in_the_way(uri: str, name: str, main: bool) -> None:
    """An error that was handled holds nothing: neither its own frames nor those of its callers."""
    with kvi.open(uri) as store, store.lock("taken"):
        store.txn(then=MORE_THAN_A_PAGE, timeout=60)

        def half_read() -> None:
            with contextlib.suppress(kvi.KviError, LookupError):
                for _ in store.range():
                    FAILURES[name](store)

        if main:
            half_read()
        else:
            thread = threading.Thread(target=half_read)
            thread.start()
            thread.join()
        assert in_child(lambda: kvi.open(uri).store("k", "v")) == 0


AWAITED: dict[str, Callable[[kvi.aio.AsyncKvi], Awaitable[object]]] = {
    "lock": lambda store: store.lock("taken", timeout=0).__aenter__(),
    "update": lambda store: store.update("k", fail),
    "atomically": lambda store: store.atomically(fail),
    "lease": lambda store: store.store("k", "v", lease=1),
    "past": lambda store: store.get("k", revision=10**9),
    "time": lambda store: store.count(timeout=1e-9),
    "next": lambda store: _next(store),
}


async def _next(store: kvi.aio.AsyncKvi) -> None:
    async with store.watch("k") as watch:
        await watch.next(0)


@pytest.mark.parametrize("name", AWAITED)
@pytest.mark.usefixtures("uncollected")
def test_range_dropped_by_an_error_of_a_task_is_not_in_the_way(uri: str, name: str) -> None:
    """As above, with asyncio."""

    async def main() -> None:
        async with kvi.aio.open(uri) as store, store.lock("taken"):
            await store.txn(then=MORE_THAN_A_PAGE, timeout=60)

            async def half_read() -> None:
                with contextlib.suppress(kvi.KviError, LookupError):
                    entries = await store.range()
                    async for _ in entries:
                        await AWAITED[name](store)

            await half_read()
            assert in_child(lambda: kvi.open(uri).store("k", "v")) == 0

    asyncio.run(main())


@pytest.mark.usefixtures("uncollected")
def test_range_whose_page_came_too_late_is_not_in_the_way(uri: str) -> None:
    """The error of a page holds nothing of the range, which could have been read on."""
    with kvi.open(uri) as store, store.lease(60) as lease:
        store.txn(then=[kvi.Put(f"a{n:03d}", "v") for n in range(512)])
        store.txn(then=[kvi.Put(f"b{n:06d}", "", lease.id) for n in range(200_000)], timeout=60)
        store.store("c", "v")
        lease.revoke()  # the second page has to pass all that is not deleted yet

        def half_read() -> None:
            with contextlib.suppress(kvi.Timeout):
                list(iter(store.range(timeout=0.005)))

        half_read()
        assert in_child(lambda: kvi.open(uri).store("k", "v")) == 0


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "pass"])
def test_childs_exit_touches_nothing(path: Path, uri: str, end: str) -> None:
    """A child that ends, normally or not, whatever it inherited, harms nothing."""
    program = f"""
        import gc, os, sys, kvi
        store = kvi.open({uri!r})
        store.txn(then=[kvi.Put(f"{{n:05d}}", "v") for n in range(3000)], timeout=60)
        result = store.range()
        iterator = iter(result)
        first = next(iterator)
        store.client.execute("BEGIN IMMEDIATE")
        store.client.execute("INSERT INTO entries VALUES (NULL, x'7a', 9, 9, 1, NULL, x'')")
        child = os.fork()
        if child == 0:
            del result, iterator, store
            gc.collect()
            {end}
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            store.client.execute("ROLLBACK")
            assert sum(1 for _ in iterator) == 2999
            assert store.store("k", "v") == 2
            assert store.get("k").text == "v"
            store.close()
            print("fine")
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM entries").fetchone() == (3001,)
    connection.close()
