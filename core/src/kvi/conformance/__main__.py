"""`python -m kvi.conformance URI`: run the suite on a store, and report rule by rule."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import kvi
from kvi.conformance.plugin import NotRun
from kvi.conformance.report import printable
from kvi.conformance.session import run, told_in_lines


def options_of() -> argparse.ArgumentParser:
    """What the command line takes; `kvi conformance` takes the same."""
    parser = argparse.ArgumentParser(
        prog="python -m kvi.conformance",
        description="Check that a store keeps the contract. EVERYTHING IN THE STORE IS DELETED.",
    )
    parser.add_argument("uri", help="the store, which nothing else may use meanwhile")
    parser.add_argument("--erase", action="store_true", help="go on although it is not empty")
    parser.add_argument(
        "--rule", action="append", default=[], metavar="NAME",
        help="check only this rule (lock.fence) or these (lock); may be given again",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report for programs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page")
    parser.add_argument(
        "--also", action="append", default=[], type=Path, metavar="FILE",
        help="a test file with more rules, such as those of faults with their fixture kvi_server",
    )  # fmt: skip
    parser.add_argument("--aio", action="store_true", help="check kvi.aio on the store")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if every rule is kept, 1 if one is broken, 2 if the suite could not be run."""
    parser = options_of()
    options = parser.parse_args(arguments)
    for path in (options.json, options.html):
        if path is not None:
            try:
                path.open("a", encoding="utf-8").close()
            except OSError as error:
                parser.error(f"cannot write {path}: {error.strerror}")
    terminal, errors = Console(), Console(stderr=True)
    try:
        with Progress(
            console=errors,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not sys.stderr.isatty(),
        ) as progress:
            task = progress.add_task("checking", total=None)
            report = run(
                options.uri,
                erase=options.erase,
                select=options.rule,
                also=options.also,
                aio=options.aio,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
                finished=told_in_lines(),
            )
    except KeyboardInterrupt:
        errors.out("interrupted", highlight=False)
        return 130
    except (kvi.KviError, NotRun) as error:
        errors.out(printable(str(error)), highlight=False)
        return 2
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal of ASCII
    sys.stdout.write(
        report.text(
            width=min(terminal.width, 120), colour=terminal.is_terminal and not terminal.no_color
        )
    )
    for path, content in ((options.json, report.json), (options.html, report.html)):
        if path is not None:
            path.write_text(content(), encoding="utf-8", errors="backslashreplace")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
