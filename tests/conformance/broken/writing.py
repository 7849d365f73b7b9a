"""Stores that write wrongly."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from time import sleep

from kvi.model import Delete, Key, Put, Scan, Span, Txn, TxnResult
from kvi.policy.txn import put
from kvi.primitives import Primitives

from tests.conformance.broken.correct import Correct, Handle, broken

PAUSE = 0.0002  # seconds in which others get in between


@broken("store.replaces")
class FirstWriterKeeps(Correct):
    """A key that is there is not replaced."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        entry = self._get(key, timeout)
        return entry.revision if entry else super()._put(key, value, lease, timeout)


@broken("store.replaces")
class Appends(Correct):
    """A value goes behind the one that is there."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        entry = self._get(key, timeout)
        value = (entry.value or b"") + value if entry else value
        return super()._put(key, value, lease, timeout)


@broken("store.replaces")
class TellsTheRevisionBefore(Correct):
    """`store` returns the revision that the store had before."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        return super()._put(key, value, lease, timeout) - 1


@broken("store.same-value")
class SameIsNothing(Correct):
    """Storing what is there writes nothing."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        entry = self._get(key, timeout)
        if entry and (entry.value, entry.lease) == (value, lease):
            return entry.revision
        return super()._put(key, value, lease, timeout)


@broken("store.same-value")
class SameIsQuiet(Correct):
    """Storing what is there makes a revision, and no event."""

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        state = self._state
        with state.lock:
            old = state.read(key)
            if old is not None and (old.value, old.lease) == (value, lease):
                state.entries[key] = put(old, key, value, state.revision + 1, lease)
                state.commit(())
                return state.revision
        return super()._put(key, value, lease, timeout)


@broken("delete.tells")
class AlwaysDeleted(Correct):
    """`delete` is always true."""

    def _delete(self, key: str, timeout: float) -> bool:
        super()._delete(key, timeout)
        return True


@broken("delete.tells")
class NothingIsARevision(Correct):
    """Deleting nothing makes a revision."""

    def _delete(self, key: str, timeout: float) -> bool:
        found = super()._delete(key, timeout)
        if not found:
            with self._state.lock:
                self._state.commit(())
        return found


@broken("delete.tells")
class LooksThenDeletes(Correct):
    """Of two who delete a key, both may be told that it was there."""

    def _delete(self, key: str, timeout: float) -> bool:
        found = self._get(key, timeout) is not None
        sleep(PAUSE)
        super()._delete(key, timeout)
        return found


@broken("delete.exact")
class DeletesFolders(Correct):
    """`delete` takes what is below its key too."""

    def _delete(self, key: str, timeout: float) -> bool:
        self._delete_range(Span.of_prefix(f"{key}/"), timeout)
        return super()._delete(key, timeout)


@broken("delete.exact")
class DeletesPrefixes(Correct):
    """`delete` takes all keys that begin with its key."""

    def _delete(self, key: str, timeout: float) -> bool:
        return self._delete_range(Span.of_prefix(key), timeout) > 0


@broken("delete-range.bounds")
class DeletesTheNextToo(Correct):
    """`delete_range` takes the key at the end too, for a prefix the first one behind."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        end = None if span.end is None else span.end + "\0"
        return super()._delete_range(Span(span.start, end), timeout)


@broken("delete-range.bounds")
class CountsWhatIsLeft(Correct):
    """`delete_range` returns how many keys are left."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        super()._delete_range(span, timeout)
        return self._count(Span(), timeout)


@broken("delete-range.bounds")
class DeletesOnePage(Correct):
    """`delete_range` deletes the first 128 keys and returns."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        page = [entry.key for entry in self._range(Scan(span, limit=128), timeout)]
        return super()._delete_range(Span(page[0], page[-1] + "\0"), timeout) if page else 0


@broken("delete-range.unbounded")
class NoBoundIsAll(Correct):
    """`delete_range` without bounds deletes everything."""

    class face(Handle):
        def delete_range(
            self,
            start: str | None = None,
            end: str | None = None,
            *,
            prefix: str | None = None,
            timeout: float | None = None,
        ) -> int:
            start = "" if start is None and prefix is None else start
            return super().delete_range(start, end, prefix=prefix, timeout=timeout)


@broken("delete-range.atomic")
class DeletesOneByOne(Correct):
    """`delete_range` deletes one key after the other, though declared to be one step."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        deleted = 0
        for entry in self._range(Scan(span), timeout):
            deleted += self._delete(entry.key, timeout)
            sleep(PAUSE)
        return deleted


@broken("delete-range.atomic")
class ListsThenDeletes(Correct):
    """`delete_range` lists the keys, and deletes what it has listed in one transaction."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        keys = [entry.key for entry in self._range(Scan(span), timeout)]
        sleep(PAUSE)
        done = self._txn(Txn(then=tuple(map(Delete, keys))), timeout)
        return sum(map(bool, done.results))


