"""Reading a recipe's state, and whose name it is.

*A name belongs to one recipe, with one set of settings.* Settings that all must agree on are stored
by whoever comes first, and stay. Recipes without settings are known by those who stand in line.
"""

from __future__ import annotations

from typing import Any

from kvi.call import Call
from kvi.errors import InvalidArgument
from kvi.flow.scope import Scope
from kvi.model import Key, KeyValue, Put, Scan, Txn
from kvi.ops import GetOp, PageOp, RangeOp, TxnOp
from kvi.policy.line import MEMBER, Place, State, dumps, loads
from kvi.policy.lock import CLAIM, queue_key, queue_span, single_key

_SOME = 1000  # keys below a name that are looked through for contenders of a lock


async def entries_of(scope: Scope, call: Call, scan: Scan) -> tuple[int | None, list[KeyValue]]:
    """All entries of a range, as of one moment, and the revision of that moment."""
    found = await scope.executor.execute(RangeOp(scan), call)
    pages, entries = PageOp(found, scan), list[KeyValue]()
    try:
        while (page := await scope.executor.execute(pages, call)) is not None:
            entries += page
    finally:
        pages.close()
    return found.revision, entries


async def state_of(scope: Scope, call: Call, place: Place) -> State:
    """The recipe's state at one moment."""
    return place.read(*await entries_of(scope, call, Scan(place.span)))


class Owner:
    """A recipe's right to its name: asked for once, by the first who needs it.

    Attributes:
        place: where its keys are.

    """

    def __init__(self, kind: str, name: str, settings: dict[str, Any] | None = None) -> None:
        self.place = Place(name)
        self._kind = kind
        self._fixed = settings  # that all must agree on; None: the recipe stores none
        self._sure = False

    async def ensure(self, scope: Scope, call: Call, *, looks: bool = False) -> None:
        """Raise `InvalidArgument` if the name is another's; store the settings if none are.

        Who only ``looks`` stores nothing.
        """
        if self._sure:
            return
        while True:
            state = await state_of(scope, call, self.place)
            self.check(state)
            if state.settings is not None:
                break
            await self._ensure_unlocked(scope, call)
            if self._fixed is None:
                break
            if looks:
                return
            key = self.place.settings
            said = dumps({"recipe": self._kind, **self._fixed})
            mine = Txn((Key(key).absent,), (Put(key, said),), (), self._kind, repeatable=True)
            if (await scope.executor.execute(TxnOp(mine), call)).succeeded:
                break
        self._sure = True

    def misses(self, state: State) -> bool:
        """Whether the settings are not there; then they are to be stored again."""
        missing = self._fixed is not None and state.settings is None
        self._sure = self._sure and not missing
        return missing

    def settle(self, settings: dict[str, Any]) -> None:
        """The settings have been changed by this one."""
        self._fixed = settings

    def check(self, state: State) -> None:
        """Raise `InvalidArgument` if the state is that of another recipe."""
        said = loads(None if state.settings is None else state.settings.value)
        if state.settings is None and state.line:
            said = state.line[0].said
        elif state.settings is None and any(key.startswith(MEMBER) for key in state.others):
            said = {"recipe": "group"}
        self._ensure_mine(said.pop("recipe", self._kind))
        if state.settings is None or self._fixed is None:
            return
        for setting, mine in self._fixed.items():
            theirs = said.get(setting)
            if theirs != mine:
                raise InvalidArgument(
                    f"{_called(self._kind)} {self.place.name!r} has {setting}={theirs!r}, "
                    f"not {mine!r}; use the same, or another name"
                )

    async def _ensure_unlocked(self, scope: Scope, call: Call) -> None:
        """Raise `InvalidArgument` if a lock that is held, or an election, has the name."""
        name = self.place.name
        if scope.capabilities.lock_fair:
            scan = Scan(queue_span(name), limit=_SOME)
            for entry in (await entries_of(scope, call, scan))[1]:
                if entry.lease is not None and entry.key == queue_key(name, entry.lease):
                    self._ensure_mine("lock" if entry.value == CLAIM else "election")
            return
        for key, user in ((single_key(name), "lock"), (name, "election")):
            found = await scope.executor.execute(GetOp(key), call)
            if found is not None and found.lease is not None:
                self._ensure_mine(user)

    def _ensure_mine(self, user: object) -> None:
        if user != self._kind:
            raise InvalidArgument(
                f"the name {self.place.name!r} is in use by {_called(user)}, so it cannot be "
                f"{_called(self._kind)} too; choose another name"
            )


class Named:
    """What the objects of a recipe have in common, of either face."""

    def __init__(self, owner: Owner, uri: str) -> None:
        self._owner = owner
        self._uri = uri

    @property
    def name(self) -> str:
        """The name, relative to the store."""
        return self._owner.place.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._uri}>"


def _called(kind: object) -> str:
    return f"{'an' if str(kind)[:1] in 'aeiou' else 'a'} {kind}"
