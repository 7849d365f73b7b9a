"""`kvi.aio` as the suite sees it: handles for threads, whose every call is awaited in one loop.

The faces map one to one, so what the suite shows of these it shows of `kvi.aio`. In a forked child
a loop of its own is begun.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar
from unittest import mock

import kvi
from kvi import aio
from kvi.model import RangeResult

__all__ = ["on_loop", "opening_on_loop"]

T = TypeVar("T")

_PAGE = 200  # entries that one hop to the loop brings

_loops: dict[int, asyncio.AbstractEventLoop] = {}
_beginning = threading.Lock()


def on_loop(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine gives, awaited in the loop of this process."""
    with _beginning:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="aio", daemon=True).start()

    async def run() -> T:
        return await call()

    return asyncio.run_coroutine_threadsafe(run(), loop).result()


@contextmanager
def opening_on_loop() -> Iterator[None]:
    """For the block, `kvi.open` gives handles of `kvi.aio`."""

    def open_on_loop(uri: str, **options: object) -> kvi.Kvi:
        return OnLoop(aio.open(uri, **options))

    with mock.patch.object(kvi, "open", open_on_loop):
        yield


async def on_thread(function: Callable[..., object], *arguments: object) -> object:
    """What a function gives that may block, as those of the suite may."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[object] = loop.create_future()

    def work() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001  (raised in the loop)
            loop.call_soon_threadsafe(future.set_exception, error)
        else:
            loop.call_soon_threadsafe(future.set_result, result)

    threading.Thread(target=work, daemon=True).start()
    return await future


def _bridged(fn: Any, face: Callable[[Any], Any] = lambda given: given) -> Any:
    """A function of the suite, which may block, for a call that is awaited."""
    if not callable(fn):
        return fn
    return lambda given: on_thread(fn, face(given))


class _Call:
    """Methods that await those of the same name of ``_it``."""

    _it: Any

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return on_loop(lambda: getattr(self._it, method)(*arguments, **options))

    def __enter__(self) -> Self:
        self._call("__aenter__")
        return self

    def __exit__(self, *raised: object) -> None:
        self._call("__aexit__", *raised)


def _passed(name: str) -> Any:
    def method(self: _Call, *arguments: Any, **options: Any) -> Any:
        return self._call(name, *arguments, **options)

    return method


def _read(name: str) -> Any:
    return property(lambda self: getattr(self._it, name))


class _Loss(_Call):
    def __init__(self, it: aio.AsyncLoss) -> None:
        self._it = it

    is_set = property(lambda self: self._it.is_set)
    wait = _passed("wait")

    def add_callback(self, callback: Callable[[], object]) -> None:
        async def add() -> None:
            self._it.add_callback(lambda: on_thread(callback))

        on_loop(add)


class _Lease(_Call, kvi.Lease):
    def __init__(self, it: aio.AsyncLease) -> None:
        self._it = it
        self._flow = it._flow
        self.lost = _Loss(it.lost)  # type: ignore[assignment]

    id, ttl, alive = _read("id"), _read("ttl"), _read("alive")
    renew, revoke = _passed("renew"), _passed("revoke")
    __repr__ = object.__repr__


class _TempKey(_Call, kvi.TempKey):
    def __init__(self, it: aio.AsyncTempKey) -> None:
        self._it = it
        self._lease = _Lease(it.lease)

    key, alive = _read("key"), _read("alive")
    close = _passed("close")
    __repr__ = object.__repr__


class _Lock(_Call, kvi.Lock):
    def __init__(self, it: aio.AsyncLock) -> None:
        self._it = it
        self._flow = it._flow

    name, held, fence, guard = _read("name"), _read("held"), _read("fence"), _read("guard")
    lost = property(lambda self: _Loss(self._it.lost))
    acquire, release = _passed("acquire"), _passed("release")
    __repr__ = object.__repr__


class _Watch(_Call, kvi.Watch):
    def __init__(self, it: aio.AsyncWatch) -> None:
        self._it = it
        self._flow = it._flow

    revision, error, active = _read("revision"), _read("error"), _read("active")
    next, cancel = _passed("next"), _passed("cancel")
    __repr__ = object.__repr__

    def __next__(self) -> kvi.Event:
        try:
            event: kvi.Event = self._call("__anext__")
        except StopAsyncIteration:
            raise StopIteration from None
        return event


class _Tx(_Call):
    def __init__(self, it: aio.AsyncTx) -> None:
        self._it = it

    get = _passed("get")

    def put(self, key: str, value: Any, *, lease: Any = None) -> None:
        self._it.put(key, value, lease=lease)

    def delete(self, key: str) -> None:
        self._it.delete(key)


async def _some(entries: AsyncIterator[kvi.KeyValue]) -> list[kvi.KeyValue]:
    page: list[kvi.KeyValue] = []
    try:
        while len(page) < _PAGE:
            page.append(await anext(entries))
    except StopAsyncIteration:
        pass
    except kvi.KviError:
        if not page:
            raise
    return page


class OnLoop(_Call, kvi.Kvi):
    """A handle of `kvi.aio`, for threads."""

    def __init__(self, it: aio.AsyncKvi, kept: list[object] | None = None) -> None:
        self._it = it
        self._scope = it._scope
        self._runtime = it._runtime
        # What the suite drops without ending it: `kvi` lets it live.
        self._kept: list[object] = [] if kept is None else kept

    get, count, store, delete = map(_passed, ("get", "count", "store", "delete"))
    delete_range, tas, cas, txn = map(_passed, ("delete_range", "tas", "cas", "txn"))
    transaction, ping, close = map(_passed, ("transaction", "ping", "close"))
    _do = _passed("_do")
    client = _read("client")

    def range(self, *arguments: Any, **options: Any) -> RangeResult:
        rows: aio.AsyncRangeResult = self._call("range", *arguments, **options)

        def pages() -> Iterator[Iterable[kvi.KeyValue]]:
            entries = aiter(rows)
            while page := on_loop(lambda: _some(entries)):
                yield page

        return RangeResult(rows.revision, pages)

    def update(self, key: str, fn: Callable[[Any], Any], **options: Any) -> kvi.KeyValue | None:
        return self._call("update", key, _bridged(fn), **options)  # type: ignore[no-any-return]

    def atomically(self, fn: Callable[[Any], Any], **options: Any) -> Any:
        return self._call("atomically", _bridged(fn, _Tx), **options)

    def lease(self, *arguments: Any, **options: Any) -> kvi.Lease:
        return self._keep(_Lease(self._call("lease", *arguments, **options)))

    def temp_key(self, *arguments: Any, **options: Any) -> kvi.TempKey:
        return self._keep(_TempKey(self._call("temp_key", *arguments, **options)))

    def lock(self, *arguments: Any, **options: Any) -> kvi.Lock:
        return self._keep(_Lock(self._it.lock(*arguments, **options)))

    def watch(self, *arguments: Any, **options: Any) -> kvi.Watch:
        callback = options.get("callback")
        if callable(callback):
            options["callback"] = lambda event, data: on_thread(callback, event, data)
        return self._keep(_Watch(self._call("watch", *arguments, **options)))

    def namespace(self, name: str) -> kvi.Kvi:
        return OnLoop(self._it.namespace(name), self._kept)

    def _keep(self, it: T) -> T:
        self._kept.append(it)
        return it
