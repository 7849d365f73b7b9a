"""Run the program on one store; exit code 1 if a promise was broken, 2 if the store fails."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import kvi

from docs.examples.shared_work.plan import NAMES
from docs.examples.shared_work.program import run
from docs.examples.shared_work.report import show


def main(argv: list[str]) -> int:
    """Read the options, run, tell."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.examples.shared_work",
        description="Crews of processes count under locks; one is killed, one is stopped.",
    )
    parser.add_argument("--uri", help="the store (default: a SQLite file in a temporary folder)")
    parser.add_argument(
        "--processes", type=int, choices=range(4, len(NAMES) + 1), default=6, metavar="N"
    )
    parser.add_argument(
        "--target", type=int, choices=range(4, 10_000), default=60, metavar="N", help="of a crew"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kvi-shared-work-") as folder:
        uri = options.uri or "sqlite:" + quote(str(Path(folder) / "work.db"))
        try:
            account = run(uri, options.processes, options.target)
        except kvi.KviError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2
    show(account)
    if options.json:
        options.json.write_text(json.dumps(account.as_json()))
    return 0 if account.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
