"""`kvi.aio` on etcd over `grpc.aio` keeps, when something fails, what calls on threads promise."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import kvi
import pytest
from kvi import aio
from kvi.conformance.proxy import TcpProxy

from tests.servers import EtcdServer, find_etcdctl
from tests.support import stalls
from tests.support.inside import inmost
from tests.support.looping import in_loop, ticking, until, until_so
from tests.support.tls import Certificates, TlsProxy

pytestmark = pytest.mark.timeout(180)

ONCE = kvi.RetryPolicy(max_attempts=1)


def opened(uri: str, **options: Any) -> aio.AsyncKvi:
    """A handle whose calls are awaited."""
    return aio.open(uri, grpc_aio=True, **options)


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    """One etcd for all tests here."""
    with EtcdServer(fast=True) as running:
        yield running


def etcdctl(server: EtcdServer, *args: str) -> str:
    """Run a command; what it prints."""
    done = subprocess.run(
        [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", *args],
        check=True,
        capture_output=True,
        text=True,
        env={"ETCDCTL_API": "3"},
    )
    return done.stdout


def leases(server: EtcdServer) -> set[str]:
    """The ids of all leases that live."""
    return {line for line in etcdctl(server, "lease", "list").splitlines() if "found" not in line}


@in_loop
async def test_no_thread_for_a_call(server: EtcdServer) -> None:
    """Calls are awaited: a thousand at once need no pool of threads."""
    async with opened(server.uri) as store:
        await asyncio.gather(*(store.store(f"t/{n}", str(n)) for n in range(1000)))
        assert await store.count(prefix="t/") == 1000
        assert "kvi-calls" not in " ".join(thread.name for thread in threading.enumerate())


@in_loop
async def test_next_endpoint(server: EtcdServer) -> None:
    """An endpoint that refuses is left for the next, by reads and by writes that were not sent."""
    with ExitStack() as stack:
        proxies = [stack.enter_context(TcpProxy(server.port)) for _ in range(3)]
        places = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
        async with opened(f"etcd://{places}", retry=ONCE) as store:
            await store.store("k", "0")
            for gone in proxies:
                gone.refuse()
                gone.cut()

                async def works() -> bool:
                    try:
                        await store.get("k", timeout=5)
                    except kvi.Unavailable:  # the answer that was cut off
                        return False
                    return True

                if gone is not proxies[-1]:
                    await until_so(works)
                    await store.store("k", "1")
                gone.refuse(False)
            await until_so(lambda: reads(store, "k"))  # what refused just now is in a pause
            entry = await store.get("k")
            assert entry is not None
            assert entry.text == "1"


@in_loop
async def test_lost_answer_of_a_write(server: EtcdServer) -> None:
    """A write that has applied, and whose answer is lost with its connection: `OutcomeUnknown`."""
    with TcpProxy(server.port) as proxy:
        async with (
            opened(server.uri) as other,
            opened(f"etcd://127.0.0.1:{proxy.port}", retry=ONCE) as store,
        ):
            await store.get("k")
            proxy.delay = 1.0
            write = asyncio.create_task(store.store("lost", "v"))
            await until_so(lambda: reads(other, "lost"))
            proxy.cut()
            with pytest.raises(kvi.OutcomeUnknown):
                await write


async def reads(store: aio.AsyncKvi, key: str) -> bool:
    """Whether it is there."""
    try:
        return await store.get(key) is not None
    except kvi.Unavailable:
        return False


@in_loop
async def test_silent_peer(server: EtcdServer) -> None:
    """A write to a peer that says nothing, from the beginning, was surely not sent."""
    with TcpProxy(server.port) as proxy:
        proxy.stall()
        async with opened(f"etcd://127.0.0.1:{proxy.port}", retry=ONCE) as store:
            async with ticking() as ticks:
                with stalls.watched() as machine:
                    with pytest.raises((kvi.Unavailable, kvi.Timeout)) as caught:
                        await store.store("silent", "v", timeout=0.5)
                    assert not isinstance(caught.value, kvi.OutcomeUnknown)
            assert ticks.longest < 0.05 + 2 * machine.longest
            proxy.flow()
            await until_so(lambda: answers(store))
            assert await store.get("silent") is None


async def answers(store: aio.AsyncKvi) -> bool:
    """Whether the store answers."""
    try:
        await store.ping()
    except kvi.KviError:
        return False
    return True


@in_loop
async def test_name_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the name server says nothing, calls end in their time and the loop goes on."""
    real = grpc.aio.insecure_channel
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]

        def by_name(target: str, **options: Any) -> Any:
            return real(f"dns://127.0.0.1:{port}/{target}", **options)

        monkeypatch.setattr(grpc.aio, "insecure_channel", by_name)
        async with opened("etcd://etcd.test:2379", retry=ONCE) as store:
            async with ticking() as ticks:
                with stalls.watched() as machine:
                    began = time.monotonic()
                    calls = (store.get("k", timeout=1), store.store("k", "v", timeout=1))
                    results = await asyncio.gather(*calls, return_exceptions=True)
                    took = time.monotonic() - began
            assert took < 1 + 1 + machine.longest
            assert all(isinstance(one, kvi.Unavailable | kvi.Timeout) for one in results)
            assert ticks.longest < 0.05 + 2 * machine.longest


