"""Reservations: keys that belong to whoever came first, for as long as they renew them.

A reservation is a key with a lease that nobody renews in the background: the program does, and
proves by it that it still works. What the holder stores under the key meanwhile keeps the lease, so
that no write turns a reservation into a key that stays for ever. The protocol is that of VOLTHA's
etcd client (``Reserve``, ``RenewReservation``, ``ReleaseReservation``).

*Threads.* ``_leases`` changes entry by entry without a lock: each step of a dictionary is atomic,
and what two threads of one program do with the same key at once is theirs to order.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from kvi.call import Call
from kvi.errors import KviError, LeaseLost, NotHeld, OutcomeUnknown, Timeout
from kvi.flow.lease import LeaseFlow
from kvi.flow.scope import Scope
from kvi.model import Get, Key, KeyValue, Operation, Put, Txn
from kvi.ops import Executor, Op, PutOp, TxnOp
from kvi.port import Port

T = TypeVar("T")


class Reservations:
    """The reservations of one backend, and the middleware that keeps them."""

    is_short = False

    def __init__(self, scope: Scope) -> None:
        """``scope`` is the backend's own: its operations come through here."""
        self._scope = scope
        self._inner: Executor = scope.executor
        self._leases: dict[str, LeaseFlow] = {}

    async def execute(self, op: Op[T], call: Call) -> T:
        """Do it; what is stored under a reserved key keeps the lease."""
        if not self._leases:
            return await self._inner.execute(op, call)
        kept: Any = op
        if isinstance(op, PutOp):
            if op.lease is None:
                kept = PutOp(op.key, op.value, self.lease_of(op.key))
        elif isinstance(op, TxnOp):
            txn = op.txn
            then, otherwise = map(self._reserved, txn.then), map(self._reserved, txn.otherwise)
            kept = TxnOp(replace(txn, then=tuple(then), otherwise=tuple(otherwise)))
        try:
            return await self._inner.execute(kept, call)
        except LeaseLost:
            if isinstance(kept, PutOp):
                lease = self._leases.get(kept.key)
                if lease is not None and lease.id == kept.lease:
                    self._forget(kept.key, lease)
            elif isinstance(kept, TxnOp):
                txn = kept.txn
                put = {one.key for one in (*txn.then, *txn.otherwise) if isinstance(one, Put)}
                await self._check(call.port, put, call.deadline)
            raise

    async def reserve(
        self, port: Port, key: str, value: bytes, ttl: float, timeout: float
    ) -> bytes:
        """See `kvi.Backend.reserve`."""
        scope, deadline = self._scope, port.now() + timeout
        lease = await LeaseFlow.grant(port, scope, ttl, timeout, keep_alive=False)
        kept = False
        try:
            while True:
                left = deadline - port.now()
                if left <= 0:
                    raise Timeout("the time was up before the key was reserved")
                before = self._leases.get(key)
                mine = Key(key).absent if before is None else Key(key).lease == before.id
                txn = Txn((mine,), (Put(key, value, lease.id),), (Get(key),), "reserve")
                try:
                    call = Call(port, deadline)
                    done = await self._inner.execute(TxnOp(txn), call)
                except BaseException as error:
                    # It goes with the new lease if it applied; what was held before is not known
                    # to be, and ends with its own ttl.
                    unknown = isinstance(error, OutcomeUnknown) or not isinstance(error, Exception)
                    if unknown and before is not None:
                        self._forget(key, before)
                    raise
                if done.succeeded:
                    kept = True
                    self._leases[key] = lease
                    if before is not None:
                        before.abandon()  # nothing hangs on it any more
                    return value
                found = done.results[0]
                if before is not None:
                    self._forget(key, before)
                if isinstance(found, KeyValue):
                    assert found.value is not None  # a get tells it
                    return found.value
        finally:
            if not kept:
                # A reservation whose fate is unknown goes with its lease.
                lease.abandon()

    async def renew(self, port: Port, key: str, timeout: float) -> None:
        """See `kvi.Backend.renew_reservation`."""
        lease = self._leases.get(key)
        if lease is None:
            raise NotHeld("this backend has not reserved the key; reserve it first")
        try:
            await lease.renew(port, timeout)
        except LeaseLost:
            self._forget(key, lease)
            raise

    async def release(self, port: Port, key: str, timeout: float) -> None:
        """See `kvi.Backend.release_reservation`."""
        lease = self._leases.pop(key, None)
        if lease is not None:
            await lease.revoke(port, timeout)

    async def release_all(self, port: Port, timeout: float) -> None:
        """See `kvi.Backend.release_all_reservations`."""
        deadline = port.now() + timeout
        failure: KviError | None = None
        while self._leases:
            try:
                key = next(iter(self._leases))
            except (StopIteration, RuntimeError):  # another thread is at it
                continue
            try:
                await self.release(port, key, max(0.001, deadline - port.now()))
            except KviError as error:
                failure = failure or error
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # it holds this frame

    def give_up(self, key: str) -> None:
        """End a reservation without waiting: nobody has it any more."""
        lease = self._leases.pop(key, None)
        if lease is not None:
            lease.abandon()

    async def _check(self, port: Port, keys: Iterable[str], deadline: float) -> None:
        """A lease has ended, perhaps one of these keys': ask, and forget those that did."""
        for key in keys:
            with suppress(KviError):
                await self.renew(port, key, max(0.001, deadline - port.now()))

    def _reserved(self, operation: Operation) -> Operation:
        if isinstance(operation, Put) and operation.lease is None:
            return Put(operation.key, operation.value, self.lease_of(operation.key))
        return operation

    def lease_of(self, key: str) -> int | None:
        """The lease of a reserved key, which may have ended, or ``None``."""
        lease = self._leases.get(key)
        return None if lease is None else lease.id

    def _forget(self, key: str, lease: LeaseFlow) -> None:
        if self._leases.get(key) is lease:
            self._leases.pop(key, None)
