"""`TypedView`: a store that reads and writes values of one type, for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from inspect import isawaitable
from typing import Generic, Self, TypeVar

from kvi.aio.awaited import Awaited, Beginning
from kvi.aio.kvi import AsyncKvi
from kvi.aio.ranges import AsyncRange, AsyncRangeResult
from kvi.aio.watch import AsyncWatch
from kvi.entities.codecs import Codec
from kvi.entities.typed import Coding, Entry, TypedEvent
from kvi.errors import BadRecord
from kvi.model import Event, EventType, KeyValue, LeaseRef

V = TypeVar("V")
Decode = Callable[[KeyValue], Entry[V]]
Bad = Callable[[BadRecord], object] | None


class TypedView(Coding[V]):
    """A view of ``store`` whose values are of the type of ``codec``; as a `kvi.loader.TypedView`.

    What has no value in it (deleting, counting, locks, leases) is asked of ``.store`` itself, which
    stays its owner's to close.
    """

    def __init__(self, store: AsyncKvi, codec: Codec[V]) -> None:
        super().__init__(codec, store.uri)
        self.store = store
        """The store underneath."""

    async def get(
        self, key: str, *, revision: int | None = None, timeout: float | None = None
    ) -> Entry[V] | None:
        """Read one entry; ``None`` if it is not there. Raises `BadRecord`."""
        entry = await self.store.get(key, revision=revision, timeout=timeout)
        return None if entry is None else self._entry(entry)

    def range(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        revision: int | None = None,
        bad: Callable[[BadRecord], object] | None = None,
        timeout: float | None = None,
    ) -> AsyncTypedRange[V]:
        """Read entries as `AsyncKvi.range` does: await it, or iterate it with ``async for``.

        A bad record raises `BadRecord` where the iteration comes to it; with ``bad`` that is called
        instead, and the iteration goes on.
        """
        rows = self.store.range(
            start,
            end,
            prefix=prefix,
            limit=limit,
            reverse=reverse,
            revision=revision,
            timeout=timeout,
        )
        return AsyncTypedRange(rows, self._entry, bad)

    async def history(
        self, key: str, *, limit: int | None = None, timeout: float | None = None
    ) -> list[TypedEvent[V]]:
        """The changes of a key, as of `AsyncKvi.history`. Raises `BadRecord` if one is bad."""
        events = await self.store.history(key, limit=limit, timeout=timeout)
        return [self._event(event) for event in events]

    async def put(
        self,
        key: str,
        value: V,
        *,
        lease: int | LeaseRef | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Create or replace an entry, as `AsyncKvi.store` does; returns the new revision."""
        data = self._encode(key, value)
        return await self.store.store(key, data, lease=lease, ttl=ttl, timeout=timeout)

    async def update(
        self,
        key: str,
        fn: Callable[[V | None], V | None] | Callable[[V | None], Awaitable[V | None]],
        *,
        default: V | None = None,
        timeout: float | None = None,
    ) -> Entry[V] | None:
        """Change a value atomically, as `AsyncKvi.update` does; raises `BadRecord` for a bad one.

        ``fn`` may be a coroutine function.
        """

        async def change(old: bytes | None) -> bytes | None:
            new = fn(None if old is None else self._value(key, old))
            if isawaitable(new):
                new = await new
            return None if new is None else self._encode(key, new)

        absent = None if default is None else self._encode(key, default)  # each run has its own
        entry = await self.store.update(key, change, default=absent, timeout=timeout)
        return None if entry is None else self._entry(entry)

    async def cas(
        self,
        key: str,
        revision: int,
        value: V,
        *,
        lease: int | LeaseRef | None = None,
        timeout: float | None = None,
    ) -> int | None:
        """Store only if the key's revision is this one (0: if it is absent)."""
        data = self._encode(key, value)
        return await self.store.cas(key, revision, data, lease=lease, timeout=timeout)

    async def tas(
        self,
        key: str,
        test: V | None,
        set: V | None,  # noqa: A002  (the field's name of the argument: test-and-set)
        *,
        timeout: float | None = None,
    ) -> bool:
        """Test and set: ``None`` is "absent". Compares bytes, see `kvi.loader.TypedView.tas`."""
        old = None if test is None else self._encode(key, test)
        new = None if set is None else self._encode(key, set)
        return await self.store.tas(key, old, new, timeout=timeout)

    def watch(
        self,
        key: str | None = None,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        from_revision: int | None = None,
        initial: bool = False,
        events: EventType | Iterable[EventType] | None = None,
        timeout: float | None = None,
    ) -> Beginning[AsyncTypedWatch[V]]:
        """Watch as `AsyncKvi.watch` does, without call-back."""

        async def begin() -> AsyncTypedWatch[V]:
            watch = await self.store.watch(
                key,
                prefix=prefix,
                start=start,
                end=end,
                from_revision=from_revision,
                initial=initial,
                events=events,
                timeout=timeout,
            )
            return AsyncTypedWatch(watch, self._event)

        return Beginning(begin)


class AsyncTypedRangeResult(Generic[V]):
    """The entries of a range, decoded one by one; see `AsyncRangeResult`.

    Attributes:
        revision: as of `AsyncRangeResult`.

    """

    __slots__ = ("_bad", "_decode", "_found", "revision")

    def __init__(self, found: AsyncRangeResult, decode: Decode[V], bad: Bad) -> None:
        self.revision = found.revision
        self._found = found
        self._decode = decode
        self._bad = bad

    def __aiter__(self) -> AsyncIterator[Entry[V]]:
        return _Decoded(aiter(self._found), self._decode, self._bad)


class AsyncTypedRange(Awaited[AsyncTypedRangeResult[V]], Generic[V]):
    """A range that is asked for: await it, or iterate it with ``async for``."""

    __slots__ = ("_bad", "_decode", "_rows")

    def __init__(self, rows: AsyncRange, decode: Decode[V], bad: Bad) -> None:
        self._rows = rows
        self._decode = decode
        self._bad = bad

        async def ask() -> AsyncTypedRangeResult[V]:
            return AsyncTypedRangeResult(await rows, decode, bad)

        super().__init__(ask)

    def __aiter__(self) -> AsyncIterator[Entry[V]]:
        return _Decoded(aiter(self._rows), self._decode, self._bad)


class _Decoded(Generic[V]):
    """One iteration; see `kvi.aio.ranges`."""

    __slots__ = ("_bad", "_decode", "_entries")

    def __init__(self, entries: AsyncIterator[KeyValue], decode: Decode[V], bad: Bad) -> None:
        self._entries = entries
        self._decode = decode
        self._bad = bad

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry[V]:
        while True:
            entry = await anext(self._entries)
            try:
                return self._decode(entry)
            except BadRecord as error:
                if self._bad is None:
                    raise
                self._bad(error)


class AsyncTypedWatch(Generic[V]):
    """Changes with their values decoded; see `AsyncWatch`, which is ``.watch``.

    A bad record raises `BadRecord` from `next`; the one after it delivers the change after it.
    """

    def __init__(self, watch: AsyncWatch, decode: Callable[[Event], TypedEvent[V]]) -> None:
        self.watch = watch
        """The watch underneath."""
        self._decode = decode

    async def next(self, timeout: float | None = None) -> TypedEvent[V]:
        """The next change; raises as `AsyncWatch.next` does, and `BadRecord`."""
        return self._decode(await self.watch.next(timeout))

    async def cancel(self) -> None:
        """End the watch."""
        await self.watch.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TypedEvent[V]:
        return self._decode(await anext(self.watch))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.cancel()
