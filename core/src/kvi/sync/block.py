"""What is held for a ``with`` block, and given back at its end, however that comes.

Python may run a signal handler at the very entry of ``__exit__``, before its first step. An
exception raised there would leave what the block held with nobody to give it back. So ``__exit__``
is looked up anew for each block, and gives a method of a `Block` that only the ``with`` statement
has. What is held for the block is held for as long as that object lives: the flow that keeps it
alive looks for it at each renewal, and gives up what nobody holds any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Self

from kvi.errors import KviError


class Block:
    """One run of a ``with`` block; it dies with the block."""

    __slots__ = ("__weakref__", "_held")

    def __init__(self, held: Held) -> None:
        self._held = held

    def leave(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What the ``with`` statement calls at the end."""
        self._held._leave(kind, error, trace)


class BlockExit:
    """The descriptor ``__exit__`` of what is held for a block."""

    def __get__(self, held: Any, owner: Any) -> Callable[..., None]:
        """A method of a new block; of the class, as `contextlib.ExitStack` asks, the plain one."""
        if held is None:
            return owner._leave  # type: ignore[no-any-return]
        block = Block(held)
        held._hold_for(weakref.ref(block))
        return block.leave


class Held:
    """What is held for a block: a lease, a temporary key, a lock."""

    __slots__ = ()
    _failure: ClassVar[str] = "its lease could not be revoked"

    def __enter__(self) -> Self:
        return self

    __exit__ = BlockExit()

    def _hold_for(self, block: weakref.ref[Block]) -> None:
        """From now on it is held for this block."""
        raise NotImplementedError

    def _give_back(self) -> None:
        """Hold it no more."""
        raise NotImplementedError

    def _leave(self, kind: object, error: BaseException | None, trace: object) -> None:
        """The block has ended; the error that ended it counts more than one from giving back."""
        try:
            self._give_back()
        except KviError as failure:
            if error is None:
                raise
            error.add_note(f"afterwards {self._failure}: {failure}")
