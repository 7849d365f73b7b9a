"""Run the program on one store; exit code 1 if a total is wrong, 2 if the store fails."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import kvi

from docs.examples.shared_settings.program import run
from docs.examples.shared_settings.report import show


def main(argv: list[str]) -> int:
    """Read the options, run, tell."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.examples.shared_settings",
        description="Several processes share the settings of a service in one store.",
    )
    parser.add_argument("--uri", help="the store (default: a SQLite file in a temporary folder)")
    parser.add_argument("--processes", type=_positive, default=4, metavar="N")
    parser.add_argument("--increments", type=_positive, default=250, metavar="N", help="by each")
    parser.add_argument("--transfers", type=_positive, default=100, metavar="N", help="by each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kvi-shared-settings-") as folder:
        uri = options.uri or "sqlite:" + quote(str(Path(folder) / "settings.db"))
        try:
            account = run(uri, options.processes, options.increments, options.transfers)
        except kvi.KviError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2
    show(account)
    if options.json:
        options.json.write_text(json.dumps(account.as_json()))
    return 0 if account.good else 1


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
