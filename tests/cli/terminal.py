"""A shell on a terminal, and processes as `ps` sees them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.waiting import until


class OnTerminal:
    """A process with a terminal of its own: an interactive shell, if nothing else is given."""

    columns = 80

    def __init__(self, env: dict[str, str], folder: Path, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, self.columns))
        words = words or ("bash", "--norc", "--noprofile", "-i")
        # The first of a session that opens a terminal has it as its own.
        begin = 'tty=$1; shift; exec "$@" <>"$tty" >&0 2>&0'
        self.process = subprocess.Popen(
            ["sh", "-c", begin, "sh", os.ttyname(theirs), *words],
            env={**env, "TERM": "xterm", "PS1": "$ ", "COLUMNS": "100"},
            cwd=folder,
            start_new_session=True,
        )
        self._theirs: int | None = theirs  # open as long as nobody else has it
        self.seen = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while piece := os.read(self._ours, 4096):
                self.seen += piece

    def type(self, text: str) -> None:
        """Type it: Ctrl-Z is character 26, Ctrl-C character 3."""
        os.write(self._ours, text.encode())

    def shows(self, text: str) -> None:
        """Wait until it is there."""
        until(lambda: text.encode() in self.seen, within=60)

    def gives_way(self) -> None:
        """Wait until another group than that of the shell is in the foreground."""
        until(lambda: os.tcgetpgrp(self._ours) != self.process.pid, within=60)

    def end(self) -> bytes:
        """Wait for the end of what runs; all that it showed."""
        self.process.wait(60)
        if self._theirs is not None:
            os.close(self._theirs)
            self._theirs = None
        self._reader.join(60)
        return self.seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        print(self.seen.decode(errors="replace"))  # of a test that fails
        for pid in members(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.end()
        os.close(self._ours)


def members(session: int) -> list[int]:
    """The processes of a session."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if (fields := _stat(pid)) is not None and int(fields[3]) == session]


def state(pid: int) -> str:
    """``T`` if it is stopped, ``Z`` if it has ended, or "" if it is gone; else it runs."""
    fields = _stat(pid)
    return "" if fields is None else fields[0]


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
