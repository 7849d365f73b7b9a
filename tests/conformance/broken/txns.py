"""Stores whose transactions are broken."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import eq, gt, lt, ne
from time import sleep
from typing import Any

from kvi.errors import InvalidArgument
from kvi.model import Compare, Get, KeyValue, Operation, Operator, Put, Target, Txn, TxnResult
from kvi.ops import TxnOp
from kvi.policy.txn import check_txn, perform

from tests.conformance.broken.correct import Correct, Handle, Results, broken

_RELATIONS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: eq,
    Operator.NOT_EQUAL: ne,
    Operator.LESS: lt,
    Operator.GREATER: gt,
}


@broken("txn.branches")
class BothBranches(Correct):
    """`otherwise` runs after `then`."""

    def choose(self, txn: Txn) -> tuple[bool, tuple[Operation, ...]]:
        succeeded, branch = super().choose(txn)
        return succeeded, branch + txn.otherwise if succeeded else branch


@broken("txn.branches")
class NoOtherwise(Correct):
    """`otherwise` never runs."""

    def choose(self, txn: Txn) -> tuple[bool, tuple[Operation, ...]]:
        succeeded, branch = super().choose(txn)
        return succeeded, branch if succeeded else ()


@broken("txn.branches")
class OneCompareIsEnough(Correct):
    """`then` runs if any of the compares holds."""

    def choose(self, txn: Txn) -> tuple[bool, tuple[Operation, ...]]:
        read = self._state.read
        if any(self.holds(compare, read(compare.key)) for compare in txn.when):
            return True, txn.then
        return super().choose(txn)


@broken("txn.values")
class MissingComparesAsEmpty(Correct):
    """A key that is not there compares as `b""`."""

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        if entry is None and compare.target is Target.VALUE:
            entry = KeyValue(compare.key, b"", 0, 0)
        return super().holds(compare, entry)


@broken("txn.values")
class MissingIsUnequal(Correct):
    """`!=` is true of the value of a key that is not there."""

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        if entry is None and (compare.target, compare.operator) == ("value", "!="):
            return True
        return super().holds(compare, entry)


class _ByAnother(Correct):
    def by(self, value: Any) -> Any:
        raise NotImplementedError

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        if entry is None or (compare.target is Target.VALUE) is not isinstance(self, _ByValue):
            return super().holds(compare, entry)
        stored = getattr(entry, compare.target) or 0
        if compare.target is Target.VALUE:
            stored = entry.value
        return _RELATIONS[compare.operator](self.by(stored), self.by(compare.operand))


class _ByValue(_ByAnother):
    pass


@broken("txn.values")
class SignedBytes(_ByValue):
    """Bytes above 127 come before those below."""

    def by(self, value: bytes) -> Any:
        return [(byte + 128) % 256 for byte in value]


@broken("txn.values")
class ShorterIsLess(_ByValue):
    """A shorter value comes before a longer one."""

    def by(self, value: bytes) -> Any:
        return len(value), value


@broken("txn.values")
class CaselessValues(_ByValue):
    """Case does not count."""

    def by(self, value: bytes) -> Any:
        return value.lower()


@broken("txn.numbers")
class NumbersAsText(_ByAnother):
    """Numbers compare as their digits."""

    def by(self, value: int) -> Any:
        return str(value)


@broken("txn.numbers")
class MissingHasNoNumbers(Correct):
    """No compare of a number is true of a key that is not there."""

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        return super().holds(compare, entry) and (
            entry is not None
            or compare.target in (Target.VALUE, Target.CREATE_REVISION)  # as `absent` does
        )


@broken("txn.version")
class VersionIsNotCompared(Correct):
    """Every compare of a version is true."""

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        return compare.target is Target.VERSION or super().holds(compare, entry)


@broken("txn.version")
class VersionFromZero(Correct):
    """A key that was written once compares as version 0."""

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        if entry is not None and compare.target is Target.VERSION:
            entry = entry._replace(version=(entry.version or 1) - 1)
        return super().holds(compare, entry)


@broken("txn.existence")
class EmptyIsAbsent(Correct):
    """A key with an empty value is absent."""

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        empty = entry is not None and entry.value == b"" and compare.target is not Target.VALUE
        return super().holds(compare, None if empty else entry)


@broken("txn.order")
class ReadsFirst(Correct):
    """A `Get` sees what was there before the transaction."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        before = {op.key: self._state.read(op.key) for op in branch}
        results = super().apply(branch)
        pairs = zip(branch, results, strict=True)
        return tuple(before[op.key] if isinstance(op, Get) else result for op, result in pairs)


@broken("txn.order", "txn.results")
class ReadsLast(Correct):
    """A `Get` sees what is there after the transaction."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        results = super().apply(branch)
        read = self._state.read
        pairs = zip(branch, results, strict=True)
        return tuple(read(op.key) if isinstance(op, Get) else result for op, result in pairs)


@broken("txn.results")
class TellsReadsOnly(Correct):
    """Only a `Get` has a result."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        pairs = zip(branch, super().apply(branch), strict=True)
        return tuple(result for op, result in pairs if isinstance(op, Get))


