"""`TypedView`: a store that reads and writes values of one type.

A view keeps nothing and locks nothing: every call is one of the store's, with the value encoded on
the way in and decoded on the way out. What is stored and cannot be decoded is a `BadRecord` with
its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

from kvi.errors import BadRecord, KviError
from kvi.loader.codecs import Codec
from kvi.model import Compare, Event, EventType, Key, KeyValue, LeaseRef, Put, RangeResult
from kvi.sync.kvi import Kvi

if TYPE_CHECKING:
    from kvi.sync.watch import Watch

__all__ = ["Entry", "TypedEvent", "TypedRange", "TypedView", "TypedWatch"]

V = TypeVar("V")


class Entry(NamedTuple, Generic[V]):
    """One entry with its value decoded; otherwise as `kvi.KeyValue`."""

    key: str
    value: V
    revision: int
    create_revision: int
    version: int | None = None
    lease: int | None = None


class TypedEvent(NamedTuple, Generic[V]):
    """One change with its value decoded; otherwise as `kvi.Event`.

    ``value`` is ``None`` unless ``type`` is ``PUT``. ``previous`` is not told. ``bad`` are the
    records that are missing in the ``snapshot`` of a ``RESYNC``, because they are none.
    """

    type: EventType
    key: str
    value: V | None
    revision: int
    initial: bool = False
    snapshot: list[Entry[V]] | None = None
    bad: tuple[BadRecord, ...] = ()


class TypedView(Generic[V]):
    """A view of ``store`` whose values are of the type of ``codec``. Safe for threads.

    What has no value in it (deleting, counting, locks, leases) is asked of ``.store`` itself, which
    stays its owner's to close.
    """

    def __init__(self, store: Kvi, codec: Codec[V]) -> None:
        self.store = store
        """The store underneath."""
        self._codec = codec

    def get(self, key: str, *, timeout: float | None = None) -> Entry[V] | None:
        """Read one entry; ``None`` if it is not there. Raises `BadRecord`; else as `Kvi.get`."""
        entry = self.store.get(key, timeout=timeout)
        return None if entry is None else self._entry(entry)

    def range(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        bad: Callable[[BadRecord], object] | None = None,
        timeout: float | None = None,
    ) -> TypedRange[V]:
        """Read entries as `Kvi.range` does.

        A bad record raises `BadRecord` where the iteration comes to it; with ``bad`` that is called
        instead, and the iteration goes on.
        """
        found = self.store.range(
            start, end, prefix=prefix, limit=limit, reverse=reverse, timeout=timeout
        )
        return TypedRange(found, self._entry, bad)

    def put(
        self,
        key: str,
        value: V,
        *,
        lease: int | LeaseRef | None = None,
        timeout: float | None = None,
    ) -> int:
        """Create or replace an entry, as `Kvi.store` does; returns the new revision."""
        return self.store.store(key, self._encode(key, value), lease=lease, timeout=timeout)

    def cas(
        self,
        key: str,
        revision: int,
        value: V,
        *,
        lease: int | LeaseRef | None = None,
        timeout: float | None = None,
    ) -> int | None:
        """Store only if the key's revision is this one (0: if it is absent), as `Kvi.cas` does."""
        data = self._encode(key, value)
        return self.store.cas(key, revision, data, lease=lease, timeout=timeout)

    def tas(self, key: str, test: V | None, set: V | None, *, timeout: float | None = None) -> bool:  # noqa: A002
        """Test and set, as `Kvi.tas` does: ``None`` is "absent".

        Compares bytes. Where equal values may have different ones, as protobuf's may, use `cas`.
        """
        old = None if test is None else self._encode(key, test)
        new = None if set is None else self._encode(key, set)
        return self.store.tas(key, old, new, timeout=timeout)

    def watch(
        self,
        key: str | None = None,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        from_revision: int | None = None,
        initial: bool = False,
        events: EventType | Iterable[EventType] | None = None,
        timeout: float | None = None,
    ) -> TypedWatch[V]:
        """Watch as `Kvi.watch` does, without call-back."""
        watch = self.store.watch(
            key,
            prefix=prefix,
            start=start,
            end=end,
            from_revision=from_revision,
            initial=initial,
            events=events,
            timeout=timeout,
        )
        return TypedWatch(watch, self._event)

    def put_op(self, key: str, value: V, *, lease: int | LeaseRef | None = None) -> Put:
        """The same as `put`, as an operation for `Kvi.txn`."""
        return Put(key, self._encode(key, value), lease)

    def equals(self, key: str, value: V) -> Compare:
        """The condition that the key has this value, for `Kvi.txn`; compares bytes, see `tas`."""
        return Key(key).value == self._encode(key, value)

    def decode(self, entry: KeyValue) -> Entry[V]:
        """An entry that was read from the store itself, as by `Kvi.txn`. Raises `BadRecord`."""
        return self._entry(entry)

    def __repr__(self) -> str:
        return f"<TypedView {self._codec!r} {self.store.uri}>"

    def _encode(self, key: str, value: V) -> bytes:
        try:
            return self._codec.encode(value)
        except KviError as error:
            error.located("encode", key, self.store.uri)
            raise

    def _value(self, key: str, data: bytes) -> V:
        try:
            return self._codec.decode(data)
        except BadRecord as error:
            error.located("decode", key, self.store.uri)
            raise

    def _entry(self, entry: KeyValue) -> Entry[V]:
        value = self._value(entry.key, entry._bytes())
        return Entry(entry.key, value, *entry[2:])

    def _event(self, event: Event) -> TypedEvent[V]:
        value = None if event.value is None else self._value(event.key, event.value)
        snapshot: list[Entry[V]] | None = None
        bad: list[BadRecord] = []
        if event.snapshot is not None:
            snapshot = []
            for entry in event.snapshot:
                try:
                    snapshot.append(self._entry(entry))
                except BadRecord as error:
                    bad.append(error)
        return TypedEvent(
            event.type, event.key, value, event.revision, event.initial, snapshot, tuple(bad)
        )


class TypedRange(Iterable[Entry[V]]):
    """The entries of a range, decoded one by one while they are iterated; see `kvi.RangeResult`.

    Attributes:
        revision: as of `kvi.RangeResult`.

    """

    def __init__(
        self,
        found: RangeResult,
        decode: Callable[[KeyValue], Entry[V]],
        bad: Callable[[BadRecord], object] | None,
    ) -> None:
        self.revision = found.revision
        self._found = found
        self._decode = decode
        self._bad = bad

    def __iter__(self) -> Iterator[Entry[V]]:
        for entry in self._found:
            try:
                decoded = self._decode(entry)
            except BadRecord as error:
                if self._bad is None:
                    raise
                self._bad(error)
            else:
                yield decoded


class TypedWatch(Generic[V]):
    """Changes with their values decoded; see `kvi.Watch`, which is ``.watch``.

    A bad record raises `BadRecord` from `next`; the one after it delivers the change after it.
    """

    def __init__(self, watch: Watch, decode: Callable[[Event], TypedEvent[V]]) -> None:
        self.watch = watch
        """The watch underneath."""
        self._decode = decode

    def next(self, timeout: float | None = None) -> TypedEvent[V]:
        """The next change; raises as `kvi.Watch.next` does, and `BadRecord`."""
        return self._decode(self.watch.next(timeout))

    def cancel(self) -> None:
        """End the watch."""
        self.watch.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TypedEvent[V]:
        return self._decode(next(self.watch))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.cancel()
