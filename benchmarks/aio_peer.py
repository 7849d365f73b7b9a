"""Another client of asyncio, measured in a process of its own: two of them cannot share one.

``python -m benchmarks.aio_peer NAME URI KEY VALUE`` answers each line ``CASE TASKS NUMBER`` with
the seconds that so many calls took. ``etcetra`` wants one grpcio alone, and so is measured only
where somebody has installed it, ``pip install --no-deps etcetra``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.machine import address, installed

Call = Callable[[], Awaitable[object]]
PEERS = ("aetcd", "etcetra")


async def calls(stack: AsyncExitStack, name: str, uri: str, key: str, value: str) -> list[Call]:
    """How the client gets, and how it stores."""
    host, port = address(uri)
    library: Any = installed(name)
    if name == "aetcd":
        client = library.Client(host=host, port=port)
        stack.push_async_callback(client.close)
        return [lambda: client.get(key.encode()), lambda: client.put(key.encode(), value.encode())]
    connecting = library.EtcdClient(library.HostPortPair(host, port)).connect()
    connected = await stack.enter_async_context(connecting)
    return [lambda: connected.get(key), lambda: connected.put(key, value)]


async def main(name: str, *arguments: str) -> None:
    """Serve until the input ends."""
    from benchmarks.aio import measured

    async with AsyncExitStack() as stack:
        get, store = await calls(stack, name, *arguments)
        while line := await asyncio.to_thread(sys.stdin.readline):
            case, tasks, number = line.split()
            took = await measured(get if case == "get" else store, int(tasks), int(number))
            print(took, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
