"""Record sessions with the command: `python -m docs.images.sessions` writes their pictures.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

FOLDER = Path(__file__).parent


class Typed(NamedTuple):
    """A line that asks something, and what is typed then."""

    line: str
    question: str
    answer: str


SESSIONS: dict[str, tuple[str | Typed, ...]] = {
    "first-session": (
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
    ),
    "day-to-day": (
        "kvi put app/rate 100 && kvi put app/rate 200",
        "kvi history app/rate",
        "kvi get app/rate --revision 1",
        "kvi update app/rate -- awk '{ printf \"%d\", $1 + 50 }' && kvi get app/rate",
        "printf '10.0.0.7' >host && kvi put app/db/host @host && kvi get --prefix app/",
        "kvi put session/ada here --ttl 600 && kvi leases",
        "kvi mv --prefix app/ service/ --dry-run",
        "kvi mv --prefix app/ service/ && kvi ls -r service/",
        "kvi cp service/rate service/burst && kvi cp service/rate service/burst; echo exit code $?",
        "kvi del --prefix service/ --dry-run",
        "kvi --read-only del service/rate; echo exit code $?",
        "printf 'put note hello\\nget note --json\\n' | kvi shell",
        "kvi explain OutcomeUnknown",
    ),
    "changes": (
        "printf 'two\\nlines' | kvi put note - && kvi get note --json",
        "kvi put nick @@ada && kvi get nick && kvi del nick",
        "kvi put app/rate 100 && kvi put app/burst 20 && kvi put apple red && kvi count app",
        "kvi range app/ && kvi range --start app/ --end apple --reverse --limit 1",
        "kvi watch --prefix app/ --initial --limit 2",
        "EDITOR='sed -i s/100/250/' kvi edit app/rate && kvi get app/rate",
        "EDITOR='kvi put app/rate 300; echo 400 >' kvi edit app/rate 2>&1 | head -6",
        "kvi history app/rate --json --limit 2",
        "kvi mv --prefix app/ app/old/; echo exit code $?",
        "kvi cp --prefix app/ backup/ && kvi mv app/rate apple; echo exit code $?",
        Typed("kvi del --prefix app/; kvi ls", "Delete 2 keys?", "y\n"),
    ),
    "holding": (
        "kvi lock jobs -- kvi locks",
        "kvi lock jobs -- kvi lock jobs --wait 0 -- true; echo exit code $?",
        "kvi lock jobs -- kvi lock jobs --wait 0 --conflict-exit-code 9 -- true; echo exit code $?",
        "kvi put session/ada here --ttl 600 && kvi leases | cut -f 2,4-",
        Typed(
            "kvi lease revoke $(kvi leases | cut -f 1)",
            "Revoke the lease, and delete its 1 keys?",
            "y\n",
        ),
        "export KVI_READ_ONLY=yes; kvi count && kvi put k v; echo exit code $?",
    ),
    "moving": (
        'printf \'[{"key": "app/rate", "flags": 0, "value": "MTAw"}]\' >consul.json',
        "kvi import consul.json --json && kvi get app/rate",
        "echo sqlite:other.db >other.uri",
        "kvi copy --to-uri-file other.uri --verify 2>/dev/null",
        "kvi range --uri-file other.uri",
        "export KVI_TO_URI=sqlite:third.db; kvi copy --uri-file other.uri --dry-run 2>/dev/null",
    ),
}
"""What is typed, by the name of the picture."""

WIDTH = 88


def record(lines: Sequence[str | Typed]) -> Iterator[tuple[str, str]]:
    """Run the lines, one after the other, on a store of their own: each, and what it prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = folder / "bin" / "kvi"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kvi.cli "$@"\n')
        command.chmod(0o755)
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("KVI_")},
            "KVI_URI": f"sqlite:{folder}/kvi.db",
            "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "COLUMNS": str(WIDTH),
            "TMPDIR": name,
        }
        for line in lines:
            typed = line if isinstance(line, Typed) else Typed(line, "", "")
            yield typed.line, _on_terminal(typed, env, folder).replace(name, "~")


def _on_terminal(typed: Typed, env: dict[str, str], folder: Path) -> str:
    line, question, answer = typed
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        line, shell=True, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=folder
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
            if answer and question.encode() in seen:
                os.write(ours, answer.encode())
                answer = ""
    except OSError:
        pass  # its other end is closed
    os.close(ours)
    process.wait()
    return seen.decode().replace("\r\n", "\n").rstrip("\n")


def main() -> None:
    """Record, and write the pictures."""
    for name, lines in SESSIONS.items():
        with Path(os.devnull).open("w") as nowhere:
            console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
            for line, printed in record(lines):
                console.print(Text.assemble(("$ ", "bold green"), line))
                if printed:
                    console.print(Text.from_ansi(printed))
            drawn = console.export_svg(title="kvi")
        # The fonts of whoever looks will do: the picture fetches nothing.
        drawn = re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)
        (FOLDER / f"{name}.svg").write_text(re.sub(r"<!-- Generated .*? -->", "", drawn))


if __name__ == "__main__":
    main()
