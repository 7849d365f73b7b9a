"""`TypedView`: a store that reads and writes values of one type; see `kvi.entities.typed`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from kvi.entities.codecs import Codec
from kvi.entities.typed import Coding, Entry, TypedEvent
from kvi.errors import BadRecord
from kvi.model import Event, EventType, KeyValue, LeaseRef, RangeResult
from kvi.sync.kvi import Kvi

if TYPE_CHECKING:
    from kvi.sync.watch import Watch

V = TypeVar("V")


class TypedView(Coding[V]):
    """A view of ``store`` whose values are of the type of ``codec``. Safe for threads.

    What has no value in it (deleting, counting, locks, leases) is asked of ``.store`` itself, which
    stays its owner's to close.
    """

    def __init__(self, store: Kvi, codec: Codec[V]) -> None:
        super().__init__(codec, store.uri)
        self.store = store
        """The store underneath."""

    def get(
        self, key: str, *, revision: int | None = None, timeout: float | None = None
    ) -> Entry[V] | None:
        """Read one entry; ``None`` if it is not there. Raises `BadRecord`; else as `Kvi.get`."""
        entry = self.store.get(key, revision=revision, timeout=timeout)
        return None if entry is None else self._entry(entry)

    def range(
        self,
        start: str | None = None,
        end: str | None = None,
        *,
        prefix: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        revision: int | None = None,
        bad: Callable[[BadRecord], object] | None = None,
        timeout: float | None = None,
    ) -> TypedRange[V]:
        """Read entries as `Kvi.range` does.

        A bad record raises `BadRecord` where the iteration comes to it; with ``bad`` that is called
        instead, and the iteration goes on.
        """
        found = self.store.range(
            start,
            end,
            prefix=prefix,
            limit=limit,
            reverse=reverse,
            revision=revision,
            timeout=timeout,
        )
        return TypedRange(found, self._entry, bad)

    def history(
        self, key: str, *, limit: int | None = None, timeout: float | None = None
    ) -> list[TypedEvent[V]]:
        """The changes of a key, as of `Kvi.history`. Raises `BadRecord` if one is bad."""
        events = self.store.history(key, limit=limit, timeout=timeout)
        return [self._event(event) for event in events]

    def put(
        self,
        key: str,
        value: V,
        *,
        lease: int | LeaseRef | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Create or replace an entry, as `Kvi.store` does; returns the new revision."""
        data = self._encode(key, value)
        return self.store.store(key, data, lease=lease, ttl=ttl, timeout=timeout)

    def update(
        self,
        key: str,
        fn: Callable[[V | None], V | None],
        *,
        default: V | None = None,
        timeout: float | None = None,
    ) -> Entry[V] | None:
        """Change a value atomically, as `Kvi.update` does; raises `BadRecord` for a bad one."""

        def change(old: bytes | None) -> Any:
            new = fn(None if old is None else self._value(key, old))
            # a coroutine is none of its values; `Kvi.update` refuses it
            return new if new is None or isinstance(new, Coroutine) else self._encode(key, new)

        absent = None if default is None else self._encode(key, default)  # each run has its own
        entry = self.store.update(key, change, default=absent, timeout=timeout)
        return None if entry is None else self._entry(entry)

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
