"""`Election`: at most one leader, whom everybody can see; see `kvi.flow.recipes.election`."""

from __future__ import annotations

from types import EllipsisType

from kvi.errors import KviError
from kvi.flow.recipes.election import (
    ElectionLine,
    Leader,
    check_proclaimed,
    election,
    look,
    observing,
)
from kvi.policy.lock import check_wait
from kvi.recipes.recipe import Observation, ask
from kvi.sync.face import Face
from kvi.sync.lock import Lock

__all__ = ["Election", "Leader", "Leaders"]


class Election(Lock):
    """At most one leader among threads, processes and hosts, whom everybody can see.

    ``value`` is what this candidate proclaims, for example its address; anything but ``lock``,
    which is what the keys of locks say. Each object is one candidate, and leads once at a time: as
    a block, or by `campaign` and `resign`. While it leads it has what a held `kvi.Lock` has:
    ``held``, ``lost``, ``fence``, ``guard``. What a leader writes belongs into
    ``store.txn([election.guard], …)``.

    ``name`` is relative to the store, which may be a view or a `kvi.Backend`. On etcd, ``etcdctl
    elect NAME`` takes part, on Consul whoever follows its guide to leader election (an acquired
    key). ``ttl`` (seconds) is how long a leadership outlives its process. Candidates take their
    turns first come, first served. Safe for threads. Leaves nothing in the store.

    Raises `InvalidKey` for a bad name, `InvalidArgument` or `ValueTooLarge` for other values out
    of range; using it raises `InvalidArgument` if the name is another recipe's.
    """

    _failure = "the leader could not resign"

    def __init__(
        self,
        store: Face,
        name: str,
        value: bytes | str = b"",
        *,
        ttl: float = 10,
        timeout: float | None = None,
    ) -> None:
        try:
            super().__init__(store, election(store._scope, name, value, ttl), check_wait(timeout))
        except KviError as error:
            raise store._placed(error, "election", name)

    def campaign(self, timeout: float | EllipsisType | None = ...) -> bool:
        """Wait for the leadership, at most ``timeout`` seconds; whether it now leads.

        As `kvi.Lock.acquire`. A candidate whose own lease ends while it waits takes part again,
        at the end. An attempt that fails, or is interrupted, leaves nothing that could win later.
        """
        return self.acquire(timeout)

    def proclaim(self, value: bytes | str, *, timeout: float | None = None) -> None:
        """Let everybody see another value, for this term.

        Raises `NotHeld` if it does not lead, `LeaseLost` (a `NotHeld`) if it was lost,
        `InvalidArgument` for ``lock``, which is what the keys of locks say.
        """
        try:
            data = check_proclaimed(value, self._store.capabilities)
        except KviError as error:
            raise self._store._placed(error, "proclaim", self.name)
        flow = self._flow
        line = ElectionLine.of(flow)
        step = lambda _, call: line.proclaim(flow, call, data)  # noqa: E731
        ask(self._store, self.name, "proclaim", timeout, step)

    def resign(self, *, timeout: float | None = None) -> None:
        """Lead no more, and let the next one in. Resigning again does nothing.

        Raises what `kvi.Lock.release` does. After `Unavailable`, `Timeout` or `OutcomeUnknown` it
        does not lead any more, but may still be in others' way: it can be called again. Else it is
        in their way until the handle is closed, or another campaign of this object.
        """
        self._release("resign", timeout, keep=True)

    def leader(self, *, timeout: float | None = None) -> Leader | None:
        """Who leads at this moment; ``None``: nobody."""
        owner = ElectionLine.of(self._flow).owner
        return ask(self._store, self.name, "leader", timeout, look, owner)[0]

    def contenders(self, *, timeout: float | None = None) -> list[Leader]:
        """The leader, then all other candidates in the order of their turns.

        Where ``capabilities.lock_fair`` is false, only the leader's value is known.
        """
        owner = ElectionLine.of(self._flow).owner
        leader, others = ask(self._store, self.name, "contenders", timeout, look, owner)
        return others if leader is None else [leader, *others]

    def observe(self) -> Leaders:
        """Iterate who leads: at once, then after each change; ``None`` while nobody does.

        Who led for a moment only may be left out; the last one told is the truth. Lasts until it is
        closed, or the handle is.
        """
        owner = ElectionLine.of(self._flow).owner
        return Leaders(self._store, self.name, observing(self._store._scope, owner))


class Leaders(Observation[Leader | None, Leader | None]):
    """Who leads, each time that it has changed; made by `Election.observe`."""
