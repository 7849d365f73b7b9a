"""``make simulate``: run schedules, print how fast and how it went.

Without ``--schedules 1`` and a failure nothing is told; a schedule that fails is told whole.
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.schedule import SCENARIOS, measure, run


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default=None)
    given = parser.parse_args()
    names = list(SCENARIOS) if given.scenario is None else [given.scenario]
    if given.schedules == 1:
        outcomes = [run(name, given.seed, telling=True) for name in names]
        for outcome in outcomes:
            print(outcome)
        return int(any(outcome.violation for outcome in outcomes))
    for name in names:
        rate, failed = measure(name, range(given.seed, given.seed + given.schedules))
        print(f"{name}: {rate}")
        if failed is not None:
            print(failed)
            print(f"again: make simulate SCENARIO={name} SEED={failed.seed} SCHEDULES=1")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
