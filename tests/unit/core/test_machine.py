"""The machine finds what is wrong with a store, and tells it in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import kvi
import pytest
from hypothesis import configuration
from kvi.backend.polling import PollingFeed
from kvi.conformance.suite import machine
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.middleware import namespace
from kvi.middleware.namespace import _span_in
from kvi.model import Event, KeyValue, RangeResult, Scan, Span, Target, Txn, TxnResult
from kvi.primitives import Primitives
from kvi.text import prefix_end

from tests.support.backends import Over, Smallest, opened

PATIENCE = 5.0  # seconds: a memory store tells at once, but its thread may have to wait
MOST_CALLS = 6


class InclusiveEnd(Over):
    """Ranges hold their end."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        span = scan.span
        if span.prefix is None and span.end is not None:
            span = Span(span.start, span.end + "\0")
        return super()._range(replace(scan, span=span), timeout)


class NothingIsEmpty(Over):
    """A missing key compares as an empty value."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        when = tuple(
            kvi.Key(compare.key).absent
            if (compare.target, compare.operator, compare.operand) == (Target.VALUE, "=", b"")
            and self._get(compare.key, timeout) is None
            else compare
            for compare in txn.when
        )
        return super()._txn(replace(txn, when=when), timeout)


class AlwaysDeleted(Over):
    """Deleting nothing says that there was something."""

    def _delete(self, key: str, timeout: float) -> bool:
        super()._delete(key, timeout)
        return True


class SameIsNothing(Over):
    """A write of the same value is none."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        entry = self._get(key, timeout)
        if entry is not None and (entry.value, entry.lease) == (value, lease):
            return entry.revision
        return super()._put(key, value, lease, timeout)


class LeaseStays(Over):
    """A write without a lease leaves the key its lease."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        entry = self._get(key, timeout)
        if entry is not None and lease is None:
            lease = entry.lease
        return super()._put(key, value, lease, timeout)


class VersionGoesOn(Over):
    """A key that is deleted and created anew goes on counting its versions."""

    former: ClassVar[Counter[str]] = Counter()

    def _delete(self, key: str, timeout: float) -> bool:
        entry = self._get(key, timeout)
        if entry is not None:
            self.former[key] = entry.version or 0
        return super()._delete(key, timeout)

    def _delete_range(self, span: Span, timeout: float) -> int:
        self.former.clear()
        return super()._delete_range(span, timeout)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        return super()._range(scan, timeout).map_pages(self._aged)

    def _aged(self, page: Iterable[KeyValue]) -> Iterable[KeyValue]:
        return [e._replace(version=(e.version or 0) + self.former[e.key]) for e in page]


class EarlyGet(Over):
    """In a transaction, a Get does not see what was put before it."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        before = {op.key: self._get(op.key, timeout) for op in (*txn.then, *txn.otherwise)}
        done = super()._txn(txn, timeout)
        branch = txn.then if done.succeeded else txn.otherwise
        results = zip(branch, done.results, strict=True)
        return replace(
            done,
            results=tuple(before[op.key] if isinstance(op, kvi.Get) else r for op, r in results),
        )


