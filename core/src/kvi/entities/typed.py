"""What a typed view of a store is made of: values of one type in, entries of that type out.

A view keeps nothing and locks nothing: every call is one of the store's, with the value encoded on
the way in and decoded on the way out. What is stored and cannot be decoded is a `BadRecord` with
its key.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from kvi.entities.codecs import Codec
from kvi.errors import BadRecord, KviError
from kvi.model import Compare, Event, EventType, Key, KeyValue, LeaseRef, Put

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


class Coding(Generic[V]):
    """What a view does with values, of either face. Safe for threads."""

    def __init__(self, codec: Codec[V], uri: str) -> None:
        self._codec = codec
        self._uri = uri

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
        return f"<TypedView {self._codec!r} {self._uri}>"

    def _encode(self, key: str, value: V) -> bytes:
        try:
            return self._codec.encode(value)
        except KviError as error:
            error.located("encode", key, self._uri)
            raise

    def _value(self, key: str, data: bytes) -> V:
        try:
            return self._codec.decode(data)
        except BadRecord as error:
            error.located("decode", key, self._uri)
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
