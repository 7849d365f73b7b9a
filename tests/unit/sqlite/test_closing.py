"""Closing a handle, or a view, wakes who is in line to write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import kvi
import pytest

from tests.support.inside import inmost
from tests.support.waiting import until

LATE = 60.0  # seconds: the time-out of the calls that wait


@contextmanager
def in_line(store: kvi.Kvi) -> Iterator[Callable[[], int]]:
    """For the block, another writer of this process is first in line; how many there are."""
    queue = inmost(store)._pool.writers
    with queue.place("another", inf):
        yield lambda: len(queue)


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another thread"])
@pytest.mark.parametrize("closed", ["handle", "handle with a lease", "view"])
def test_close_wakes_who_is_in_line(tmp_path: Path, closed: str, main: bool) -> None:
    """At once, whatever has to be settled; the parent of a view, and what it writes, goes on."""
    with kvi.open(f"sqlite:{tmp_path}/store.db", timeout=3) as handle:
        view = handle.namespace("v")
        lease = handle.lease(30) if closed == "handle with a lease" else None
        told: list[tuple[BaseException, float]] = []

        def write() -> None:
            try:
                view.store("k", b"v", timeout=LATE)
            except kvi.KviError as error:
                told.append((error, time.monotonic()))

        begun: list[float] = []

        def close() -> None:
            until(lambda: number() > 1)
            begun.append(time.monotonic())
            (view if closed == "view" else handle).close()

        with in_line(handle) as number:
            other = threading.Thread(target=close if main else write, daemon=True)
            other.start()
            (write if main else close)()
            until(lambda: told)
        other.join(20)
        error, moment = told[0]
        assert isinstance(error, kvi.Closed)
        assert moment - begun[0] < 2, "it waited until the handle was settled"
        if closed == "view":
            handle.store("k", b"v")
            assert handle.get("k") is not None
        assert lease is None or not lease.alive
