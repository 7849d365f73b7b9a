"""Read-modify-write: a function of the program between a read and the write that depends on it.

`update` is about one key, `atomically` about those that the function asks for. Each run of the
function has a `Draft`: what it has read, and what it would write. That is committed as one
transaction, on the condition that nothing that was read has changed since.

=============  ==========================================  ========================================
state          guarantee                                   left by
=============  ==========================================  ========================================
*running*      nothing is written                          the function returns: *committing*; it
                                                           raises: that comes out, as it is
*committing*   all is written, or nothing                  done: its result; others have changed
                                                           what was read: *running* again, after a
                                                           pause; the time is up: `Contention`; the
                                                           fate is not known: `OutcomeUnknown`, and
                                                           never again
=============  ==========================================  ========================================

*Conditions* are revisions: that of what was read, 0 for what was absent. Keys that are only written
are none. A run that wrote nothing is committed as well if it has read several keys: so what it has
returned is of one moment.

*Where.* The function runs where the program called: on its thread, or in its task. So these flows
are not a driver's; a `Caller` is the face's way to the store. *The time-out* is for the store and
the pauses; the function's own time is not counted.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from kvi.capabilities import Capabilities
from kvi.clock import now
from kvi.errors import Contention, InvalidArgument, KviError, Timeout
from kvi.flow.scope import Scope
from kvi.model import Delete, Key, KeyValue, LeaseRef, Put, TxnResult
from kvi.ops import GetOp, Op, TxnOp
from kvi.policy.retry import Effect
from kvi.policy.txn import check_lease, check_txn, put
from kvi.text import check_key, check_value

T = TypeVar("T")

_FIRST, _LONGEST = 0.001, 0.1  # seconds that a pause lasts at the most: the first, and any
_RESERVE = 0.05  # seconds that a round must have, beside twice those that the last one has taken


class Caller(ABC):
    """The face of a handle, during one call.

    Attributes:
        capabilities: what the store can do.

    """

    __slots__ = ("_key", "_operation", "_scope", "capabilities")

    def __init__(self, scope: Scope, operation: str, key: str | None) -> None:
        self._scope = scope
        self._operation = operation
        self._key = key
        self.capabilities: Capabilities = scope.capabilities

    def reserved(self, key: str) -> int | None:
        """The lease that the key keeps, because a backend has reserved it."""
        return self._scope.reserved(key)

    def placed(self, error: KviError) -> KviError:
        """An error, with the place where it happened."""
        return self._scope.placed(error, self._operation, self._key)

    @abstractmethod
    async def ask(self, op: Op[T], timeout: float) -> T:
        """Do an operation."""

    @abstractmethod
    async def pause(self, seconds: float) -> None:
        """Let others get on."""

    @abstractmethod
    async def call(self, function: Callable[..., Any], argument: object) -> Any:
        """What the program's function returns, or has `Raised`."""


class Raised(NamedTuple):
    """What the program's function raised; a coroutine could not raise all of it."""

    error: BaseException


def given(result: T | Raised) -> T:
    """What a flow has returned; raises what the function has raised."""
    if isinstance(result, Raised):
        try:
            raise result.error
        finally:
            del result  # it holds this frame
    return result


class _Rounds:
    """The runs of one call, and the time that they have left."""

    def __init__(self, caller: Caller, seconds: float) -> None:
        self.caller = caller
        self._seconds = self._left = seconds
        self._round = 0.0  # what the present one has taken of it
        self._slowest = 0.0  # of its requests
        self._lost = 0

    async def ask(self, op: Op[T]) -> T:
        """Do it. A write for which there is surely no time is not sent.

        Raises `Contention` then if others were faster before, else `Timeout`.
        """
        if self._left <= (self._slowest if op.effect is not Effect.READ else 0):
            raise self._over()
        began = now()
        try:
            return await self.caller.ask(op, self._left)
        except KviError as error:
            raise self.caller.placed(error)
        finally:
            took = now() - began
            self._left -= took
            self._round += took
            self._slowest = max(self._slowest, took)

    async def again(self) -> None:
        """Others were faster. Raises `Contention` if there is no time for another round.

        One that is begun in the last moment would end as a write whose fate is not known.
        """
        room = self._left - min(2 * self._round + _RESERVE, self._seconds / 2)
        self._round = self._slowest = 0.0
        longest = min(_LONGEST, _FIRST * 2 ** min(self._lost, 10))
        self._lost += 1
        if room <= 0:
            raise self._over()
        began = now()
        await self.caller.pause(min(room, random.uniform(0, longest)))  # noqa: S311
        self._left -= now() - began

    def _over(self) -> KviError:
        """The time is up, and nothing was written."""
        error: KviError = Timeout("the time was up before anything was written")
        if self._lost:
            error = Contention(
                f"others changed what had been read, {self._lost} times, until the time was up; "
                "nothing was written"
            )
        return self.caller.placed(error)


