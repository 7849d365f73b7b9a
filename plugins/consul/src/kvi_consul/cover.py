"""Which prefixes to poll, so that few polls cover many watches. Pure.

*Theory.* A poll answers with everything below its prefix whenever one key of it changes. So a poll
should be as narrow as its watches allow, and there may be only a few of them. If there are more
distinct prefixes than polls, some share one of a common ancestor.

Sorted, the prefixes that have the longest ancestor in common are neighbours. Cutting the row where
neighbours have least in common leaves groups whose ancestors are as long as can be: the cut that
is left out is the one that would have gained least.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from kvi_consul import wire


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


def covering(covers: Iterable[str], prefix: str) -> str | None:
    """The one of ``covers`` that ``prefix`` starts with, if there is one."""
    return next((cover for cover in covers if prefix.startswith(cover)), None)


def cover(prefixes: Iterable[str], most: int) -> list[str]:
    """At most ``most`` prefixes that cover all of ``prefixes``, none of which covers another."""
    row = sorted(set(prefixes))
    shared = [len(ancestor(common(*pair))) for pair in pairwise(row)]
    cuts = sorted(sorted(range(len(shared)), key=shared.__getitem__)[: most - 1])
    ends = [*(cut + 1 for cut in cuts), len(row)]
    starts = [0, *ends[:-1]]
    groups = [
        ancestor(common(row[start], row[end - 1]))
        for start, end in zip(starts, ends, strict=True)
        if start < end
    ]
    chosen: list[str] = []
    for group in sorted(groups):  # what covers another one stands before it
        if covering(chosen, group) is None:
            chosen.append(group)
    return chosen


def common(one: str, other: str) -> str:
    """The longest text that both start with."""
    size = 0
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        size += 1
    return one[:size]
