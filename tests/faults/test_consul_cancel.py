"""Calls to Consul that nobody waits for any more end at once, and hold nothing."""

from __future__ import annotations

import asyncio
import threading
import time

import kvi
import pytest
from kvi import aio
from kvi.conformance.proxy import TcpProxy
from kvi.driver.loop import THREADS

from tests.support.inside import inmost
from tests.support.looping import in_loop, until
from tests.support.waiting import until as until_sync

pytestmark = [pytest.mark.slow, pytest.mark.consul, pytest.mark.timeout(120)]


@in_loop
async def test_cancelled_tasks(consul_uri: str) -> None:
    """More calls than threads are cancelled while nothing is answered; the next ones have room."""
    port = int(consul_uri.rpartition(":")[2])
    with TcpProxy(port) as proxy:
        async with aio.open(f"consul://127.0.0.1:{proxy.port}", timeout=60) as store:
            await store.ping()
            pool = inmost(store)._transport._pool
            proxy.stall()
            calls = [asyncio.create_task(store.get(f"k{n}")) for n in range(2 * THREADS)]
            await until(lambda: pool.busy == 4)
            # Others wait for a connection: to tell them once that nobody waits comes too early.
            await until(lambda: len(store._runtime.jobs.threads) > 8)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            await until(lambda: not pool.busy, within=20)
            proxy.flow()
            began = time.monotonic()
            assert await store.get("a key that no test writes") is None
            assert time.monotonic() - began < 20


def test_a_view_that_is_closed(consul_uri: str) -> None:
    """A thread that waits for an answer is woken by the end of its view."""
    port = int(consul_uri.rpartition(":")[2])
    with (
        TcpProxy(port) as proxy,
        kvi.open(f"consul://127.0.0.1:{proxy.port}", timeout=60) as store,
    ):
        view = store.namespace("n")
        view.get("k")
        proxy.stall()
        caught: list[kvi.KviError] = []

        def ask() -> None:
            try:
                view.get("k")
            except kvi.KviError as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        until_sync(lambda: inmost(store)._transport._pool.busy)
        view.close()
        thread.join(20)
        assert [type(error) for error in caught] == [kvi.Closed]
        proxy.flow()
        assert store.get("n/k") is None
