"""One contender of `benchmarks.aio` on etcd, in a process of its own, as programs have it.

``python -m benchmarks.aio_peer NAME URI KEY VALUE`` answers each line ``CASE TASKS NUMBER`` with
the seconds that so many calls took.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.machine import address, has, installed
from benchmarks.measure import FLOOR, KVI

Call = Callable[[], Awaitable[object]]
ASKED = "stub with time-out and leader"
LIBRARIES = ("aetcd", "etcetra")


def contenders() -> list[str]:
    """The names of those that are here."""
    return [FLOOR, ASKED, KVI, *(name for name in LIBRARIES if has(name))]


async def calls(stack: AsyncExitStack, name: str, uri: str, key: str, value: str) -> list[Call]:
    """How a contender gets, and how it stores."""
    host, port = address(uri)
    raw_key, raw_value = key.encode(), value.encode()
    if name in (FLOOR, ASKED):
        return await _stub(stack, f"{host}:{port}", raw_key, raw_value, asked=name == ASKED)
    if name == KVI:
        import kvi

        store = await stack.enter_async_context(kvi.aio.open(uri, grpc_aio=True))
        return [lambda: store.get(key), lambda: store.store(key, raw_value)]
    library: Any = installed(name)
    if name == "aetcd":
        client = library.Client(host=host, port=port)
        stack.push_async_callback(client.close)
        return [lambda: client.get(raw_key), lambda: client.put(raw_key, raw_value)]
    connecting = library.EtcdClient(library.HostPortPair(host, port)).connect()
    connected = await stack.enter_async_context(connecting)
    return [lambda: connected.get(key), lambda: connected.put(key, value)]


async def _stub(
    stack: AsyncExitStack, target: str, key: bytes, value: bytes, *, asked: bool
) -> list[Call]:
    """Bare calls, nothing around them; if ``asked``, with what kvi sends along with each."""
    import grpc
    from kvi_etcd import wire_pb2 as pb

    options: dict[str, Any] = {}
    if asked:
        options = {"timeout": 30.0, "metadata": grpc.aio.Metadata(("hasleader", "true"))}
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
    ask = channel.unary_unary(
        "/etcdserverpb.KV/Range",
        request_serializer=pb.RangeRequest.SerializeToString,
        response_deserializer=pb.RangeResponse.FromString,
    )
    put = channel.unary_unary(
        "/etcdserverpb.KV/Put",
        request_serializer=pb.PutRequest.SerializeToString,
        response_deserializer=pb.PutResponse.FromString,
    )

    async def get() -> object:
        return (await ask(pb.RangeRequest(key=key), **options)).kvs[0].value

    async def store() -> object:
        return (await put(pb.PutRequest(key=key, value=value), **options)).header.revision

    return [get, store]


async def measured(call: Call, count: int, number: int) -> float:
    """Await ``call`` by ``count`` tasks at once; the time of ``number`` at their joint rate."""

    async def work(number: int) -> None:
        for _ in range(number):
            await call()

    each = max(1, round(number / count))
    start = time.perf_counter()
    await asyncio.gather(*(work(each) for _ in range(count)))
    return (time.perf_counter() - start) * number / (each * count)


async def main(name: str, *arguments: str) -> None:
    """Serve until the input ends."""
    async with AsyncExitStack() as stack:
        get, store = await calls(stack, name, *arguments)
        await store()
        while line := await asyncio.to_thread(sys.stdin.readline):
            case, tasks, number = line.split()
            took = await measured(get if case == "get" else store, int(tasks), int(number))
            print(took, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