@in_loop
async def test_first_use_does_not_block(server: EtcdServer) -> None:
    """Opening, the first call and the close leave the loop to others."""
    async with opened(server.uri) as warm:  # what is imported once
        await warm.ping()
    async with ticking() as ticks:
        with stalls.watched() as machine:
            async with opened(server.uri) as store:
                await store.ping()
                await asyncio.sleep(0)
    assert ticks.longest < 0.05 + 2 * machine.longest


@in_loop
async def test_close_wakes_calls(server: EtcdServer) -> None:
    """Calls that wait for a server that says nothing end with `Closed` as the handle does."""
    with TcpProxy(server.port) as proxy:
        store = opened(f"etcd://127.0.0.1:{proxy.port}", timeout=60)
        await store.ping()
        proxy.stall()
        calls = [
            asyncio.ensure_future(call)
            for call in (store.get("k"), store.store("k", "v"), store.count(), store.ping())
        ]
        calls.append(asyncio.ensure_future(store.lock("jobs").acquire()))
        inside = store._runtime.awaited
        await until(lambda: len(inside) == len(calls))
        await asyncio.sleep(0)
        began = time.monotonic()
        closing = asyncio.create_task(store.close())
        for call in calls:
            with pytest.raises(kvi.Closed):
                await call
        assert time.monotonic() - began < 5
        proxy.flow()
        await closing
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


@in_loop
async def test_cancelled_at_once_with_a_close(server: EtcdServer) -> None:
    """A call that is cancelled as its handle closes ends as cancelled."""
    with TcpProxy(server.port) as proxy:
        store = opened(f"etcd://127.0.0.1:{proxy.port}", timeout=60)
        await store.ping()
        proxy.stall()
        call = asyncio.create_task(store.get("k"))
        await until(lambda: store._runtime.awaited)
        closing = asyncio.create_task(store.close())
        await until(lambda: store.closed)
        call.cancel()
        with pytest.raises((asyncio.CancelledError, kvi.Closed)) as caught:
            await call
        assert call.cancelled() or isinstance(caught.value, kvi.Closed)
        proxy.flow()
        await closing


@in_loop
async def test_no_connection_is_left(server: EtcdServer) -> None:
    """A close ends the connections of both kinds; so does dropping the handle with its loop."""
    with TcpProxy(server.port) as proxy:
        async with opened(f"etcd://127.0.0.1:{proxy.port}") as store:
            watch = await store.watch("k")
            await store.store("k", "v")
            await watch.next(10)
            await watch.cancel()
            assert proxy.open == 2
        await until(lambda: proxy.open == 0)

        def forgotten() -> None:
            async def use() -> None:
                await opened(f"etcd://127.0.0.1:{proxy.port}").ping()

            asyncio.run(use())

        await asyncio.to_thread(forgotten)
        gc.collect()
        await until(lambda: proxy.open == 0)


@in_loop
async def test_channels_that_are_replaced(server: EtcdServer) -> None:
    """A channel that reaches nothing gives way to another, and is closed."""
    with TcpProxy(server.port) as proxy:
        async with opened(f"etcd://127.0.0.1:{proxy.port}", retry=ONCE) as store:
            await store.ping()
            calls = inmost(store)._in_loop._calls
            proxy.refuse()
            proxy.cut()
            channels = {calls._endpoint.channel}
            while len(channels) < 4:
                assert not await answers(store)
                if calls._endpoint is not None:
                    channels.add(calls._endpoint.channel)
            proxy.refuse(False)

            async def one_is_open() -> bool:  # a call closes those that nobody uses any more
                gc.collect()  # what a traceback may have kept
                return await answers(store) and len(calls._channels) == proxy.open == 1

            await until_so(one_is_open)


