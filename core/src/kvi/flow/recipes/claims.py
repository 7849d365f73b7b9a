"""`Claims`: how somebody comes to have a job of a queue.

*Who has a job?* Whoever took it, by one transaction, for a lease. A claim whose answer is lost is
settled by looking whose the job is; if it is nobody's, the lease is given up, so that no claim
comes late, and the same job is claimed by another. So nobody passes over one that is ready, and
whoever fails has taken none.

*Orphans*, whose claims have ended, are made ready by whoever finds nothing else, and now and then.
"""

from __future__ import annotations

from math import inf

from kvi.call import Call
from kvi.errors import LeaseLost, OutcomeUnknown
from kvi.flow.lease import LeaseFlow
from kvi.flow.recipes.job import JobFlow
from kvi.flow.recipes.state import entries_of
from kvi.flow.scope import Scope
from kvi.model import KeyValue, Scan, Span, Txn, TxnResult
from kvi.ops import GetOp, TxnOp
from kvi.policy.queue import Item, Layout

_PAGE = 10  # jobs that are looked at at once


class Claims:
    """Of one queue, by one handle. Safe for threads."""

    def __init__(self, scope: Scope, layout: Layout, ttl: float) -> None:
        """``ttl``: seconds that a job outlives whoever has it."""
        self._scope = scope
        self._layout = layout
        self._ttl = ttl
        self._kind = ("queue", ttl)  # leases for locks are of another kind
        self._looked = -inf  # for orphans

    async def next(self, call: Call) -> JobFlow | None:
        """Claim the first that is ready; ``None`` if none is."""
        if call.port.now() - self._looked > self._ttl / 3:
            await self._recover(call)
        while True:
            job = await self._first(call)
            if job is not None or not await self._recover(call):
                return job

    async def _first(self, call: Call) -> JobFlow | None:
        span = self._layout.ready
        while True:
            _, page = await entries_of(self._scope, call, Scan(span, limit=_PAGE))
            for entry in page:
                job = await self._claim(call, entry)
                if job is not None:
                    return job
            if len(page) < _PAGE:
                return None
            span = Span(page[-1].key + "\0", span.end)

    async def _claim(self, call: Call, entry: KeyValue) -> JobFlow | None:
        """Take a job that is ready; ``None`` if another was first."""
        scope, port = self._scope, call.port
        while True:
            idle = scope.ledger.take_idle(self._kind, scope)
            assert idle is None or isinstance(idle, LeaseFlow)  # what was given
            lease = idle or await LeaseFlow.grant(
                port, scope, self._ttl, scope.timeout, keep_alive=True
            )
            item, claim = self._layout.claim(entry, lease.id)
            try:
                revision = await self._answer(call, claim, item, lease)
            except LeaseLost:  # an idle one may have been ended by somebody else
                lease.abandon()
                scope.ensure_open()
                continue
            except BaseException:
                lease.abandon()
                raise
            if revision:
                return JobFlow(scope, self._layout, self._kind, lease, item, revision)
            scope.ledger.give_idle(lease, self._kind, port.now())
            return None

    async def _answer(self, call: Call, claim: Txn, item: Item, lease: LeaseFlow) -> int:
        """The revision of a claim that stands; 0 if another was first.

        Raises `LeaseLost` if it does not stand, and cannot on this lease.
        """
        try:
            done = await self._execute(call, claim)
            revision = (done.revision or 0) if done.succeeded else 0
        except OutcomeUnknown:
            found = await self._scope.executor.execute(GetOp(f"{self._layout.by}{item.id}"), call)
            if found is None or found.lease != lease.id:
                raise LeaseLost("what comes late is to find no lease") from None
            revision = found.revision
        if not lease.alive:
            raise LeaseLost("the store was slow to answer")
        return revision

    async def _recover(self, call: Call) -> bool:
        """Make orphans ready again; whether there were any."""
        scope, layout, found = self._scope, self._layout, False
        _, claimed = await entries_of(scope, call, Scan(layout.claimed, keys_only=True))
        kept = set[str]()
        if claimed:
            span = Span.of_prefix(layout.by)
            _, claims = await entries_of(scope, call, Scan(span, keys_only=True))
            kept = {one.key.rpartition("/")[2] for one in claims}
        for entry in claimed:
            if entry.key.rpartition("/")[2] in kept:
                continue
            orphan = await scope.executor.execute(GetOp(entry.key), call)
            if orphan is not None:
                ready, step = layout.recover(orphan)
                await self._execute(call, step)
                found = found or ready
        self._looked = call.port.now()
        return found

    async def resume(self, call: Call, id: str, claim: int) -> JobFlow:
        """Go on with a job that was left to who knows its claim. Raises `LeaseLost`."""
        scope, layout = self._scope, self._layout
        lease = await LeaseFlow.grant(call.port, scope, self._ttl, scope.timeout, keep_alive=True)
        try:
            done = await self._execute(call, layout.keep(id, claim, lease.id, "queue_resume"))
            entry = await scope.executor.execute(GetOp(f"{layout.claimed.start}{id}"), call)
        except BaseException:
            lease.abandon()
            raise
        if not done.succeeded or entry is None:
            lease.abandon()
            raise LeaseLost("the job is done or given back already, or its time was up")
        assert done.revision is not None  # it has written
        return JobFlow(scope, layout, self._kind, lease, Item.of(entry), done.revision)

    async def _execute(self, call: Call, txn: Txn) -> TxnResult:
        return await self._scope.executor.execute(TxnOp(txn), call)
