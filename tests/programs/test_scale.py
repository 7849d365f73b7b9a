"""Many watches, many handles, and consumers that do not read: threads, sockets, memory."""

from __future__ import annotations

import os
import statistics
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import kvi
import pytest

from tests.programs.test_totals import uri
from tests.support.waiting import until

__all__ = ["uri"]  # the fixture

ETCD = [pytest.mark.etcd, pytest.mark.xdist_group("etcd")]
CONSUL = [pytest.mark.consul, pytest.mark.xdist_group("consul")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def native_threads() -> int:
    """All threads of this process, those of C libraries included."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def sockets() -> int:
    """All sockets of this process."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith("socket:")
        except OSError:
            continue  # the one that lists them
    return count


def resident() -> int:
    """Bytes of memory in use by this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def empty(uri: str) -> str:
    """A store whose handles have been used once, so that libraries have made their own threads."""
    with kvi.open(uri) as store:
        store.get("k")
        store.watch("k").cancel()
    return uri


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mem", 10_000),
        ("sqlite", 10_000),
        pytest.param("etcd", 10_000, marks=[*ETCD, pytest.mark.soak]),  # see tests/faults
        pytest.param("consul", 1_000, marks=CONSUL),
    ],
)
def test_many_watches(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, number: int
) -> None:
    """Thousands of watches on one handle: at most 8 threads and 32 connections, closed in 2 s.

    They are counted beside those that gRPC's library keeps for any handle of the process. On a busy
    machine kvi and gRPC add threads for work that waits, a few, and end them again.
    """
    if name in ("mem", "sqlite"):
        uri = f"{name}:{tmp_path}/many" if name == "sqlite" else "mem:many"
    else:
        uri = f"{request.getfixturevalue(f'{name}_uri')}/many"
    seen: dict[str, bytes | None] = {}

    def note(event: kvi.Event, data: object) -> None:
        seen[event.key] = event.value

    with kvi.open(uri, timeout=30) as other, ExitStack() as stack:
        other.delete_range(prefix="")
        threads, connections, memory = native_threads(), sockets(), resident()
        store = stack.enter_context(kvi.open(uri, timeout=30))
        begin = time.monotonic()
        most = 0
        for count in range(number):
            store.watch(f"watched/{count}", callback=note)
            if count % 100 == 0:
                most = max(most, native_threads() - threads)
        made = time.monotonic() - begin
        chosen = [f"watched/{count}" for count in range(0, number, number // 50)]
        for key in chosen:
            store.store(key, key.encode())
        until(lambda: len(seen) == len(chosen), within=60)
        assert seen == {key: key.encode() for key in chosen}
        used = max(most, native_threads() - threads), sockets() - connections
        until(lambda: native_threads() - threads <= 8, within=20)
        grown = resident() - memory
        begin = time.monotonic()
        store.close()
        closing = time.monotonic() - begin
        # gRPC ends threads that it added under load once they have been idle for a while.
        until(lambda: native_threads() <= threads and sockets() <= connections, within=90)
    print(
        f"\n{name}: {number:,} watches made in {made:.1f} s, {used[0]} threads, {used[1]} "
        f"connections, {grown / 1e6:.0f} MB, closed in {closing:.2f} s"
    )
    assert used[0] <= 24
    assert used[1] <= 32
    assert grown < 100e6
    assert closing < 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_many_handles(empty: str) -> None:
    """Opening, using and closing 200 handles leaves threads and sockets where they were."""
    threads, connections = native_threads(), sockets()
    for number in range(200):
        with kvi.open(empty, timeout=20) as store:
            store.store("k", str(number))
            watch = store.watch("k", callback=lambda event, data: None)
            reader = store.watch(prefix="k")
            lease = store.lease(30)
            store.store("leased", b"", lease=lease)
            with store.lock("jobs", timeout=20):
                store.store("k", b"again")
            assert reader.next(20).key == "k"
            if number % 2:
                watch.cancel()
                lease.revoke()
    until(lambda: native_threads() <= threads and sockets() <= connections)
    with kvi.open(empty) as store:
        assert store.get("leased") is None
        assert store.count(prefix="jobs/") == 0


def test_consumer_that_never_reads(empty: str) -> None:
    """It delays no other by more than 100 ms, and what is kept for it is bounded."""
    value, writes = b"x" * 100_000, 400
    seen: dict[bytes, float] = {}
    stuck = threading.Event()
    with ExitStack() as stack:
        store = stack.enter_context(kvi.open(empty, timeout=20))
        writer = stack.enter_context(kvi.open(empty, timeout=20))
        idle = store.watch(prefix="k")
        store.watch(prefix="k", callback=lambda event, data: stuck.wait(120))
        stack.callback(stuck.set)
        reader = store.watch(prefix="k")

        def read() -> None:
            for event in reader:
                seen[(event.value or b"")[:8]] = time.monotonic()
                if (event.value or b"")[:8] == b"%08d" % (writes - 1):
                    return

        thread = threading.Thread(target=read)
        thread.start()
        memory = resident()
        delays = []
        for number in range(writes):
            stamp = b"%08d" % number
            writer.store(f"k{number % 10}", stamp + value)
            stored = time.monotonic()
            until(partial(seen.__contains__, stamp))
            delays.append(seen[stamp] - stored)
        thread.join(30)
        grown = resident() - memory
        print(
            f"\n{empty.partition(':')[0]}: median delay {statistics.median(delays) * 1e3:.1f} ms, "
            f"worst {max(delays) * 1e3:.1f} ms, {grown / 1e6:.0f} MB for {writes * 0.1:.0f} MB"
        )
        assert statistics.median(delays) < 0.1
        assert grown < 60e6
        first = idle.next(20)  # it may be the oldest change, or the present state
        assert first.key.startswith("k") or first.type is kvi.EventType.RESYNC
