"""Exceptions that a signal handler raises at random moments of every call.

Python runs signal handlers in the main thread only, and what they break may hang the process. So
this is a program of its own, which the rule `handle.interrupt` starts on the store that it checks
(everything in which is deleted), and which anybody can start to see a failure again::

    python -m kvi.conformance.interrupts URI --operation lock-wait --seed 7 --hits 300

For each operation, until it has been hit often enough, it

1. lets a signal come after a random time, while the main thread makes the call again and again
   (`striking`): the very exception that the handler raised must come out, at once;
2. asks whether all goes on in time (`world`): in another thread by the same handle and by another
   one, in another process where the store is shared, and what the operation itself says of it
   (`operations`): nothing is half done, what the call returned can still be given back;
3. at the end, that nothing stays taken beyond the bounds of a crash, and that watches have seen
   every write that was acknowledged.

The first thing that is wrong ends it; the line that tells it names the operation, the seed, and
where the exception was raised. The random times are those of the seed, what is hit by them is not:
a failure comes again with the same operation and seed, and more hits.
"""

from __future__ import annotations

__all__ = ["GROUPS", "HITS"]

HITS = 4
"""How often each operation is hit in a run of the suite."""

GROUPS: dict[str, tuple[str, ...]] = {
    "reads": ("get", "range", "count", "past"),
    "writes": ("store", "update", "txn", "delete-range", "view"),
    "leases": ("lease", "temp-key"),
    "locks": ("lock", "lock-with", "lock-wait"),
    "watches": ("watch-next", "watch-iterate", "watch-callback"),
    "loader": ("loader-update", "loader-commit"),
    "backend": ("backend", "channel"),
    "handles": ("open", "close"),
}
"""The operations, by the tests of the suite, each of which is one process."""
