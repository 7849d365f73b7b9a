"""The keys below ``name/``, seen as a whole store.

Every key gets the prefix on its way in and loses it on its way out, in results as in errors (which
the public methods place with the caller's own key). An open bound becomes the bound of the
namespace, so that no span can reach outside of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from kvi.backend.forwarding import Forwarding
from kvi.errors import InvalidKey, InvalidOption
from kvi.interface import Kvi
from kvi.model import (
    Claim,
    Compare,
    Delete,
    Get,
    KeyValue,
    Operation,
    Put,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.policy.text import check_bound, prefix_end

if TYPE_CHECKING:
    from kvi.feed import Feed, Wake, WatchSpec

MIN_MAX_KEY = 4096  # what the contract leaves for keys at the least


class Namespace(Forwarding):
    """A view of ``inner`` below ``name/``; made by `Kvi.namespace`."""

    def __init__(self, inner: Kvi, name: str, *, owns: bool = False, named: bool = False) -> None:
        """Make a view; ``named``: the URI of ``inner`` says the namespace already."""
        super().__init__(inner, owns=owns)
        self._prefix = check_name(name) + "/"
        if not named:
            self.uri = f"{inner.uri} in {name!r}"
        self._skip = len(self._prefix)
        longest = inner.capabilities.max_key
        if longest is not None:
            longest -= len(self._prefix.encode())
            if longest < MIN_MAX_KEY:
                raise InvalidOption(
                    f"the namespace leaves {longest:,} bytes for keys, under {MIN_MAX_KEY:,}; "
                    "shorten it"
                )
            self.capabilities = replace(self.capabilities, max_key=longest)

    def __repr__(self) -> str:
        return f"<Namespace {self.uri}{' closed' if self.closed else ''}>"

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        return self._out(self._inner._get(self._prefix + key, timeout))

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        inner = Scan(self._span(scan.span), scan.limit, scan.reverse, scan.keys_only)
        return self._inner._range(inner, timeout).map_pages(self._strip)

    def _count(self, span: Span, timeout: float) -> int:
        return self._inner._count(self._span(span), timeout)

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        return self._inner._put(self._prefix + key, value, lease, timeout)

    def _delete(self, key: str, timeout: float) -> bool:
        return self._inner._delete(self._prefix + key, timeout)

    def _delete_range(self, span: Span, timeout: float) -> int:
        return self._inner._delete_range(self._span(span), timeout)

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        done = self._inner._txn(
            Txn(
                tuple(
                    Compare(self._prefix + c.key, c.target, c.operator, c.operand) for c in txn.when
                ),
                tuple(map(self._in, txn.then)),
                tuple(map(self._in, txn.otherwise)),
                txn.operation,
            ),
            timeout,
        )
        results = tuple(self._out(r) if isinstance(r, KeyValue) else r for r in done.results)
        return TxnResult(done.succeeded, done.revision, results)

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        from kvi.backend.stripped import Stripped
        from kvi.feed import WatchSpec

        inner = WatchSpec(self._span(spec.span), spec.start, spec.initial)
        return Stripped(self._inner._watch(inner, wake, timeout), self._skip)

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        claim = self._inner._lock_claim(self._prefix + name, lease, timeout)
        skip = self._skip
        guard = replace(claim.guard, key=claim.guard.key[skip:])
        ahead = None if claim.ahead is None else claim.ahead[skip:]
        return Claim(claim.key[skip:], claim.fence, guard, ahead, claim.revision)

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        prefix = self._prefix
        guard = replace(claim.guard, key=prefix + claim.guard.key)
        ahead = None if claim.ahead is None else prefix + claim.ahead
        inner = Claim(prefix + claim.key, claim.fence, guard, ahead, claim.revision)
        return self._inner._lock_release(inner, timeout)

    def _in(self, op: Operation) -> Operation:
        key = self._prefix + op.key
        match op:
            case Put():
                return Put(key, op.value, op.lease)
            case Get():
                return Get(key)
            case Delete():
                return Delete(key)

    def _out(self, entry: KeyValue | None) -> KeyValue | None:
        return None if entry is None else KeyValue(entry.key[self._skip :], *entry[1:])

    def _strip(self, pages: Iterable[Iterable[KeyValue]]) -> Iterator[Iterable[KeyValue]]:
        skip = self._skip
        for page in pages:
            yield (KeyValue(entry.key[skip:], *entry[1:]) for entry in page)

    def _span(self, span: Span) -> Span:
        prefix = self._prefix
        # ``name/`` itself, which other tools store as a mark of a folder, is no key of the view
        start = prefix + (span.start or "\0")
        end = prefix_end(prefix) if span.end is None else prefix + span.end
        everything = not span.start and span.end is None
        inner = prefix if everything else None if span.prefix is None else prefix + span.prefix
        return Span(start, end, inner)


def check_name(name: str) -> str:
    """Return the name of a namespace if it is one; raises `InvalidOption`."""
    try:
        check_bound("namespace", name)
    except InvalidKey as error:
        raise InvalidOption(error.message) from None
    if not name or name.startswith("/") or name.endswith("/"):
        raise InvalidOption(
            f"a namespace is text that neither begins nor ends with a slash, not {name!r}"
        )
    return name
