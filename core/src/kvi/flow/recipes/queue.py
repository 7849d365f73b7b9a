"""The queue: jobs that are done at least once, larger priority first, then first in, first out.

==========================  ======================================================================
key                         what it is
==========================  ======================================================================
``.kvi/next``               the number of the next job (`kvi.flow.recipes.register`)
``.kvi.items/r/ID``         a job that is ready: a line of JSON, then its value as it is
``.kvi.items/c/ID``         a job that is claimed, or delayed
``.kvi.by/ID``              whoever has it: a key kept by a lease, with no value
``.kvi.dead/ID``            a job whose attempts are used up
``.kvi.dedup/TEXT``         the id of the job that was put with this ``dedup``
==========================  ======================================================================

An id is the priority, turned round, then the number: so the keys are in the order of their turns.

============  =============================  =====================================================
a job is      guarantee                      left by
============  =============================  =====================================================
``ready``     nobody has it                  a claim, by one transaction: *claimed*; its attempts
                                             are used up: *dead*
*claimed*     its claim's key is there, and  `ack`, under the guard: gone; `nack`, under the guard:
              one holder has the guard       *ready*, or *delayed*; its lease ends: *orphan*
*delayed*     as claimed, by nobody: the     the lease ends: *orphan*
              lease is not renewed
*orphan*      claimed, without its key       whoever looks: *ready*, or *dead*
*dead*        nobody gets it                 —
============  =============================  =====================================================

Each step is one transaction, so a crash leaves a job in one of these states, and never in two or
none. A job counts an attempt when it is claimed. A claim whose answer is lost is settled by looking
who has the job, and its lease is given up, so that no claim comes late.

*No herd.* Who finds nothing stands in the recipe's line (`kvi.flow.recipes.line`), and only the
first of it watches the jobs: one `put` wakes one. All others may take what is ready as they come.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from kvi.call import Call
from kvi.errors import (
    Contention,
    InvalidArgument,
    KviError,
    LeaseLost,
    NotHeld,
    OutcomeUnknown,
    shown,
)
from kvi.flow.lease import LeaseFlow
from kvi.flow.lock import LockFlow
from kvi.flow.loss import LossState
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.observing import Notice
from kvi.flow.recipes.register import Register
from kvi.flow.recipes.state import Owner, entries_of
from kvi.flow.scope import PASSING, Scope
from kvi.log import log
from kvi.model import (
    Compare,
    Delete,
    Get,
    Key,
    KeyValue,
    Operation,
    Put,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.mutex import Mutex
from kvi.ops import CountOp, GetOp, GrantOp, TxnOp
from kvi.policy.lease import check_ttl
from kvi.policy.line import Mark, State, check_recipe, dumps, loads
from kvi.port import Port
from kvi.text import check_key, check_value

_PAGE = 10  # jobs that are looked at at once
_HIGHEST = 2**31 - 1  # priority; the lowest is as far below zero
_LOOK = 30.0  # seconds after which a waiter looks again without having been told


class DeadJob(NamedTuple):
    """A job whose attempts are used up: its id, value, and how often it was tried."""

    id: str
    value: bytes
    attempts: int


class GetterLine(Line):
    """Somebody who waits for a job."""

    kind = "queue"

    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """The first watches the jobs. That two do for a moment harms nobody."""
        return state.line[at - 1].key if at else None

    def mark_of(self, state: State, lease: LeaseFlow) -> str | None:
        """No mark is needed."""
        return None


class NewJob(NamedTuple):
    """A job to be put, with checked arguments."""

    value: bytes
    priority: int
    delay: float
    dedup: str | None


class QueueFlow:
    """One queue. Safe for threads."""

    def __init__(self, scope: Scope, name: str, max_attempts: object, ttl: float) -> None:
        limits = scope.capabilities
        if max_attempts is not None:
            max_attempts = _whole("max_attempts", max_attempts, 1)
        self._scope = scope
        self._most: int | None = max_attempts
        settings = {"max_attempts": max_attempts}
        self.owner = Owner(GetterLine.kind, check_recipe(name, limits), settings)
        self._ttl = check_ttl(ttl, limits)
        self._idle = ("queue", self._ttl)  # leases for locks are of another kind
        place = self.owner.place
        self._items = place.aside("items")
        self._by, self._dead = place.aside("by"), place.aside("dead")
        self._dedup = place.aside("dedup")
        self._all = Span.of_prefix(f"{place.name}/.kvi.")
        self._next = Register(f"{place.root}next", "queue_put")
        self._known = (0, 0)  # the next number and its revision, as seen last
        self._looked = -inf  # for orphans

    def check_put(self, value: object, priority: object, delay: object, dedup: object) -> NewJob:
        """Check what is to be put; raises `InvalidArgument`, `InvalidKey`, `ValueTooLarge`."""
        limits = self._scope.capabilities
        largest = None if limits.max_value is None else limits.max_value - 1024
        data = check_value(value, largest)
        urgency = _whole("priority", priority, -_HIGHEST)
        if dedup is not None:
            longest = None if limits.max_key is None else limits.max_key - len(self._dedup)
            dedup = check_key(dedup, min(512, longest or 512))
        return NewJob(data, urgency, self.check_delay(delay), dedup)

    def check_delay(self, delay: object) -> float:
        """Return a delay in seconds, 0 or what a lease of the store takes."""
        if delay == 0 and not isinstance(delay, bool):
            return 0.0
        return check_ttl(delay, self._scope.capabilities)

    # -- putting ----------------------------------------------------------------------------------

    async def put(self, scope: Scope, call: Call, job: NewJob) -> str:
        """Put a job; its id, or that of the one that was put with the same ``dedup``."""
        await self.owner.ensure(scope, call)
        dedup = None if job.dedup is None else f"{self._dedup}{job.dedup}"
        until = await self._delay(call, job.delay)
        while True:
            number, revision = self._known
            id = f"{_HIGHEST - job.priority:08x}-{number:012x}"
            said = _joined({"a": 0, "d": job.dedup}, job.value)
            then: list[Operation] = [Put(self._next.key, dumps({"next": number + 1}))]
            then += self._waiting(id, said, until)
            when = [_same(self._next.key, revision)]
            if dedup is not None:
                when.append(Key(dedup).absent)
                then.append(Put(dedup, id.encode()))
            look = [Get(self._next.key), *([] if dedup is None else [Get(dedup)])]
            try:
                done = await self._txn(call, when, then, look, "queue_put")
            except OutcomeUnknown:
                if dedup is None or call.port.now() >= call.deadline:
                    raise
                found = await scope.executor.execute(GetOp(dedup), call)
                if found is not None:
                    return _text(found)
                continue  # if it comes late, one of the two finds the other
            if done.succeeded:
                assert done.revision is not None  # it has written
                self._known = number + 1, done.revision
                return id
            entries = [one if isinstance(one, KeyValue) else None for one in done.results]
            if dedup is not None and entries[1] is not None:
                return _text(entries[1])
            counter = entries[0]
            said_next = loads(None if counter is None else counter.value).get("next", 0)
            self._known = int(said_next), 0 if counter is None else counter.revision

    async def _delay(self, call: Call, seconds: float) -> int | None:
        """A lease that ends when a delay does; ``None`` for none."""
        if not seconds:
            return None
        return (await self._scope.executor.execute(GrantOp(seconds), call)).id

    def _waiting(self, id: str, said: bytes, until: int | None) -> list[Operation]:
        """What makes a job ready, now or when a lease ends."""
        if until is None:
            return [Put(f"{self._items}r/{id}", said)]
        return [Put(f"{self._items}c/{id}", said), Put(f"{self._by}{id}", b"", until)]

    # -- getting ----------------------------------------------------------------------------------

    async def get(self, port: Port, wait: float | None) -> JobFlow | None:
        """The next job, as soon as there is one; ``None`` if there is none in time."""
        scope = self._scope
        deadline = inf if wait is None else port.now() + wait
        await self.owner.ensure(scope, self._call(port))
        job = await self._take(port)
        if job is not None or wait == 0:
            return job
        turn = LockFlow(scope, GetterLine(self.owner), self._ttl)
        if not await turn.acquire(port, None if wait is None else deadline - port.now()):
            return None
        notice = Notice(scope, self._all)
        try:
            await notice.begin(port)
            while (job := await self._patiently(port)) is None:
                left = deadline - port.now()
                if left <= 0 or not turn.held:
                    break
                await notice.wait(port, min(left, _LOOK), turn.lost)
            await turn.release(port, scope.timeout)
        except BaseException as error:
            turn.let_go()
            if job is None and not isinstance(error, LeaseLost):
                raise
            if not isinstance(error, KviError):
                assert job is not None  # else it was raised
                job.let_go()
                raise
        finally:
            notice.end()
        if job is None and port.now() < deadline:
            return await self.get(port, None if wait is None else deadline - port.now())
        return job

    async def _patiently(self, port: Port) -> JobFlow | None:
        try:
            return await self._take(port)
        except (*PASSING, Contention) as error:
            self._scope.ensure_open()
            log().debug("a getter of the queue %r looks again: %s", self.owner.place.name, error)
            await port.sleep(0.1)
            return None

    async def _take(self, port: Port) -> JobFlow | None:
        """Claim the first that is ready; ``None`` if none is."""
        call = self._call(port)
        if port.now() - self._looked > self._ttl / 3:
            await self._recover(call)
        while True:
            job = await self._first(port, call)
            if job is not None:
                return job
            if not await self._recover(call):
                return None

    async def _first(self, port: Port, call: Call) -> JobFlow | None:
        scope, start = self._scope, f"{self._items}r/"
        end = Span.of_prefix(start).end
        while True:
            scan = Scan(Span(start, end), limit=_PAGE)
            _, page = await entries_of(scope, call, scan)
            for entry in page:
                id = entry.key.rpartition("/")[2]
                head, value = _parted(entry)
                if self._most is not None and head["a"] >= self._most:
                    await self._bury(call, entry, id, [])
                    continue
                job = await self._claim(port, call, entry, id, head, value)
                if job is not None:
                    return job
            if len(page) < _PAGE:
                return None
            start = page[-1].key + "\0"

    async def _claim(
        self, port: Port, call: Call, entry: KeyValue, id: str, head: dict[str, Any], value: bytes
    ) -> JobFlow | None:
        scope = self._scope
        idle = scope.ledger.take_idle(self._idle, scope)
        assert idle is None or isinstance(idle, LeaseFlow)  # what was given
        lease = idle or await LeaseFlow.grant(
            port, scope, self._ttl, scope.timeout, keep_alive=True
        )
        head = {**head, "a": head["a"] + 1}
        by = f"{self._by}{id}"
        then: list[Operation] = [
            Delete(entry.key),
            Put(f"{self._items}c/{id}", _joined(head, value)),
            Put(by, b"", lease.id),
        ]
        try:
            done = await self._txn(
                call, [_same(entry.key, entry.revision)], then, (), "queue_claim"
            )
        except LeaseLost:  # an idle one may have been ended by somebody else
            lease.abandon()
            return None
        except OutcomeUnknown:
            found = await self._settled(call, by, lease)
            if found is None:
                return None
            return JobFlow(self, scope, lease, id, head, value, found)
        except BaseException:
            lease.abandon()
            raise
        if not done.succeeded:  # another was first
            self.give_back(lease, port.now())
            return None
        assert done.revision is not None  # it has written
        return JobFlow(self, scope, lease, id, head, value, done.revision)

    async def _settled(self, call: Call, by: str, lease: LeaseFlow) -> int | None:
        """Since when the job is the lease's; ``None`` if it is not, and will not be."""
        try:
            found = await self._scope.executor.execute(GetOp(by), call)
        except BaseException:
            lease.abandon()
            raise
        if found is not None and found.lease == lease.id:
            return found.revision
        lease.abandon()  # what comes late finds no lease
        return None

    async def _recover(self, call: Call) -> bool:
        """Make orphans ready again; whether there were any."""
        scope, found = self._scope, False
        self._looked = call.port.now()
        claimed = Span.of_prefix(f"{self._items}c/")
        _, entries = await entries_of(scope, call, Scan(claimed, keys_only=True))
        if not entries:
            return False
        span = Span.of_prefix(self._by)
        kept = {one.key for one in (await entries_of(scope, call, Scan(span, keys_only=True)))[1]}
        for entry in entries:
            id = entry.key.rpartition("/")[2]
            by = f"{self._by}{id}"
            if by in kept:
                continue
            whole = await scope.executor.execute(GetOp(entry.key), call)
            if whole is None or whole.revision != entry.revision:
                continue
            head, value = _parted(whole)
            if self._most is not None and head["a"] >= self._most:
                await self._bury(call, whole, id, [Key(by).absent])
                continue
            ready = Put(f"{self._items}r/{id}", _joined(head, value))
            when = [_same(entry.key, entry.revision), Key(by).absent]
            await self._txn(call, when, [Delete(entry.key), ready], (), "queue_recover")
            found = True
        return found

    async def _bury(self, call: Call, entry: KeyValue, id: str, when: list[Compare]) -> None:
        """Its attempts are used up."""
        head, value = _parted(entry)
        then: list[Operation] = [Delete(entry.key), Put(f"{self._dead}{id}", _joined(head, value))]
        then += self.forgets(head)
        when = [_same(entry.key, entry.revision), *when]
        await self._txn(call, when, then, (), "queue_bury")

    # -- for jobs, and for those who look ---------------------------------------------------------

    def forgets(self, head: dict[str, Any]) -> list[Operation]:
        """What ends a job's ``dedup``."""
        dedup = head.get("d")
        return [] if dedup is None else [Delete(f"{self._dedup}{dedup}")]

    def key_of(self, id: str) -> str:
        """Where a claimed job is."""
        return f"{self._items}c/{id}"

    def claim_of(self, id: str) -> str:
        """The key of its claim."""
        return f"{self._by}{id}"

    async def again(self, call: Call, job: JobFlow, delay: float) -> list[Operation]:
        """What puts a claimed job back."""
        said = _joined(job.head, job.value)
        if self._most is not None and job.head["a"] >= self._most:
            dead = Put(f"{self._dead}{job.id}", said)
            return [Delete(self.key_of(job.id)), dead, *self.forgets(job.head)]
        if not delay:
            return [Delete(self.key_of(job.id)), Put(f"{self._items}r/{job.id}", said)]
        return self._waiting(job.id, said, await self._delay(call, delay))

    async def count(self, scope: Scope, call: Call) -> int:
        """How many jobs there are: ready, delayed and claimed ones."""
        await self.owner.ensure(scope, call)
        return await scope.executor.execute(CountOp(Span.of_prefix(self._items)), call)

    async def dead(self, scope: Scope, call: Call) -> list[DeadJob]:
        """The jobs whose attempts are used up."""
        await self.owner.ensure(scope, call)
        _, entries = await entries_of(scope, call, Scan(Span.of_prefix(self._dead)))
        found = []
        for entry in entries:
            head, value = _parted(entry)
            found.append(DeadJob(entry.key.rpartition("/")[2], value, head["a"]))
        return found

    def give_back(self, lease: LeaseFlow, now: float) -> None:
        """A job is done: its lease may serve another."""
        self._scope.ledger.give_idle(lease, self._idle, now)

    async def _txn(
        self,
        call: Call,
        when: list[Compare],
        then: list[Operation],
        otherwise: list[Get] | tuple[()],
        called: str,
    ) -> TxnResult:
        txn = Txn(tuple(when), tuple(then), tuple(otherwise), called)
        return await self._scope.executor.execute(TxnOp(txn), call)

    def _call(self, port: Port) -> Call:
        return Call(port, port.now() + self._scope.timeout)


