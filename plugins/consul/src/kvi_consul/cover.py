"""Which queries to make, so that few of them cover many watches. Pure.

*Theory.* A query answers with everything below its prefix whenever one key of it changes. So each
watch has one of its own, for its key or its prefix and nothing more, as long as there are few of
them. If there are more distinct ones than queries, some share a query for a common ancestor.

A *target* is what a query is for: a prefix, or a single key, which is written with `ONE` behind it.
Sorted, those that have the longest ancestor in common are neighbours. Cutting the row where
neighbours have least in common leaves groups whose ancestors are as long as can be: the cut that
is left out is the one that would have gained least.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from os.path import commonprefix

from kvi.model import Span
from kvi.policy.interest import only_key

from kvi_consul import wire

ONE = "!"  # in no key that Consul takes as a path


def target_of(span: Span) -> str:
    """The narrowest target that shows all of ``span``."""
    key = only_key(span)
    return ancestor(span.common_prefix) if key is None or wire.path_of(key) is None else key + ONE


def ancestor(prefix: str) -> str:
    """The longest text that ``prefix`` starts with and that Consul takes as a path unchanged."""
    if wire.path_of(prefix) is not None:
        return prefix
    low, high = 0, len(prefix)  # an ancestor of a path is a path, but for one that ends in a dot
    while low < high:
        middle = (low + high + 1) // 2
        if wire.path_of(prefix[:middle].rstrip(".")) is not None:
            low = middle
        else:
            high = middle - 1
    found = prefix[:low].rstrip(".")
    assert wire.path_of(found) is not None
    return found


def covering(covers: Iterable[str], target: str) -> str | None:
    """The one of ``covers`` that shows all of ``target``, if there is one."""
    return next((cover for cover in covers if target.startswith(cover)), None)


def cover(targets: Iterable[str], most: int) -> list[str]:
    """At most ``most`` targets that cover all of ``targets``, none of which covers another."""
    row = _widest(targets)
    shared = [len(ancestor(_common(*pair))) for pair in pairwise(row)]
    cuts = sorted(sorted(range(len(shared)), key=shared.__getitem__)[: most - 1])
    ends = [*(cut + 1 for cut in cuts), len(row)]
    starts = [0, *ends[:-1]]
    return _widest(
        row[start] if end - start == 1 else ancestor(_common(row[start], row[end - 1]))
        for start, end in zip(starts, ends, strict=True)
        if start < end
    )


def _widest(targets: Iterable[str]) -> list[str]:
    """Those that no other one covers, sorted: what covers another stands right before it."""
    row: list[str] = []
    for target in sorted(targets):
        if not row or not target.startswith(row[-1]):
            row.append(target)
    return row


def _common(one: str, other: str) -> str:
    return commonprefix((one, other))  # noqa: RUF071  (of texts, not of folders)
