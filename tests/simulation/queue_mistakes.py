"""Mistakes that one could make in a queue, each a function from the right to the wrong.

Those that others have made are in etcd's and kazoo's queues (from source; kazoo 175, 501), and some
were kvi's own. `planted` puts them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

from kvi.call import Call
from kvi.errors import KviError, OutcomeUnknown
from kvi.flow.lease import LeaseFlow
from kvi.flow.loss import LossState
from kvi.flow.recipes.claims import Claims
from kvi.flow.recipes.job import JobFlow
from kvi.flow.recipes.observing import Notice
from kvi.flow.recipes.queue import GetterLine, QueueFlow
from kvi.flow.scope import Scope
from kvi.model import Claim, Delete, KeyValue, Put, Txn
from kvi.policy.queue import Item, Layout, NewJob
from kvi.port import Port


def deleted_first(real: Any) -> Any:
    """A job is deleted when somebody takes it, as etcd's and kazoo's recipes do."""

    def claim(layout: Layout, entry: KeyValue, lease: int) -> tuple[Item, Txn]:
        item, txn = real(layout, entry, lease)
        kept = tuple(one for one in txn.then if one.key != f"{layout.claimed.start}{item.id}")
        return item, replace(txn, then=kept)

    return claim


def not_atomic(real: Any) -> Any:
    """A job is taken without looking whether it is ready still."""

    def claim(layout: Layout, entry: KeyValue, lease: int) -> tuple[Item, Txn]:
        item, txn = real(layout, entry, lease)
        return item, replace(txn, when=())

    return claim


def not_counted(real: Any) -> Any:
    """An attempt is counted once it is given back: not if its process dies."""

    def claim(layout: Layout, entry: KeyValue, lease: int) -> tuple[Item, Txn]:
        item, txn = real(layout, entry, lease)
        before = item._replace(attempts=item.attempts - 1)
        then = [
            replace(one, value=before.dumps()) if isinstance(one, Put) and one.value else one
            for one in txn.then
        ]
        return item, replace(txn, then=tuple(then))

    return claim


def unguarded(real: Any) -> Any:
    """Whoever says that a job is done has it deleted, also after having lost it."""

    def ack(layout: Layout, item: Item, claim: int) -> Txn:
        txn: Txn = real(layout, item, claim)
        return replace(txn, when=())

    return ack


def taken_back(real: Any) -> Any:
    """Whoever knows a claim goes on with the job, also when another has it by now."""

    def keep(layout: Layout, id: str, claim: int, lease: int, operation: str) -> Txn:
        txn: Txn = real(layout, id, claim, lease, operation)
        return replace(txn, when=())

    return keep


def in_two_places(real: Any) -> Any:
    """A job is given back, and stays claimed."""

    def nack(layout: Layout, item: Item, claim: int, until: int | None) -> Txn:
        txn: Txn = real(layout, item, claim, until)
        claimed = Delete(f"{layout.claimed.start}{item.id}")
        return replace(txn, then=tuple(one for one in txn.then if one != claimed))

    return nack


def sure(real: Any) -> Any:
    """Who asks again after a lost answer, and is refused, takes the job for done."""

    def has_acked(layout: Layout, seen: Sequence[object]) -> bool:
        return True

    return has_acked


def unsure(real: Any) -> Any:
    """Who asks again after a lost answer, and is refused, takes the job for lost."""

    def has_acked(layout: Layout, seen: Sequence[object]) -> bool:
        return False

    return has_acked


def let_go_twice(real: Any) -> Any:
    """Letting go of a job ends its lease, though it is done, and the lease serves another."""

    def let_go(job: JobFlow) -> None:
        real(job)
        job.lease.abandon()

    return let_go


def passed_over(real: Any) -> Any:
    """A claim whose answer is lost is left alone, and the next job is taken."""

    async def answer(claims: Claims, call: Call, claim: Txn, item: Item, lease: LeaseFlow) -> int:
        try:
            return int(await real(claims, call, claim, item, lease))
        except KviError:
            if call.port.now() >= call.deadline:
                raise
            return 0

    return answer


def put_again(real: Any) -> Any:
    """A put whose answer is lost is sent again."""

    async def put(flow: QueueFlow, scope: Scope, call: Call, job: NewJob) -> str:
        while True:
            try:
                return str(await real(flow, scope, call, job))
            except OutcomeUnknown:
                if call.port.now() >= call.deadline:
                    raise

    return put


def unchecked_number(real: Any) -> Any:
    """The number of a job is not checked to be the next."""

    def put(
        layout: Layout, job: NewJob, number: int, revision: int, until: int | None
    ) -> tuple[str, Txn]:
        id, txn = real(layout, job, number, revision, until)
        return id, replace(txn, when=txn.when[1:])

    return put


def deaf(real: Any) -> Any:
    """Nobody tells who waits that there is something."""

    async def wait(
        notice: Notice, port: Port, seconds: float, loss: LossState | None = None
    ) -> None:
        await port.sleep(seconds)

    return wait


def stays(real: Any) -> Any:
    """Who has got a job stays in the line, so that nobody else is the first."""

    async def release(line: GetterLine, scope: Scope, call: Call, claim: Claim) -> bool:
        return True

    return release


def looked_once(real: Any) -> Any:
    """Who is woken looks once; if that fails, the next change wakes it."""

    async def patiently(flow: QueueFlow, port: Port, deadline: float) -> JobFlow | None:
        try:
            found: JobFlow | None = await real(flow, port, -inf)
        except KviError:
            return None
        return found

    return patiently


def bound(real: Any) -> Any:
    """A delay ends with its handle: its lease hangs on that."""

    async def lasting(scope: Scope, call: Call, seconds: float) -> LeaseFlow:
        return await LeaseFlow.grant(call.port, scope, seconds, scope.timeout, keep_alive=False)

    return lasting
