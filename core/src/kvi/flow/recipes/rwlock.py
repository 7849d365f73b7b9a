"""The read-write lock: many readers, or one writer, in the order of their coming.

A line (`kvi.flow.recipes.line`) in which a reader waits for the writers before it, and a writer for
everybody before it. Nobody waits for who came later: so no one starves, and there is no deadlock.
Whoever waits watches the last of those that it waits for; when that goes, it looks again.

``downgrade`` turns a writer into a reader in its place: one write under the guard. The readers
behind it see it and enter; writers behind it wait on, and none can come between.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, Protocol, TypeVar

from kvi.call import Call
from kvi.errors import AlreadyHeld, LeaseLost
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.line import HOLDS, Line
from kvi.flow.recipes.state import Owner
from kvi.flow.scope import Scope
from kvi.model import Claim, Put, Txn
from kvi.mutex import Mutex
from kvi.ops import TxnOp
from kvi.policy.line import Mark, State, check_recipe

T = TypeVar("T", bound="_Lock")
_FEW = 16
READ, WRITE = "read", "write"


class ReadWriteLine(Line):
    """A reader or a writer."""

    kind = "rwlock"

    def __init__(self, owner: Owner, mode: str) -> None:
        super().__init__(owner)
        self.mode = self._wanted = mode

    async def claim(self, scope: Scope, call: Call, lease: LeaseFlow) -> Claim:
        """Stand in line, whatever an earlier holding has become."""
        self.mode = self._wanted
        return await super().claim(scope, call, lease)

    def said(self) -> dict[str, Any]:
        """What it wants."""
        return {"mode": self.mode}

    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """See the module."""
        ahead = state.line[:at]
        if self.mode == WRITE:
            before, lost = ahead, orphans
        else:
            before = [one for one in ahead if one.said.get("mode") == WRITE]
            lost = [one for one in orphans if one.said.get("mode") == WRITE]
        if before:
            return before[-1].key
        return self.owner.place.root if lost else None

    async def downgrade(self, flow: LockFlow, call: Call) -> None:
        """Read from now on. Raises `LeaseLost` if it is not held any more."""
        guard, lease = flow.guard, flow.lease
        assert lease is not None  # the guard says so
        assert flow.claim is not None
        self.mode = READ
        then = [Put(flow.claim.key, self._value(HOLDS), lease.id)]
        if self._mark is not None:
            then.append(Put(self._mark, self._marked(lease)))
        txn = Txn((guard,), tuple(then), (), "rwlock_downgrade", repeatable=True)
        if not (await flow.scope.executor.execute(TxnOp(txn), call)).succeeded:
            raise LeaseLost("the lock is lost")


def rwlock(scope: Scope, name: str) -> Owner:
    """The right to the read-write lock ``name``; checks the argument."""
    return Owner(ReadWriteLine.kind, check_recipe(name, scope.capabilities))


class _Lock(Protocol):
    @property
    def held(self) -> bool: ...


class Holders(Generic[T]):
    """Who holds a read-write lock through one object: there is no second lock for the same one.

    Its reader could not wait for a writer that waits for the reader itself. Nothing is kept of
    those who hold none any more, but for a few.
    """

    def __init__(self) -> None:
        self._locks: dict[object, weakref.ref[T]] = {}
        self._full = _FEW  # so many are looked through
        self._mutex = Mutex()

    def ensure_free(self, me: object) -> None:
        """Raise `AlreadyHeld` if this thread or task holds it."""
        with self._mutex:
            if not self._holds(me):
                self._locks.pop(me, None)
                return
        raise AlreadyHeld(
            "this thread or task holds the lock already, through the same object; there is "
            "no way from reading to writing: release it first"
        )

    def note(self, me: object, lock: T) -> None:
        """It holds the lock from now on."""
        with self._mutex:
            self._locks[me] = weakref.ref(lock)
            if len(self._locks) >= self._full:
                self._locks = {one: self._locks[one] for one in self._locks if self._holds(one)}
                self._full = max(_FEW, 2 * len(self._locks))

    def _holds(self, me: object) -> bool:
        reference = self._locks.get(me)
        lock = None if reference is None else reference()
        return lock is not None and lock.held
