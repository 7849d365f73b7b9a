"""Single calls while the server is away: how they end, and that their handle lives on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

import kvi
from kvi import aio
from kvi.conformance.contract import rule
from kvi.conformance.faults.away import (
    AWAY,
    CALL,
    ENDS,
    LONG,
    MARGIN,
    PASSING,
    Faulty,
    Outcome,
    at_once,
    away,
    eventually,
    kind_of,
    need,
    opened,
)
from kvi.conformance.holding import HELD, least_held
from kvi.conformance.server import Server
from kvi.conformance.waiting import until, untimed

Calls = dict[str, Callable[[], object]]


def reads(store: kvi.Kvi) -> Calls:
    """Every way to read ``k/there``, each within the time-out of a call."""
    return {
        "get": lambda: store.get("k/there", timeout=CALL),
        "range": lambda: list(store.range(prefix="k/there", timeout=CALL)),
        "count": lambda: store.count(prefix="k/there", timeout=CALL),
        "txn of reads": lambda: store.txn(then=[kvi.Get("k/there")], timeout=CALL).results[0],
    }


def writes(store: kvi.Kvi) -> Calls:
    """Every way to write, each to the key below ``k/`` that has its name."""
    return {
        "store": lambda: store.store("k/store", b"new", timeout=CALL),
        "delete": lambda: store.delete("k/delete", timeout=CALL),
        "delete_range": lambda: store.delete_range(prefix="k/delete_range", timeout=CALL),
        "tas": lambda: store.tas("k/tas", None, b"new", timeout=CALL),
        "cas": lambda: store.cas("k/cas", 0, b"new", timeout=CALL),
        "txn": lambda: store.txn(then=[kvi.Put("k/txn", b"new")], timeout=CALL),
        "transaction": lambda: store.transaction(
            "k/there", "=", b"old", "k/transaction", b"new", "k/transaction", b"else", timeout=CALL
        ),
    }


def others(store: kvi.Kvi) -> Calls:
    """What else asks the store."""
    return {
        "ping": lambda: store.ping(timeout=CALL),
        "lease": lambda: store.lease(LONG, timeout=CALL),
        "temp_key": lambda: store.temp_key("temporary", timeout=CALL),
        "watch": lambda: store.watch("k/there", timeout=CALL),
    }


def awaited(store: aio.AsyncKvi) -> list[Awaitable[object]]:
    """A call of each kind that `kvi.aio` awaits."""
    return [
        store.get("k"),
        store.range(prefix="k"),
        store.count(prefix="k"),
        store.txn(then=[kvi.Get("k")]),
        store.store("k", b"v"),
        store.delete("k"),
        store.delete_range(prefix="k"),
        store.tas("k", None, b"v"),
        store.lease(LONG),
        store.ping(),
    ]


def changed_until(watch: kvi.Watch, key: str) -> set[str]:
    """The keys that a watch tells of, up to and with this one."""
    keys: set[str] = set()
    while key not in keys:
        event = watch.next(LONG)
        assert event.type is not kvi.EventType.RESYNC
        keys.add(event.key)
    return keys


class CallsWhileAway(Faulty):
    """Calls end in time, with the truth or an error of kvi."""

    @rule("error.typed", "error.certain", "error.recovers", "handle.timeout")
    @pytest.mark.parametrize("fault", AWAY)
    def test_calls_end_in_time(self, server: Server, store: kvi.Kvi, fault: str) -> None:
        """While the server is away every call ends in its time-out, with the truth or an error.

        The error is `Unavailable`, `Timeout` or `OutcomeUnknown`; a write that was denied never
        shows up; and the same handle works again as soon as the server is back.
        """
        fault = kind_of(server, fault)
        there = ["there", "delete", "delete_range"]
        for name in there:
            store.store(f"k/{name}", b"old")
        truth = store.get("k/there")
        with store.watch(prefix="k/") as watch:
            with away(server, fault):
                outcomes = at_once({**reads(store), **writes(store), **others(store)})
            eventually(lambda: store.store("k/last", b"new"))
            changed = changed_until(watch, "k/last")
        for name, outcome in outcomes.items():
            assert outcome.seconds < CALL + MARGIN, f"{name} took {outcome.seconds:.1f} s"
            assert outcome.error is None or type(outcome.error) in PASSING, name
        expected = {"get": truth, "range": [truth], "count": 1, "txn of reads": truth}
        for name, result in expected.items():
            assert outcomes[name].error or outcomes[name].result == result
        assert store.get("k/there") == truth
        present = {entry.key for entry in store.range(prefix="k/")}
        for name in writes(store):
            applied = (f"k/{name}" in present) is not (name in there)
            if outcomes[name].applied:
                assert applied, f"an acknowledged {name} was lost"
            elif outcomes[name].applied is False:
                assert not applied, f"a {name} was denied and applied: {outcomes[name].error}"
                assert f"k/{name}" not in changed, "a watch tells of what was denied"

    @rule("error.typed")
    @pytest.mark.parametrize("fault", AWAY)
    def test_reads_leave_nothing_unknown(self, server: Server, store: kvi.Kvi, fault: str) -> None:
        """A read that fails is `Unavailable` or `Timeout`; so is a transaction that only reads."""
        fault = kind_of(server, fault)
        store.store("k/there", b"old")
        with away(server, fault):
            outcomes = at_once(reads(store))
        for name, outcome in outcomes.items():
            assert outcome.applied is not None, f"{name} of a store that is away: {outcome.error}"

    @rule("get.linearizable")
    def test_reads_are_never_old(self, server: Server, store: kvi.Kvi, place: str) -> None:
        """Who is cut off reads nothing, rather than what has been changed meanwhile."""
        need(server, "isolate", "rejoin", "direct_uri")
        with opened(server.direct_uri, place) as direct:
            direct.store("k/there", b"old")
            for read in reads(store).values():
                assert eventually(read)
            with away(server, "isolate"):
                direct.store("k/there", b"new")
                new = direct.get("k/there")
                outcomes = at_once(reads(store))
        expected = {"get": new, "range": [new], "count": 1, "txn of reads": new}
        for name, result in expected.items():
            assert outcomes[name].error or outcomes[name].result == result, f"{name} is stale"

    @rule("error.certain")
    def test_late_writes_were_not_denied(self, server: Server, place: str) -> None:
        """A write that arrives after its connection is gone was not denied, and is done once.

        Nobody tries it again by himself: not even the client inside of a backend.
        """
        need(server, "hold_back", "deliver", "direct_uri")
        outcomes: dict[str, Outcome] = {}
        with (
            opened(server.direct_uri, place) as direct,
            kvi.open(untimed(server.uri), timeout=LONG, retry=None) as handle,
        ):
            for name in ("there", "delete", "delete_range"):
                direct.store(f"k/{name}", b"old")
            with direct.watch(prefix="k/") as watch:
                for name, call in writes(handle.namespace(place)).items():
                    eventually(handle.ping)  # by a connection that is there
                    server.hold_back()
                    try:
                        outcomes |= at_once({name: call})
                    finally:
                        server.deliver()
                direct.store("k/last", b"new")
                changes: Counter[str] = Counter()
                while not changes["k/last"]:
                    changes[watch.next(LONG).key] += 1
        for name, outcome in outcomes.items():
            assert outcome.error is None or type(outcome.error) in PASSING, name
            done = changes[f"k/{name}"]
            assert not (done and outcome.applied is False), f"a {name} was denied and applied"
            assert done <= 1, f"a {name} was done twice"

    @rule("asyncio.free-loop")
    @pytest.mark.parametrize("fault", ["pause", "isolate"])
    def test_loop_is_free_while_away(self, server: Server, place: str, fault: str) -> None:
        """While the server is away, no call of `kvi.aio` holds the loop for more than 50 ms."""
        fault = kind_of(server, fault)

        async def program() -> None:
            async with aio.open(untimed(server.uri), timeout=CALL) as handle:
                await handle.ping(timeout=LONG)  # what is made for the first call is there
                await asyncio.to_thread(getattr(server, fault))
                try:
                    await asyncio.gather(*map(ended, awaited(handle.namespace(place))))
                finally:
                    await asyncio.to_thread(getattr(server, ENDS[fault]))

        async def ended(call: Awaitable[object]) -> None:
            with suppress(*PASSING):
                await call

        best = least_held(program)
        assert best.seconds <= HELD, f"{best.name} held the loop for {best.seconds * 1000:.0f} ms"

    @rule("handle.open", "handle.ping", "error.recovers")
    @pytest.mark.parametrize("fault", AWAY)
    def test_opening_waits_for_nothing(self, server: Server, fault: str) -> None:
        """Opening does not wait for a server that is away, and the handle works once it is back."""
        fault = kind_of(server, fault)
        with away(server, fault):
            begin = time.monotonic()
            store = kvi.open(untimed(server.uri), timeout=LONG)
            assert time.monotonic() - begin < MARGIN
            outcome = at_once({"ping": lambda: store.ping(timeout=CALL)})["ping"]
            assert outcome.seconds < CALL + MARGIN
            assert outcome.error is None or type(outcome.error) in PASSING
        with store:
            eventually(lambda: store.ping(timeout=CALL))
            revision = eventually(lambda: store.store("k", b"v"))
            entry = store.get("k")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"v", revision)

    @rule("handle.close-wakes")
    @pytest.mark.parametrize("fault", AWAY)
    def test_close_ends_in_time(
        self, server: Server, store: kvi.Kvi, place: str, fault: str
    ) -> None:
        """While the server is away `close()` ends in its time-out, and wakes all with `Closed`."""
        fault = kind_of(server, fault)
        assert store.lock("taken").acquire(LONG)
        closing = kvi.open(untimed(server.uri), timeout=1)
        lock, lease = closing.lock("mine"), closing.lease(LONG, timeout=LONG)
        assert lock.acquire(LONG)
        member = closing.temp_key("member", ttl=LONG, timeout=LONG)
        first, second = (closing.watch(prefix="k/", timeout=LONG) for _ in range(2))
        started: list[str] = []

        def starting(name: str, call: Callable[[], object]) -> Callable[[], object]:
            def run() -> object:
                started.append(name)
                return call()

            return run

        waits: Calls = {
            "next": lambda: first.next(LONG),
            "iterate": lambda: list(second),
            "lost": lambda: lease.lost.wait(LONG),
        }
        asks: Calls = {
            "get": lambda: closing.get("k", timeout=LONG),
            "store": lambda: closing.store("k", b"late", timeout=LONG),
            "acquire": lambda: closing.lock(f"{place}/taken").acquire(None),
        }
        calls = {name: starting(name, call) for name, call in {**waits, **asks}.items()}
        outcomes: dict[str, Outcome] = {}
        thread = threading.Thread(target=lambda: outcomes.update(at_once(calls)))
        with away(server, fault):
            thread.start()
            until(lambda: len(started) == len(calls))
            begin = time.monotonic()
            closing.close()
            assert time.monotonic() - begin < 1 + MARGIN
            thread.join(MARGIN)
            assert not thread.is_alive(), f"blocked calls did not wake: {calls.keys()}"
        for name, outcome in outcomes.items():
            if name in waits:
                assert type(outcome.error) is kvi.Closed, name
            elif outcome.error is not None:  # a fault may be noticed before the handle is closed
                assert type(outcome.error) in (kvi.Closed, *PASSING), name
        assert not lock.held
        assert not lease.alive
        assert not member.alive
