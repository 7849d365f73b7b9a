"""`Register`: a value that several share, in one key, changed only from what was read.

Whoever changes it says which revision it has seen (compare-and-set), and looks again if that is not
the present one. So nothing is ever overwritten unseen. A change whose answer is lost is settled by
who made it, if it can tell its own from others' when it looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kvi.call import Call
from kvi.flow.scope import Scope
from kvi.model import Compare, Delete, Get, Key, KeyValue, Put, Txn
from kvi.ops import TxnOp
from kvi.policy.line import dumps, loads


class Seen(NamedTuple):
    """What was there: the value, and those of the other keys that were asked for."""

    said: dict[str, Any]
    revision: int  # 0: the key is not there
    others: tuple[KeyValue | None, ...]


class Register:
    """One key of JSON. Safe for threads: it has no state of its own."""

    def __init__(self, key: str, operation: str) -> None:
        """``operation`` is what observers see its changes as."""
        self.key = key
        self._operation = operation

    async def read(self, scope: Scope, call: Call, *others: str) -> Seen:
        """The value, together with other keys, as of one moment."""
        asked = tuple(Get(key) for key in (self.key, *others))
        done = await scope.executor.execute(TxnOp(Txn((), asked, (), self._operation)), call)
        first, *rest = (one if isinstance(one, KeyValue) else None for one in done.results)
        said = loads(None if first is None else first.value)
        return Seen(said, 0 if first is None else first.revision, tuple(rest))

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
        same = Key(self.key).revision == seen.revision if seen.revision else Key(self.key).absent
        then = (Put(self.key, dumps(said)), *also)
        txn = Txn((same, *when), then, (), self._operation)
        return (await scope.executor.execute(TxnOp(txn), call)).succeeded
