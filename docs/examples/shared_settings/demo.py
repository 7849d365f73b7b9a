"""Run one program on SQLite, etcd and Consul; only the URI changes.

`python -m tests.servers -- python -m docs.examples.shared_settings.demo` starts the servers. Each
run is a process of its own; what is left to compare is the figures that it wrote.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from docs.examples.shared_settings.program import CODE
from docs.examples.shared_settings.report import milliseconds

PROGRAM = "docs.examples.shared_settings"
STORES = ("sqlite", "etcd", "consul")
SERVERS = {"etcd": "KVI_TEST_ETCD", "consul": "KVI_TEST_CONSUL"}


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
        uris = {"sqlite": "sqlite:" + quote(str(Path(folder) / "settings.db"))}
        for scheme, variable in SERVERS.items():
            if variable in os.environ:
                uris[scheme] = os.environ[variable]
            else:
                console.print(f"{scheme} is left out: {variable} is not set")
        for scheme, uri in uris.items():
            store = _name(scheme, uri)
            console.rule(f"[bold]{store}[/]", align="left")
            figures = Path(folder) / "figures.json"
            arguments = ["-m", PROGRAM, "--uri", uri, *options]
            console.print(f"$ python {shlex.join(arguments)}\n", soft_wrap=True)
            command = [sys.executable, *arguments, "--json", str(figures)]
            code = subprocess.run(command).returncode
            wrong = max(wrong, code)
            if code <= 1:  # the program ran to its end, right or wrong
                runs.append(Run(store, json.loads(figures.read_text())))
            console.print()
    if runs:
        _compare(console, runs)
    return wrong


def _name(scheme: str, uri: str) -> str:
    """The store and its version, as it tells itself."""
    address = uri.partition("://")[2]
    if scheme == "etcd":
        return f"etcd {_ask(f'http://{address}/version')['etcdserver']}"
    if scheme == "consul":
        return f"Consul {_ask(f'http://{address}/v1/agent/self')['Config']['Version']}"
    return f"SQLite {sqlite3.sqlite_version}"


def _ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


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
        "The name of no store stands in it.": not any(name in text.lower() for name in STORES),
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
