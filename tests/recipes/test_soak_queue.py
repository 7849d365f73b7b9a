"""A hundred thousand jobs through one queue: none is lost, and none is done twice."""

from __future__ import annotations

import threading
import time

import kvi
import pytest
from kvi.recipes import Queue

JOBS, WORKERS = 100_000, 3

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(7200)]


def test_many(uri: str) -> None:
    """Each is had once, at its first attempt, in the order of the puts; then nothing is left."""
    flow_of(uri, JOBS)


def flow_of(uri: str, jobs: int) -> None:
    """Put jobs while workers do them, each with a handle of its own, and check what they had."""
    had: list[list[int]] = [[] for _ in range(WORKERS)]
    failed: list[BaseException] = []
    began = time.monotonic()

    def work(mine: list[int]) -> None:
        try:
            with kvi.open(uri, timeout=60) as store:
                queue = Queue(store, "jobs")
                while (job := queue.get()) is not None and job.value:
                    assert job.attempt == 1, "a job was delivered again for nothing"
                    mine.append(int(job.value))
                    job.ack()
                assert job is not None
                job.ack()
        except BaseException as error:
            failed.append(error)
            raise

    with kvi.open(uri, timeout=60) as store:
        queue = Queue(store, "jobs")
        threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in had]
        for thread in threads:
            thread.start()
        for number in range(jobs):
            queue.put(str(number))
            assert not failed
        put = time.monotonic()
        for _ in threads:
            queue.put("", priority=-1)  # behind all of them
        for thread in threads:
            thread.join()
        assert not failed
        assert sorted(number for mine in had for number in mine) == list(range(jobs))
        assert all(mine == sorted(mine) for mine in had), "jobs came in another order"
        assert queue.count() == 0
        left = {entry.key for entry in store.range()}
        assert left == {"jobs/.kvi/next", "jobs/.kvi/settings"}
    now = time.monotonic()
    print(f"\n{uri.partition(':')[0]}: {jobs} jobs, put in {put - began:.0f} s, done in", end=" ")
    print(f"{now - began:.0f} s: {jobs / (now - began):.0f} a second")
