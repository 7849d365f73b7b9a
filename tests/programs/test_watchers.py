"""A watcher under thousands of writes, with its server killed and its connections cut meanwhile.

Writers note what was acknowledged: revision, key and value. The watcher notes what it saw. In the
end, where the store keeps history: it saw every acknowledged write, once, in the order of
revisions, and nothing but writes that somebody made. On Consul: per key ever newer of the written
states, and the last of each.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import kvi
import pytest
from kvi.conformance.proxy import TcpProxy

from tests.servers import ConsulServer, EtcdServer, Server

WRITERS = 4
KEYS = 20  # for each writer

Fault = Callable[[], None]


def write(uri: str, number: int, rounds: int, notes: str) -> None:
    """Write so many values, again if it is not known whether; note what was acknowledged."""
    with kvi.open(uri, timeout=20) as store, Path(notes).open("w") as acked:
        for count in range(rounds):
            key = f"w/{number}/{count % KEYS}"
            while True:
                try:
                    revision = store.store(key, f"{number} {count}")
                except (kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown):
                    time.sleep(0.01)  # the server is being restarted; then again
                else:
                    acked.write(f"{revision} {key} {number} {count}\n")
                    break


class Place:
    """A store under test: where writers and the watcher find it, and what can happen to it."""

    def __init__(self, writers: str, watcher: str, faults: list[Fault]) -> None:
        self.writers = writers
        self.watcher = watcher
        self.faults = faults


@pytest.fixture(
    params=[
        "mem",
        "sqlite",
        pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
        pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty store; etcd and Consul with a server of their own, which keeps what it says."""
    with ExitStack() as stack:
        if request.param == "mem":
            uri = f"mem:{request.node.name}"
            stack.enter_context(kvi.open(uri)).delete_range(prefix="")
            yield Place(uri, uri, [])
            return
        if request.param == "sqlite":
            uri = f"sqlite:{tmp_path}/watched.db"
            yield Place(uri, uri, [])
            return
        server: Server = stack.enter_context(
            EtcdServer() if request.param == "etcd" else ConsulServer()
        )
        proxy = stack.enter_context(TcpProxy(server.port))

        def kill_and_restart() -> None:
            server.kill()
            server.restart()

        yield Place(
            server.uri,
            server.uri.replace(str(server.port), str(proxy.port)),
            [proxy.cut, kill_and_restart] * 3,
        )


def watched(place: Place, rounds: int, folder: Path, patience: float) -> None:
    """Run writers, watcher and faults, and compare."""
    notes = [str(folder / f"writer-{number}") for number in range(WRITERS)]
    arguments = [(place.writers, number, rounds, notes[number]) for number in range(WRITERS)]
    if place.writers.startswith("mem:"):  # of one process
        threads = [threading.Thread(target=write, args=given) for given in arguments]
    else:
        context = multiprocessing.get_context("spawn")
        threads = [
            context.Process(target=write, args=given, daemon=True)  # type: ignore[misc]
            for given in arguments
        ]
    begin = time.monotonic()
    with kvi.open(place.watcher, timeout=20) as store:
        watch = store.watch(prefix="w/")
        for thread in threads:
            thread.start()
        events: list[kvi.Event] = []
        total = WRITERS * rounds
        portion = total // (len(place.faults) + 1)
        breaker: threading.Thread | None = None
        faults = iter(place.faults)
        ends = {f"w/{n}/{(rounds - 1) % KEYS}": f"{n} {rounds - 1}" for n in range(WRITERS)}
        next_fault = portion
        progress: dict[str, int] = {}
        while ends or any(thread.is_alive() for thread in threads):
            assert time.monotonic() - begin < patience, "the watch does not get on"
            try:
                event = watch.next(1)
            except kvi.Timeout:
                continue
            events.append(event)
            if event.value is not None:
                value = event.value.decode()
                writer, _, count = value.partition(" ")
                progress[writer] = int(count) + 1
                if ends.get(event.key) == value:
                    del ends[event.key]
            if sum(progress.values()) >= next_fault and (breaker is None or not breaker.is_alive()):
                next_fault += portion
                if (fault := next(faults, None)) is not None:
                    breaker = threading.Thread(target=fault)
                    breaker.start()
        if breaker is not None:
            breaker.join(60)
        for thread in threads:
            thread.join(60)
        while True:  # a write that was done twice may come after the last one
            try:
                events.append(watch.next(0.5))
            except kvi.Timeout:
                break
        watch.cancel()
        left = sum(1 for _ in faults)
        history = store.capabilities.watch_history
        state = {entry.key: entry for entry in store.range(prefix="w/")}
    acked: dict[int, tuple[str, str]] = {}
    for path in notes:
        for line in Path(path).read_text().splitlines():
            number, key, value = line.split(" ", 2)
            acked[int(number)] = (key, value)
    assert len(acked) == total
    assert left == 0, "not all faults happened"
    assert {event.type for event in events} == {kvi.EventType.PUT}
    seen = {event.revision: (event.key, (event.value or b"").decode()) for event in events}
    assert len(seen) == len(events), "an event came twice"
    for revision, change in acked.items():
        assert seen.get(revision, change) == change
    written = set(acked.values())
    assert set(seen.values()) <= written, "an event that nobody made"
    if history:
        revisions = [event.revision for event in events]
        assert revisions == sorted(revisions), "out of order"
        assert acked.keys() <= seen.keys(), "a change was missed"
    for key, entry in state.items():
        own = [event for event in events if event.key == key]
        assert [e.revision for e in own] == sorted(e.revision for e in own), "a state came again"
        assert (own[-1].revision, own[-1].value) == (entry.revision, entry.value), "not the last"
    spent = time.monotonic() - begin
    print(
        f"\n{place.writers.partition(':')[0]}: {total:,} writes acknowledged in {spent:.0f} s, "
        f"{len(events):,} events, {len(place.faults)} faults"
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_watcher(place: Place, tmp_path: Path) -> None:
    """2,000 writes of 4 writers, the server killed and the connections cut meanwhile."""
    watched(place, 500, tmp_path, 200)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_watcher_of_many_writes(place: Place, tmp_path: Path) -> None:
    """20,000 writes of 4 writers, the server killed and the connections cut three times each."""
    watched(place, 5000, tmp_path, 1100)