class HalfBranch(Over):
    """A transaction forgets the second of its writes."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        done = super()._txn(replace(txn, then=txn.then[:1]), timeout)
        missing = len(txn.then) - len(done.results) if done.succeeded else 0
        return replace(done, results=(*done.results, *[done.revision] * missing))


class Changed(Feed):
    """A feed with other events."""

    def __init__(self, inner: Feed, change: Callable[[Iterable[Event]], list[Event]]) -> None:
        self._inner = inner
        self._change = change
        self.revision, self.interval = inner.revision, inner.interval

    def poll(self, timeout: float) -> Batch | None:
        """The next events, changed."""
        batch = self._inner.poll(timeout)
        return None if batch is None else Batch(self._change(batch.events), batch.revision)

    def close(self) -> None:
        """End it."""
        self._inner.close()


class DropsDeletes(Over):
    """Watches do not tell of deletes."""

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        puts = kvi.EventType.PUT
        feed = super()._watch(spec, wake, timeout)
        return Changed(feed, lambda events: [event for event in events if event.type is puts])


class TellsTwice(Over):
    """Watches tell everything twice."""

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        feed = super()._watch(spec, wake, timeout)
        return Changed(feed, lambda events: [event for event in events for _ in range(2)])


class LateInitial(Over):
    """The initial state of a watch comes in the wrong order."""

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        feed = super()._watch(spec, wake, timeout)
        return Changed(feed, lambda events: sorted(events, key=lambda event: event.revision))


def wide(span: Span, prefix: str) -> Span:
    """The span of a view that reaches beyond its slash."""
    inner = _span_in(span, prefix)
    if inner.end == prefix_end(prefix):
        return Span(inner.start, prefix_end(prefix[:-1]))
    return inner


def leaking_namespace(monkeypatch: pytest.MonkeyPatch) -> type[Over]:
    """The namespace a sees ab."""
    monkeypatch.setattr(namespace, "_span_in", wide)
    return Over


def _at_length(mutant: Any, said: list[str]) -> Any:
    """One that takes half a minute; the others are told the same way."""
    return pytest.param(mutant, said, marks=pytest.mark.soak)


MUTANTS: list[Any] = [
    _at_length(InclusiveEnd, [".range(", "end=", "# expected: []"]),
    (NothingIsEmpty, ["b''", "# expected: False", "# came:     True"]),
    (AlwaysDeleted, [".delete('", "# expected: False", "# came:     True"]),
    _at_length(SameIsNothing, ["a.store('a', ", "# expected: a revision above"]),
    _at_length(LeaseStays, ["a.store('a', ", "list(b.range())", "1.lease.id)]"]),
    _at_length(VersionGoesOn, ["a.delete", "list(b.range())", ", 1, None)]", ", 2, None)]"]),
    _at_length(EarlyGet, ["kvi.Get('a')", "# expected: ", "# came:     TxnResult("]),
    (HalfBranch, ["kvi.Put('b', ", "list(b.range())"]),
    _at_length(DropsDeletes, ["w1 = a.watch(", "# expected: DELETE 'a' at revision"]),
    (TellsTwice, ["w1 = a.watch(", "w1.next(1)"]),
    _at_length(LateInitial, ["initial=True", "# expected: PUT 'a'", ", initial"]),
    (leaking_namespace, [".namespace('a')", "'ab'", "# expected: []"]),
]


def check(
    kind: Callable[[kvi.Kvi], Primitives],
    folder: Path,
    *,
    runs: int = 3,
) -> str:
    """What the machine says of two handles of this kind on a memory store; "" if it is content.

    Runs after the first have other programs than the suite's.
    """
    uri = f"mem:{folder}"
    with opened(kind(kvi.open(uri))) as a, opened(kind(kvi.open(uri))) as b:
        try:
            for number in (None, 1, 2)[:runs]:
                machine.run_programs(a, b, folder=folder, patience=PATIENCE, number=number)
        except AssertionError as error:
            return str(error)
    return ""


def calls(text: str) -> list[str]:
    """The lines of the program, without opening and comments."""
    lines = text.partition("\n\n")[2].split("\n# expected:")[0].splitlines()
    return [line for line in lines if "kvi.open(" not in line and ".namespace(" not in line]


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "said"), MUTANTS, ids=lambda it: getattr(it, "__name__", ""))
def test_finds(
    mutant: Any, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with a store is found, and told by a program of a few calls that runs."""
    with monkeypatch.context() as patch:
        text = check(mutant(patch) if mutant is leaking_namespace else mutant, tmp_path)
    print(text)
    assert text, "not found"
    assert len(calls(text)) <= MOST_CALLS
    for words in said:
        assert words in text
    # On a store without the mistake, to show that it can be pasted.
    with suppress(kvi.KviError):
        exec(text.partition("\n\n")[2], {"kvi": kvi, "URI": f"mem:paste-{tmp_path}"})


