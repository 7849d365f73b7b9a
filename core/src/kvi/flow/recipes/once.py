"""The once: something that is done until it has succeeded one time, by whoever is in turn.

A line (`kvi.flow.recipes.line`) that lets in one at a time, and the key ``.kvi/result`` beside it,
which has no lease. Whoever is in turn does the work; when that succeeds, it records the result
under its guard, and leaves the line by the same transaction. Whoever looks and finds the result
wants nothing more: it leaves, which wakes the next one behind it, and so on.

=============  ===================================  ===============================================
state          guarantee                            left by
=============  ===================================  ===============================================
no result      at most one does the work, by guard  it succeeds: *recorded*; it fails or is lost:
                                                    the next one is let in
*recorded*     nobody begins the work               `reset`: no result
=============  ===================================  ===============================================

A recording whose answer is lost is settled by looking: a result that is there is a success, its own
or, if the guard had failed, that of whoever came after. If none is there, it is recorded again,
under the same guard, which only one of the two can pass; if the second cannot, one looks again, for
the first may have come late. Whatever keeps it from looking, the fate stays unknown.
"""

from __future__ import annotations

from kvi.call import Call
from kvi.errors import InvalidArgument, KviError, LeaseLost, shown
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.register import settled
from kvi.flow.recipes.state import Owner
from kvi.flow.scope import Scope
from kvi.model import Put, Txn
from kvi.ops import DeleteOp, GetOp, TxnOp
from kvi.policy.line import Mark, Place, State, check_recipe
from kvi.text import check_value

RESULT = "result"


class Done(KviError):
    """It has been done; what is raised through a wait, and never seen by a program."""

    def __init__(self, result: bytes) -> None:
        super().__init__("it has been done already")
        self.result = result


class OnceLine(Line):
    """Somebody who would do it."""

    kind = "once"

    def verdict(self, state: State, at: int, orphans: list[Mark]) -> str | None:
        """The first does it, unless it is done: then `Done` is raised."""
        result = state.others.get(RESULT)
        if result is not None:
            raise Done(result.value or b"")
        if at:
            return state.line[at - 1].key
        return self.owner.place.root if orphans else None

    async def record(self, flow: LockFlow, call: Call, returned: object) -> bytes:
        """Record what a function returned; the result that counts.

        Raises `InvalidArgument` for what cannot be one, `LeaseLost` if it was not in turn.
        """
        scope, key = flow.scope, result_key(self.owner.place)
        result = _checked(returned, scope.capabilities.max_value)
        guard, refused = flow.guard, False
        txn = Txn((guard,), (Put(key, result), *self.leaving(guard.key)), (), "once_record")

        async def attempt(doubt: bool) -> bytes | None:
            nonlocal refused
            if doubt:
                found = await scope.executor.execute(GetOp(key), call)
                if found is not None:
                    return found.value or b""
            if refused:
                raise LeaseLost("it was done, but its turn was over before that was recorded")
            refused = not (await scope.executor.execute(TxnOp(txn), call)).succeeded
            return None if refused else result

        return await settled(call, attempt)


def once(scope: Scope, name: str) -> Owner:
    """The right to the name; checks the argument."""
    return Owner(OnceLine.kind, check_recipe(name, scope.capabilities), {})


def result_key(place: Place) -> str:
    """Where the result is."""
    return f"{place.root}{RESULT}"


async def result_of(scope: Scope, call: Call, owner: Owner) -> bytes | None:
    """The recorded result."""
    await owner.ensure(scope, call, looks=True)
    found = await scope.executor.execute(GetOp(result_key(owner.place)), call)
    return None if found is None else found.value or b""


async def forget(scope: Scope, call: Call, owner: Owner) -> None:
    """Let it be done again."""
    await owner.ensure(scope, call)
    await scope.executor.execute(DeleteOp(result_key(owner.place)), call)


def _checked(result: object, limit: int | None) -> bytes:
    if result is None:
        return b""
    if not isinstance(result, (bytes, str, bytearray, memoryview)):
        raise InvalidArgument(
            f"the function returns bytes, str or None, to be recorded; not {shown(result)}"
        )
    return check_value(result, limit)
