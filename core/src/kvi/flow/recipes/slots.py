"""Slots: small unique integers, such as the ids of workers, or shards.

A semaphore's line, in which whoever enters takes the smallest index that nobody has: a mark in the
directory, made by the transaction that enters, and taken away by the one that leaves; its place in
the line says the index, too. A mark has no lease. So an index whose holder is lost is not free at
once: its mark is an orphan for the holder's own ttl (stored in it), by which time that has surely
noticed (`kvi.policy.line`).
"""

from __future__ import annotations

from kvi.flow.lease import LeaseFlow
from kvi.flow.recipes.semaphore import SemaphoreLine
from kvi.flow.recipes.state import Owner
from kvi.flow.scope import Scope
from kvi.policy.line import State, check_count, check_recipe


class SlotLine(SemaphoreLine):
    """A contender for one of the slots."""

    kind = "slots"
    setting = "size"

    @property
    def index(self) -> int:
        """The index that it holds, or held last."""
        assert self._mark is not None  # it has entered
        return int(self._mark.rpartition("/")[2])

    def mark_of(self, state: State, lease: LeaseFlow) -> str | None:
        """The smallest index that is free: who has one says so, also if its mark was deleted."""
        taken = {*state.marks, *(str(one.said.get("mark")) for one in state.line)}
        return str(next(i for i in range(len(taken) + 1) if str(i) not in taken))


def slots(scope: Scope, name: str, size: int) -> Owner:
    """The right to ``size`` slots called ``name``; checks the arguments."""
    settings = {SlotLine.setting: check_count("size", size)}
    return Owner(SlotLine.kind, check_recipe(name, scope.capabilities), settings)
