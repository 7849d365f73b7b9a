"""The queue: jobs that are done at least once, larger priority first, then first in, first out.

Where the jobs are, and which steps lead from one state to the next, is in `kvi.policy.queue`; what
becomes of one that somebody has, in `kvi.flow.recipes.job`; how one comes to have it, in
`kvi.flow.recipes.claims`. This is how to put jobs, and to wait for them.

*No herd.* Who finds nothing stands in the recipe's line (`kvi.flow.recipes.line`), and only the
first of it watches the jobs: one `put` wakes one. It looks until it was answered after the last
change, so a wake-up is never lost. All others may take what is ready as they come, and look once
more before they say that there was none: the first may have died.
"""

from __future__ import annotations

from math import inf

from kvi.call import Call
from kvi.errors import Contention, KviError, LeaseLost, OutcomeUnknown, Unavailable
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.claims import Claims
from kvi.flow.recipes.job import JobFlow, lasting
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.observing import Notice
from kvi.flow.recipes.state import Owner, entries_of
from kvi.flow.scope import PASSING, Scope, is_final
from kvi.log import log
from kvi.model import KeyValue, Scan, Span, Txn, TxnResult
from kvi.ops import CountOp, DeleteOp, GetOp, TxnOp
from kvi.policy.lease import check_ttl
from kvi.policy.line import Mark, State, check_count, check_recipe, record
from kvi.policy.queue import DeadJob, Item, Layout, NewJob
from kvi.policy.retry import UNSAID
from kvi.port import Port

_LOOK = 30.0  # seconds after which a waiter looks again without having been told
_PAUSE = 0.1  # seconds between looks at a store that cannot be reached


class GetterLine(Line):
    """Somebody who waits for a job."""

    kind = "queue"

    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """The first watches the jobs. That two do for a moment harms nobody."""
        return state.line[at - 1].key if at else None

    def mark_of(self, state: State, lease: LeaseFlow) -> str | None:
        """No mark is needed."""
        return None


