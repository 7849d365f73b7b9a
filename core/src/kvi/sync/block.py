"""What is held for a ``with`` block, and given back at its end, however that comes.

Python may run a signal handler at the very entry of ``__exit__``, before its first step. An
exception raised there would leave what the block held with nobody to give it back. So ``__exit__``
is looked up anew for each block, and gives a method of a `Block` that only the ``with`` statement
has. What is held for the block is held for as long as that object lives: the flow that keeps it
alive looks for it at each renewal, and gives up what nobody holds any more.

Others look at attributes too: ``hasattr``, `inspect`, a shell. So a look holds nothing. The
statement looks ``__exit__`` up and then calls ``__enter__``, on one thread; only that makes a block
the holder. `contextlib.ExitStack` asks the class: then there is no block, and the holder is the
object itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import local
from typing import Any, ClassVar, Self

from kvi.errors import KviError


class Block:
    """One run of a ``with`` block; it dies with the block, and so does what it has to ``keep``."""

    __slots__ = ("__weakref__", "_held", "keep")

    def __init__(self, held: Held) -> None:
        self._held = held
        self.keep: object = None

    def leave(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What the ``with`` statement calls at the end."""
        self._held._leave(kind, error, trace)


class _Pending(local):
    """The blocks that this thread has looked up and not entered; the last of them last."""

    def __init__(self) -> None:
        self.blocks: list[weakref.ref[Block]] = []


_pending = _Pending()


def entered(held: Held) -> weakref.ref[Block] | None:
    """The block that this thread enters now; ``None`` if it is none of a ``with`` statement."""
    found, others = None, []
    for reference in _pending.blocks:
        block = reference()
        if block is not None and block._held is held:
            found = reference
        elif block is not None:
            others.append(reference)
    _pending.blocks = others
    return found


class BlockExit:
    """The descriptor ``__exit__`` of what is held for a block."""

    def __get__(self, held: Any, owner: Any) -> Callable[..., None]:
        """A method of a new block; of the class, as `contextlib.ExitStack` asks, the plain one."""
        if held is None:
            _pending.blocks = []  # who enters next does so without a block
            return owner._leave  # type: ignore[no-any-return]
        block = Block(held)
        alive = [reference for reference in _pending.blocks if reference() is not None]
        _pending.blocks = [*alive, weakref.ref(block)]
        held._looked_at()
        return block.leave


class Held:
    """What is held for a block: a lease, a temporary key, a lock, a member of a group, a job."""

    __slots__ = ()
    _failure: ClassVar[str] = "its lease could not be revoked"

    def __enter__(self) -> Self:
        block = entered(self)
        if block is not None:
            self._hold_for(block)
        return self

    __exit__ = BlockExit()

    def _looked_at(self) -> None:
        """It may be about to be held for a block."""

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
