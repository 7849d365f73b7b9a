"""Handles with ``read_only`` that write, or do not read."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from kvi.call import Call
from kvi.errors import PermissionDenied
from kvi.flow.scope import Scope
from kvi.middleware.read_only import ReadOnly
from kvi.model import Get
from kvi.ops import Direct, GrantOp, Op, PutOp, TxnOp, WatchOp

from tests.conformance.broken.correct import Correct, Handle, broken
from tests.conformance.broken.namespaces import View, Viewing

T = TypeVar("T")


class Lenient(ReadOnly):
    """What stands above the store, and lets some operations through."""

    def lets(self, op: Op[Any]) -> bool:
        """Whether an operation goes through unseen."""
        return False

    async def execute(self, op: Op[T], call: Call) -> T:
        if self.lets(op):
            return await self._inner.execute(op, call)
        return await super().execute(op, call)


class Reading(Handle):
    """A handle whose ``read_only`` is of its own kind."""

    reading: ClassVar[type[ReadOnly]] = Lenient

    def begin(self, store: Correct) -> None:
        super().begin(store)
        if isinstance(self._scope.executor, ReadOnly):
            self._scope.executor = self.reading(Direct(self._scope.primitives))


@broken("handle.read-only")
class ReadOnlyTestsAndSets(Correct):
    """A handle with read_only tests and sets."""

    class face(Reading):
        class reading(Lenient):
            def lets(self, op: Op[Any]) -> bool:
                return op.name == "tas"


@broken("handle.read-only")
class ReadOnlyGrants(Correct):
    """A handle with read_only grants leases."""

    class face(Reading):
        class reading(Lenient):
            def lets(self, op: Op[Any]) -> bool:
                return isinstance(op, GrantOp) and not op.lock


@broken("handle.read-only")
class ReadOnlyWritesOtherwise(Correct):
    """A handle with read_only looks at one branch of a transaction alone."""

    class face(Reading):
        class reading(Lenient):
            def lets(self, op: Op[Any]) -> bool:
                return isinstance(op, TxnOp) and all(isinstance(o, Get) for o in op.txn.then)


@broken("handle.read-only")
class ReadOnlyRefusesTooLate(Correct):
    """A handle with read_only refuses what it has stored."""

    class face(Reading):
        class reading(Lenient):
            async def execute(self, op: Op[T], call: Call) -> T:
                if isinstance(op, PutOp):
                    await self._inner.execute(op, call)
                return await super().execute(op, call)


@broken("handle.read-only")
class ReadOnlyComparesNothing(Correct):
    """A handle with read_only refuses transactions that only read."""

    class face(Reading):
        class reading(Lenient):
            async def execute(self, op: Op[T], call: Call) -> T:
                if isinstance(op, TxnOp):
                    raise PermissionDenied("a transaction")
                return await super().execute(op, call)


@broken("handle.read-only")
class ReadOnlyWatchesNothing(Correct):
    """A handle with read_only refuses to watch."""

    class face(Reading):
        class reading(Lenient):
            async def execute(self, op: Op[T], call: Call) -> T:
                if isinstance(op, WatchOp):
                    raise PermissionDenied("a watch")
                return await super().execute(op, call)


@broken("handle.read-only")
class ReadOnlyDeletesNothing(Correct):
    """A handle with read_only says of a range that is empty that nothing was deleted of it."""

    class face(Handle):
        def delete_range(self, *args: Any, **kw: Any) -> int:
            start, end = (*args, None, None)[:2]
            if start is not None and end is not None and start >= end:
                return 0
            return super().delete_range(*args, **kw)


@broken("handle.read-only")
class ReadOnlyViewWrites(Correct):
    """A view of a handle with read_only writes."""

    class face(Viewing):
        def viewed(self, scope: Scope, name: str) -> Scope:
            scope.executor = View(Direct(scope.primitives), f"{name}/")
            return scope


@broken("handle.read-only")
class ReadOnlyBackendWrites(Correct):
    """A `Backend` on a handle with read_only writes."""

    class face(Handle):
        def begin(self, store: Correct) -> None:
            super().begin(store)
            scope = self._scope
            view = scope.view

            def viewed(*name: str | None) -> Scope:
                made = view()
                if name:  # as a backend asks for it
                    made.executor, made.read_only = Direct(scope.primitives), False
                if name and name[0] is not None:
                    made.narrow(name[0])
                return made

            scope.view = viewed  # type: ignore[method-assign, assignment]


@broken("handle.read-only")
class ReadOnlyMeansNothing(Correct):
    """The option is taken, and forgotten."""

    class face(Reading):
        class reading(Lenient):
            def lets(self, op: Op[Any]) -> bool:
                return True
