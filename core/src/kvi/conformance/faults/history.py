"""Watches and starts in the past, once the store has forgotten its history."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.faults.away import BACK, Faulty, away, need, opened
from kvi.conformance.faults.record import DELETE, PUT, RESYNC, State, folded
from kvi.conformance.server import Server
from kvi.conformance.waiting import until

Change = tuple[int, str, bytes | None]  # revision, key, new value


class Log:
    """Writes through one handle, one after the other, and which they were."""

    def __init__(self, store: kvi.Kvi) -> None:
        self._store = store
        self.changes: list[Change] = []

    def put(self, key: str, value: bytes) -> int:
        """Store it; the revision."""
        revision = self._store.store(key, value)
        self.changes.append((revision, key, value))
        return revision

    def delete(self, key: str) -> None:
        """Delete it, together with a write that tells the revision."""
        revision = self._store.txn(then=[kvi.Delete(key), kvi.Put("k/deleted", b"")]).revision
        assert revision is not None
        self.changes += [(revision, key, None), (revision, "k/deleted", b"")]

    def state(self, revision: int) -> State:
        """What is there at a revision."""
        state: State = {}
        for at, key, value in self.changes:
            if at <= revision:
                state.pop(key, None)
                if value is not None:
                    state[key] = (value, at)
        return state


class ForgottenHistory(Faulty):
    """What a store no longer has is replaced by the present state, or refused."""

    @rule("watch.resync", "watch.survives")
    def test_watch_gets_the_state_instead(self, server: Server, store: kvi.Kvi, place: str) -> None:
        """A watch whose changes are forgotten is told the whole state once, and then what follows.

        So is a call-back. Where the server can be isolated, the watch is surely too late; else it
        may have its changes already.
        """
        need(server, "forget")
        apart = server.offers("isolate", "rejoin", "direct_uri")
        called: list[kvi.Event] = []
        with ExitStack() as stack:
            uri = server.direct_uri if apart else server.uri
            log = Log(stack.enter_context(opened(uri, place)))
            start = max(log.put("k/a", b"1"), log.put("k/b", b"1"), log.put("k/c", b"1"))
            store.watch(prefix="k/", callback=lambda event, _: called.append(event))
            watch = stack.enter_context(store.watch(prefix="k/"))
            with away(server, "isolate") if apart else nullcontext():
                log.put("k/a", b"2")
                log.delete("k/b")
                log.put("k/d", b"1")
                server.forget()
                log.put("k/c", b"2")
            events = [watch.next(BACK)]
            while folded(events).get("k/c", (b"", 0))[0] != b"2":
                events.append(watch.next(BACK))
            last = log.put("k/e", b"1")
            while events[-1].revision < last:
                events.append(watch.next(BACK))
            until(lambda: called and called[-1].revision == last, within=BACK)
            assert watch.revision == last
        for told in (events, called):
            check_resync(told, log, start)
            resyncs = sum(event.type is RESYNC for event in told)
            assert resyncs == 1 if apart else resyncs <= 1

    @rule("watch.compacted", "watch.from-revision")
    def test_forgotten_start_is_compacted(self, server: Server, store: kvi.Kvi) -> None:
        """A `from_revision` that is forgotten raises `Compacted`, and a later one works."""
        need(server, "forget")
        first = store.store("k", b"1")
        for value in (b"2", b"3"):
            store.store("k", value)
        server.forget()
        with pytest.raises(kvi.Compacted):
            store.watch("k", from_revision=first)
        last = store.store("k", b"4")
        with store.watch("k", from_revision=last) as watch:
            event = watch.next(BACK)
        assert (event.type, event.value, event.revision) == (PUT, b"4", last)

    @rule("past.refused", "history.changes")
    def test_forgotten_state(self, server: Server, store: kvi.Kvi) -> None:
        """A state that is forgotten is `Compacted`; the history of a key then begins later."""
        need(server, "forget")
        first = store.store("k", b"1")
        store.store("k", b"2")
        server.forget()
        store.store("k", b"3")
        last = store.store("k", b"4")
        if store.capabilities.read_at_revision:
            with pytest.raises(kvi.Compacted):
                store.get("k", revision=first)
            with pytest.raises(kvi.Compacted):
                list(store.range(prefix="k", revision=first))
            assert store.get("k", revision=0) is None
            entry = store.get("k", revision=last)
            assert entry is not None
            assert entry.value == b"4"
        if store.capabilities.watch_history:
            values = [event.value for event in store.history("k")]
            assert values[:2] == [b"4", b"3"]
            assert values == [b"4", b"3", b"2", b"1"][: len(values)]
            assert len(values) < 4


def check_resync(events: list[kvi.Event], log: Log, start: int) -> None:
    """Each change behind ``start`` is told once, in order, or is within a `RESYNC`."""
    reached = start
    rest = [change for change in log.changes if change[0] > start]
    for event in events:
        if event.type is RESYNC:
            assert event.revision >= reached
            reached = event.revision
            rest = [change for change in rest if change[0] > reached]
            assert folded([event]) == log.state(reached)
            assert event.snapshot is not None
            keys = [entry.key for entry in event.snapshot]
            assert keys == sorted(keys)
            continue
        value = None if event.type is DELETE else event.value
        alike = [change for change in rest if change[0] == rest[0][0]]
        assert (event.revision, event.key, value) in alike, f"{event} comes out of turn"
        rest.remove((event.revision, event.key, value))
    assert rest == [], "changes are missing"
