"""Stores that are broken on purpose, by which the conformance suite is tested.

Each is the memory store with a few lines of its own, and names the rules of the contract that it
breaks. A run of the tests of those rules must report every one of them as broken, and on the store
that they derive from, none.
"""

from tests.conformance.broken import (
    handles,
    interrupts,
    keys,
    leases,
    locks,
    namespaces,
    past,
    processes,
    read_only,
    reading,
    recipes,
    servers,
    tasks,
    txns,
    updates,
    watches,
    writing,
)
from tests.conformance.broken.correct import BROKEN, Mutant

__all__ = [
    "BROKEN",
    "Mutant",
    "handles",
    "interrupts",
    "keys",
    "leases",
    "locks",
    "namespaces",
    "past",
    "processes",
    "read_only",
    "reading",
    "recipes",
    "servers",
    "tasks",
    "txns",
    "updates",
    "watches",
    "writing",
]
