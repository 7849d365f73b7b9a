"""A process whose calls of a memory store are interrupted at random moments: SEED HITS.

The main thread writes, and a signal's handler raises after a random time. Another thread looks at
the store all the while. It ends with 1 and what is wrong, or with 0.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable

import kvi

KEYS = [f"many/{number:02}" for number in range(20)]


class Interrupt(Exception):
    """What the handler raises."""


def handler(number: int, frame: object) -> None:
    """Interrupt what runs."""
    raise Interrupt


def replace_all(store: kvi.Kvi, chosen: random.Random) -> None:
    """Write all keys, or delete them, in one transaction."""
    value = str(chosen.random())
    store.txn(
        then=[kvi.Put(key, value) if value < "0.8" else kvi.Delete(key) for key in KEYS],
    )


def look(store: kvi.Kvi) -> str | None:
    """What is wrong with what a look at the store shows."""
    entries = list(store.range(prefix="many/"))
    if len(entries) not in (0, len(KEYS)):
        return f"{len(entries)} keys of a transaction"
    if len({entry.value for entry in entries}) > 1 or len({e.revision for e in entries}) > 1:
        return "two transactions at once"
    return None


CALLS: list[Callable[[kvi.Kvi, random.Random], object]] = [
    lambda store, chosen: [store.store("one", str(n)) for n in range(50)],
    lambda store, chosen: [store.store(f"new/{chosen.random()}", b"") for _ in range(20)],
    replace_all,
    lambda store, chosen: [list(store.range()) for _ in range(3)],
    lambda store, chosen: [store.count(prefix="new/") for _ in range(20)],
    lambda store, chosen: store.delete_range(prefix="many/"),
    lambda store, chosen: store.delete_range(prefix="new/"),
]


def main(seed: int, hits: int) -> str | None:
    """Run; what went wrong."""
    chosen = random.Random(seed)
    troubles: list[str] = []
    over = threading.Event()
    store = kvi.open("mem:")
    told: list[kvi.Event] = []

    def check() -> None:
        peer = kvi.open("mem:")
        looks = 0
        while not over.is_set() or not looks:
            looks += 1
            try:
                if (wrong := look(peer)) is not None:
                    troubles.append(wrong)
                peer.store("check", b"")
            except BaseException as error:
                troubles.append(repr(error))
                raise

    watcher = kvi.open("mem:").watch(prefix="")
    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    signal.signal(signal.SIGALRM, handler)
    done = 0
    while done < hits and not troubles:
        call = chosen.choice(CALLS)
        try:
            signal.setitimer(signal.ITIMER_REAL, chosen.uniform(1e-6, 2e-3))
            while True:
                call(store, chosen)
        except Interrupt:
            done += 1
    over.set()
    thread.join(20)
    if thread.is_alive():
        return "another thread hangs"
    present = {entry.key: entry.value for entry in store.range()}
    seen: dict[str, bytes | None] = {}
    while watcher.revision != store.range().revision or not told:
        event = watcher.next(5)
        told.append(event)
        if event.type is kvi.EventType.RESYNC:
            seen = {entry.key: entry.value for entry in event.snapshot or ()}
        elif event.type is kvi.EventType.PUT:
            seen[event.key] = event.value
        else:
            seen.pop(event.key, None)
    if seen != present:
        troubles.append("the watch does not end at what is there")
    if store.count() != len(present) or list(present) != sorted(present):
        troubles.append("the keys do not agree")
    return ", ".join(troubles) or None


if __name__ == "__main__":
    trouble = main(int(sys.argv[1]), int(sys.argv[2]))
    print(trouble or "whole", flush=True)
    os._exit(trouble is not None)  # a thread that hangs must not be waited for
