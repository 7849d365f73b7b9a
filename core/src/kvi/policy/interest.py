"""Who is interested in a key: an index from keys to the watches that span them.

Most watches are of a single key, and are found by it; the others are asked one by one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from kvi.model import Span

T = TypeVar("T", bound=Hashable)


def only_key(span: Span) -> str | None:
    """The key, if ``span`` can hold no other."""
    return span.start if span.start and span.end == span.start + "\0" else None


class Interests(Generic[T]):
    """Items by the span of keys that they are interested in. Not safe for threads by itself."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[T, None]] = {}
        self._spans: dict[T, Span] = {}

    def __len__(self) -> int:
        return len(self._spans) + sum(map(len, self._keys.values()))

    def __bool__(self) -> bool:
        return bool(self._spans or self._keys)

    def __iter__(self) -> Iterator[T]:
        yield from self._spans
        for items in self._keys.values():
            yield from items

    def add(self, span: Span, item: T) -> None:
        """Remember ``item``, which is known only once."""
        key = only_key(span)
        if key is None:
            self._spans[item] = span
        else:
            self._keys.setdefault(key, {})[item] = None

    def discard(self, span: Span, item: T) -> None:
        """Forget ``item``, which was added with ``span``; it may be gone already."""
        key = only_key(span)
        if key is None:
            self._spans.pop(item, None)
            return
        items = self._keys.get(key)
        if items is not None:
            items.pop(item, None)
            if not items:
                del self._keys[key]

    def matching(self, keys: Iterable[str]) -> set[T]:
        """The items that are interested in at least one of ``keys``."""
        found: set[T] = set()
        several = sorted(keys)
        if self._keys:
            for key in several:
                found.update(self._keys.get(key, ()))
        for item, span in self._spans.items():
            # the first key that is not below the span is in it, or none is
            first = bisect_left(several, span.start)
            if first < len(several) and several[first] in span:
                found.add(item)
        return found
