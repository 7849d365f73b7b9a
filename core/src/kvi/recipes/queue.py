"""`Queue`: jobs that are done at least once; see `kvi.flow.recipes.queue`."""

from __future__ import annotations

import weakref

from kvi.errors import KviError
from kvi.flow.recipes.job import JobFace, JobFlow
from kvi.flow.recipes.queue import QueueFlow
from kvi.flow.recipes.state import Named
from kvi.policy.lock import check_wait
from kvi.policy.queue import DeadJob
from kvi.recipes.recipe import ask
from kvi.sync.block import Block, Held
from kvi.sync.face import Face
from kvi.sync.loss import Loss

__all__ = ["DeadJob", "Job", "Queue"]


class Queue(Named):
    """Jobs for whoever comes, each done at least once: larger priority first, then first in.

    A job is claimed by a lease and gone only by `Job.ack`; it is delivered again only after a lost
    lease, or `Job.nack`. ``max_attempts`` is after how many tries a job is `dead`; it is stored by
    the first who uses the name, and must be the same for all. ``ttl`` (seconds) is how long a job
    outlives the process that has it. ``name`` is relative to the store, which may be a view or a
    `kvi.Backend`. Safe for threads.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for other values out of range; using it
    raises `InvalidArgument` if the name is another recipe's, or has other settings.
    """

    def __init__(
        self, store: Face, name: str, *, max_attempts: int | None = None, ttl: float = 30
    ) -> None:
        self._store = store
        try:
            self._flow = QueueFlow(store._scope, name, max_attempts, ttl)
        except KviError as error:
            raise store._placed(error, "queue", name)
        super().__init__(self._flow.owner, store.uri)

    def put(
        self,
        value: bytes | str,
        *,
        priority: int = 0,
        delay: float = 0,
        dedup: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Put a job; returns its id.

        A larger ``priority`` comes first. ``delay`` (seconds) is until when nobody gets it, by the
        store's clock: within the bounds of its leases, and at the latest as much later as those
        end. With ``dedup``, up to 512 bytes, nothing is put if a job with the same text is there,
        claimed or not, and its id is returned; a lost answer is settled then. Without it, a lost
        answer is `OutcomeUnknown`.

        Raises `InvalidArgument`, `InvalidKey` or `ValueTooLarge` (1 KiB under the store's maximum).
        """
        flow, store = self._flow, self._store
        try:
            job = flow.layout.check(value, priority, delay, dedup)
        except KviError as error:
            raise store._placed(error, "put", self.name)
        return ask(store, self.name, "put", timeout, flow.put, job)

    def get(self, timeout: float | None = None) -> Job | None:
        """Get the next job; waits for one, at most ``timeout`` seconds (``None``: without end).

        ``None`` if none came; 0 does not wait. Raises `InvalidArgument` for a negative time-out.
        """
        store, flow = self._store, self._flow
        try:
            store._ensure_open()
            wait = check_wait(timeout)
            found = store._drive(lambda port: flow.get(port, wait), undo=_give_up, away=True)
        except KviError as error:
            raise store._placed(error, "get", self.name)
        return None if found is None else Job(store, self.name, found)

    def dead(self, *, timeout: float | None = None) -> list[DeadJob]:
        """The jobs whose attempts are used up, in order; see `retry` and `discard`."""
        return ask(self._store, self.name, "dead", timeout, self._flow.dead)

    def retry(self, id: str, *, timeout: float | None = None) -> bool:
        """Put a dead job back, with all its attempts before it; true only if it was dead.

        It has its old place, and no ``dedup`` any more. ``id`` is that of `dead`, or of `put`.
        """
        return ask(self._store, self.name, "retry", timeout, self._flow.retry, id)

    def discard(self, id: str, *, timeout: float | None = None) -> bool:
        """Delete a dead job; true only if it was dead. The dead stay until then, or `retry`."""
        return ask(self._store, self.name, "discard", timeout, self._flow.discard, id)

    def count(self, *, timeout: float | None = None) -> int:
        """How many jobs there are: ready, delayed and claimed ones, not the dead."""
        return ask(self._store, self.name, "count", timeout, self._flow.count)


class Job(Held, JobFace):
    """A job that is this one's to do; made by `Queue.get`. One that is dropped is given back.

    As a ``with`` block it is acknowledged at the end, or given back if the block raises. Safe for
    threads.
    """

    def __init__(self, store: Face, queue: str, flow: JobFlow) -> None:
        super().__init__(flow, queue)
        self._store = store

    @property
    def lost(self) -> Loss:
        """Set once it is lost: another may have it."""
        return Loss(self._flow.lost, self._store._scope)

    def ack(self, *, timeout: float | None = None) -> None:
        """It is done, and gone for good. Again, it does nothing.

        Raises `LeaseLost` if it was lost before: another may do it again; `NotHeld` if it was given
        back. After an `OutcomeUnknown` it may be done, and is not held any more; to ask again tells
        the truth.
        """
        ask(self._store, self._queue, "ack", timeout, lambda _, call: self._flow.ack(call))

    def nack(self, delay: float = 0, *, timeout: float | None = None) -> None:
        """It is not done: another may have it, after ``delay`` seconds as `Queue.put` has them.

        If its attempts are used up, it is dead. Raises `NotHeld` if it was done or given back
        before, else as `ack`.
        """
        flow = self._flow
        try:
            seconds = flow.layout.check_delay(delay)
        except KviError as error:
            raise self._store._placed(error, "nack", self._queue)
        ask(self._store, self._queue, "nack", timeout, lambda _, call: flow.nack(call, seconds))

    def _hold_for(self, block: weakref.ref[Block]) -> None:
        self._flow.hold_for(block)

    def _leave(self, kind: object, error: BaseException | None, trace: object) -> None:
        flow = self._flow
        try:
            if error is None and not flow.ended:
                self.ack()
            elif isinstance(error, Exception) and flow.held:
                self.nack()
        except KviError as failure:
            if error is None:
                raise
            error.add_note(f"afterwards the job could not be given back: {failure}")
        finally:
            if not (flow.ended or self._store.closed):  # nobody asks again
                self._store._runtime.post(flow.let_go)


def _give_up(found: JobFlow | None) -> None:
    """Nobody is there to do it."""
    if found is not None:
        found.let_go()
