"""`LeaseFlow`: a lease that is granted, kept alive, and given back, whatever happens to its holder.

The decisions are in `kvi.policy.lease`; this joins them to a store. ``_lock`` guards the `Term`,
for a few steps; the store is never asked under it. `alive` reads the clock and takes no lock, so
that it can be asked at any moment, in a forked child too.

*Proof.* What is held by a lease may go before it does: somebody deletes the key of a lock. So what
has a ``proof``, a compare that is true as long as it stands, is asked for it after each renewal;
where it fails the lease is as good as lost, and said to be.

*Given up.* `abandon` ends the lease at once for its holder and lets the runtime tell the store, as
soon as it answers. It never waits, so it is what ``except BaseException`` calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from kvi.call import Call
from kvi.errors import KviError, LeaseLost, Timeout
from kvi.flow.loss import LossState
from kvi.flow.scope import PASSING, Scope
from kvi.late import imported
from kvi.log import log
from kvi.model import Compare, LeaseRef, Txn
from kvi.mutex import Mutex
from kvi.ops import GrantOp, PutOp, RenewOp, RevokeOp, TxnOp
from kvi.policy.lease import LeaseState, Term
from kvi.port import Port

_PAUSE = 1.0  # seconds between tries to revoke a lease that was given up
_SHORT, _STRETCH = 0.01, 0.5  # seconds: a ttl that may do, and by how much one may be stretched


class LeaseFlow:
    """One lease. Safe for threads.

    Attributes:
        scope: what it hangs on.
        id: its id at the store.
        lost: set once it is lost; not by `revoke`, nor when the handle is closed.
        owner: a weak reference to what it is kept alive for; ``None``: until somebody ends it.
        proof: what is true as long as the lease holds what it is for.

    """

    __slots__ = ("__weakref__", "_kept", "_lock", "id", "lost", "owner", "proof", "scope", "term")

    def __init__(
        self, scope: Scope, lease: int, ttl: float, sent: float, *, keep_alive: bool
    ) -> None:
        self.scope = scope
        self.id = lease
        self.term = Term(ttl, sent)
        self.owner: Callable[[], object | None] | None = None
        self.proof: Compare | None = None
        self._kept = keep_alive
        self._lock = Mutex()
        self.lost = LossState(scope.runtime, self._is_lost)

    @classmethod
    async def grant(
        cls,
        port: Port,
        scope: Scope,
        ttl: float,
        timeout: float,
        *,
        keep_alive: bool,
        lock: bool = False,
    ) -> LeaseFlow:
        """Grant a lease, for ``lock`` one that claims can stand on, and begin to keep it."""
        scope.ensure_open()
        sent = port.now()
        grant = await scope.execute(port, GrantOp(ttl, lock=lock), timeout)
        lease = cls(scope, grant.id, grant.ttl, sent, keep_alive=keep_alive)
        scope.ledger.add(lease)  # raises if closed meanwhile: it ends by itself
        scope.runtime.keep(lease, lease._next_step())
        return lease

    @classmethod
    async def with_key(
        cls, port: Port, scope: Scope, key: str, value: bytes | None, ttl: float, timeout: float
    ) -> LeaseFlow:
        """Grant a lease and store a key under it: a temporary key."""
        if value is None:
            value = f"{imported('socket').gethostname()} {os.getpid()}".encode()  # costs 5 ms
        deadline = port.now() + timeout
        lease = await cls.grant(port, scope, ttl, timeout, keep_alive=True)
        try:
            left = deadline - port.now()
            if left <= 0:
                raise Timeout("the time was up before the key was stored")
            await scope.execute(port, PutOp(key, value, lease.id), left)
        except BaseException:
            lease.abandon()
            raise
        return lease

    @property
    def alive(self) -> bool:
        """Whether it is surely alive, by the clock, at this moment. What was false stays false."""
        return self.term.alive(self.scope.runtime.now()) and not self.scope.closed

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended, in whatever way."""
        return self.term.state is not LeaseState.ALIVE

    def gone(self) -> LeaseState:
        """It is known that the store keeps it no more; the state now."""
        with self._lock:
            self.term.gone()
            return self._observe()

    def may_live(self, moment: float) -> bool:
        """Whether the store may still keep it, told or not."""
        return moment < self.term.deadline

    async def renew(self, port: Port, timeout: float) -> float:
        """Let its time begin anew; returns the ttl. Raises `LeaseLost` if it has ended."""
        with self._lock:
            state = self._observe()
        if state is LeaseState.ALIVE:
            state = await self._renew(Call(port, port.now() + timeout))
        if state is not LeaseState.ALIVE:
            raise LeaseLost(
                "the lease was not renewed in time; grant a new one"
                if state is LeaseState.LOST
                else "the lease was revoked; grant a new one"
            )
        return self.term.ttl

    async def revoke(self, port: Port, timeout: float, *, anyway: bool = False) -> None:
        """End it now, and its keys. It counts as ended from the beginning of the call.

        ``anyway``: the store is told also if the lease is lost, or has ended before: it may have it
        still.
        """
        before = self._end()
        if before is not LeaseState.ALIVE and not anyway:
            return
        try:
            await self.scope.execute(port, RevokeOp(self.id), timeout)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, PASSING):
                self.scope.ledger.discard(self)
            elif before is not LeaseState.ENDED:  # else the runtime is at it already
                self._tell_later()
            raise
        self.scope.ledger.discard(self)

    def abandon(self) -> None:
        """Give it up at once; the store is told as soon as it answers. Never waits."""
        if self._end() is not LeaseState.ENDED:
            self._tell_later()

    def shut(self) -> LeaseFlow | None:
        """The handle is closed: it is over. Itself, if the store still may have to be told."""
        return None if self._end() is LeaseState.LOST else self

    # -- for the runtime --------------------------------------------------------------------------

    async def step(self, port: Port) -> float | None:
        """Renew it if that is due; returns when to come again."""
        with self._lock:
            state, due = self._observe(), self.term.due
            patience = self.term.patience(port.now())
        if state is not LeaseState.ALIVE:
            return None
        owner = self.owner  # another thread may take it away meanwhile
        orphan = owner is not None and owner() is None
        if orphan or self.scope.ledger.is_surplus(self, port.now()):
            self.abandon()
            return None
        if self._kept and port.now() >= due:
            # What follows a failure is decided here.
            call = Call(port, port.now() + patience, decided=True)
            try:
                await self._renew(call)
                await self._prove(port)
            except KviError as error:
                tell = log().debug if error.passing else log().warning
                tell("a lease on %s could not be renewed: %s", self.scope.uri, error)
            except Exception:  # noqa: BLE001  (a mistake of the backend: its loss must be told)
                log().exception("a lease on %s could not be renewed", self.scope.uri)
            if self.ended:
                return None
        return self._next_step()

    async def _prove(self, port: Port) -> None:
        proof = self.proof
        if proof is None or self.ended:
            return
        call = Call(port, port.now() + self.term.patience(port.now()), decided=True)
        done = await self.scope.executor.execute(TxnOp(Txn((proof,))), call)
        if done.succeeded:
            return
        with self._lock:
            if self.proof is proof:  # not released meanwhile
                self.term.gone()
                self._observe()

    def _next_step(self) -> float:
        term = self.term
        return min(term.due, term.deadline) if self._kept else term.deadline

    async def _renew(self, call: Call) -> LeaseState:
        port = call.port
        sent = port.now()
        try:
            ttl = await self.scope.executor.execute(RenewOp(self.id), call)
        except LeaseLost:
            return self.gone()
        except BaseException:
            with self._lock:
                self.term.failed(port.now())
                self._observe()
            raise
        with self._lock:
            self.term.renewed(ttl, sent, port.now())
            return self._observe()

    def _observe(self) -> LeaseState:
        """The state now, told to those who wait for a loss. Hold the lock."""
        state = self.term.observe(self.scope.runtime.now())
        if state is LeaseState.LOST:
            self.scope.ledger.discard(self)
            self.lost.set()
        return state

    def _is_lost(self) -> bool:
        """The loss's probe; it is asked without locks."""
        term = self.term
        state = term.state  # read once: `revoke` may be changing it
        lost = state is LeaseState.LOST or (
            state is LeaseState.ALIVE and term.expired(self.scope.runtime.now())
        )
        return lost and not self.scope.closed

    def _end(self) -> LeaseState:
        with self._lock:
            self._observe()
            before = self.term.end()
        self.lost.end()
        if before is not LeaseState.ENDED:
            self.scope.runtime.forget()
        return before

    def _tell_later(self) -> None:
        """Let the runtime tell the store, unless the handle is closed, which tells it too."""
        try:
            self.scope.ledger.add(self)
        except KviError:
            return
        self.scope.runtime.keep(_Leaving(self), self.scope.runtime.now())


