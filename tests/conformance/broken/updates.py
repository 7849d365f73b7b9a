"""Handles whose read-modify-write is wrong, and keys with a wrong time to live."""

# What a mutant breaks is told by its class.
# ruff: noqa: D102, D106, N801

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kvi
from kvi import KeyValue, Tx
from kvi.model import Put

from tests.conformance.broken.correct import Correct, Handle, broken

Change = Callable[[Any], Any]


@broken("update.value")
class DefaultForTheEmpty(Correct):
    """An empty value counts as none."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            default = options.get("default")
            return super().update(key, lambda old: fn(old or default), **options)


@broken("update.value")
class EmptyForNone(Correct):
    """A result of None stores an empty value."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            return super().update(key, lambda old: fn(old) or b"", **options)


@broken("update.value")
class KeepsTheLease(Correct):
    """What is stored belongs to the lease of what was there."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            old = self.get(key)
            entry = super().update(key, fn, **options)
            if old is None or old.lease is None or entry is None:
                return entry
            self.txn(then=[Put(key, entry.value or b"", old.lease)])
            return self.get(key)


@broken("update.value")
class TellsTheOldEntry(Correct):
    """The entry that is returned is the one before."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            old = self.get(key)
            super().update(key, fn, **options)
            return old


@broken("update.atomic")
class JustStores(Correct):
    """It reads, and then it writes."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            old = self.get(key)
            new = fn(old.value if old else options.get("default"))
            if new is None:
                self.delete(key)
            else:
                self.store(key, new)
            return self.get(key)


@broken("update.atomic")
class GoesByTheValue(Correct):
    """The condition is the value, which may be the same after two writes."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            while True:
                entry = self.get(key)
                old = entry.value if entry else None
                new = fn(options.get("default") if old is None else old)
                if self.tas(key, old, new):
                    return self.get(key)


@broken("update.atomic")
class WritesInTheEnd(Correct):
    """When its time is up, it writes anyway."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            try:
                return super().update(key, fn, **options)
            except kvi.Contention:
                self.store(key, fn(None))
                raise


@broken("update.raises")
class TriesErrorsOfKvi(Correct):
    """An error of kvi that the function raises is tried again, as if it were the store's."""

    class face(Handle):
        def update(self, key: str, fn: Change, **options: Any) -> KeyValue | None:
            try:
                return super().update(key, fn, **options)
            except kvi.Timeout:
                return super().update(key, fn, **options)


@broken("update.raises")
class PlacesErrors(Correct):
    """An error of kvi that the function raises gets a place that it did not happen at."""

    class face(Handle):
        def atomically(self, fn: Change, **options: Any) -> Any:
            try:
                return super().atomically(fn, **options)
            except kvi.KviError as error:
                raise self._placed(error, "atomically", None)  # noqa: B904


@broken("update.raises")
class WritesBeforeTheEnd(Correct):
    """A put is written at once."""

    class face(Handle):
        def atomically(self, fn: Change, **options: Any) -> Any:
            def writing(tx: Tx) -> Any:
                inner = tx._draft.put

                def put(key: str, value: bytes | str, lease: Any = None) -> None:
                    inner(key, value, lease)
                    self.store(key, value, lease=lease)

                tx._draft.put = put  # type: ignore[method-assign]
                return fn(tx)

            return super().atomically(writing, **options)


@broken("atomically.reads")
class ForgetsAbsence(Correct):
    """That a key was absent is no condition."""

    class face(Handle):
        def atomically(self, fn: Change, **options: Any) -> Any:
            def forgetting(tx: Tx) -> Any:
                result = fn(tx)
                read = tx._draft._read
                for key in [key for key, entry in read.items() if entry is None]:
                    del read[key]
                return result

            return super().atomically(forgetting, **options)


@broken("atomically.reads")
class WritesAreConditions(Correct):
    """What is written must be as it was, though nobody has read it."""

    class face(Handle):
        def atomically(self, fn: Change, **options: Any) -> Any:
            def reading(tx: Tx) -> Any:
                before = {entry.key: entry for entry in self.range()}
                result = fn(tx)
                for key in tx._draft._writes:
                    tx._draft._read.setdefault(key, before.get(key))
                return result

            return super().atomically(reading, **options)


@broken("atomically.reads")
class ReadsTheStore(Correct):
    """`tx.get` does not see what the run has written."""

    class face(Handle):
        def atomically(self, fn: Change, **options: Any) -> Any:
            def reading(tx: Tx) -> Any:
                class Blind(Tx):
                    def get(self, key: str) -> KeyValue | None:
                        writes, self._draft._writes = self._draft._writes, {}
                        try:
                            return super().get(key)
                        finally:
                            self._draft._writes = writes

                return fn(Blind(tx._draft))

            return super().atomically(reading, **options)


@broken("atomically.moment")
class ReadsWithoutCommit(Correct):
    """A run that writes nothing is not committed."""

    class face(Handle):
        def atomically(self, fn: Change, **options: Any) -> Any:
            def reading(tx: Tx) -> Any:
                result = fn(tx)
                if not tx._draft._writes:
                    tx._draft._read.clear()
                return result

            return super().atomically(reading, **options)


@broken("atomically.refused")
class GoesOn(Correct):
    """A `tx` can be used after its run."""

    class face(Handle):
        def atomically(self, fn: Change, **options: Any) -> Any:
            runs: list[Tx] = []
            try:
                return super().atomically(lambda tx: runs.append(tx) or fn(tx), **options)  # type: ignore[func-returns-value]
            finally:
                for tx in runs:
                    tx._draft.over = False


@broken("store.ttl")
class ForGood(Correct):
    """A key with a ttl stays."""

    class face(Handle):
        def store(self, key: str, value: bytes | str, **options: Any) -> int:
            if options.get("lease") is None:
                options.pop("ttl", None)
            return super().store(key, value, **options)


@broken("store.ttl")
class WithItsHandle(Correct):
    """A key with a ttl is gone with the handle that it was stored through."""

    class face(Handle):
        def store(self, key: str, value: bytes | str, **options: Any) -> int:
            ttl = options.get("ttl")
            if ttl is not None and options.get("lease") is None:
                del options["ttl"]
                options["lease"] = self.lease(ttl, keep_alive=False)
            return super().store(key, value, **options)
