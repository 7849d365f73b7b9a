"""`Lease`: a promise of the store to keep some keys for as long as their holder renews it.

The decisions are in `kvi.policy.lease`, the renewing thread in `kvi.runtime.keeper`; a lease joins
the two. ``_lock`` guards the `Term`; the store is never asked under it. `alive` reads the clock and
takes no lock, so that it can be asked at any moment, in a forked child too.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from kvi.backend.around import Allowance
from kvi.errors import KviError, LeaseLost, OutcomeUnknown, Timeout, Unavailable
from kvi.model import LeaseRef
from kvi.policy.lease import LeaseState, Term
from kvi.runtime.clock import now
from kvi.runtime.dispatcher import Task
from kvi.runtime.loss import Loss

if TYPE_CHECKING:
    from types import TracebackType

    from kvi.interface import Kvi

__all__ = ["Lease"]

_log = logging.getLogger("kvi")
_PAUSE = 1.0  # seconds between tries to revoke a lease that was given up


class Lease(LeaseRef):
    """A lease; made by `Kvi.lease`. Keys stored with ``lease=`` vanish together once it ends.

    It ends no earlier than ``ttl`` seconds after its last renewal was sent, and no later than
    ``capabilities.lease_expiry_factor`` times that, plus a second. Safe for threads. As a context
    manager it is revoked at the end of the block.

    Attributes:
        lost: set once the lease is lost; `revoke` and `Kvi.close` do not set it.

    """

    __slots__ = ("__weakref__", "_id", "_kept", "_lock", "_runtime", "_store", "_term", "lost")

    lost: Loss

    def __init__(
        self, store: Kvi, lease: int, ttl: float, sent: float, *, keep_alive: bool
    ) -> None:
        self._store = store
        self._runtime = store._running()
        self._id = lease
        self._term = Term(ttl, sent)
        self._kept = keep_alive
        self._lock = threading.Lock()
        self.lost = Loss(self._runtime.threads.dispatcher.call, self._is_lost, lambda: store.closed)

    @classmethod
    def _grant(cls, store: Kvi, ttl: float, timeout: float, keep_alive: bool) -> Self:
        runtime = store._running()
        sent = now()
        grant = store._lease_grant(ttl, timeout)
        lease = cls(store, grant.id, grant.ttl, sent, keep_alive=keep_alive)
        if not runtime.add_lease(lease):  # closed meanwhile: it ends by itself
            raise store._refusal()
        try:
            runtime.threads.keeper.keep(lease, lease._next_step())
        except Unavailable:
            lease._revoke_quietly(timeout)
            raise
        return lease

    @property
    def id(self) -> int:
        """The id, above 0, as `KeyValue.lease` has it."""
        return self._id

    @property
    def ttl(self) -> float:
        """The time to live in seconds, as the store granted it."""
        return self._term.ttl

    @property
    def alive(self) -> bool:
        """Whether the lease is surely alive, by the clock, at this moment.

        False once its time passed without renewal, even if nobody has noticed yet; and after
        `revoke` or the end of the handle. What was false stays false.
        """
        return self._term.alive(now()) and not self._store.closed

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended, in whatever way."""
        return self._term.state is not LeaseState.ALIVE

    def renew(self, *, timeout: float | None = None) -> float:
        """Let its time begin anew; returns the ttl. Leases that are kept alive do not need it.

        Raises `LeaseLost` if it has ended.
        """
        store = self._store
        try:
            store._ensure_open()
            seconds = store._seconds(timeout)
            with self._lock:
                state = self._observe()
            if state is LeaseState.ALIVE:
                state = self._renew(seconds)
            if state is not LeaseState.ALIVE:
                raise LeaseLost(
                    "the lease was not renewed in time; grant a new one"
                    if state is LeaseState.LOST
                    else "the lease was revoked; grant a new one"
                )
            return self._term.ttl
        except KviError as error:
            raise store._placed(error, "renew", None)

    def revoke(self, *, timeout: float | None = None) -> None:
        """End it now, and delete its keys. Revoking again, or one that is lost, does nothing.

        It counts as ended from the beginning of the call. If this raises, the store may keep the
        keys until the lease would have expired.
        """
        store = self._store
        if store.closed:
            return  # `close` did it; in a forked child it is not ours
        try:
            seconds = store._seconds(timeout)
            if self._end() is LeaseState.ALIVE:
                store._lease_revoke(self._id, seconds)
        except KviError as error:
            raise store._placed(error, "revoke", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.revoke()
        except KviError as failure:
            if error is None:
                raise
            error.add_note(f"afterwards its lease could not be revoked: {failure}")

    def __repr__(self) -> str:
        state = "alive" if self.alive else "ended"
        return f"<Lease {self._id:x} {state} ttl={self.ttl:g} {self._store.uri}>"

    # -- for the runtime and the recipes ----------------------------------------------------------

    def step(self) -> float | None:
        """For the keeper: renew it if that is due; returns when to come again."""
        with self._lock:
            state, due = self._observe(), self._term.due
            patience = self._term.patience(now())
        if state is not LeaseState.ALIVE:
            return None
        if self._runtime.is_surplus(self):
            self._revoke_quietly(patience)
            return None
        if self._kept and now() >= due:
            try:
                self._renew(Allowance(patience, once=True))  # what follows is decided here
            except KviError as error:
                _log.debug("a lease on %s could not be renewed: %s", self._store.uri, error)
            except Exception:  # noqa: BLE001  (a mistake of the backend: its loss must be told)
                _log.exception("a lease on %s could not be renewed", self._store.uri)
            if self.ended:
                return None
        return self._next_step()

    def _next_step(self) -> float:
        term = self._term
        return min(term.due, term.deadline) if self._kept else term.deadline

    def _renew(self, timeout: float) -> LeaseState:
        sent = now()
        try:
            ttl = self._store._lease_renew(self._id, timeout)
        except LeaseLost:
            with self._lock:
                self._term.gone()
                return self._observe()
        except BaseException:
            with self._lock:
                self._term.failed(now())
                self._observe()
            raise
        with self._lock:
            self._term.renewed(ttl, sent, now())
            return self._observe()

    def _observe(self) -> LeaseState:
        """The state now, told to those who wait for a loss. Hold the lock."""
        state = self._term.observe(now())
        if state is LeaseState.LOST:
            self._runtime.discard_lease(self)
            self.lost._set()
        return state

    def _is_lost(self) -> bool:
        """The loss's probe; it is asked without locks."""
        term = self._term
        state = term.state  # read once: `revoke` may be changing it
        lost = state is LeaseState.LOST or (state is LeaseState.ALIVE and term.expired(now()))
        return lost and not self._store.closed

    def _end(self) -> LeaseState:
        with self._lock:
            self._observe()
            before = self._term.end()
        self.lost._end()
        if before is not LeaseState.ENDED:
            self._runtime.discard_lease(self)
            self._runtime.threads.keeper.forget()
        return before

    def _abandon(self) -> None:
        """Give it up at once; the store is told from another thread, as soon as it answers."""
        if self._end() is not LeaseState.ENDED and self._runtime.add_leaving(self):
            self._runtime.threads.dispatcher.submit(_Leaving(self))

    def _revoke_quietly(self, timeout: float) -> None:
        self._end()
        with suppress(KviError):
            self._store._lease_revoke(self._id, timeout)

    def _shut(self) -> bool:
        """For `Kvi.close`: it is over; whether the store still has to be told."""
        return self._end() is LeaseState.ALIVE

    def _revoke_now(self, timeout: float) -> None:
        self._store._lease_revoke(self._id, timeout)


class _Leaving(Task):
    """Revokes a lease that was given up; until it would have ended by itself, or `Kvi.close`."""

    __slots__ = ("_lease",)

    def __init__(self, lease: Lease) -> None:
        super().__init__()
        self._lease = lease

    def run(self) -> float | None:
        """Try once."""
        lease = self._lease
        store, term = lease._store, lease._term
        try:
            store._lease_revoke(lease._id, Allowance(store._timeout, once=True))
        except (Unavailable, Timeout, OutcomeUnknown):
            if now() < term.deadline:
                return min(_PAUSE, term.ttl / 3)
        except KviError as error:
            _log.debug("a lease on %s could not be revoked: %s", store.uri, error)
        lease._runtime.discard_lease(lease)
        return None
