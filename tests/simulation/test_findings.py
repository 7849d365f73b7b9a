"""What the simulation has found in the flows, as plain programs on a memory store."""

from __future__ import annotations

import kvi


def test_cancelled_watch_does_not_run_ahead() -> None:
    """``revision`` of a watch that was cancelled does not count the events that it dropped."""
    with kvi.open("mem:simulation-findings") as store:
        watch = store.watch(prefix="k/")
        store.txn(then=[kvi.Put("k/a", "1"), kvi.Put("k/b", "1")])
        event = watch.next(10)
        assert event.key == "k/a"
        assert watch.revision == event.revision - 1
        watch.cancel()
        assert watch.revision == event.revision - 1, "the change of k/b has not been handed out"
