"""`Register`: a value that several share, in one key, changed only from what was read.

Whoever changes it says which revision it has seen (compare-and-set), and looks again if that is not
the present one. So nothing is ever overwritten unseen. A change whose answer is lost is settled by
who made it, if it can tell its own from others' when it looks again (`settled`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from kvi.call import Call
from kvi.errors import KviError, OutcomeUnknown
from kvi.flow.scope import Scope
from kvi.model import Compare, Delete, Get, KeyValue, Put, Txn
from kvi.ops import TxnOp
from kvi.policy.line import dumps, record, same
from kvi.policy.retry import UNSAID
from kvi.port import Flow

T = TypeVar("T")


class Seen(NamedTuple):
    """What was there: the value, and those of the other keys that were asked for."""

    said: dict[str, Any]
    revision: int  # 0: the key is not there
    others: tuple[KeyValue | None, ...]


class Register:
    """One key of JSON. Safe for threads: it has no state of its own."""

    def __init__(self, key: str, operation: str, **kinds: Any) -> None:
        """``operation`` is what observers see its changes as, ``kinds`` those of its members."""
        self.key = key
        self._kinds = kinds
        self._operation = operation

    async def read(self, scope: Scope, call: Call, *others: str) -> Seen:
        """The value, together with other keys, as of one moment. Raises `BadRecord`."""
        asked = tuple(Get(key) for key in (self.key, *others))
        done = await scope.executor.execute(TxnOp(Txn((), asked, (), self._operation)), call)
        first, *rest = (one if isinstance(one, KeyValue) else None for one in done.results)
        return self.seen(first, *rest)

    def seen(self, entry: KeyValue | None, *others: KeyValue | None) -> Seen:
        """What an entry that was read says. Raises `BadRecord`."""
        return Seen(record(entry, **self._kinds), 0 if entry is None else entry.revision, others)

    async def change(
        self,
        scope: Scope,
        call: Call,
        seen: Seen,
        said: dict[str, Any],
        *,
        when: Sequence[Compare] = (),
        also: Sequence[Put | Delete] = (),
    ) -> bool:
        """Write another value, if it is as it was seen; whether it was."""
        then = (Put(self.key, dumps(said)), *also)
        txn = Txn((same(self.key, seen.revision), *when), then, (), self._operation)
        return (await scope.executor.execute(TxnOp(txn), call)).succeeded


async def settled(call: Call, attempt: Callable[[bool], Flow[T | None]]) -> T:
    """What ``attempt`` decides; ``None`` from it: once more.

    One whose answer is lost is followed by another, which is told of the doubt, and looks what has
    become of the first. Whatever keeps it from that leaves the fate unknown: `OutcomeUnknown`.
    """
    lost: OutcomeUnknown | None = None
    while True:
        try:
            found = await attempt(lost is not None)
        except OutcomeUnknown as error:
            lost = error
        except KviError as error:
            if lost is not None and isinstance(error, UNSAID):
                try:
                    raise lost from error
                finally:
                    del lost  # it holds this frame
            raise
        else:
            if found is not None:
                return found
