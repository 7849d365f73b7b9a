"""The tests' side of the guard: a process that cannot outlive this one."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GUARD = Path(__file__).with_name("guard.py")
_ANSWER_WITHIN = 30.0


class ServerFailed(Exception):
    """A server did not start, did not get ready, or died; the text has what its log says."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The guarded process as last seen: `returncode` is `None` while it runs, -N after signal N."""

    pid: int | None
    returncode: int | None

    @property
    def running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self.pid is not None and self.returncode is None


class GuardedProcess:
    """One process at a time under a guard, with `folder` removed at the end of both.

    All methods may be called from any thread. The guard starts with the object and ends with
    `close`, or when this process ends in whatever way; then the guarded process is killed.
    """

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        # -I and -S: nothing of the environment or of site-packages, for a quick and sure start.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=env,
            start_new_session=True,
        )

    @property
    def guard_pid(self) -> int:
        """The pid of the guard itself."""
        return self._guard.pid

    def spawn(self, argv: Sequence[str], log: Path) -> ProcessState:
        """Start a process that writes to the end of `log`; an error if one is running."""
        return self._order(do="spawn", argv=list(argv), log=str(log))

    def signal(self, number: signal.Signals) -> ProcessState:
        """Send a signal to the process if it runs."""
        return self._order(do="signal", signal=int(number))

    def status(self) -> ProcessState:
        """Return the process's state now."""
        return self._order(do="status")

    def close(self) -> None:
        """Kill the process, remove the folder, end the guard; returns when all is done."""
        with self._lock:
            guard = self._guard
            if guard.stdin is not None and not guard.stdin.closed:
                with suppress(BrokenPipeError):
                    guard.stdin.close()
            try:
                guard.wait(_ANSWER_WITHIN)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()
            if guard.stdout is not None:
                guard.stdout.close()

    def _order(self, **order: Any) -> ProcessState:
        with self._lock:
            stdin, stdout = self._guard.stdin, self._guard.stdout
            if stdin is None or stdout is None or stdin.closed:
                raise ServerFailed("the server was closed")
            try:
                stdin.write(json.dumps(order).encode() + b"\n")
                stdin.flush()
            except BrokenPipeError:
                raise ServerFailed("the server's guard has ended") from None
            # One line per order, so nothing can be left in the reader's buffer before this.
            if not select.select([stdout], [], [], _ANSWER_WITHIN)[0]:
                raise ServerFailed("the server's guard does not answer")
            line = stdout.readline()
        if not line:
            raise ServerFailed("the server's guard has ended")
        answer = json.loads(line)
        if answer["error"]:
            raise ServerFailed(answer["error"])
        return ProcessState(answer["pid"], answer["returncode"])
