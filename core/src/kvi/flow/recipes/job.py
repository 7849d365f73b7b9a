"""`JobFlow`: a job of a queue that somebody has, until it is done or another may have it.

===========  ==========================================  =======================================
state        guarantee                                   left by
===========  ==========================================  =======================================
``HELD``     nobody was asked to end it; `held` says     `ack`: DONE; `nack`, `leave`, `let_go`:
             whether its lease still is alive            BACK; the claim is gone: LOST; an answer
                                                         that is lost: ASKED
``ASKED``    it may have ended, and is not held any      to ask again tells what it is: DONE,
             more; the lease is kept until `let_go`      BACK or LOST
``DONE``     it is gone for good                         final
``BACK``     another may have it, as was asked for       its end applied after all: DONE
``LOST``     its claim ended before it did               final
===========  ==========================================  =======================================

Whatever ends a job is one transaction under the guard of its claim. If the guard fails, the claim
is lost, or an earlier try has applied: what has become of the job tells which (`kvi.policy.queue`).
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable

from kvi.call import Call
from kvi.errors import KviError, LeaseLost, NotHeld, OutcomeUnknown, Unavailable
from kvi.flow.lease import LeaseFlow
from kvi.flow.loss import LossState
from kvi.flow.scope import Scope
from kvi.model import Compare, Txn, TxnResult
from kvi.mutex import Mutex
from kvi.ops import GrantOp, TxnOp
from kvi.policy.queue import Item, Layout
from kvi.policy.retry import UNSAID


class JobState(enum.Enum):
    """Of one job, with what is told to who takes it for held; see the module's table."""

    HELD = "the job is lost: its lease was not renewed in time"
    ASKED = "whether the job was ended is not known; ask again"
    DONE = "the job is done already"
    BACK = "the job was given back already"
    LOST = "the job was lost before it was ended: another may have it"


async def lasting(scope: Scope, call: Call, seconds: float) -> LeaseFlow:
    """A lease that nobody renews, and that outlives the handle."""
    sent = call.port.now()
    try:
        grant = await scope.executor.execute(GrantOp(seconds), call)
    except OutcomeUnknown as error:
        raise Unavailable("the store granted no lease; nothing was changed") from error
    return LeaseFlow(scope, grant.id, grant.ttl, sent, keep_alive=False)