class Poor(Smallest):
    """A store that lacks what capabilities can deny, and keeps the contract."""

    def __init__(self, store: kvi.Kvi) -> None:
        limits = replace(
            store.capabilities,
            watch_history=False,
            snapshot_range=False,
            read_at_revision=False,
            lock_fair=False,
            key_version=False,
            atomic_range_delete="no",
            max_txn_ops=64,
            txn_delete_ops=2,
            max_key=5000,
        )
        super().__init__(store, limits)

    def _get(self, key: str, timeout: float) -> KeyValue | None:
        entry = super()._get(key, timeout)
        return None if entry is None else entry._replace(version=None)

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        entries = [entry._replace(version=None) for entry in super()._range(scan, timeout)]
        return RangeResult(None, lambda: (entries,))

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        done = super()._txn(txn, timeout)
        put = any(type(result) is int for result in done.results)
        results = (r._replace(version=None) if isinstance(r, KeyValue) else r for r in done.results)
        return TxnResult(done.succeeded, done.revision if put else None, tuple(results))

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return PollingFeed(self, spec, wake, timeout, interval=0.001)


class PoorAndForgetful(Poor):
    """It lacks more than it says: its watches do not tell of deletes."""

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        puts = kvi.EventType.PUT
        feed = super()._watch(spec, wake, timeout)
        return Changed(feed, lambda events: [event for event in events if event.type is puts])


@pytest.mark.slow
def test_poor_store(tmp_path: Path) -> None:
    """What the capabilities deny is not asked for."""
    # A busy machine may stand still for a while.
    assert check(Poor, tmp_path, runs=1) == ""


@pytest.mark.soak
def test_poor_store_that_forgets(tmp_path: Path) -> None:
    """Without history, the last state of a key is asked for all the same."""
    text = check(PoorAndForgetful, tmp_path)
    assert "# expected: DELETE 'a'" in text
    assert len(calls(text)) <= MOST_CALLS


def programs(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int | None = None) -> list[str]:
    """The programs that are run on a memory store."""
    made: list[str] = []
    finish = machine.StoreMachine.finish

    def note(one: machine.StoreMachine) -> None:
        made.append("\n".join(line.text for line in one.program.lines))
        finish(one)

    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(machine.StoreMachine, "finish", note)
        with kvi.open(f"mem:{folder}") as a, kvi.open(f"mem:{folder}") as b:
            machine.run_programs(a, b, folder=folder, examples=50, number=number)
    return made


@pytest.mark.slow
def test_same_programs_every_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two runs make the same programs, unless another number is given."""
    first = programs(monkeypatch, tmp_path / "1")
    assert len(set(first)) > 20
    assert programs(monkeypatch, tmp_path / "2") == first
    assert programs(monkeypatch, tmp_path / "3", 7) != first


def test_writes_nowhere_else(tmp_path: Path) -> None:
    """What hypothesis keeps goes into the folder given, and its own setting is as before."""
    before = configuration.storage_directory().home_directory
    assert check(AlwaysDeleted, tmp_path)
    assert configuration.storage_directory().home_directory == before


def test_soak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A number chosen by the environment is told with what it finds."""
    monkeypatch.setenv("KVI_CONFORMANCE_SEED", "7")
    monkeypatch.setenv("KVI_CONFORMANCE_EXAMPLES", "0.5")
    real = kvi.open
    monkeypatch.setattr(kvi, "open", lambda uri: opened(AlwaysDeleted(real(uri))))
    with kvi.open("mem:machine-soak") as root, pytest.raises(AssertionError) as caught:
        machine.TestModel().test_programs(root, "mem:machine-soak", tmp_path)
    assert "found with KVI_CONFORMANCE_SEED=7" in caught.value.__notes__


def test_native_error_is_told(tmp_path: Path) -> None:
    """An exception that is none of kvi's is told, and chained."""

    class Failing(Over):
        def _count(self, span: Span, timeout: float) -> int:
            raise ZeroDivisionError("native")

    uri = "mem:machine-native"
    with opened(Failing(kvi.open(uri))) as store, pytest.raises(AssertionError) as caught:
        machine.run_programs(store, store, folder=tmp_path)
    assert calls(str(caught.value)) == ["a.count(prefix='a')"]
    assert "# expected: 0\n# came:     ZeroDivisionError: native" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
