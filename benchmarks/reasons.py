"""Why a row does not reach its target: what its time is spent on, by profile.

Each says what the floor of the row is, and what kvi does beside it that no promise allows to leave
out. `benchmarks.page` prints them with the rows that fall short.
"""

from __future__ import annotations

_MAIN = (
    "The calls are made by the main thread, where a signal's handler may raise anywhere. "
    "gRPC's client cannot be left in the middle, so another thread does the call "
    "(`kvi.driver.threads`): two wakings, 20 µs on an idle machine, and up to "
    "120 µs where the server wants the same two cores. Called from any other thread, a `get` "
    "takes 1.05 to 1.1 times the floor."
)

_ASKED = (
    "`aetcd` and `etcetra` send neither a time-out nor that they want a leader; the bare stub with "
    "both is among the others. A call of kvi's own takes 5.5 µs beside calls that cost nothing, "
    "and 10 to 13 beside real ones, on caches that gRPC has used since: the arguments are checked, "
    "the call can be ended by `close`, tried again, and goes to another endpoint. 1 µs of it is in "
    "the plugin."
)

REASONS = {
    "a new process, import, open mem:, get": (
        "20 ms are `dataclasses`, `typing`, `enum` and `threading` of the standard library, "
        "which every typed package imports; 5 are pluggy, 4 the URI (`urllib.parse`, `re`), 8"
        " the values' own dataclasses. Without these there would be 20 left."
    ),
    "a new process, kvi get, on SQLite": (
        "As above, and `click`, `rich` and the SQLite plugin are imported too."
    ),
    "memory, store": (
        "The floor replaces a reference. kvi makes the entry and its change (two tuples), "
        "counts bytes, and appends to the history that watches and reads of the past need."
    ),
    "memory, range of 100 of 1,000": (
        "The slice itself takes what the floor's does; the rest are the arguments, checked, "
        "and an iterator that can be begun anew: 3 µs however many entries there are."
    ),
    "memory, range of 100 of 1,000,000": ("As of 1,000."),
    "entities, load 100,000 messages": (
        "Half of what kvi adds is Python's garbage collector, which looks at the 200,000 "
        "objects that stay: of each entity a slot (its lock) and what is known of it. The "
        "rest is checking that each record belongs under its key: four calls an entity, one "
        "of them the program's own `key`."
    ),
    "sqlite, store, durable": (
        "Half of it is the floor's own commit, which waits for the disk. kvi writes three "
        "rows (the entry, its event, what it replaced) and looks before each write whether "
        "the file is still the one that others see."
    ),
    "sqlite, store, durable, 8 threads": (
        "Eight threads share their commits, and are no longer bound by the disk but by "
        "Python's lock: of 95 µs a store 30 are its own work, the rest is threads that wake "
        "one another."
    ),
    "sqlite, import, a key": (
        "The floor inserts rows. kvi reads whether each key is there, and writes an event "
        "beside each entry."
    ),
    "etcd, get, 1 thread": _MAIN,
    "etcd, store, 1 thread": ("As `get`."),
    "etcd, get, 32 threads": (
        "All 32 want Python's lock: 15 µs of kvi's own steps a call (arguments, retries, "
        "failover, time-outs) are added to the 220 that gRPC's client takes."
    ),
    "etcd, store, 32 threads": ("As `get`."),
    "etcd, range of 100,000 × 1 KB": (
        "The pages and their number are the floor's. kvi makes an entry of each pair, with "
        "its key as text."
    ),
    "consul, get": (
        "kvi reads in a transaction, whose JSON can name any key, and says how consistent; what "
        "that costs Consul is within what chance moves this row by."
    ),
    "consul, store": ("As `get`."),
    "locks, etcd, lock + unlock": (
        "Two calls of the main thread, see etcd; and a lock has more to keep: its lease, who "
        "waits, whether it was lost."
    ),
    "etcd, await get, 1 task": _ASKED,
    "etcd, await store, 1 task": "As `await get`, 1 task.",
    "etcd, await get, 32 tasks": _ASKED,
    "etcd, await store, 32 tasks": "As `await get`, 32 tasks.",
    "etcd, await get, 256 tasks": "As `await get`, 32 tasks.",
    "etcd, await store, 256 tasks": "As `await get`, 32 tasks.",
}
