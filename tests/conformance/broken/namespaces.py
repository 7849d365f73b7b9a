"""Stores whose views are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self, TypeVar

from kvi.call import Call
from kvi.errors import KviError
from kvi.feed import Batch, WatchSpec
from kvi.flow.scope import Scope
from kvi.middleware.namespace import Prefixed, inward, outward
from kvi.model import Claim, KeyValue, RangeResult, Scan, Span, TxnResult
from kvi.ops import ClaimOp, CountOp, DeleteRangeOp, Op, PutOp, RangeOp, ReleaseOp, TxnOp, WatchOp
from kvi.sync.kvi import Kvi, prefixed

from tests.conformance.broken.correct import Correct, Handle, broken

T = TypeVar("T")


class View(Prefixed):
    """What does the operations of a view."""

    async def execute(self, op: Op[T], call: Call) -> T:
        return self.outward(await self._inner.execute(self.inward(op), call))

    def inward(self, op: Op[T]) -> Op[T]:
        """An operation as one of the store below."""
        return inward(op, self._prefix)

    def outward(self, result: T) -> T:
        """A result of the store below as one of the view."""
        return outward(result, len(self._prefix))


class Viewing(Handle):
    """A handle with views of its own kind; a view is one as well."""

    view: ClassVar[type[View]] = View

    def namespace(self, name: str) -> Self:
        return type(self)(self.viewed(super().namespace(name)._scope, name))

    def viewed(self, scope: Scope, name: str) -> Scope:
        """The scope of a view."""
        scope.executor = self.view(self._scope.executor, f"{name}/")
        return scope


class _Spanning(View):
    """A view that has other spans than it should."""

    def span(self, asked: Span, inner: Span) -> Span:
        """The span below."""
        raise NotImplementedError

    def inward(self, op: Op[T]) -> Op[T]:
        into: Any = super().inward(op)
        given: Any = op
        match into:
            case RangeOp():
                span = self.span(given.scan.span, into.scan.span)
                into = RangeOp(replace(into.scan, span=span))
            case CountOp() | DeleteRangeOp():
                into = type(into)(self.span(given.span, into.span))
            case WatchOp():
                span = self.span(given.spec.span, into.spec.span)
                into = WatchOp(replace(into.spec, span=span), into.wake)
        return into  # type: ignore[no-any-return]


@broken("namespace.apart")
class SeesLongerNames(Correct):
    """The view `a` sees the keys of `ab`."""

    class face(Viewing):
        def viewed(self, scope: Scope, name: str) -> Scope:
            scope.executor = self.view(self._scope.executor, name)
            return scope


@broken("namespace.apart")
class SeesWhatFollows(Correct):
    """An open range of a view goes on behind its end."""

    class face(Viewing):
        class view(_Spanning):
            def span(self, asked: Span, inner: Span) -> Span:
                return Span(inner.start, None) if asked.end is None else inner


@broken("namespace.apart")
class SeesItsOwnMark(Correct):
    """The key `a/` is one of the view `a`."""

    class face(Viewing):
        class view(_Spanning):
            def span(self, asked: Span, inner: Span) -> Span:
                return Span(inner.start.rstrip("\0"), inner.end)


@broken("namespace.relative")
class WholeKeys(Correct):
    """Entries read through a view have the store's keys."""

    class face(Viewing):
        class view(View):
            def outward(self, result: T) -> T:
                whole = isinstance(result, (KeyValue, RangeResult, TxnResult))
                return result if whole else super().outward(result)


@broken("namespace.relative")
class WholeKeysInErrors(Correct):
    """Errors of a view have the store's keys."""

    class face(Viewing):
        prefix = ""

        def namespace(self, name: str) -> Self:
            view = super().namespace(name)
            view.prefix = f"{self.prefix}{name}/"
            return view

        def _placed(self, error: KviError, operation: str, key: object) -> KviError:
            placed = super()._placed(error, operation, key)
            if placed.key is not None:
                placed.key = f"{self.prefix}{placed.key}"
            return placed


