"""`python -m kvi.conformance.interrupts URI`: interrupt every call on a store."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import sys
import threading
from statistics import median
from time import monotonic, sleep

import kvi
from kvi.conformance.interrupts import HITS
from kvi.conformance.interrupts.operations import OPERATIONS, Operation
from kvi.conformance.interrupts.striking import KINDS, Broken, Striker
from kvi.conformance.interrupts.world import World, accompany

HANGS = 60.0
"""Seconds after which a step of the main thread hangs."""

_LEAST, _WAIT = 3e-4, 0.03  # seconds within which a call is hit that is short, or waits
_TRIES = 40  # hits between two calls, for each one that counts


class _Run:
    """One run: what it does now, for who must tell that it hangs."""

    def __init__(self, uri: str, seed: int, hits: int) -> None:
        self._uri, self._seed, self._hits = uri, seed, hits
        self._name = "open"
        self._step, self._since = "it is prepared", monotonic()
        self._striker = Striker()
        threading.Thread(target=self._guard, name="guard", daemon=True).start()

    def run(self, names: list[str]) -> None:
        """Interrupt these operations; ends the process."""
        try:
            world = World(self._uri)
            for name in names:
                self._name = name
                self._interrupt(world, OPERATIONS[name])
            self._at("the end")
            world.finish()
        except Broken as broken:
            self._end(str(broken))
        except Exception as error:  # noqa: BLE001  (of what was not interrupted)
            self._end(f"raised {type(error).__name__} without being interrupted: {error}")
        os._exit(0)  # nothing that may hang is waited for

    def _interrupt(self, world: World, kind: type[Operation]) -> None:
        self._at("it is prepared")
        operation = kind(world)
        longest = _WAIT if kind.waits else max(_LEAST, 1.2 * self._duration(operation))
        chosen = random.Random(f"{self._seed}/{self._name}")
        inside = tries = 0
        while inside < self._hits and tries < _TRIES * self._hits:
            tries += 1
            self._at(f"hit {tries}")
            delay = chosen.uniform(1e-6, longest)
            inside += self._striker.strike(operation.call, delay, chosen.choice(KINDS))
            world.where = self._striker.where
            self._at(f"after hit {tries}")
            gc.collect()
            operation.struck()
            world.go_on()
        self._at("the end of it")
        operation.end()
        sys.stdout.write(f"{self._name}: {inside} hits\n")
        sys.stdout.flush()

    def _duration(self, operation: Operation) -> float:
        """Seconds of a call; what is only imported when it is needed is there afterwards."""
        taken = []
        for _ in range(4):
            began = monotonic()
            operation.call()
            taken.append(monotonic() - began)
        return median(taken[1:])

    def _at(self, step: str) -> None:
        self._step, self._since = step, monotonic()

    def _guard(self) -> None:
        while True:
            sleep(0.5)
            if monotonic() - self._since > HANGS:
                self._end(f"the main thread hangs for {HANGS:g} s")

    def _end(self, broken: str) -> None:
        last = f"; the last interrupt was raised in {self._striker.where}"
        told = f"{self._name} (seed {self._seed}, {self._step}): {broken}"
        sys.stdout.write(f"{told}{last if 'hit' in self._step else ''}\n")
        sys.stdout.flush()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)


def main() -> None:
    """Run; ends the process with 0 if all is whole, 1 if not, 2 if there is no such store."""
    parser = argparse.ArgumentParser(
        prog="python -m kvi.conformance.interrupts",
        description="Interrupt every call on a store. EVERYTHING IN THE STORE IS DELETED.",
    )
    parser.add_argument("uri", help="the store, which nothing else may use meanwhile")
    parser.add_argument(
        "--operation", action="append", choices=OPERATIONS, help="only this one, or these"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random times (default: 1)")
    parser.add_argument(
        "--hits", type=int, default=HITS, help=f"of each operation (default: {HITS})"
    )
    parser.add_argument("--companion", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        with kvi.open(options.uri):
            pass
    except kvi.KviError as error:
        parser.error(str(error))
    if options.companion:
        accompany(options.uri)
    else:
        _Run(options.uri, options.seed, options.hits).run(options.operation or list(OPERATIONS))


if __name__ == "__main__":
    main()
