"""A queue, whose jobs two or three processes put, get, and end in all the ways there are.

*At the store*, at each change: a job is in one place, with what was put, and leaves it by a step
that somebody took who might. Only whoever has it acknowledges it, or gives it back; it is claimed
while it is ready, after its delay, and its attempts are counted. Nobody loses a job that he holds,
and where all is well nobody loses any. *To callers*: what they were told is so, and stays so. A
`get` passes over no job that was ready all the while, and finds one if there is one. *In the calm*:
who waits is woken, nothing is lost, and nothing else is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

from kvi.errors import Closed, KviError, LeaseLost, NotHeld, OutcomeUnknown
from kvi.flow.recipes.job import JobFlow
from kvi.flow.recipes.queue import QueueFlow
from kvi.model import KeyValue
from kvi.policy.queue import Item, NewJob
from kvi.policy.txn import Change
from kvi.port import Cancelled, Port

from tests.simulation.client import Client
from tests.simulation.model import SLACK
from tests.simulation.network import Weather
from tests.simulation.scenarios.registers import Sharing
from tests.simulation.world import World

_READY, _CLAIMED, _DEAD, _GONE = "items/r", "items/c", "dead", ""
_WOKEN = 3.0  # seconds after which a waiter has a job, in the calm


class Getting(QueueFlow):
    """A queue, and at which revision it began to look."""

    began = 0

    async def _look(self, port: Port) -> JobFlow | None:
        self.began = self._scope.primitives.model.revision  # type: ignore[attr-defined]
        return await super()._look(port)


@dataclass(slots=True)
class Known:
    """A job, as the store has it.

    Attributes:
        item: as it was put, or changed last.
        where: it is.
        since: which revision.
        delayed: nobody has it, though it is claimed.
        due: when it may be had.
        by: the claim that has acknowledged it.

    """

    item: Item
    where: str
    since: int
    delayed: bool
    due: float
    by: int = 0


class Jobs(Sharing):
    """A queue."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.fine = random.random() < 0.2  # nothing goes wrong
        self.most = 0 if self.fine else 5
        super().__init__(world, early=True)
        if self.fine:
            self.network.weather = Weather()
            world.stall = 0.0  # a thread that comes late may lose its job
        self.attempts = random.choice((None, None, 2, 3))
        self.tokens = count(1)
        self.jobs: dict[str, Known] = {}
        self.due: dict[bytes, float] = {}  # by what was put
        self.back_due: dict[int, float] = {}  # by claim
        self.refused: set[bytes] = set()  # as those who put them were told
        self.acking: set[int] = set()  # claims
        self.leaving: set[int] = set()
        self.nacking: set[int] = set()
        self.over: set[int] = set()  # claims that end nothing any more, as was told
        self.backed: set[int] = set()
        self.before: dict[int, list[Known]] = {}  # by claim: the jobs that were ready, and first
        self.holders: dict[int, JobFlow] = {}
        self.highest = -1  # number of a job whose put is over

    def run(self) -> None:
        """Run one schedule."""
        super().run()
        left = {key for key in self.model.entries if not key.startswith("q/.kvi.dead/")}
        if not left <= {"q/.kvi/next", "q/.kvi/settings"}:
            self.world.fail(f"these are left: {sorted(left)}")

    # -- what they do -----------------------------------------------------------------------------

    def _flow(self, client: Client) -> Getting:
        return Getting(client.scope, "q", self.attempts, self.ttl)

    async def _work(self, client: Client) -> None:
        random = self.world.random
        flow = self._flow(client)
        try:
            for _ in range(random.randint(2, 4)):
                if random.random() < 0.4:
                    dedup = random.choice((None, None, "x", "y"))
                    delay = random.choice((0.0, 0.0, 0.5, 3.0))
                    await self._put(client, flow, NewJob(b"", random.randint(0, 1), delay, dedup))
                else:
                    job = await self._get(client, flow, random.choice((0.0, 0.5, 3.0)))
                    if job is not None:
                        await self._do(client, job)
            if not self.fine and random.random() < 0.1:
                await client.close()
        except (Closed, Cancelled):
            return

    async def _put(self, client: Client, flow: Getting, job: NewJob) -> None:
        job = job._replace(value=b"%d" % next(self.tokens))
        began, highest = self.model.revision, self.highest
        self.due[job.value] = self.world.time + job.delay
        self._tell(client, f"puts {job}")
        try:
            id = await client.call(lambda port: flow.put(client.scope, self._call(port), job))
        except OutcomeUnknown:
            return
        except (Closed, Cancelled):
            raise
        except KviError as error:
            self._tell(client, f"has not put {job.value!r}: {error!r}")
            self.refused.add(job.value)
            if any(known.item.value == job.value for known in self.jobs.values()):
                self.world.fail(f"{job.value!r} was put, and who did so told that it was not")
            return
        known, number = self.jobs[id], int(id.rpartition("-")[2], 16)
        if known.item.value != job.value and (job.dedup is None or known.item.dedup != job.dedup):
            self.world.fail(f"{job} is said to be {known}")
        if known.item.value != job.value and known.where == _GONE and known.since <= began:
            self.world.fail(f"{job} is said to be there already, and is gone")
        if known.item.value == job.value and number <= highest:
            self.world.fail(f"{job} has a place before one that was put before")
        self.highest = max(self.highest, number)

    async def _get(self, client: Client, flow: Getting, wait: float) -> JobFlow | None:
        self._tell(client, f"gets, within {wait:.1f} s")
        try:
            job = await client.call(lambda port: flow.get(port, wait), undo=_give_up)
        except (Closed, Cancelled):
            raise
        except KviError as error:
            self._tell(client, f"gets nothing: {error!r}")
            if isinstance(error, OutcomeUnknown):
                self.world.fail("a get leaves a doubt")
            return None
        if job is None:
            ready = [one for one in self.jobs.values() if one.where == _READY]
            if any(one.since <= flow.began for one in ready):
                self.world.fail(f"there is none, and these are ready: {ready}")
            return None
        self._tell(client, f"HAS {job.item}")
        passed = [one for one in self.before[job._claim] if one.since <= flow.began]
        if passed:
            self.world.fail(f"{job.item} came before {passed}")
        self.holders[job._claim] = job
        return job

    async def _do(self, client: Client, job: JobFlow) -> None:
        random = self.world.random
        try:
            await client.port.sleep(random.random() * (4.0 if self.stormy else 0.3))
            if random.random() < 0.2:
                job = await self._hand_over(client, job)
            done, delay = random.random() < 0.7, random.choice((0.0, 0.0, 1.0))
            for _ in range(4):
                if await (self._ack(client, job) if done else self._nack(client, job, delay)):
                    break
                await client.port.sleep(0.2 * random.random())
            await client.port.sleep(random.choice((0.0, 0.2, 0.7)))
        finally:
            if not self.world.over:
                client.runtime.post(job.let_go)

    async def _hand_over(self, client: Client, job: JobFlow) -> JobFlow:
        """Leave it, and go on with it, as two processes do; itself if that fails."""
        flow, id = self._flow(client), job.item.id
        self.leaving.add(job._claim)
        self._tell(client, f"leaves {id}")
        try:
            left = await client.call(lambda port: job.leave(self._call(port), 2.0))
            self.leaving.add(left)
            await client.port.sleep(self.world.random.random())
            again = await client.call(
                lambda port: flow.claims.resume(self._call(port), id, left), undo=_give_up
            )
        except (Closed, Cancelled):
            raise
        except KviError as error:
            self._tell(client, f"does not go on with {id}: {error!r}")
            return job
        self._tell(client, f"GOES ON with {id}")
        self.holders[again._claim] = again
        return again

    async def _ack(self, client: Client, job: JobFlow) -> bool:
        """Whether it is over."""
        claim, known = job._claim, self.jobs[job.item.id]
        self.acking.add(claim)
        self.over.discard(claim)
        self._tell(client, f"acknowledges {job.item.id}")
        try:
            await client.call(lambda port: job.ack(self._call(port)))
        except (Closed, Cancelled, OutcomeUnknown) as error:
            if isinstance(error, OutcomeUnknown):
                return False
            raise
        except KviError as error:
            self._tell(client, f"has not acknowledged {job.item.id}: {error!r}")
            if isinstance(error, LeaseLost) or job.held:
                self.over.add(claim)
                if known.by == claim:
                    self.world.fail(f"{known} was acknowledged, and who did so told otherwise")
            return isinstance(error, NotHeld)
        if known.where != _GONE:
            self.world.fail(f"{known} is said to be done")
        return True

    async def _nack(self, client: Client, job: JobFlow, delay: float) -> bool:
        """Whether it is over."""
        claim, known = job._claim, self.jobs[job.item.id]
        self.nacking.add(claim)
        self.over.discard(claim)
        self.back_due.setdefault(claim, self.world.time + delay)
        self._tell(client, f"gives {job.item.id} back")
        try:
            await client.call(lambda port: job.nack(self._call(port), delay))
        except (Closed, Cancelled, OutcomeUnknown) as error:
            if isinstance(error, OutcomeUnknown):
                return False
            raise
        except KviError as error:
            self._tell(client, f"has not given {job.item.id} back: {error!r}")
            if isinstance(error, LeaseLost) or job.held:
                self.over.add(claim)
                if known.item.back == claim and known.where != _GONE:
                    self.world.fail(f"{known} was given back, and who did so told otherwise")
            return isinstance(error, NotHeld)
        if claim not in self.backed:
            self.world.fail(f"{known} is said to be given back")
        return True

    async def _probe(self, client: Client) -> None:
        """Do what is left; then let some wait, and put a job for each."""
        flow, random = self._flow(client), self.world.random
        while await client.call(lambda port: flow.count(client.scope, self._call(port))):
            job = await self._get(client, flow, 5.0)
            if job is not None and not await self._ack(client, job):
                self.world.fail("it cannot be acknowledged, though all is well")
        await client.port.sleep(self.ttl + SLACK)  # nobody is in line any more
        waiters = random.randint(1, 2)
        for number in range(waiters):
            client.program(f"waiter {number}", self._wait(client))
        for _ in range(waiters):
            await client.port.sleep(random.random() * random.choice((0.2, 1.0)))
            await self._put(client, flow, NewJob(b""))

    async def _wait(self, client: Client) -> None:
        job = await self._get(client, self._flow(client), 15.0)
        if job is None:
            self.world.fail("no job comes")
        assert job is not None
        late = self.world.time - self.due[job.item.value]
        if late > _WOKEN:
            self.world.fail(f"who waits gets a job {late:.1f} s after it was put")
        await self._ack(client, job)

    # -- what the store sees ----------------------------------------------------------------------

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        jobs: dict[str, KeyValue | None] = {}  # by id: the claim's key before
        for key, _, _ in changes:
            what, _, id = key.removeprefix("q/.kvi.").rpartition("/")
            if what in (_READY, _CLAIMED, _DEAD):
                jobs.setdefault(id, self.model.entries.get(f"q/.kvi.by/{id}"))
        for key, old, _ in changes:
            if key.startswith("q/.kvi.by/"):
                jobs[key.rpartition("/")[2]] = old
        for id, claim in jobs.items():
            self._step(revision, id, claim)

    def _step(self, revision: int, id: str, before: KeyValue | None) -> None:
        """One job has changed; ``before``: its claim, as it was."""
        entries, fail = self.model.entries, self.world.fail
        places = [one for one in (_READY, _CLAIMED, _DEAD) if f"q/.kvi.{one}/{id}" in entries]
        by, claim = entries.get(f"q/.kvi.by/{id}"), 0 if before is None else before.revision
        known = self.jobs.get(id)
        if not places:
            if known is None or claim not in self.acking or claim in self.over:
                fail(f"{known} is gone, and nobody who has it has acknowledged it")
            assert known is not None
            known.where, known.since, known.by = _GONE, revision, claim
            return
        if len(places) > 1:
            fail(f"{id} is in {places}")
        where = places[0]
        item = Item.of(entries[f"q/.kvi.{where}/{id}"])
        if known is None:
            self._appear(Known(item, where, revision, by is not None, self.due[item.value]))
            return
        if (item.value, item.dedup) != (known.item.value, known.item.dedup):
            fail(f"{known} was changed to {item}")
        last = self.attempts is not None and item.attempts >= self.attempts
        if item.back != known.item.back:
            if item.back != claim or claim not in self.nacking or claim in self.over:
                fail(f"{known} is given back, and not by whoever has it")
            self.backed.add(claim)
            known.delayed = by is not None
            known.due = self.back_due[claim] if known.delayed else 0.0
        elif item.attempts != known.item.attempts:
            if known.where != _READY or item.attempts != known.item.attempts + 1:
                fail(f"{known} is claimed as {item}")
            if self.world.time < known.due - 1e-6 and not self.early:
                fail(f"{known} is claimed before its time")
            assert by is not None  # else it would be an orphan at once
            ready = [one for one in self.jobs.values() if one.where == _READY]
            self.before[by.revision] = [replace(one) for one in ready if one.item.id < id]
            known.delayed = False
        elif where == known.where:
            holder = self.holders.get(claim)
            if by is not None:
                if claim not in self.leaving:
                    fail(f"{known} is claimed again")
                known.delayed = not known.delayed  # it was left, or is gone on with
            elif not known.delayed and (self.fine or (holder and holder.held and not self.early)):
                fail(f"the claim of {known} has ended")
            return
        elif before is not None or where == _CLAIMED:
            fail(f"{known} is taken from who has it")
        if (where == _DEAD and not last) or (where == _READY and last):
            fail(f"{known} goes to {where}")
        known.item, known.where, known.since = item, where, revision

    def _appear(self, new: Known) -> None:
        same = [one.item for one in self.jobs.values() if one.where not in (_GONE, _DEAD)]
        if new.item.attempts or new.item.back or new.where == _DEAD:
            self.world.fail(f"{new} comes from nowhere")
        if new.item.value in self.refused:
            self.world.fail(f"{new} was put after it had failed")
        if any(new.item.value == one.item.value for one in self.jobs.values()):
            self.world.fail(f"{new} was put twice")
        if new.item.dedup is not None and any(new.item.dedup == one.dedup for one in same):
            self.world.fail(f"{new} was put though there is one already")
        self.jobs[new.item.id] = new


def _give_up(job: JobFlow | None) -> None:
    if job is not None:
        job.let_go()


def queue(world: World) -> None:
    """Two or three share a queue."""
    Jobs(world).run()
