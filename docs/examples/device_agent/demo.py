"""Run the program on SQLite, etcd and Consul, one after the other; only the URI changes.

`python -m tests.servers -- python -m docs.examples.device_agent.demo` starts the servers.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from docs.examples.stores import found, names_a_store

PROGRAM = "docs.examples.device_agent"
CODE = ("device.py", "agent.py", "checker.py", "program.py")


def main(options: list[str]) -> int:
    """Run on every store there is, passing ``options`` on; 1 if anything was inconsistent."""
    console = Console(highlight=False)
    env = {**os.environ, "FORCE_COLOR": "1"} if console.is_terminal else None
    told: dict[str, dict[str, Any]] = {}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="kvi-demo-") as folder:
        for number, store in enumerate(found(Path(folder), console)):
            figures = Path(folder) / f"{number}.json"
            arguments = ["-m", PROGRAM, "--uri", store.uri, *options]
            console.rule(f"[bold]{store.title}[/]", align="left")
            console.print(f"$ python {shlex.join(arguments)}\n", soft_wrap=True)
            command = [sys.executable, *arguments, "--json", str(figures)]
            wrong = max(wrong, abs(subprocess.run(command, env=env, check=False).returncode))
            console.print()
            if figures.exists():
                told[store.title] = json.loads(figures.read_text())
    if told:
        _compare(console, told)
    return wrong


def _compare(console: Console, told: dict[str, dict[str, Any]]) -> None:
    console.rule("[bold]Side by side[/]", align="left")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("store", no_wrap=True)
    for title in ("changes", "conflicts", "killed", "caches agree", "bytes saved", "consistent"):
        table.add_column(title, justify="right", no_wrap=True)
    for store, figures in told.items():
        table.add_row(
            store,
            f"{figures['changes']:,}",
            f"{figures['done'].get('conflicts', 0):,}",
            f"{figures['kills']}",
            f"{figures['converged']:.2f} s",
            f"{1 - figures['stored'] / max(1, figures['whole']):.0%}",
            "[bold red]NO[/]" if figures["wrong"] else "yes",
        )
    console.print(table)
    text = "".join((Path(__file__).parent / name).read_text() for name in CODE)
    console.print(
        f"\n{'[bold red]NO[/] ' if names_a_store(text) else '[green]yes[/]'}  The name of no store "
        f"stands in the {len(text.splitlines())} lines that ran each time: {', '.join(CODE)}.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
