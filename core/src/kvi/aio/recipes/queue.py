"""`Queue`: jobs that are done at least once; see `kvi.flow.recipes.queue`."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Self

from kvi.aio.face import AsyncFace
from kvi.aio.loss import AsyncLoss
from kvi.aio.recipes.recipe import ask
from kvi.errors import KviError
from kvi.flow.recipes.job import JobFace, JobFlow
from kvi.flow.recipes.queue import QueueFlow
from kvi.flow.recipes.state import Named
from kvi.policy.lock import check_wait
from kvi.policy.queue import DeadJob

__all__ = ["DeadJob", "Job", "Queue"]


class Queue(Named):
    """Jobs for whoever comes, each done at least once; as `kvi.recipes.Queue`."""

    def __init__(
        self, store: AsyncFace, name: str, *, max_attempts: int | None = None, ttl: float = 30
    ) -> None:
        self._store = store
        try:
            self._flow = QueueFlow(store._scope, name, max_attempts, ttl)
        except KviError as error:
            raise store._placed(error, "queue", name)
        super().__init__(self._flow.owner, store.uri)

    async def put(
        self,
        value: bytes | str,
        *,
        priority: int = 0,
        delay: float = 0,
        dedup: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Put a job; returns its id. See `kvi.recipes.Queue.put`."""
        flow, store = self._flow, self._store
        try:
            job = flow.layout.check(value, priority, delay, dedup)
        except KviError as error:
            raise store._placed(error, "put", self.name)
        return await ask(store, self.name, "put", timeout, flow.put, job)

    async def get(self, timeout: float | None = None) -> Job | None:
        """Get the next job; waits for one, at most ``timeout`` seconds (``None``: without end).

        ``None`` if none came; 0 does not wait. Raises `InvalidArgument` for a negative time-out.
        """
        store, flow = self._store, self._flow
        try:
            store._enter()
            wait = check_wait(timeout)
            found = await store._drive(lambda port: flow.get(port, wait))
        except KviError as error:
            raise store._placed(error, "get", self.name)
        return None if found is None else Job(store, self.name, found)

    async def dead(self, *, timeout: float | None = None) -> list[DeadJob]:
        """The jobs whose attempts are used up, in order; see `retry` and `discard`."""
        return await ask(self._store, self.name, "dead", timeout, self._flow.dead)

    async def retry(self, id: str, *, timeout: float | None = None) -> bool:
        """Put a dead job back, with all its attempts before it; true only if it was dead.

        It has its old place, and no ``dedup`` any more. ``id`` is that of `dead`, or of `put`.
        """
        return await ask(self._store, self.name, "retry", timeout, self._flow.retry, id)

    async def discard(self, id: str, *, timeout: float | None = None) -> bool:
        """Delete a dead job; true only if it was dead. The dead stay until then, or `retry`."""
        return await ask(self._store, self.name, "discard", timeout, self._flow.discard, id)

    async def count(self, *, timeout: float | None = None) -> int:
        """How many jobs there are: ready, delayed and claimed ones, not the dead."""
        return await ask(self._store, self.name, "count", timeout, self._flow.count)


class Job(JobFace):
    """A job that is this one's to do; made by `Queue.get`. As a `kvi.recipes.Job`.

    As an ``async with`` block it is acknowledged at the end, or given back if the block raises. One
    that is dropped is given back, with a `ResourceWarning`.
    """

    def __init__(self, store: AsyncFace, queue: str, flow: JobFlow) -> None:
        super().__init__(flow, queue)
        self._store = store

    @property
    def lost(self) -> AsyncLoss:
        """Set once it is lost: another may have it."""
        return AsyncLoss(self._store, self._flow.lost)

    async def ack(self, *, timeout: float | None = None) -> None:
        """It is done, and gone for good. Again, it does nothing.

        Raises `LeaseLost` if it was lost before: another may do it again; `NotHeld` if it was given
        back. After an `OutcomeUnknown` it may be done, and is not held any more; to ask again tells
        the truth.
        """
        await ask(self._store, self._queue, "ack", timeout, lambda _, call: self._flow.ack(call))

    async def nack(self, delay: float = 0, *, timeout: float | None = None) -> None:
        """It is not done: another may have it, after ``delay`` seconds as `Queue.put` has them.

        If its attempts are used up, it is dead. Raises `NotHeld` if it was done or given back
        before, else as `ack`.
        """
        flow = self._flow
        try:
            seconds = flow.layout.check_delay(delay)
        except KviError as error:
            raise self._store._placed(error, "nack", self._queue)
        await ask(
            self._store, self._queue, "nack", timeout, lambda _, call: flow.nack(call, seconds)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        flow = self._flow
        try:
            if error is None and not flow.ended:
                await self.ack()
            elif isinstance(error, Exception) and flow.held:
                await self.nack()
        except KviError as failure:
            if error is None:
                raise
            error.add_note(f"afterwards the job could not be given back: {failure}")
        finally:
            if not self._store.closed:  # in a forked child it is not ours
                flow.let_go()  # nobody asks again, if it is to be asked

    def __del__(self) -> None:
        if self._store.closed or not self._flow.held:
            return
        self._store._runtime.post(self._flow.let_go)
        warnings.warn(f"{self!r} was dropped while it was held", ResourceWarning, 2, self)