class JobFlow:
    """A job that is claimed. Safe for threads.

    Attributes:
        id: of the job.
        value: what was put.
        head: what the queue knows of it.
        lease: that the claim stands on.
        lost: set once the claim is lost.

    """

    def __init__(
        self,
        queue: QueueFlow,
        scope: Scope,
        lease: LeaseFlow,
        id: str,
        head: dict[str, Any],
        value: bytes,
        claimed: int,
    ) -> None:
        self.id = id
        self.value = value
        self.head = head
        self.lease = lease
        self._queue = queue
        self._scope = scope
        self._lock = Mutex()  # guards the next one
        self._over = False
        self._guard = Key(queue.claim_of(id)).revision == claimed  # it is never put again
        self.lost = LossState(scope.runtime, lambda: not lease.alive and not scope.closed)
        lease.proof = self._guard
        lease.lost.add(self.lost.is_set, own=True)

    @property
    def held(self) -> bool:
        """Whether it surely is this one's, by the clock, at this moment."""
        return not self._over and self.lease.alive

    @property
    def guard(self) -> Compare:
        """True as long as the claim stands. Raises `NotHeld`."""
        if self._over:
            raise NotHeld("the job was given back already")
        if not self.lease.alive:
            raise LeaseLost("the job is lost: its lease was not renewed in time")
        return self._guard

    async def ack(self, call: Call) -> None:
        """It is done: it is gone for good. Again, it does nothing."""
        if self._over:
            return
        queue = self._queue
        key, by = queue.key_of(self.id), queue.claim_of(self.id)
        await self._end(call, [Delete(key), Delete(by), *queue.forgets(self.head)], "queue_ack")

    async def nack(self, call: Call, delay: float) -> None:
        """It is not done: let another have it, perhaps after a while."""
        guard = self.guard
        back = await self._queue.again(call, self, delay)
        by = self._queue.claim_of(self.id)
        mine = guard.key == by and not any(isinstance(op, Put) and op.key == by for op in back)
        await self._end(call, [*back, *([Delete(by)] if mine else [])], "queue_nack")

    def check_delay(self, delay: object) -> float:
        """See `QueueFlow.check_delay`."""
        return self._queue.check_delay(delay)

    def let_go(self) -> None:
        """Give it back without waiting."""
        with self._lock:
            self._over = True
        self.lost.end()
        self.lease.proof = None
        self.lease.abandon()

    async def _end(self, call: Call, then: list[Operation], called: str) -> None:
        scope, doubt, succeeded = self._scope, False, False
        op = TxnOp(Txn((self.guard,), tuple(then), (), called))
        while True:
            try:
                succeeded = (await scope.executor.execute(op, call)).succeeded
                break
            except OutcomeUnknown:
                doubt = True
                if call.port.now() >= call.deadline:
                    self.let_go()
                    raise
            except BaseException as error:
                if not isinstance(error, KviError):
                    self.let_go()
                raise
        if not succeeded and not (doubt and self.lease.alive):
            self.let_go()
            raise LeaseLost("the job was lost before: another may have it")
        with self._lock:
            self._over = True
        self.lost.end()
        self.lease.proof = None
        if doubt or call.doubt:
            self.lease.abandon()
        else:
            self._queue.give_back(self.lease, call.port.now())


def _same(key: str, revision: int) -> Compare:
    return Key(key).revision == revision if revision else Key(key).absent


def _joined(head: dict[str, Any], value: bytes) -> bytes:
    return dumps(head) + b"\n" + value


def _parted(entry: KeyValue) -> tuple[dict[str, Any], bytes]:
    head, _, value = (entry.value or b"").partition(b"\n")
    return {"a": 0, "d": None, **loads(head)}, value


def _text(entry: KeyValue) -> str:
    return (entry.value or b"").decode()


def _whole(name: str, number: object, least: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= _HIGHEST:
        raise InvalidArgument(f"{name}= is a whole number from {least}, not {shown(number)}")
    return number
