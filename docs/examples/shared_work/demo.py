"""Run the program on SQLite, etcd and Consul, side by side; only the URI changes.

`python -m tests.servers -- python -m docs.examples.shared_work.demo` starts the servers. It lasts
as long as the slowest store needs to free what belongs to the dead.
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

PROGRAM = "docs.examples.shared_work"
CODE = ("plan.py", "worker.py", "aio_worker.py", "watcher.py", "program.py", "account.py")


def main(options: list[str]) -> int:
    """Run on every store there is, passing ``options`` on; 1 if any promise was broken."""
    console = Console(highlight=False)
    env = {**os.environ, "FORCE_COLOR": "1"} if console.is_terminal else None
    told: dict[str, dict[str, Any]] = {}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="kvi-demo-") as folder:
        running = []
        for number, store in enumerate(found(Path(folder), console)):
            figures = Path(folder) / f"{number}.json"
            arguments = ["-m", PROGRAM, "--uri", store.uri, *options]
            console.print(f"$ python {shlex.join(arguments)} &", soft_wrap=True)
            command = [sys.executable, *arguments, "--json", str(figures)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env)
            running.append((store.title, figures, process))
        console.print("\nwaiting for the leases of the dead: about half a minute …\n")
        for title, figures, process in running:
            output = process.communicate()[0]
            console.rule(f"[bold]{title}[/]", align="left")
            sys.stdout.write(output.decode() + "\n")
            wrong = max(wrong, abs(process.returncode))
            if figures.exists():
                told[title] = json.loads(figures.read_text())
    if told:
        _compare(console, told)
    return wrong


def _compare(console: Console, told: dict[str, dict[str, Any]]) -> None:
    console.rule("[bold]Side by side[/]", align="left")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("store", no_wrap=True)
    for title in ("ttl", "killed", "stopped", "key gone", "changes seen", "promises"):
        table.add_column(title, justify="right", no_wrap=True)
    for store, figures in told.items():
        table.add_row(
            store,
            f"{figures['ttl']:g} s",
            f"{figures['after']['killed']:.1f} s",
            f"{figures['after']['stopped']:.1f} s",
            f"{figures['gone_after']:.1f} s",
            f"{figures['seen']:,} of {figures['written']:,}",
            "kept" if figures["good"] else "[bold red]BROKEN[/]",
        )
    console.print(table)
    text = "".join((Path(__file__).parent / name).read_text() for name in CODE)
    console.print(
        "\n“killed” and “stopped” are the times until another one had the lock, “key gone” until "
        "the temporary key of the one who was killed had vanished.\n\n"
        f"{'[bold red]NO[/] ' if names_a_store(text) else '[green]yes[/]'}  The name of no store "
        f"stands in the {len(text.splitlines())} lines that ran each time: {', '.join(CODE)}.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