class JobFlow:
    """A job that is claimed; given back if it is dropped. Safe for threads.

    Attributes:
        item: the job.
        layout: of its queue.
        lease: that the claim stands on.
        lost: set once the claim is lost.
        scope: the store.

    """

    def __init__(
        self, scope: Scope, layout: Layout, kind: object, lease: LeaseFlow, item: Item, claim: int
    ) -> None:
        """``claim`` is its revision; of a ``kind`` are leases that may serve the next job."""
        self.item = item
        self.lease = lease
        self.scope = scope
        self.layout = layout
        self._kind = kind
        self._claim = claim
        self._lock = Mutex()  # guards the next two
        self._state = JobState.HELD
        self._asking = 0  # how many are about to end it
        self._guard = layout.guard(item.id, claim)
        self.lost = LossState(scope.runtime, lambda: not lease.alive and not scope.closed)
        lease.owner = weakref.ref(self)
        lease.proof = self._guard
        lease.lost.add(self.lost.is_set, own=True)

    @property
    def held(self) -> bool:
        """Whether it surely is this one's, by the clock, at this moment."""
        return self._state is JobState.HELD and self.lease.alive

    @property
    def ended(self) -> bool:
        """Whether it was ended, as somebody wanted."""
        return self._state in (JobState.DONE, JobState.BACK)

    @property
    def guard(self) -> Compare:
        """True as long as the claim stands. Raises `NotHeld`."""
        if not self.held:
            raise self._refusal()
        return self._guard

    async def ack(self, call: Call) -> None:
        """It is done: it is gone for good. Again, it does nothing."""
        if self._state is not JobState.DONE:
            await self._end(call, JobState.DONE, [self.layout.ack(self.item, self._claim)])

    async def nack(self, call: Call, delay: float) -> None:
        """It is not done: let another have it, perhaps after a while."""
        layout, item, claim = self.layout, self.item, self._claim
        self._ensure_asked()
        steps, later = [layout.nack(item, claim, None)], None
        if delay and not layout.is_last(item):
            later = await lasting(self.scope, call, delay)
            steps.insert(0, layout.nack(item, claim, later.id))
        await self._end(call, JobState.BACK, steps, later)

    async def leave(self, call: Call, seconds: float) -> int:
        """Leave it to who knows the claim that is returned, and after so long to anybody."""
        self._ensure_asked()
        later = await lasting(self.scope, call, seconds)
        step = self.layout.keep(self.item.id, self._claim, later.id, "queue_leave")
        return await self._end(call, JobState.BACK, [step], later)

    def hold_for(self, owner: Callable[[], object | None]) -> None:
        """From now on it is held for as long as this other one lives."""
        with self._lock:
            if self._state in (JobState.HELD, JobState.ASKED):  # else its lease may serve another
                self.lease.owner = owner

    def let_go(self) -> None:
        """Give it back without waiting."""
        with self._lock:
            if self._state not in (JobState.HELD, JobState.ASKED):
                return  # its lease may serve another by now
            if self._state is JobState.HELD:
                self._state = JobState.BACK
            self.lease.proof = None
        self.lost.end()
        self.lease.abandon()

    # -- its end ----------------------------------------------------------------------------------

    async def _end(
        self, call: Call, end: JobState, steps: list[Txn], later: LeaseFlow | None = None
    ) -> int:
        """Take the first step whose lease, ``later``, has not ended; its revision."""
        self.scope.ensure_open()
        self._ensure_asked()
        with self._lock:
            if self._asking:
                self._state = JobState.ASKED  # the other one's may apply before this
            self._asking += 1
            self.lease.proof = None  # the claim may go before the answer is here; that is no loss
        try:
            found = await self._answer(call, steps)
        except BaseException:
            with self._lock:
                self._asking -= 1
                if self._state is JobState.HELD:  # surely nothing has changed
                    self.lease.proof = self._guard
            if later is not None and self._state is JobState.HELD:
                later.abandon()
            raise
        with self._lock:
            self._asking -= 1
            before, fate = self._state, JobState.LOST
            if found.succeeded:
                fate = end
            elif before is JobState.ASKED:
                fate = self._fate(found)
            first = before in (JobState.HELD, JobState.ASKED)  # to know
            if first or found.succeeded:
                self._state = fate
        if first:
            if fate is JobState.LOST:
                self.lost.set()
            self.lost.end()
            if before is JobState.HELD and fate is end:
                self.scope.ledger.give_idle(self.lease, self._kind, call.port.now())
            else:
                self.lease.abandon()
        if self._state is not end:
            raise self._refusal()
        return found.revision or 0

    def _fate(self, found: TxnResult) -> JobState:
        """What has become of it, by a step that was refused."""
        if self.layout.has_acked(found.results):
            return JobState.DONE
        back = self.layout.has_nacked(found.results, self._claim)
        return JobState.BACK if back else JobState.LOST

    async def _answer(self, call: Call, steps: list[Txn]) -> TxnResult:
        """The answer to the first step whose lease is there; a lost one is asked for again."""
        while True:
            try:
                return await self.scope.executor.execute(TxnOp(steps[0]), call)
            except OutcomeUnknown:
                self._doubt()
            except LeaseLost:
                self.scope.ensure_open()
                if not steps[1:]:
                    raise
                steps = steps[1:]
            except KviError as error:
                if self._state is JobState.ASKED and isinstance(error, UNSAID):
                    raise OutcomeUnknown("an earlier try may have ended the job") from error
                raise
            except BaseException:  # nobody asks again
                self._doubt()
                self.let_go()
                raise

    def _doubt(self) -> None:
        """It may have been ended."""
        with self._lock:
            if self._state is JobState.HELD:
                self._state = JobState.ASKED
        self.lost.end()

    def _ensure_asked(self) -> None:
        """Raise `NotHeld` if there is nothing to be ended any more."""
        if self._state is JobState.HELD and not self.lease.alive and not self.scope.closed:
            self.lost.set()
            self.let_go()
            self._state = JobState.LOST
        if self._state not in (JobState.HELD, JobState.ASKED):
            raise self._refusal()

    def _refusal(self) -> NotHeld:
        state = self._state
        lost = state in (JobState.HELD, JobState.LOST)
        return (LeaseLost if lost else NotHeld)(state.value)


class JobFace:
    """What a job of either face tells of itself; no store is asked."""

    def __init__(self, flow: JobFlow, queue: str) -> None:
        self._flow = flow
        self._queue = queue

    @property
    def id(self) -> str:
        """Unique in the queue."""
        return self._flow.item.id

    @property
    def value(self) -> bytes:
        """What was put."""
        return self._flow.item.value

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        return self._flow.item.attempts

    @property
    def held(self) -> bool:
        """Whether it surely is this one's, by the clock, at this moment."""
        return self._flow.held

    @property
    def guard(self) -> Compare:
        """A condition for ``txn(when=[job.guard, …])``: true as long as it is this one's.

        Raises `NotHeld` once it was given back, `LeaseLost` (a `NotHeld`) if it is lost.
        """
        try:
            return self._flow.guard
        except KviError as error:
            raise self._flow.scope.placed(error, "guard", self._queue)

    def __repr__(self) -> str:
        return f"<Job {self.id!r} {'held' if self.held else 'not held'} {self._queue!r}>"