@broken("delete-range.atomic")
class DeletesInPortions(Correct):
    """`delete_range` is one step for as many keys as a transaction takes, and no more."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        deleted = super()._delete_range(self._first(span, timeout), timeout)
        while more := super()._delete_range(self._first(span, timeout), timeout):
            deleted += more
        return deleted

    def _first(self, span: Span, timeout: float) -> Span:
        sleep(PAUSE)
        page = [entry.key for entry in self._range(Scan(span, limit=500), timeout)]
        return Span(span.start, page[-1] + "\0" if page else span.end)


@broken("delete-range.atomic")
class ClaimsTheDerived(Correct):
    """`delete_range` is declared to be one step, and left to be derived."""

    _delete_range = Primitives._delete_range


@broken("delete-range.atomic")
class OnlyPrefixes(Correct):
    """`delete_range` is one step for prefixes only, though declared so for any bounds."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        if span.prefix is not None:
            return super()._delete_range(span, timeout)
        return ListsThenDeletes._delete_range(self, span, timeout)  # type: ignore[arg-type]


@broken("tas.table", "program.model")
class MissingIsTestedAsEmpty(Correct):
    """A key that is not there has the value `b""`, for `tas`."""

    class face(Handle):
        def tas(
            self,
            key: str,
            test: bytes | str | None,
            set: bytes | str | None,  # noqa: A002
            *,
            timeout: float | None = None,
        ) -> bool:
            if not test and self.get(key) is None:
                test = None
            return super().tas(key, test, set, timeout=timeout)


@broken("tas.table")
class EmptyIsTestedAsMissing(Correct):
    """A key whose value is `b""` is not there, for `tas`."""

    class face(Handle):
        def tas(
            self,
            key: str,
            test: bytes | str | None,
            set: bytes | str | None,  # noqa: A002
            *,
            timeout: float | None = None,
        ) -> bool:
            entry = self.get(key)
            if test is None and entry is not None and entry.value == b"":
                test = b""
            return super().tas(key, test, set, timeout=timeout)


@broken("tas.table")
class SetsNothingAsEmpty(Correct):
    """`tas` with `set=None` leaves an empty value."""

    class face(Handle):
        def tas(
            self,
            key: str,
            test: bytes | str | None,
            set: bytes | str | None,  # noqa: A002
            *,
            timeout: float | None = None,
        ) -> bool:
            return super().tas(key, test, set if test is None else set or b"", timeout=timeout)


@broken("tas.atomic")
class TestsThenSets(Correct):
    """`tas` reads, decides, and writes."""

    __test__ = False

    class face(Handle):
        def tas(
            self,
            key: str,
            test: bytes | str | None,
            set: bytes | str | None,  # noqa: A002
            *,
            timeout: float | None = None,
        ) -> bool:
            done = super().tas(key, test, test, timeout=timeout) if test else self.get(key) is None
            sleep(PAUSE)
            if done and set is not None:
                self.store(key, set)
            return done


@broken("tas.atomic", "cas.atomic", "txn.atomic")
class ComparesThenWrites(Correct):
    """A transaction compares, and then writes."""

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        with self._state.lock:
            succeeded, branch = self.choose(txn)
        sleep(PAUSE)
        done = super()._txn(Txn(then=branch), timeout)
        return TxnResult(succeeded, done.revision, done.results)


@broken("cas.revision")
class ZeroIsAny(Correct):
    """`cas` with revision 0 stores whatever is there."""

    class face(Handle):
        def cas(self, key: str, revision: int, value: bytes | str, **options: object) -> int | None:
            if revision == 0 and type(revision) is int:
                return self.store(key, value)
            return super().cas(key, revision, value, **options)  # type: ignore[arg-type]


@broken("cas.revision")
class ComparesTheCreation(Correct):
    """`cas` compares the revision of the creation."""

    class face(Handle):
        def cas(self, key: str, revision: int, value: bytes | str, **options: object) -> int | None:
            done = self.txn([Key(key).create_revision == revision], [Put(key, value)])
            return done.revision if done else None


@broken("cas.revision")
class ComparesTheValue(Correct):
    """`cas` takes a new life of a key with the same value for the old one."""

    class face(Handle):
        def cas(self, key: str, revision: int, value: bytes | str, **options: object) -> int | None:
            entry = self.get(key)
            lives = self.mutant.notes.setdefault(key, {})
            if entry is not None and lives.get(revision) == entry.value:
                revision = entry.revision
            return super().cas(key, revision, value, **options)  # type: ignore[arg-type]

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        revision = super()._put(key, value, lease, timeout)
        self.notes.setdefault(key, {})[revision] = value
        return revision


@broken("cas.revision")
class AnyRevision(Correct):
    """`cas` with what is no revision is only a mismatch."""

    class face(Handle):
        def cas(self, key: str, revision: int, value: bytes | str, **options: object) -> int | None:
            if not isinstance(revision, int) or revision < 0:
                return None
            return super().cas(key, revision, value, **options)  # type: ignore[arg-type]


@broken("delete-range.bounds")
class DeletesToTheLastUnit(Correct):
    """`delete_range` of a prefix leaves the keys whose rest begins beyond U+FFFF."""

    def _delete_range(self, span: Span, timeout: float) -> int:
        end = span.end if span.prefix is None else f"{span.prefix}\uffff"
        return super()._delete_range(Span(span.start, end), timeout)
