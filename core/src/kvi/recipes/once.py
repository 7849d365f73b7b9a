"""`Once`: done until it has succeeded one time; see `kvi.flow.recipes.once`."""

from __future__ import annotations

from collections.abc import Callable

from kvi.clock import now
from kvi.errors import KviError, LockTimeout
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.once import Done, OnceLine, forget, once, result_of
from kvi.flow.recipes.state import Named
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait
from kvi.recipes.recipe import Acquired, ask
from kvi.sync.face import Face
from kvi.sync.lock import Lock


class Once(Named):
    """Something that is done once among all processes: a migration, a set-up.

    ``name`` is relative to the store, which may be a view or a `kvi.Backend`. ``ttl`` (seconds) is
    how long the turn of a process outlives it. Safe for threads.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for a bad ttl; using it raises
    `InvalidArgument` if the name is another recipe's.
    """

    def __init__(self, store: Face, name: str, *, ttl: float = 10) -> None:
        self._store = store
        try:
            super().__init__(once(store._scope, name), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
        except KviError as error:
            raise store._placed(error, "once", name)

    def run(self, fn: Callable[[Lock], bytes | str | None], timeout: float | None = None) -> bytes:
        """Do it, unless it is done; returns the recorded result.

        ``fn(held)`` is called here if it is this process's turn; what it returns (``None`` is
        ``b""``) is recorded, and returned by every other call from then on. ``held`` is as a held
        `kvi.Lock`: what ``fn`` writes to the store belongs into ``store.txn([held.guard], …)``.
        While another process does it this one waits, at most ``timeout`` seconds (``None``: without
        end).

        Raises what ``fn`` raises: then the next one tries. Raises `LeaseLost` if the turn was lost
        before the result was recorded: then others may do it again. Raises `LockTimeout` if others
        did not come to an end.
        """
        store, began = self._store, now()
        try:
            wait = check_wait(timeout)
        except KviError as error:
            raise store._placed(error, "run", self.name)
        done = self.result()
        if done is not None:
            return done
        flow = LockFlow(store._scope, OnceLine(self._owner), self._ttl)
        held = Acquired(store, flow, wait)
        try:
            if not held.acquire(None if wait is None else max(0.0, wait - (now() - began))):
                late = LockTimeout(f"others have not done it within {wait:g} seconds")
                raise store._placed(late, "run", self.name)
        except Done as found:
            return found.result
        with held:
            returned = fn(held)
            line = OnceLine.of(flow)
            record = lambda _, call: line.record(flow, call, returned)  # noqa: E731
            recorded = ask(store, self.name, "run", None, record)
            flow.let_go()  # it has left the line by that
        return recorded

    def result(self, *, timeout: float | None = None) -> bytes | None:
        """The recorded result; ``None`` before there is one."""
        return ask(self._store, self.name, "result", timeout, result_of, self._owner)

    def reset(self, *, timeout: float | None = None) -> None:
        """Forget the result, so that it is done again. Who does it now is not stopped."""
        ask(self._store, self.name, "reset", timeout, forget, self._owner)
