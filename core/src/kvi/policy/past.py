"""What of a store's past there still is: decided on plain data, said in the same words by all."""

from __future__ import annotations

from kvi.errors import Compacted, InvalidArgument


def check_past(revision: int, oldest: int, present: int) -> None:
    """Raise unless the state at ``revision`` is one from ``oldest`` to ``present``.

    `Compacted` if it is gone, `InvalidArgument` if it has not been yet.
    """
    if revision > present:
        raise future(revision)
    if revision < oldest:
        raise gone(revision)


def future(revision: int) -> InvalidArgument:
    """The store has not come to ``revision``."""
    return InvalidArgument(
        f"the store has not come to revision {revision} yet; name one that it has been at"
    )


def gone(revision: int) -> Compacted:
    """The state at ``revision`` is gone."""
    return Compacted(
        f"the state at revision {revision} is gone from the store's history; "
        "read a later one, or the present"
    )
