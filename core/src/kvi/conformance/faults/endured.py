"""What clients and watches may rely on through the faults of the server."""

from __future__ import annotations

import pytest

from kvi.conformance.contract import rule
from kvi.conformance.faults.away import MARGIN, Faulty, need_fault, opened
from kvi.conformance.faults.ordeal import TIMEOUT, TURNS, Ordeal, run
from kvi.conformance.faults.record import Fate, check_state, check_told, folded
from kvi.conformance.server import Server

_DONE = pytest.StashKey[dict[str, Ordeal | BaseException]]()


class Endured(Faulty):
    """Clients work, and watches run, while the server suffers."""

    @pytest.fixture(params=TURNS)
    def ordeal(self, request: pytest.FixtureRequest, noted: Server) -> Ordeal:
        """What came out of the ordeal, which the first test that asks for it runs."""
        fault: str = request.param
        need_fault(noted, fault)
        group = request.node.getparent(pytest.Class)
        assert group is not None
        done: dict[str, Ordeal | BaseException] = group.stash.setdefault(_DONE, {})
        if fault not in done:
            try:
                done[fault] = run(noted, fault)
            except BaseException as error:  # noqa: BLE001  (raised for each test)
                done[fault] = error
        outcome = done[fault]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    @rule("error.acknowledged")
    def test_acknowledged_writes_are_there(self, ordeal: Ordeal) -> None:
        """What was acknowledged is there afterwards, at its revision; a deletion too."""
        check_state(ordeal.state, ordeal.clients.writes, Fate.ACKNOWLEDGED)

    @rule("error.certain")
    def test_denied_writes_never_show_up(self, ordeal: Ordeal, kvi_server: Server) -> None:
        """A write that failed with anything but `OutcomeUnknown` has not applied, then or later."""
        check_state(ordeal.state, ordeal.clients.writes, Fate.DENIED)
        with opened(kvi_server.uri, ordeal.place) as store:
            now = {entry.key: (entry.value, entry.revision) for entry in store.range(prefix="w/")}
        puts = [w for w in ordeal.clients.writes if None not in w.changes.values()]
        check_state(now, puts, Fate.DENIED)

    @rule("error.typed")
    def test_reads_are_never_in_doubt(self, ordeal: Ordeal) -> None:
        """No read fails with `OutcomeUnknown`, nor does a transaction that only reads."""
        assert ordeal.clients.doubts == []

    @rule("revision.grows")
    def test_revisions_grow(self, ordeal: Ordeal) -> None:
        """A write has a larger revision than all that were acknowledged before it began."""
        told = [write for write in ordeal.clients.writes if write.revision is not None]
        revisions = [write.revision for write in told]
        assert len(set(revisions)) == len(revisions), "two writes have one revision"
        late = [w for w in told if w.revision is not None and w.revision <= w.after]
        assert not late, "a revision was used again, or fell"

    @rule("txn.atomic")
    def test_transactions_stay_whole(self, ordeal: Ordeal) -> None:
        """A transaction is there whole, at one revision, or not at all, whatever was told of it."""
        for write in ordeal.clients.writes:
            if len(write.changes) > 1:
                parts = [ordeal.state.get(key) for key in write.changes]
                assert len(set(parts)) == 1, f"{write} was applied in part: {parts}"

    @rule("get.linearizable", "error.recovers")
    def test_reads_tell_the_truth(self, ordeal: Ordeal) -> None:
        """Reads give what is there or fail, and never miss a key; they work again after a fault."""
        assert ordeal.clients.lies == []

    @rule("error.typed", "handle.timeout")
    def test_calls_end_in_time_under_load(self, ordeal: Ordeal) -> None:
        """No call lasts longer than its time-out, however often connections end under it."""
        assert ordeal.clients.slowest < TIMEOUT + MARGIN

    @rule("watch.survives", "watch.history", "watch.last-state")
    def test_watches_lose_nothing(self, ordeal: Ordeal) -> None:
        """A watch that nobody reads meanwhile tells every write afterwards, once and in order."""
        check_told(ordeal.unread, ordeal.clients.writes, history=ordeal.keeps_history)
        assert folded(ordeal.unread) == ordeal.state

    @rule("watch.survives", "watch.callback")
    def test_callbacks_lose_nothing(self, ordeal: Ordeal) -> None:
        """A call-back is told every write, once and in order."""
        check_told(ordeal.called, ordeal.clients.writes, history=ordeal.keeps_history)
        assert folded(ordeal.called) == ordeal.state

    @rule("watch.survives", "watch.initial")
    def test_initial_state_and_changes_join(self, ordeal: Ordeal) -> None:
        """A watch with `initial=True` goes on from the state it told, without gap or duplicate."""
        first = [event for event in ordeal.joined if event.initial]
        rest = ordeal.joined[len(first) :]
        assert not any(event.initial for event in rest)
        assert folded(ordeal.joined) == ordeal.state
        if not ordeal.keeps_history:
            check_told(ordeal.joined, ordeal.clients.writes, history=False)
            return
        before = ordeal.history[: len(ordeal.history) - len(rest)]
        assert rest == ordeal.history[len(before) :]
        assert folded(first) == folded(before)

    @rule("watch.survives", "watch.revision")
    def test_watches_go_on_where_others_ended(self, ordeal: Ordeal) -> None:
        """New watches from `revision + 1` of the last one lose and repeat nothing."""
        assert ordeal.resumed == ordeal.history

    @rule("watch.from-revision", "error.acknowledged", "error.certain")
    def test_history_is_what_was_written(self, ordeal: Ordeal) -> None:
        """A watch from the first revision tells what was acknowledged, and nothing denied."""
        if ordeal.keeps_history:  # else refused, as `TestHistory` shows
            check_told(ordeal.history, ordeal.clients.writes, history=True)
