"""The entries of a range, read page by page while they are iterated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Self

from kvi.aio.awaited import Awaited
from kvi.aio.face import AsyncFace
from kvi.errors import KviError
from kvi.model import KeyValue, RangeResult, Scan
from kvi.ops import PageOp


class AsyncRangeResult:
    """The entries of a range; as a `kvi.RangeResult`, iterated with ``async for``.

    The first page is read already. Iterating again starts over. An iteration that is left early
    frees what it holds when it is dropped; one whose page failed, or was cancelled, goes on where
    it was. Tasks that share an iterator share the entries: each goes to one of them.

    Attributes:
        revision: the revision that the entries were read at, or ``None`` where the store has no
            snapshots.

    """

    __slots__ = ("_found", "_scan", "_store", "_timeout", "revision")

    def __init__(
        self, store: AsyncFace, found: RangeResult, scan: Scan, timeout: float | None
    ) -> None:
        self._store = store
        self._found = found
        self._scan = scan
        self._timeout = timeout
        self.revision = found.revision

    def __repr__(self) -> str:
        return f"<AsyncRangeResult at revision {self.revision}>"

    def __aiter__(self) -> AsyncIterator[KeyValue]:
        return _Pass(self)


class AsyncRange(Awaited[AsyncRangeResult]):
    """A range that is asked for: await it, or iterate it with ``async for``."""

    __slots__ = ()

    def __aiter__(self) -> AsyncIterator[KeyValue]:
        return _Pass(self)


class _Pass:
    """One iteration. A plain object, which ends when it is dropped: a generator would stay."""

    __slots__ = ("_last", "_of", "_op", "_page", "_turn")

    def __init__(self, of: AsyncRange | AsyncRangeResult) -> None:
        self._of = of
        self._op: PageOp | None = None
        self._page: Iterator[KeyValue] | None = iter(())
        self._last: str | None = None  # the last key of the pages so far
        self._turn = asyncio.Lock()  # of who reads the next page, for all who want it

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KeyValue:
        for entry in self._page or ():
            return entry
        async with self._turn:
            while self._page is not None:
                for entry in self._page:
                    return entry
                self._page = await self._next_page()
        raise StopAsyncIteration

    async def _next_page(self) -> Iterator[KeyValue] | None:
        of = self._of
        if isinstance(of, AsyncRange):
            of = self._of = await of._call()  # anew, if it failed or was cancelled
        op, self._op = self._op, None  # what fails is closed by whoever runs it, and made anew
        if op is None:
            op = PageOp(of._found, of._scan, self._last)
        try:
            of._store._enter()
            page = await of._store._do(op, of._timeout)
        except KviError as error:
            raise of._store._placed(error, "range", None)
        if page is None:
            return None
        self._op, self._last = op, page[-1].key
        return iter(page)

    def __del__(self) -> None:
        op = self._op
        if op is not None and op.open:
            assert isinstance(self._of, AsyncRangeResult)  # whose page it was
            self._of._store._runtime.post(op.close)
