"""Run one program on SQLite, etcd and Consul; only the URI changes.

`python -m tests.servers -- python -m docs.examples.shared_settings.demo` starts the servers. Each
run is a process of its own; what is left to compare is the figures that it wrote.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from docs.examples.shared_settings.program import CODE
from docs.examples.shared_settings.report import milliseconds
from docs.examples.stores import found, names_a_store

PROGRAM = "docs.examples.shared_settings"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the program: the store, and the figures it wrote."""

    store: str
    figures: dict[str, Any]


def main(options: list[str]) -> int:
    """Run on every store there is, passing ``options`` on; 1 if any total was wrong."""
    console = Console(highlight=False)
    runs, wrong = [], 0
    with tempfile.TemporaryDirectory(prefix="kvi-demo-") as folder:
        for store in found(Path(folder), console):
            console.rule(f"[bold]{store.title}[/]", align="left")
            figures = Path(folder) / "figures.json"
            arguments = ["-m", PROGRAM, "--uri", store.uri, *options]
            console.print(f"$ python {shlex.join(arguments)}\n", soft_wrap=True)
            command = [sys.executable, *arguments, "--json", str(figures)]
            code = subprocess.run(command).returncode
            wrong = max(wrong, code)
            if code <= 1:  # the program ran to its end, right or wrong
                runs.append(Run(store.title, json.loads(figures.read_text())))
            console.print()
    if runs:
        _compare(console, runs)
    return wrong


def _compare(console: Console, runs: list[Run]) -> None:
    console.rule("[bold]Side by side[/]", align="left")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("store", no_wrap=True)
    for title in ("calls", "lost", "seconds", "calls/s", "hit", "99 %", "totals"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in runs:
        told = run.figures
        table.add_row(
            run.store,
            f"{told['operations']:,}",
            f"{told['lost']:,}",
            f"{told['seconds']:.2f}",
            f"{told['rate']:,.0f}",
            milliseconds(told["hit_seconds"]["50"]),
            milliseconds(told["hit_seconds"]["99"]),
            "right" if told["good"] else "[bold red]WRONG[/]",
        )
    console.print(table)
    text = "".join((Path(__file__).parent / name).read_text() for name in CODE)
    others = int(runs[0].figures["processes"]) - 1
    claims = {
        f"The same code ran each time: {', '.join(CODE)}, {len(text.splitlines())} lines, "
        f"sha256 {runs[0].figures['code']}…": len({run.figures["code"] for run in runs}) == 1,
        "The name of no store stands in it.": not names_a_store(text),
        "Each run imported the plugin that its URI names, and no other: "
        + ", ".join(" ".join(run.figures["loaded"]) for run in runs): all(
            len(run.figures["loaded"]) == 1 for run in runs
        ),
        "The same values are left in every store, whoever lost how many races: counter, quotas "
        "and settings.": all(run.figures["shared"] == runs[0].figures["shared"] for run in runs),
    }
    console.print(
        "\n“hit” is the time of one counted request, lost races included: a read and a "
        f"test-and-set, against {others} other processes.\n",
        soft_wrap=True,
    )
    for claim, holds in claims.items():
        mark = "[green]yes[/]" if holds else "[bold red]NO[/] "
        console.print(f"{mark}  {claim}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
