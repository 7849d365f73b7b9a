"""`Scope`: one handle or view, as flows see it; and the settling of all that hangs on it.

*Ownership.* The handle that `kvi.open` gives has a runtime and a store. Views and backends over it
are scopes of the same runtime. What is begun through one hangs on it. Closing a scope settles it
and those within it; closing the handle ends the runtime and the store as well.

=============  ===================================  ==========================================
state          guarantee                            left by
=============  ===================================  ==========================================
``OPEN``       operations run                       `close`, of this or of an outer scope:
                                                    CLOSED; a fork, in the child: FORKED
``CLOSED``     nothing new begins; everybody who    final
               waited has been woken
``FORKED``     as CLOSED; the parent's is untouched  final
=============  ===================================  ==========================================

*Settling* wakes everybody, then revokes the leases, which releases the locks and deletes the
temporary keys. What fails in a way that may pass is tried again until the time-out is up; leases
that the store was not told of end by themselves.

*Idle leases.* A lock gives its lease back after a release that surely worked, and the next lock
with the same ttl takes it, which saves granting one. It is never at two locks at once, is kept
alive meanwhile, and revoked after `IDLE` seconds without use. There are at most `MOST_IDLE` of a
handle, all its views together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kvi.call import Call
from kvi.capabilities import Capabilities
from kvi.errors import Closed, KviError, OutcomeUnknown, Timeout, Unavailable, UsedAfterFork
from kvi.log import log
from kvi.middleware.namespace import Prefixed, check_name, narrowed
from kvi.middleware.read_only import refused_write
from kvi.mutex import Mutex
from kvi.ops import Direct, Executor, Op, RevokeOp
from kvi.options import check_timeout
from kvi.port import Port, Runtime, Signal
from kvi.primitives import Primitives

if TYPE_CHECKING:
    from kvi.flow.loss import LossState

T = TypeVar("T")

IDLE = 30.0  # seconds that an unused lease is kept for the next lock
MOST_IDLE = 16  # leases; what locks that were held at once leave behind is not kept for ever
PASSING = (Unavailable, Timeout, OutcomeUnknown)  # the store may be back in a moment
_PAUSE = 0.1  # seconds between tries to tell a store that cannot be reached
_PATIENCE = 1.0  # seconds for one of them: a lost answer must not keep the others from it


def is_final(error: KviError) -> bool:
    """Whether somebody has to mend the store first: waiting for it is no use."""
    return isinstance(error, Unavailable) and not error.passing


class Member(Protocol):
    """What hangs on a scope: a lease or a watch, as the ledger knows it."""

    @property
    def scope(self) -> Scope:
        """What it hangs on."""

    def shut(self) -> Held | None:
        """End, because the handle is closed; the lease that the store may have to be told of."""


class Held(Protocol):
    """A lease, as the ledger knows it."""

    id: int
    scope: Scope
    lost: LossState
    owner: Callable[[], object | None] | None

    @property
    def alive(self) -> bool:
        """Whether it is surely alive."""

    def may_live(self, moment: float) -> bool:
        """Whether the store may still keep it."""

    def abandon(self) -> None:
        """Give it up without waiting."""


class Ledger:
    """What hangs on a handle and its views: leases, idle leases, watches. Safe for threads.

    Where a store has no queue for a lock, it has one for those of this handle who wait.

    Attributes:
        orphans: marks of recipes whose holder is gone, and since when that is known; see
            `kvi.policy.line`.

    """

    def __init__(self) -> None:
        self._lock = Mutex()
        self._members: dict[Member, None] = {}  # in the order of their coming
        self.orphans: dict[tuple[str, int], float] = {}
        self._idle: list[tuple[Held, object, float]] = []  # of which kind, and since when
        self._lines: dict[str, list[Signal]] = {}  # by lock: who waits, in the order of coming
        self._stands: dict[Signal, str] = {}  # in which of them

    def add(self, member: Member) -> None:
        """Know it until it is discarded; raises `Closed` if nothing new may begin."""
        with self._lock:
            member.scope.ensure_open()
            self._members[member] = None

    def discard(self, member: Member) -> None:
        """Forget what has ended; of a lease the store knows too, or will find out."""
        with self._lock:
            self._members.pop(member, None)

    def take_idle(self, kind: object, scope: Scope) -> Held | None:
        """The last idle lease of a kind; it hangs on ``scope`` now.

        Of one kind are those that were asked for in the same way, with the same ttl.
        """
        while True:
            with self._lock:
                fitting = [one for one in self._idle if one[1] == kind]
                if not fitting:
                    return None
                self._idle.remove(fitting[-1])
                lease = fitting[-1][0]
                if lease.alive:
                    lease.scope = scope  # it must not end with the view that it came by
                    return lease
            lease.abandon()

    def give_idle(self, lease: Held, kind: object, now: float) -> None:
        """Keep a lease without keys for the next lock."""
        lease.owner = None
        lease.lost.forget()  # else the call-backs of all locks that ever had it pile up
        with self._lock:
            if len(self._idle) < MOST_IDLE and not lease.scope.closed:
                self._idle.append((lease, kind, now))
                return
        lease.abandon()

    def is_surplus(self, lease: Held, now: float) -> bool:
        """Whether a lease has been idle for too long; then it is idle no more, but to be ended."""
        with self._lock:
            mine = [one for one in self._idle if one[0] is lease and now - one[2] > IDLE]
            for one in mine:
                self._idle.remove(one)
        return bool(mine)

    def stand_in_line(self, lock: str, signal: Signal) -> None:
        """Wait for ``lock`` behind those of this handle who wait already, until `leave_line`."""
        with self._lock:
            self._stands[signal] = lock
            self._lines.setdefault(lock, []).append(signal)

    def is_first(self, signal: Signal) -> bool:
        """Whether nobody is before it. Whoever leaves sets the signal of who is first then."""
        with self._lock:
            return self._lines[self._stands[signal]][0] is signal

    def leave_line(self, signal: Signal) -> None:
        """Let the next one come first; does nothing for who stands in no line."""
        with self._lock:
            lock = self._stands.pop(signal, None)
            if lock is not None:
                line = self._lines[lock]
                line.remove(signal)
                if line:
                    line[0].set()
                else:
                    del self._lines[lock]

    def clear(self, scope: Scope) -> list[Member]:
        """Take out what hangs on ``scope``, which is closed, and on the scopes within it."""
        with self._lock:
            members = [one for one in self._members if one.scope.is_within(scope)]
            for member in members:
                del self._members[member]
            self._idle = [one for one in self._idle if not one[0].scope.is_within(scope)]
        return members


class Scope:
    """One handle or view. Safe for threads.

    Attributes:
        runtime: what keeps its leases and watches going; shared with the scopes around it.
        ledger: what hangs on the handle and its views.
        primitives: the store at the bottom.
        executor: what does its operations.
        prefix: what it puts before each key on the way to the store.
        uri: what errors call it.
        capabilities: what it can do.
        timeout: seconds for calls that do not give their own.
        read_only: what could write is refused.
        outer: the scope that this one is a view of, or ``None``.
        reserving: the lease of a key that this scope has reserved, if it has.
        shut_down: it was closed by itself; `closed` also looks at what is around it.

    """

    def __init__(
        self, runtime: Runtime, primitives: Primitives, outer: Scope | None = None
    ) -> None:
        around = primitives if outer is None else outer
        self.runtime = runtime
        self.primitives = primitives
        self.executor: Executor = Direct(primitives) if outer is None else outer.executor
        self.prefix: str = "" if outer is None else outer.prefix
        self.uri: str = around.uri
        self.capabilities: Capabilities = around.capabilities
        self.timeout: float = around.timeout
        self.ledger: Ledger = Ledger() if outer is None else outer.ledger
        self.read_only: bool = outer is not None and outer.read_only
        self.outer = outer
        self.reserving: Callable[[str], int | None] | None = None
        self.latch = threading.Lock()  # taken once, by the close that ends it
        self.shut_down = False

    def view(self, name: str | None = None) -> Scope:
        """A scope within this one: of the whole store, or of the keys below ``name/``."""
        view = Scope(self.runtime, self.primitives, self)
        if name is not None:
            view.narrow(name)
        return view

    def narrow(self, name: str) -> None:
        """See only the keys below ``name/``. Raises `InvalidOption`."""
        prefix = check_name(name) + "/"
        self.capabilities = narrowed(self.capabilities, prefix)
        self.executor = Prefixed(self.executor, prefix)
        self.prefix += prefix
        self.uri = f"{self.uri} in {name!r}"

    def reserved(self, key: str) -> int | None:
        """The lease of a key that this scope, or one around it, has reserved, if one has."""
        lease = None if self.reserving is None else self.reserving(key)
        outer = self.outer
        if lease is None and outer is not None:
            lease = outer.reserved(self.prefix[len(outer.prefix) :] + key)
        return lease

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""
        outer = self.outer
        return self.shut_down or self.primitives.forked or (outer is not None and outer.closed)

    def ensure_open(self) -> None:
        """Raise `Closed`, or `UsedAfterFork`, if it is not open."""
        if self.closed:
            raise self.refusal()

    def ensure_writable(self) -> None:
        """Raise `PermissionDenied` if what could write is refused."""
        if self.read_only:
            raise refused_write()

    def refusal(self) -> Closed:
        """The error of whoever uses it now."""
        if self.primitives.forked:
            return UsedAfterFork(
                "this handle belongs to the parent process; open the store again after the fork"
            )
        return Closed("the handle is closed; open the store again")

    def placed(self, error: KviError, operation: str, key: object) -> KviError:
        """``error`` with its place; `Closed` instead if that is why the call failed."""
        if isinstance(error, PASSING) and self.closed:
            closed = self.refusal()
            closed.__cause__ = error
            error = closed
        return error.located(operation, key, self.uri)

    def is_within(self, scope: Scope) -> bool:
        """Whether it is ``scope``, or a view of it."""
        here: Scope | None = self
        while here is not None:
            if here is scope:
                return True
            here = here.outer
        return False

    async def execute(self, port: Port, op: Op[T], timeout: float) -> T:
        """Do one operation within ``timeout`` seconds."""
        return await self.executor.execute(op, Call(port, port.now() + timeout))

    def shut(self) -> None:
        """From now on nothing new begins; wakes everybody. Never waits."""
        self.shut_down = True
        self.runtime.wake()

    async def end(self, port: Port) -> None:
        """Close it and settle; a handle ends its runtime and store too. Again, it does nothing."""
        if not self.latch.acquire(blocking=False):
            return
        self.shut()
        try:
            await self.settle(port)
        finally:  # there is no second close
            if self.outer is None:
                self.runtime.stop()
                self.primitives._close()

    async def settle(self, port: Port) -> None:
        """After `shut`: end what hangs on it, as far as the store answers within the time-out."""
        deadline = port.now() + self.timeout
        ended = [member.shut() for member in self.ledger.clear(self)]
        owed = [lease for lease in ended if lease is not None]
        while owed and port.now() < deadline:
            lease = owed.pop()
            try:
                call = Call(port, min(deadline, port.now() + _PATIENCE), decided=True)
                await self.executor.execute(RevokeOp(lease.id), call)
            except PASSING as error:
                if is_final(error) or not lease.may_live(port.now()):
                    continue
                owed.insert(0, lease)
                await port.sleep(min(_PAUSE, max(0.0, deadline - port.now())))
            except KviError as error:
                log().warning("a lease could not be revoked, it ends by itself: %s", error)


class StoreFace:
    """A handle, as far as no store is asked: what both faces have in common."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def uri(self) -> str:
        """The store's URI with secrets replaced by ``***``."""
        return self._scope.uri

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do."""
        return self._scope.capabilities

    @property
    def closed(self) -> bool:
        """Whether the handle can no longer be used: closed, or inherited through a fork."""
        return self._scope.closed

    @property
    def client(self) -> Any:
        """The native client, as an escape hatch; ``None`` where there is none.

        Its calls block. It sees whole keys, without namespace. What is done through it is outside
        of the contract.
        """
        try:
            self._scope.ensure_open()
            return self._scope.primitives._native()
        except KviError as error:
            raise self._placed(error, "client", None)

    def __repr__(self) -> str:
        state = "" if not self.closed else " closed"
        return f"<{type(self).__name__} {self.uri}{state}>"

    def _seconds(self, timeout: float | None) -> float:
        return self._scope.timeout if timeout is None else check_timeout(timeout)

    def _placed(self, error: KviError, operation: str, key: object) -> KviError:
        return self._scope.placed(error, operation, key)