class LeaseFace(LeaseRef):
    """What a lease of either face tells of itself; no store is asked."""

    __slots__ = ()
    _flow: LeaseFlow

    @property
    def id(self) -> int:
        """The id, above 0, as `KeyValue.lease` has it."""
        return self._flow.id

    @property
    def ttl(self) -> float:
        """The time to live in seconds, as the store granted it."""
        return self._flow.term.ttl

    @property
    def alive(self) -> bool:
        """Whether the lease is surely alive, by the clock, at this moment.

        False once its time passed without renewal, even if nobody has noticed yet; and after
        `revoke` or the end of the handle. What was false stays false.
        """
        return self._flow.alive

    def __repr__(self) -> str:
        name, state = type(self).__name__, "alive" if self.alive else "ended"
        return f"<{name} {self.id:x} {state} ttl={self.ttl:g} {self._flow.scope.uri}>"


class _Leaving:
    """Revokes a lease that was given up; until it would have ended by itself."""

    __slots__ = ("_lease",)
    ended = False

    def __init__(self, lease: LeaseFlow) -> None:
        self._lease = lease

    async def step(self, port: Port) -> float | None:
        """Try once."""
        lease = self._lease
        scope, term = lease.scope, lease.term
        try:
            call = Call(port, port.now() + scope.timeout, decided=True)
            await scope.executor.execute(RevokeOp(lease.id), call)
        except PASSING:
            if lease.may_live(port.now()) and not scope.closed:
                return port.now() + min(_PAUSE, term.ttl / 3)
        except KviError as error:
            log().debug("a lease on %s could not be revoked: %s", scope.uri, error)
        scope.ledger.discard(lease)
        return None


async def store_for(port: Port, scope: Scope, op: PutOp, ttl: float, timeout: float) -> int:
    """Store a key under a lease of its own that nobody renews; returns the revision.

    Nothing here waits for its end, so it outlives the handle. If the write fails, a lease without
    keys ends by itself.
    """
    deadline, longest = port.now() + timeout, ttl + _STRETCH

    def left() -> float:
        rest = deadline - port.now()
        if rest <= 0:
            raise Timeout("the time was up before the key was stored")
        return rest

    while True:
        scope.ensure_open()
        grant = await scope.execute(port, GrantOp(ttl), left())
        try:
            return await scope.execute(port, PutOp(op.key, op.value, grant.id), left())
        except LeaseLost:  # the write took longer than its ttl to come through
            if ttl >= longest:
                raise Timeout("the ttl was over before the key was stored") from None
            ttl = min(longest, max(_SHORT, 2 * ttl))
