"""`Backend`: a store as a service uses it; see `kvi.Backend` and `kvi.flow.supervision`."""

from __future__ import annotations

from typing import Self

from kvi.aio.kvi import AsyncKvi
from kvi.aio.opening import open as open_store
from kvi.aio.ranges import AsyncRange
from kvi.clock import now
from kvi.driver.loop import LoopSignal
from kvi.errors import Closed, KviError
from kvi.flow.scope import Scope
from kvi.flow.supervision import News, Supervision, below, deadline_of
from kvi.ops import PingOp
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait
from kvi.policy.retry import RetryPolicy
from kvi.text import check_key, check_value


class AsyncLivenessChannel:
    """Whether a store is alive: its present state first, then every change, and now and then both.

    As a `kvi.Backend`'s: it holds the last 10 items, and no operation waits for its reader. Each
    item goes to one of the tasks that read; cancelling one loses none. Iterated with ``async for``
    it ends once the store is closed.
    """

    def __init__(self, store: Backend, scope: Scope) -> None:
        self._store = store
        self._news = News(scope)

    async def get(self, timeout: float | None = None) -> bool:
        """Take the next item; waits for it, at most ``timeout`` seconds (``None``: without end).

        Raises `Timeout` if none came, `Closed` once the store is closed and all items are taken,
        `InvalidArgument` for a negative time-out.
        """
        try:
            return await self._next(check_wait(timeout))
        except KviError as error:
            raise self._store._placed(error, "liveness", None)

    async def _next(self, wait: float | None) -> bool:
        news = self._news
        if not self._store.closed or self._store._scope.primitives.forked:
            self._store._enter()
        await self._store._runtime.breathe()
        if (item := news.take(main=False)) is not None:
            return item
        signal = LoopSignal()
        news.want(signal)
        deadline = deadline_of(wait, now())
        try:
            while not isinstance(found := news.look(deadline, now(), main=False), bool):
                await signal.wait(found)
            return found
        finally:
            news.unwant(signal)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bool:
        try:
            return await self.get()
        except Closed:
            raise StopAsyncIteration from None

    def __len__(self) -> int:
        """How many items are waiting, at most 10."""
        return len(self._news)


class Backend(AsyncKvi):
    """A store below a prefix, that tries again, knows whether it is alive, and can be observed.

    It is an `AsyncKvi` over ``store``, a handle, which stays its owner's to close, or a URI, whose
    store is closed together with this one. Arguments and errors are those of `kvi.Backend`.
    """

    def __init__(
        self,
        store: AsyncKvi | str,
        path_prefix: str = "",
        timeout: float = 5,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008  (immutable)
        liveness_interval: float = 30.0,
    ) -> None:
        supervision = Supervision(path_prefix, timeout, retry, liveness_interval)
        inner = store if isinstance(store, AsyncKvi) else open_store(store)
        self._owned = None if isinstance(store, AsyncKvi) else inner
        try:
            scope, self._monitored, self._reservations = supervision.over(inner._scope)
        except KviError:
            if self._owned is not None:
                self._owned._runtime.stop()
                self._owned._scope.primitives._close()
            raise
        self._channel = AsyncLivenessChannel(self, scope)
        super().__init__(scope)

    # -- liveness ---------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the last operation found the store alive; false before the first."""
        return self._monitored.alive

    async def perform_liveness_check(self, timeout: float | None = None) -> bool:
        """Ask the store now, once and read-only, within ``timeout`` seconds; returns `alive`.

        Raises `Closed`, and `InvalidArgument` for a time-out out of range; else nothing.
        """
        try:
            self._enter()
            self._seconds(timeout)
            try:
                await self._do(PingOp(), timeout)
            except KviError:  # the answer is what it proves
                self._enter()
            return self.alive
        except KviError as error:
            raise self._placed(error, "perform_liveness_check", None)

    def enable_liveness_channel(self) -> AsyncLivenessChannel:
        """Return the channel that tells whether the store is alive; the same one at each call.

        Its first item is the present state; see `kvi.Backend.enable_liveness_channel`.
        """
        try:
            self._scope.ensure_open()
            self._monitored.start(self._channel._news.post)
            return self._channel
        except KviError as error:
            raise self._placed(error, "enable_liveness_channel", None)

    # -- reading ----------------------------------------------------------------------------------

    def list(self, path: str = "", *, timeout: float | None = None) -> AsyncRange:
        """Read the entries below ``path/``, in key order; without a path, all of them.

        The key ``path`` itself is not among them. Otherwise as `range`.
        """
        return self.range(prefix=below(path), timeout=timeout)

    # -- reservations -----------------------------------------------------------------------------

    async def reserve(
        self, key: str, value: bytes | str, ttl: float, *, timeout: float | None = None
    ) -> bytes:
        """Reserve a key: store ``value`` under it for ``ttl`` seconds, if it is not there.

        Returns the value of whoever holds the key. See `kvi.Backend.reserve`. After it was
        cancelled the key is not reserved; it may be there until the ttl has passed.
        """
        try:
            self._enter()
            limits, held = self.capabilities, self._reservations
            name = check_key(key, limits.max_key)
            data, seconds = check_value(value, limits.max_value), self._seconds(timeout)
            asked = check_ttl(ttl, limits)
            return await self._drive(lambda port: held.reserve(port, name, data, asked, seconds))
        except KviError as error:
            raise self._placed(error, "reserve", key)

    async def renew_reservation(self, key: str, *, timeout: float | None = None) -> None:
        """Let the time of a reservation begin anew.

        Raises `NotHeld` if this backend has not reserved the key, `LeaseLost` (a `NotHeld`) if the
        reservation has ended meanwhile.
        """
        try:
            self._enter()
            name, seconds, held = check_key(key, None), self._seconds(timeout), self._reservations
            await self._drive(lambda port: held.renew(port, name, seconds))
        except KviError as error:
            raise self._placed(error, "renew_reservation", key)

    async def release_reservation(self, key: str, *, timeout: float | None = None) -> None:
        """End a reservation, and delete its key. One that is not held is no error.

        If this raises, the key may be there until the ttl has passed.
        """
        try:
            self._enter()
            name, seconds, held = check_key(key, None), self._seconds(timeout), self._reservations
            await self._drive(lambda port: held.release(port, name, seconds), lasting=True)
        except KviError as error:
            raise self._placed(error, "release_reservation", key)

    async def release_all_reservations(self, *, timeout: float | None = None) -> None:
        """End every reservation of this backend, as `release_reservation` does.

        All are tried; then the first error is raised.
        """
        try:
            self._enter()
            seconds, held = self._seconds(timeout), self._reservations
            await self._drive(lambda port: held.release_all(port, seconds), lasting=True)
        except KviError as error:
            raise self._placed(error, "release_all_reservations", None)

    def _scopes(self) -> tuple[Scope, ...]:
        return (self._scope,) if self._owned is None else (self._scope, self._owned._scope)