@broken("txn.results")
class EveryDeleteFound(Correct):
    """A `Delete` always tells that the key was there."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        return tuple(True if result is False else result for result in super().apply(branch))


@broken("txn.revision")
class RevisionBefore(Correct):
    """A transaction tells the revision before its own."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        done = super()._txn(txn, timeout)
        return replace(done, revision=(done.revision or 1) - 1)


@broken("txn.revision")
class ReadsAreRevisions(Correct):
    """A transaction that writes nothing makes a revision."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        before = self._state.revision
        results = super().apply(branch)
        if self._state.revision == before:
            self._state.commit(())
        return results


@broken("txn.atomic", "lease.gone")
class StopsHalfWay(Correct):
    """A transaction that fails keeps what it has written by then."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        return tuple(result for op in branch for result in super(StopsHalfWay, self).apply([op]))


@broken("txn.atomic")
class RevisionEach(Correct):
    """Each write of a transaction has a revision of its own."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        super().apply([])
        return tuple(result for op in branch for result in super(RevisionEach, self).apply([op]))


@broken("txn.atomic")
class SeenHalfDone(Correct):
    """Others see the writes of a transaction one by one."""

    def apply(self, branch: Sequence[Operation]) -> Results:
        state = self._state
        effect = perform(branch, state.read, state.revision + 1)
        for change in effect.changes:
            if change.new is not None:
                state.entries[change.key] = change.new
            state.own.release()
            sleep(0.0005)
            state.own.acquire()
        return super().apply(branch)


@broken("txn.refused")
class LastWriteCounts(Correct):
    """Of two writes of a key in a branch the last one is done."""

    class face(Handle):
        def txn(
            self,
            when: Iterable[Compare] = (),
            then: Iterable[Operation] = (),
            otherwise: Iterable[Operation] = (),
            *,
            timeout: float | None = None,
        ) -> TxnResult:
            with suppress(AttributeError, TypeError):
                then = {op.key: op for op in then}.values()
            return super().txn(when, then, otherwise, timeout=timeout)


@broken("txn.refused", max_txn_ops=16)
class AnyLength(Correct):
    """More operations than declared are taken."""

    class face(Handle):
        def _run(
            self,
            when: Iterable[Compare],
            then: Iterable[Operation],
            otherwise: Iterable[Operation],
            timeout: float | None,
            operation: str,
        ) -> TxnResult:
            limits = replace(self.capabilities, max_txn_ops=None)
            txn = check_txn(when, then, otherwise, limits, operation)
            return self._do(TxnOp(txn), timeout)


@broken("txn.refused", max_txn_ops=32)
class HalfTheLength(Correct):
    """Only half as many operations as declared are taken."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        if len(txn.when) + max(len(txn.then), len(txn.otherwise)) > 16:
            raise InvalidArgument("too many operations")
        return super()._txn(txn, timeout)


@broken("txn.refused")
class AnyOperator(Correct):
    """An operator that is none makes a compare false."""

    class face(Handle):
        def transaction(
            self,
            key: str,
            op: str,
            value: bytes | str,
            then_key: str,
            then_value: bytes | str,
            else_key: str,
            else_value: bytes | str,
            *,
            timeout: float | None = None,
        ) -> bool:
            if op not in ("=", "!=", "<", ">"):
                return False
            return super().transaction(
                key, op, value, then_key, then_value, else_key, else_value, timeout=timeout
            )


class _Short(Correct):
    def first(self, op: str) -> str:
        return op

    def told(self, done: bool) -> bool:
        return done

    class face(Handle):
        def transaction(
            self,
            key: str,
            op: str,
            value: bytes | str,
            then_key: str,
            then_value: bytes | str,
            else_key: str,
            else_value: bytes | str,
            *,
            timeout: float | None = None,
        ) -> bool:
            done = super().transaction(
                key,
                self.mutant.first(op),
                value,
                then_key,
                then_value,
                else_key,
                else_value,
                timeout=timeout,
            )
            return bool(self.mutant.told(done))


@broken("txn.short")
class TellsItRan(_Short):
    """`transaction` is always true."""

    def told(self, done: bool) -> bool:
        return True


@broken("txn.short")
class TheWrongWayRound(_Short):
    """`transaction` takes `<` for `>`, and the other way round."""

    def first(self, op: str) -> str:
        return {"<": ">", ">": "<"}.get(op, op)


@broken("txn.results")
class PutTellsNothing(Correct):
    """A `Put` has no revision, although the store tells it."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        done = super()._txn(txn, timeout)
        branch = txn.then if done else txn.otherwise
        results = zip(branch, done.results, strict=True)
        told = tuple(None if isinstance(op, Put) else result for op, result in results)
        return replace(done, results=told)


@broken("txn.numbers")
class NumbersOf64Bits(Correct):
    """The number of a lease that the store could not give out cannot be compared."""

    def holds(self, compare: Compare, entry: KeyValue | None) -> bool:
        if isinstance(compare.operand, int):
            compare.operand.to_bytes(8, signed=True)
        return super().holds(compare, entry)


@broken("txn.values")
class ValuesAsText(_ByValue):
    """Values compare as text: bytes that are none are all the same."""

    def by(self, value: bytes) -> Any:
        return value.decode(errors="replace")


@broken("txn.refused")
class ThatManyOperations(Correct):
    """Any number of operations is declared, and five hundred are too many."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        if len(txn.then) > 500:
            raise InvalidArgument("the transaction is too large")
        return super()._txn(txn, timeout)