@broken("namespace.relative")
class WholeKeysInEvents(Correct):
    """Events of a view have the store's keys."""

    class face(Viewing):
        class view(View):
            def outward(self, result: T) -> T:
                return result if isinstance(result, Batch) else super().outward(result)


@broken("namespace.relative")
class RangesAtLarge(Correct):
    """A range of a view is whole, forwards and with values, whatever was asked for."""

    class face(Viewing):
        class view(View):
            def inward(self, op: Op[T]) -> Op[T]:
                into: Any = super().inward(op)
                if isinstance(op, RangeOp):
                    into = RangeOp(Scan(into.span))
                return into  # type: ignore[no-any-return]


@broken("namespace.relative")
class StoresForGood(Correct):
    """What is stored through a view has no lease."""

    class face(Viewing):
        class view(View):
            def inward(self, op: Op[T]) -> Op[T]:
                into: Any = super().inward(op)
                if isinstance(op, PutOp):
                    into = PutOp(into.key, into.value, None)
                return into  # type: ignore[no-any-return]


@broken("namespace.relative")
class WatchesFromNow(Correct):
    """A watch of a view tells what comes, and nothing that was."""

    class face(Viewing):
        class view(View):
            def inward(self, op: Op[T]) -> Op[T]:
                into: Any = super().inward(op)
                if isinstance(op, WatchOp):
                    into = WatchOp(WatchSpec(into.spec.span), into.wake)
                return into  # type: ignore[no-any-return]


@broken("namespace.relative")
class OtherwiseAtTheTop(Correct):
    """The branch of a transaction that runs otherwise is one of the whole store."""

    class face(Viewing):
        class view(View):
            def inward(self, op: Op[T]) -> Op[T]:
                into: Any = super().inward(op)
                if isinstance(op, TxnOp):
                    into = TxnOp(replace(into.txn, otherwise=op.txn.otherwise))
                return into  # type: ignore[no-any-return]


@broken("namespace.relative")
class LocksOfTheWholeStore(Correct):
    """A lock of a view is that of the same name in the store."""

    class face(Viewing):
        class view(View):
            def inward(self, op: Op[T]) -> Op[T]:
                whole = isinstance(op, (ClaimOp, ReleaseOp))
                return op if whole else super().inward(op)

            def outward(self, result: T) -> T:
                return result if isinstance(result, Claim) else super().outward(result)


@broken("namespace.nested")
class NestsAtTheTop(Correct):
    """A view of a view is one of the store."""

    class face(Handle):
        def namespace(self, name: str) -> Self:
            return type(self)(prefixed(self._scope.outer or self._scope, name))


@broken("namespace.names")
class AnyName(Correct):
    """Names that are none are made into others."""

    class face(Handle):
        def namespace(self, name: str) -> Kvi:
            good = name.strip("/") or "default" if isinstance(name, str) else "x"
            return super().namespace(good)


@broken("namespace.names", max_key=8192)
class NameIsFree(Correct):
    """A view takes keys as long as the store does, whatever its name."""

    class face(Viewing):
        def namespace(self, name: str) -> Self:
            limits = self._scope.capabilities
            self._scope.capabilities = replace(limits, max_key=None)
            try:
                view = super().namespace(name)
            finally:
                self._scope.capabilities = limits
            view._scope.capabilities = limits
            return view


@broken("namespace.closed")
class ViewClosesItsStore(Correct):
    """Closing a view closes the handle that it was made of."""

    class face(Handle):
        def close(self) -> None:
            super().close()
            if self._scope.outer is not None:
                Kvi(self._scope.outer).close()


@broken("namespace.closed")
class ViewOutlivesItsStore(Correct):
    """A view goes on after the handle that it was made of was closed."""

    class face(Viewing):
        def viewed(self, scope: Scope, name: str) -> Scope:
            scope.outer = None
            return scope