class QueueFlow:
    """One queue. Safe for threads.

    Attributes:
        owner: the right to the name.
        layout: its keys and steps.
        claims: how to have a job.

    """

    def __init__(self, scope: Scope, name: str, max_attempts: object, ttl: float) -> None:
        limits = scope.capabilities
        most = None if max_attempts is None else check_count("max_attempts", max_attempts)
        self.owner = Owner(GetterLine.kind, check_recipe(name, limits), {"max_attempts": most})
        self._scope = scope
        self.layout = Layout(self.owner.place, most, limits)
        self._ttl = check_ttl(ttl, limits)
        self.claims = Claims(scope, self.layout, self._ttl)
        self._all = Span.of_prefix(f"{self.owner.place.name}/.kvi.")
        self._known = (0, 0)  # the next number and its revision, as seen last

    # -- putting ----------------------------------------------------------------------------------

    async def put(self, scope: Scope, call: Call, job: NewJob) -> str:
        """Put a job; its id, or that of the one that was put with the same ``dedup``."""
        await self.owner.ensure(scope, call)
        later = await lasting(scope, call, job.delay) if job.delay else None
        until = None if later is None else later.id
        doubt: OutcomeUnknown | None = None
        while True:
            number, revision = self._known  # which another thread or task may change meanwhile
            id, put = self.layout.put(job, number, revision, until)
            try:
                done = await self._execute(call, put)
            except OutcomeUnknown as error:
                if job.dedup is None:
                    raise
                doubt = error  # if it comes late, one of the two finds the other
                continue
            except LeaseLost:  # the delay is over before the job is there
                scope.ensure_open()
                until = None
                continue
            except KviError as error:
                if doubt is not None and isinstance(error, UNSAID):
                    try:
                        raise doubt from error
                    finally:
                        del doubt  # it holds this frame
                if later is not None:
                    later.abandon()
                raise
            if done.succeeded:
                assert done.revision is not None  # it has written
                self._known = number + 1, done.revision
                return id
            counter, *others = (one if isinstance(one, KeyValue) else None for one in done.results)
            if others and others[0] is not None:
                if later is not None and doubt is None:
                    later.abandon()
                return (others[0].value or b"").decode()
            number = record(counter, next=int).get("next", 0)
            self._known = number, 0 if counter is None else counter.revision

    # -- getting ----------------------------------------------------------------------------------

    async def get(self, port: Port, wait: float | None) -> JobFlow | None:
        """The next job, as soon as there is one; ``None`` if there is none in time."""
        deadline = inf if wait is None else port.now() + wait
        job = await self._look(port)
        while job is None and port.now() < deadline:
            job = await self._stand(port, deadline)
        return job

    async def _stand(self, port: Port, deadline: float) -> JobFlow | None:
        """Stand in line, for as long as the place lasts."""
        scope = self._scope
        turn = LockFlow(scope, GetterLine(self.owner), self._ttl)
        if not await turn.acquire(port, None if deadline == inf else deadline - port.now()):
            return await self._look(port)
        notice = Notice(scope, self._all)
        try:
            job = await self._watch(port, deadline, turn, notice)
        except BaseException:
            turn.let_go()
            raise
        finally:
            notice.end()
        try:
            await turn.release(port, scope.timeout)
        except KviError as error:  # its place goes with its lease
            log().debug("a getter of %r leaves late: %s", self.owner.place.name, error)
        except BaseException:
            if job is not None:
                job.let_go()
            raise
        return job

    async def _watch(
        self, port: Port, deadline: float, turn: LockFlow, notice: Notice
    ) -> JobFlow | None:
        """Look after each change, as the first in line."""
        await notice.begin(port)
        while turn.held:
            job = await self._patiently(port, deadline)
            left = deadline - port.now()
            if job is not None or left <= 0:
                return job
            await notice.wait(port, min(left, _LOOK), turn.lost)
        return None

    async def _patiently(self, port: Port, deadline: float) -> JobFlow | None:
        """Look until there is an answer, while there is time."""
        while True:
            try:
                return await self._look(port)
            except (*PASSING, Contention) as error:
                self._scope.ensure_open()
                if is_final(error) or port.now() >= deadline:
                    raise
                log().debug(
                    "a getter of the queue %r looks again: %s", self.owner.place.name, error
                )
                await port.sleep(_PAUSE)

    async def _look(self, port: Port) -> JobFlow | None:
        """Claim the first that is ready; ``None`` if none is."""
        call = Call(port, port.now() + self._scope.timeout)
        try:
            await self.owner.ensure(self._scope, call)
            return await self.claims.next(call)
        except OutcomeUnknown as error:
            raise Unavailable("the store did not answer; no job was taken") from error

    # -- for those who look -----------------------------------------------------------------------

    async def count(self, scope: Scope, call: Call) -> int:
        """How many jobs there are: ready, delayed and claimed ones."""
        await self.owner.ensure(scope, call, looks=True)
        return await scope.executor.execute(CountOp(Span.of_prefix(self.layout.items)), call)

    async def dead(self, scope: Scope, call: Call) -> list[DeadJob]:
        """The jobs whose attempts are used up."""
        await self.owner.ensure(scope, call, looks=True)
        _, entries = await entries_of(scope, call, Scan(Span.of_prefix(self.layout.dead)))
        return [DeadJob(one.id, one.value, one.attempts) for one in map(Item.of, entries)]

    async def retry(self, scope: Scope, call: Call, id: object) -> bool:
        """Make a dead job ready; whether it was dead."""
        key = self.layout.grave(id)
        await self.owner.ensure(scope, call)
        entry = await scope.executor.execute(GetOp(key), call)
        if entry is None:
            return False
        return (await self._execute(call, self.layout.revive(entry))).succeeded

    async def discard(self, scope: Scope, call: Call, id: object) -> bool:
        """Delete a dead job; whether there was one."""
        key = self.layout.grave(id)
        await self.owner.ensure(scope, call)
        return await scope.executor.execute(DeleteOp(key), call)

    async def _execute(self, call: Call, txn: Txn) -> TxnResult:
        return await self._scope.executor.execute(TxnOp(txn), call)
