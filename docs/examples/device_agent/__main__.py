"""Run the program on one store; exit code 1 if anything is inconsistent, 2 if the store fails."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import kvi

from docs.examples.device_agent.program import run
from docs.examples.device_agent.report import show


def main(argv: list[str]) -> int:
    """Read the options, run, tell."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.examples.device_agent",
        description="Agents in several processes change one device's flows, meters and profiles; "
        "every now and then one is killed and started again.",
    )
    parser.add_argument("--uri", help="the store (default: a SQLite file in a temporary folder)")
    parser.add_argument("--agents", type=int, choices=range(1, 33), default=6, metavar="N")
    parser.add_argument("--seconds", type=float, default=8, metavar="S")
    parser.add_argument("--kill-every", type=float, default=2, metavar="S")
    parser.add_argument(
        "--one-by-one",
        action="store_true",
        help="write what belongs together one after the other, to see the checker find it",
    )
    parser.add_argument("--seed", type=int, help="of the dice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kvi-device-agent-") as folder:
        uri = options.uri or "sqlite:" + quote(str(Path(folder) / "device.db"))
        try:
            account = run(
                uri,
                options.agents,
                options.seconds,
                options.kill_every,
                whole=not options.one_by_one,
                seed=options.seed,
            )
        except kvi.KviError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2
    show(account)
    if options.json:
        options.json.write_text(json.dumps(account.as_json()))
    return 1 if account.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
