"""Stores whose views are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from typing import ClassVar

from kvi.backend.namespace import Namespace
from kvi.errors import Closed, KviError
from kvi.feed import Feed, Wake, WatchSpec
from kvi.model import Claim, KeyValue, Span
from kvi.sync.kvi import Kvi

from tests.conformance.broken.correct import Correct, broken


class Viewed(Correct):
    """A store with views of its own kind."""

    view: ClassVar[type[Namespace]] = Namespace

    def namespace(self, name: str) -> Kvi:
        self._ensure_open()
        return self.view(self, name)


@broken("namespace.apart")
class SeesLongerNames(Viewed):
    """The view `a` sees the keys of `ab`."""

    class view(Namespace):
        def __init__(self, inner: Kvi, name: str) -> None:
            super().__init__(inner, name)
            self._prefix, self._skip = name, len(name)


@broken("namespace.apart")
class SeesWhatFollows(Viewed):
    """An open range of a view goes on behind its end."""

    class view(Namespace):
        def _span(self, span: Span) -> Span:
            inner = super()._span(span)
            return Span(inner.start, None) if span.end is None else inner


@broken("namespace.apart")
class SeesItsOwnMark(Viewed):
    """The key `a/` is one of the view `a`."""

    class view(Namespace):
        def _span(self, span: Span) -> Span:
            inner = super()._span(span)
            return Span(inner.start.rstrip("\0"), inner.end)


@broken("namespace.relative")
class WholeKeys(Viewed):
    """Entries read through a view have the store's keys."""

    class view(Namespace):
        def _out(self, entry: KeyValue | None) -> KeyValue | None:
            return entry


@broken("namespace.relative")
class WholeKeysInErrors(Viewed):
    """Errors of a view have the store's keys."""

    class view(Namespace):
        def _placed(self, error: KviError, operation: str, key: object) -> KviError:
            if error.key is not None:
                error.key = self._prefix + error.key
            return super()._placed(error, operation, key)


@broken("namespace.relative")
class WholeKeysInEvents(Viewed):
    """Events of a view have the store's keys."""

    class view(Namespace):
        def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
            inner = WatchSpec(self._span(spec.span), spec.start, spec.initial)
            return self._inner._watch(inner, wake, timeout)


@broken("namespace.relative")
class LocksOfTheWholeStore(Viewed):
    """A lock of a view is that of the same name in the store."""

    class view(Namespace):
        def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
            return self._inner._lock_claim(name, lease, timeout)

        def _lock_release(self, claim: Claim, timeout: float) -> bool:
            return self._inner._lock_release(claim, timeout)


@broken("namespace.nested")
class NestsAtTheTop(Viewed):
    """A view of a view is one of the store."""

    class view(Namespace):
        def namespace(self, name: str) -> Kvi:
            return self._inner.namespace(name)


@broken("namespace.names")
class AnyName(Viewed):
    """Names that are none are made into others."""

    def namespace(self, name: str) -> Kvi:
        return super().namespace(name.strip("/") or "default" if isinstance(name, str) else "x")


@broken("namespace.names", max_key=8192)
class NameIsFree(Viewed):
    """A view takes keys as long as the store does, whatever its name."""

    class view(Namespace):
        def __init__(self, inner: Kvi, name: str) -> None:
            super().__init__(inner, name)
            self.capabilities = inner.capabilities


@broken("namespace.closed")
class ViewClosesItsStore(Viewed):
    """Closing a view closes the handle that it was made of."""

    def namespace(self, name: str) -> Kvi:
        return Namespace(self, name, owns=True)


@broken("namespace.closed")
class ViewOutlivesItsStore(Viewed):
    """A view goes on after the handle that it was made of was closed."""

    class view(Namespace):
        @property
        def closed(self) -> bool:
            return self._shut is not None

        def _ensure_open(self) -> None:
            if self._shut is not None:
                raise Closed("the view is closed")
