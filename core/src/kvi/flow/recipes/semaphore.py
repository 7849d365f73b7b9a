"""The semaphore: at most ``limit`` hold at once, first come, first served.

A line (`kvi.flow.recipes.line`) that lets in whoever finds fewer than ``limit`` before it, plus
those behind it that hold already: who came later may have entered earlier, while the limit was
larger. The limit is stored with the recipe, and entering checks that it is still the one that was
read. So never more than ``limit`` hold: of all that entered under one limit, the last in the line
has counted the others. What is held stays held when the limit shrinks. When it grows, the change
wakes the first that waits, and each that enters wakes the next.

Source of the idea: Curator's ``InterProcessSemaphoreV2`` and Consul's semaphore guide; unlike them
it counts those before a contender and not permits, so that nothing has to be counted back.
"""

from __future__ import annotations

from kvi.call import Call
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.line import HOLDS, Line
from kvi.flow.recipes.register import Register, settled
from kvi.flow.recipes.state import Owner, state_of
from kvi.flow.scope import Scope
from kvi.policy.lease import check_ttl
from kvi.policy.line import Contender, Mark, State, check_count, check_recipe, record


class SemaphoreLine(Line):
    """A contender for one of the permits."""

    kind = "semaphore"
    setting = "limit"

    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """It is let in while there is room."""
        limit = record(state.settings, **{self.setting: int})[self.setting]
        entered = sum(one.said.get("state") == HOLDS for one in state.line[at:])
        full = at + entered + len(orphans) >= limit
        return self.wait_behind(state.line[:at]) if full else None


async def standing(scope: Scope, call: Call, owner: Owner, *, holds: bool) -> list[Contender]:
    """Those who hold, or those who wait, in the order of their coming."""
    await owner.ensure(scope, call, looks=True)
    line = (await state_of(scope, call, owner.place)).line
    return [one for one in line if (one.said.get("state") == HOLDS) is holds]


async def resize(scope: Scope, call: Call, owner: Owner, limit: int) -> None:
    """Store another limit: a change of what was seen, so that a late one writes over nothing."""
    await owner.ensure(scope, call)
    settings = Register(owner.place.settings, "semaphore_resize")
    said = {"recipe": SemaphoreLine.kind, SemaphoreLine.setting: limit}

    async def attempt(_: bool) -> bool | None:
        seen = await settings.read(scope, call)
        return seen.said == said or await settings.change(scope, call, seen, said) or None

    await settled(call, attempt)
    owner.settle({SemaphoreLine.setting: limit})


def semaphore(scope: Scope, name: str, limit: int, ttl: float) -> LockFlow:
    """A contender for the semaphore ``name``; checks the arguments."""
    limits = scope.capabilities
    settings = {SemaphoreLine.setting: check_count("limit", limit)}
    owner = Owner(SemaphoreLine.kind, check_recipe(name, limits), settings)
    return LockFlow(scope, SemaphoreLine(owner), check_ttl(ttl, limits))
