"""`Semaphore`: at most so many hold at once; see `kvi.flow.recipes.semaphore`."""

from __future__ import annotations

from kvi.errors import KviError
from kvi.flow.recipes.semaphore import SemaphoreLine, resize, semaphore, standing
from kvi.policy.line import check_count
from kvi.policy.lock import check_wait
from kvi.recipes.recipe import ask
from kvi.sync.face import Face
from kvi.sync.lock import Lock


class Semaphore(Lock):
    """At most ``limit`` hold it at once, among threads, handles, processes and hosts.

    As a `kvi.Lock`: one object is held once at a time, as a block or by `acquire` and `release`;
    contenders are served first come, first served, on every store. ``name`` is relative to the
    store, which may be a view or a `kvi.Backend`. ``limit`` is stored by the first who uses the
    name, and must be the same for all. ``ttl`` (seconds) is how long a permit outlives its holder's
    process; ``timeout`` (seconds) how long to wait, without end if ``None``. Safe for threads.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for other values out of range; using it
    raises `InvalidArgument` if the name is another recipe's, or has another limit.
    """

    def __init__(
        self, store: Face, name: str, limit: int, *, ttl: float = 10, timeout: float | None = None
    ) -> None:
        try:
            flow = semaphore(store._scope, name, limit, ttl)
            super().__init__(store, flow, check_wait(timeout))
        except KviError as error:
            raise store._placed(error, "semaphore", name)

    def holders(self, *, timeout: float | None = None) -> list[str]:
        """The ids of those who hold it, in the order of their coming, as of one moment."""
        return self._standing("holders", True, timeout)

    def waiters(self, *, timeout: float | None = None) -> list[str]:
        """The ids of those who wait, in the order of their coming, as of one moment."""
        return self._standing("waiters", False, timeout)

    def resize(self, limit: int, *, timeout: float | None = None) -> None:
        """Let ``limit`` hold it from now on. Nothing is taken from who holds it now."""
        owner = SemaphoreLine.of(self._flow).owner
        try:
            count = check_count("limit", limit)
        except KviError as error:
            raise self._store._placed(error, "resize", self.name)
        ask(self._store, self.name, "resize", timeout, resize, owner, count)

    def _standing(self, operation: str, holds: bool, timeout: float | None) -> list[str]:
        owner = SemaphoreLine.of(self._flow).owner
        flow = lambda scope, call: standing(scope, call, owner, holds=holds)  # noqa: E731
        found = ask(self._store, self.name, operation, timeout, flow)
        return [f"{one.lease:x}" for one in found]
