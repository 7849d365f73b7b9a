"""What is held for an ``async with`` block, and given back at its end, however that comes."""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Self

from kvi.errors import KviError


class Held:
    """A lease, a temporary key, a lock, a member of a group."""

    __slots__ = ()
    _failure: ClassVar[str] = "its lease could not be revoked"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self._let_go()  # a cancelled block does not wait for the store
            return
        try:
            await self._give_back()
        except KviError as failure:
            if error is None:
                raise
            error.add_note(f"afterwards {self._failure}: {failure}")

    async def _give_back(self) -> None:
        """Hold it no more."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Hold it no more; the store is told in the background."""
        raise NotImplementedError
