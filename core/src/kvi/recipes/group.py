"""`Group`: who is there; see `kvi.flow.recipes.group`."""

from __future__ import annotations

import weakref

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
from kvi.recipes.recipe import Observation, ask
from kvi.sync.block import Block, Held
from kvi.sync.face import Face
from kvi.sync.loss import Loss

__all__ = ["Group", "GroupWatch", "Member", "MemberEvent", "MemberEventType", "MemberInfo"]


class Group(Named):
    """Who is there among processes and hosts, and what each of them says.

    ``ttl`` (seconds) is how long a member outlives its process. ``name`` is relative to the store,
    which may be a view or a `kvi.Backend`. Safe for threads. Leaves nothing in the store.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for a bad ttl; using it raises
    `InvalidArgument` if the name is another recipe's.
    """

    def __init__(self, store: Face, name: str, *, ttl: float = 10) -> None:
        self._store = store
        try:
            super().__init__(group(store._scope, name), store.uri)
            self._ttl = check_ttl(ttl, store.capabilities)
        except KviError as error:
            raise store._placed(error, "group", name)

    def join(
        self, value: bytes | str = b"", *, id: str | None = None, rejoin: bool = True
    ) -> Member:
        """Join, saying ``value``; the member, who is there until it leaves, or is dropped.

        ``id`` is a unique one if it is left out. With ``rejoin`` a member that is lost joins again
        by itself, with its present value. Raises `AlreadyHeld` if another has the id,
        `ValueTooLarge` for a value within 100 bytes of the store's maximum.
        """
        store = self._store
        try:
            store._ensure_open()
            flow = MemberFlow(store._scope, self._owner, id, value, self._ttl, rejoin=rejoin)
            member = Member(store, self.name, flow)
            owner = weakref.ref(member)
            store._drive(
                lambda port: flow.join(port, owner), undo=lambda _: flow.let_go(), away=True
            )
        except KviError as error:
            raise store._placed(error, "join", self.name)
        return member

    def members(self, *, timeout: float | None = None) -> list[MemberInfo]:
        """All members at one moment, in the order of their joining."""
        return ask(self._store, self.name, "members", timeout, members_of, self._owner)

    def watch(self) -> GroupWatch:
        """Iterate the changes: first all members as ``JOINED``, then what changes.

        Who was there for a moment only may be left out; what was told adds up to the truth.
        """
        return GroupWatch(self._store, self.name, observing(self._store._scope, self._owner))


class Member(Held, MemberFace):
    """A membership of this process; made by `Group.join`. Leaves at the end of its ``with`` block.

    One that is dropped is given up, within its ttl. Safe for threads.
    """

    _failure = "the member could not leave"

    def __init__(self, store: Face, name: str, flow: MemberFlow) -> None:
        super().__init__(flow, name)
        self._store = store

    @property
    def lost(self) -> Loss:
        """Set once the present membership is lost; each time that it joins again has its own."""
        return Loss(self._flow.lost, self._store._scope)

    def update(self, value: bytes | str, *, timeout: float | None = None) -> None:
        """Say something else. A member that is lost joins again with it.

        Raises `NotHeld` if it has left, `LeaseLost` (a `NotHeld`) if it is lost for good. After
        `OutcomeUnknown` it says one or the other, also when it joins again; after other errors it
        goes on to say what it said before.
        """
        store, flow = self._store, self._flow
        try:
            store._ensure_open()
            data, seconds = flow.check(value), store._seconds(timeout)
            store._drive(lambda port: flow.update(port, data, seconds))
        except KviError as error:
            raise store._placed(error, "update", self._name)

    def leave(self, *, timeout: float | None = None) -> None:
        """Leave for good. Leaving again, or after `Kvi.close`, does nothing.

        If this raises, nothing of the member comes back, and it is gone once its ttl has passed;
        leaving again makes sure at once.
        """
        store, flow = self._store, self._flow
        if store.closed:
            return
        try:
            seconds = store._seconds(timeout)
            store._drive(lambda port: flow.leave(port, seconds), lasting=True)
        except KviError as error:
            raise store._placed(error, "leave", self._name)

    def _hold_for(self, block: weakref.ref[Block]) -> None:
        self._flow.hold_for(block)

    def _give_back(self) -> None:
        self.leave()


class GroupWatch(Observation[MemberEvent, list[MemberInfo]]):
    """The changes of a group; made by `Group.watch`. Iterate it; close it, or use it as a block."""
