"""Record a first session with the command: `python -m docs.images.first_session` writes the SVG.

Runs the commands on a terminal of its own, and draws what they print.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

SESSION = [
    "kvi put greeting hello",
    "kvi get greeting",
    "kvi put app/rate 100",
    "kvi put app/db/host ada.example",
    "kvi ls",
    "kvi range app/",
    "kvi tas app/rate 100 120 && echo raised",
    "kvi lock backup -- sh -c 'echo holding it, fence $KVI_LOCK_FENCE'",
    "kvi get nothing; echo exit code $?",
    "kvi doctor",
]
FILE = Path(__file__).parent / "first-session.svg"


def on_terminal(line: str, folder: Path) -> str:
    """What a command prints on a terminal."""
    env = {
        **os.environ,
        "KVI_URI": f"sqlite:{folder}/kvi.db",
        "TERM": "xterm-256color",
        "COLUMNS": "88",
    }
    ours, theirs = pty.openpty()
    command = line.replace("kvi ", f"{shlex.quote(sys.executable)} -m kvi.cli ", 1)
    process = subprocess.Popen(
        command, shell=True, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=folder
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:
        pass  # its other end is closed
    os.close(ours)
    process.wait()
    return seen.decode().replace("\r\n", "\n").replace(str(folder), "~")


def main() -> None:
    """Record, and write the picture."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=88, file=nowhere, force_terminal=True)
        for line in SESSION:
            console.print(Text.assemble(("$ ", "bold green"), line))
            console.print(Text.from_ansi(on_terminal(line, Path(folder)).rstrip("\n")))
        drawn = console.export_svg(title="kvi")
    # The fonts of whoever looks will do: the picture fetches nothing.
    drawn = re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)
    FILE.write_text(re.sub(r"<!-- Generated .*? -->", "", drawn))


if __name__ == "__main__":
    main()