@in_loop
async def test_cancelled_grants(server: EtcdServer) -> None:
    """A lease whose grant was cancelled on its way is revoked at once, not after its ttl."""
    before = leases(server)
    with TcpProxy(server.port) as proxy:
        async with opened(f"etcd://127.0.0.1:{proxy.port}") as store:
            await store.ping()
            proxy.delay = 0.02
            for _ in range(30):
                call = asyncio.create_task(taken(store))
                await asyncio.sleep(random.uniform(0, 0.06))
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            proxy.delay = 0

            async def revoked() -> bool:
                return await asyncio.to_thread(leases, server) == before

            await until_so(revoked)


async def taken(store: aio.AsyncKvi) -> None:
    """Hold a lease until cancelled."""
    async with store.lease(600):
        await asyncio.sleep(600)


@in_loop
async def test_pages(server: EtcdServer) -> None:
    """Large ranges come in pages, both ways, of one revision; left early, nothing stays."""
    value = "x" * 1000
    async with opened(server.uri) as store:
        view = store.namespace("pages")
        for first in range(0, 5000, 100):
            await view.txn(then=[kvi.Put(f"{n:05}", value) for n in range(first, first + 100)])
        found = await view.range()
        await view.store("00000", "later")
        keys = [entry.key async for entry in found]
        assert keys == [f"{n:05}" for n in range(5000)]
        assert [e.value async for e in await view.range(limit=1)] == [b"later"]
        assert next(iter([e.value async for e in found])) == value.encode()  # again, as it was
        keys = [entry.key async for entry in view.range(reverse=True)]
        assert keys == [f"{n:05}" for n in reversed(range(5000))]
        assert len([entry async for entry in view.range(reverse=True, limit=3000)]) == 3000
        async for entry in view.range():
            if entry.key == "02000":
                break
        reading = asyncio.create_task(everything(view))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await view.delete_range(prefix="") == 5000


async def everything(store: aio.AsyncKvi) -> list[str]:
    """All keys, over and over."""
    while True:
        keys = [entry.key async for entry in store.range()]
        assert len(keys) == 5000


@in_loop
async def test_history_that_goes_amid_a_range(server: EtcdServer) -> None:
    """A page whose revision was compacted is `Compacted`."""
    async with opened(server.uri) as store:
        view = store.namespace("gone")
        for first in range(0, 3000, 100):
            await view.txn(then=[kvi.Put(f"{n:05}", "x" * 1000) for n in range(first, first + 100)])
        found = await view.range()
        await view.store("00000", "later")
        revision = await view.store("00000", "later still")
        await asyncio.to_thread(etcdctl, server, "compact", str(revision))
        with pytest.raises(kvi.Compacted):
            assert [entry async for entry in found]


@in_loop
async def test_logins() -> None:
    """One login serves all tasks; one that the server forgot is made anew, and a wrong one told."""
    with EtcdServer(fast=True, extra_args=["--bcrypt-cost=10"]) as server:
        for command in ("user add root:rootpw", "user grant-role root root", "auth enable"):
            etcdctl(server, *command.split())
        uri = f"etcd://root:rootpw@{server.host}:{server.port}"
        async with opened(uri) as store:
            await asyncio.gather(*(store.store(f"k{n}", str(n)) for n in range(200)))
            assert await store.count() == 200
            await asyncio.to_thread(server.restart)  # it keeps no token
            await until_so(lambda: answers(store))
            await asyncio.gather(*(store.get(f"k{n}") for n in range(200)))
        async with opened(uri.replace("rootpw", "wrong")) as store:
            with pytest.raises(kvi.AuthenticationFailed):
                await store.get("k")


@in_loop
async def test_certificates(server: EtcdServer, tmp_path: Path) -> None:
    """Over TLS as without; what the files do not vouch for is told as such."""
    files = Certificates.make(tmp_path)
    with TlsProxy((server.host, server.port), files, mutual=True) as proxy:
        uri = f"etcd+tls://127.0.0.1:{proxy.port}"
        mine = {"cert": str(files.client_cert), "key": str(files.client_key)}
        async with opened(uri, ca=str(files.ca), **mine) as store:
            await store.store("tls", "v")
        async with opened(uri, ca=str(files.stranger_ca), **mine) as store:
            with pytest.raises(kvi.AuthenticationFailed):
                await store.get("tls")