class Draft:
    """What one run of a function has read, and what it would write. For one thread or task.

    Attributes:
        over: the run has ended, and nothing more may be asked of it.

    """

    def __init__(self, rounds: _Rounds) -> None:
        self._rounds = rounds
        self._limits = rounds.caller.capabilities
        self._read: dict[str, KeyValue | None] = {}
        self._writes: dict[str, Put | Delete] = {}
        self.over = False

    async def get(self, key: str) -> KeyValue | None:
        """The entry as the run sees it: what it has written, or read before, or the store's."""
        key = self._checked(key)
        write = self._writes.get(key)
        if isinstance(write, Put):
            lease = write.lease
            assert not isinstance(lease, LeaseRef)
            return KeyValue(key, self.written(key), 0, 0, None, lease)
        if write is not None:
            return None
        if key in self._read:
            return self._read[key]
        found = await self._rounds.ask(GetOp(key))
        return self._read.setdefault(key, found)  # another task may have been faster

    def put(self, key: str, value: bytes | str, lease: int | LeaseRef | None = None) -> None:
        """Have the key stored."""
        key = self._checked(key)
        try:
            write = Put(key, check_value(value, self._limits.max_value), check_lease(lease))
        except KviError as error:
            raise self._placed(error)
        self._writes.pop(key, None)  # the last one counts, also for the order
        self._writes[key] = write

    def delete(self, key: str) -> None:
        """Have the key deleted."""
        key = self._checked(key)
        self._writes.pop(key, None)
        self._writes[key] = Delete(key)

    def written(self, key: str) -> bytes:
        """The value that it has been given."""
        write = self._writes[key]
        assert isinstance(write, Put)
        assert isinstance(write.value, bytes)
        return write.value

    async def commit(self, operation: str) -> TxnResult | None:
        """Write it all; ``None`` if what was read is not so any more."""
        if not self._writes and len(self._read) < 2:
            return TxnResult(True, None, ())
        when = [
            Key(key).revision.compare("=", 0 if entry is None else entry.revision)
            for key, entry in self._read.items()
        ]
        try:
            txn = check_txn(when, self._writes.values(), (), self._limits, operation)
        except KviError as error:
            raise self._placed(error)
        result = await self._rounds.ask(TxnOp(txn))
        return result if result.succeeded else None

    def _checked(self, key: str) -> str:
        try:
            if self.over:
                raise InvalidArgument(
                    "this run of the function is over; use tx only within the function that got it"
                )
            return check_key(key, self._limits.max_key)
        except KviError as error:
            raise self._placed(error)

    def _placed(self, error: KviError) -> KviError:
        return self._rounds.caller.placed(error)


class Writes:
    """What the function of `atomically` may write, for either face of its draft."""

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def put(self, key: str, value: bytes | str, *, lease: int | LeaseRef | None = None) -> None:
        """Create or replace an entry at the commit. Of two writes of a key the last one counts."""
        self._draft.put(key, value, lease)

    def delete(self, key: str) -> None:
        """Delete an entry at the commit, if it is there."""
        self._draft.delete(key)


async def atomically(
    caller: Caller, function: Callable[..., Any], face: Callable[[Draft], object], seconds: float
) -> Any:
    """Run ``function`` on ``face`` of a draft until that is committed.

    Returns its result, or what it has `Raised`.
    """
    rounds = _Rounds(caller, seconds)
    while True:
        draft = Draft(rounds)
        try:
            result = await caller.call(function, face(draft))
        finally:
            draft.over = True
        if isinstance(result, Raised):
            return result
        if await draft.commit("atomically") is not None:
            return result
        await rounds.again()


async def update(
    caller: Caller,
    key: str,
    function: Callable[[Any], Any],
    default: bytes | None,
    seconds: float,
) -> KeyValue | Raised | None:
    """Store what ``function`` makes of the value of ``key``, which is checked, until that holds.

    Returns the entry, ``None`` if there is none, or what the function has `Raised`.
    """
    rounds = _Rounds(caller, seconds)
    while True:
        draft = Draft(rounds)
        entry = await draft.get(key)
        new = await caller.call(function, default if entry is None else entry.value)
        if isinstance(new, Raised):
            return new
        lease = caller.reserved(key)
        if new is not None:
            draft.put(key, new, lease)
        elif entry is not None:
            draft.delete(key)
        done = await draft.commit("update")
        if done is None:
            await rounds.again()
        elif new is None:
            return None
        else:
            assert done.revision is not None
            made = put(entry, key, draft.written(key), done.revision, lease)
            return made if caller.capabilities.key_version else made._replace(version=None)
