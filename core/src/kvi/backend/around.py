"""Wrappers that do the same around every primitive: retry, observation, liveness.

Such a wrapper implements `Around._around` alone. It is told what is done (the name that observers
see, the key, the `Effect` of doing it twice) and how to do it: ``act(seconds)``, any number of
times. The pages of a long range come later, one by one, through `Around._paged`.

*One word from further out.* Wrappers compose in any order, and what one of them decides may concern
one further in: of two retry policies only the outer one counts, and an observer wants to know how
often a policy below it tried. Both travel with the time-out, which every wrapper passes on anyway,
as an `Allowance`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from kvi.backend.forwarding import Forwarding
from kvi.model import Claim, Get, Grant, KeyValue, RangeResult, Scan, Span, Txn, TxnResult
from kvi.policy.retry import Effect

if TYPE_CHECKING:
    from kvi.feed import Feed, Wake, WatchSpec

T = TypeVar("T")
Pages = Iterable[Iterable[KeyValue]]

_READ, _REPEATABLE, _WRITE = Effect.READ, Effect.REPEATABLE, Effect.WRITE
_DECIDING, _ASKING = Effect.DECIDING, Effect.ASKING


class Allowance(float):
    """The seconds that a primitive may take, and a word from a wrapper further out.

    Attributes:
        once: who asked decides what follows a failure; a policy further in tries once.
        attempts: how often the store was asked; counted up by the policy that decides.

    """

    __slots__ = ("attempts", "once")

    attempts: int
    once: bool

    def __new__(cls, seconds: float, *, once: bool = False) -> Allowance:
        """Allow ``seconds``."""
        self = super().__new__(cls, seconds)
        self.once = once or (isinstance(seconds, Allowance) and seconds.once)
        self.attempts = 1
        return self


class Around(Forwarding):
    """A wrapper with one method around all primitives."""

    @abstractmethod
    def _around(
        self, name: str, key: str | None, effect: Effect, act: Callable[[float], T], timeout: float
    ) -> T:
        """Do ``act(seconds)``: within ``timeout`` seconds, and return what it returns."""

    def _paged(self, found: RangeResult, scan: Scan, timeout: float) -> RangeResult:
        """The result of a range, whose pages are read while it is iterated."""
        return found

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        inner = self._inner
        return self._around("get", key, _READ, lambda left: inner._get(key, left), timeout)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        inner = self._inner
        found = self._around(
            "range", scan.span.start, _READ, lambda left: inner._range(scan, left), timeout
        )
        return self._paged(found, scan, timeout)

    def _count(self, span: Span, timeout: float) -> int:
        inner = self._inner
        return self._around(
            "count", span.start, _READ, lambda left: inner._count(span, left), timeout
        )

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        inner = self._inner
        return self._around(
            "store", key, _WRITE, lambda left: inner._put(key, value, lease, left), timeout
        )

    def _delete(self, key: str, timeout: float) -> bool:
        inner = self._inner
        return self._around("delete", key, _WRITE, lambda left: inner._delete(key, left), timeout)

    def _delete_range(self, span: Span, timeout: float) -> int:
        inner = self._inner
        return self._around(
            "delete_range",
            span.start,
            _WRITE,
            lambda left: inner._delete_range(span, left),
            timeout,
        )

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        inner = self._inner
        return self._around(
            txn.operation,
            _key_of(txn),
            effect_of(txn),
            lambda left: inner._txn(txn, left),
            timeout,
        )

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        inner = self._inner
        return self._around(
            "watch", spec.span.start, _READ, lambda left: inner._watch(spec, wake, left), timeout
        )

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        # Of one whose fate is unknown, a lease without keys is left that nobody renews.
        inner = self._inner
        return self._around(
            "lease_grant", None, _REPEATABLE, lambda left: inner._lease_grant(ttl, left), timeout
        )

    def _lease_renew(self, lease: int, timeout: float) -> float:
        inner = self._inner
        return self._around(
            "lease_renew", None, _REPEATABLE, lambda left: inner._lease_renew(lease, left), timeout
        )

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        inner = self._inner
        self._around(
            "lease_revoke",
            None,
            _REPEATABLE,
            lambda left: inner._lease_revoke(lease, left),
            timeout,
        )

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        inner = self._inner
        return self._around(
            "lock_claim",
            name,
            _REPEATABLE,  # a claim that stands keeps its place
            lambda left: inner._lock_claim(name, lease, left),
            timeout,
        )

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        inner = self._inner
        return self._around(
            "lock_release",
            claim.key,
            _DECIDING,
            lambda left: inner._lock_release(claim, left),
            timeout,
        )

    def _ping(self, timeout: float) -> None:
        self._around("ping", None, _ASKING, self._inner._ping, timeout)


def effect_of(txn: Txn) -> Effect:
    """What running ``txn`` twice does."""
    if all(isinstance(op, Get) for op in (*txn.then, *txn.otherwise)):
        return _READ
    return _DECIDING if txn.when else _WRITE


def _key_of(txn: Txn) -> str | None:
    for part in (*txn.when, *txn.then, *txn.otherwise):
        return part.key
    return None
