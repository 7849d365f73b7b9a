"""`Group`: who is there; see `kvi.flow.recipes.group`."""

from __future__ import annotations

import warnings
import weakref

from kvi.aio.awaited import Beginning
from kvi.aio.face import AsyncFace
from kvi.aio.held import Held
from kvi.aio.loss import AsyncLoss
from kvi.aio.recipes.recipe import Observation, ask
from kvi.errors import KviError
from kvi.flow.recipes.group import (
    MemberEvent,
    MemberEventType,
    MemberFace,
    MemberFlow,
    MemberInfo,
    group,
    members_of,
    observing,
)
from kvi.flow.recipes.state import Named
from kvi.policy.lease import check_ttl

__all__ = ["Group", "GroupWatch", "Member", "MemberEvent", "MemberEventType", "MemberInfo"]


class Group(Named):
    """Who is there among processes and hosts; as `kvi.recipes.Group`."""

    def __init__(self, store: AsyncFace, name: str, *, ttl: float = 10) -> None:
        self._store = store
        try:
            super().__init__(group(store._scope, name), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
        except KviError as error:
            raise store._placed(error, "group", name)

    def join(
        self, value: bytes | str = b"", *, id: str | None = None, rejoin: bool = True
    ) -> Beginning[Member]:
        """Join, saying ``value``; await it, or hold it for an ``async with`` block.

        See `kvi.recipes.Group.join`.
        """

        async def begin() -> Member:
            store = self._store
            try:
                store._enter()
                flow = MemberFlow(store._scope, self._owner, id, value, self._ttl, rejoin=rejoin)
                member = Member(store, self.name, flow)
                owner = weakref.ref(member)
                await store._drive(lambda port: flow.join(port, owner))
            except KviError as error:
                raise store._placed(error, "join", self.name)
            return member

        return Beginning(begin)

    async def members(self, *, timeout: float | None = None) -> list[MemberInfo]:
        """All members at one moment, in the order of their joining."""
        return await ask(self._store, self.name, "members", timeout, members_of, self._owner)

    def watch(self) -> GroupWatch:
        """Iterate the changes: first all members as ``JOINED``, then what changes.

        Who was there for a moment only may be left out; what was told adds up to the truth.
        """
        return GroupWatch(self._store, self.name, observing(self._store._scope, self._owner))


class Member(Held, MemberFace):
    """A membership of this process; made by `Group.join`. Leaves at the end of its block.

    One that is dropped is given up, with a `ResourceWarning`.
    """

    _failure = "the member could not leave"

    def __init__(self, store: AsyncFace, name: str, flow: MemberFlow) -> None:
        super().__init__(flow, name)
        self._store = store

    @property
    def lost(self) -> AsyncLoss:
        """Set once the present membership is lost; each time that it joins again has its own."""
        return AsyncLoss(self._store, self._flow.lost)

    async def update(self, value: bytes | str, *, timeout: float | None = None) -> None:
        """Say something else. A member that is lost joins again with it.

        Raises as `kvi.recipes.Member.update`.
        """
        store, flow = self._store, self._flow
        try:
            store._enter()
            data, seconds = flow.check(value), store._seconds(timeout)
            await store._drive_write(
                lambda port: flow.update(port, data, seconds), "update", self._name
            )
        except KviError as error:
            raise store._placed(error, "update", self._name)

    async def leave(self, *, timeout: float | None = None) -> None:
        """Leave for good. Leaving again, or after `Kvi.close`, does nothing.

        If this raises, nothing of the member comes back, and it is gone once its ttl has passed;
        leaving again makes sure at once.
        """
        store, flow = self._store, self._flow
        if store.closed:
            return
        try:
            store._enter()
            seconds = store._seconds(timeout)
            await store._drive(lambda port: flow.leave(port, seconds), lasting=True)
        except KviError as error:
            raise store._placed(error, "leave", self._name)

    async def _give_back(self) -> None:
        await self.leave()

    def _let_go(self) -> None:
        if not self._store.closed:
            self._flow.let_go()

    def __del__(self) -> None:
        if self._store.closed or not self._flow.there:
            return
        self._store._runtime.post(self._flow.let_go)
        warnings.warn(f"{self!r} was dropped without leaving", ResourceWarning, 2, self)


class GroupWatch(Observation[MemberEvent, list[MemberInfo]]):
    """The changes of a group; made by `Group.watch`. Iterate it; close it, or use it as a block."""
