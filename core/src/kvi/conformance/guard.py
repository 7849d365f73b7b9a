"""The guard: a tiny process between the tests and one server, which ends with the tests.

Run by path, as `python guard.py PARENT FOLDER`, in a session of its own, so that Ctrl-C in the
terminal reaches the tests and not the server. It holds the read end of a pipe whose write end
only the tests have. At the pipe's end, however the tests ended, it kills the server by its pid
and removes FOLDER.

Orders are lines of JSON on stdin, each answered by one line on stdout with the server's state:

    {"do": "spawn", "argv": [...], "log": PATH}     start the server (not while one runs)
    {"do": "signal", "signal": 15}                  send it a signal, if it still runs; after a
                                                    SIGSTOP, answered when it stands still
    {"do": "status"}

    {"pid": 123, "returncode": null}                and "error" if the order failed

The guard is the server's parent and the only one to reap it, so a pid that it signals is the
server's. It imports nothing but the standard library, and nothing from its own package.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_STOPS_WITHIN = 5.0
"""Seconds after which a process that was stopped before is taken for stopped: it says so once."""


class Guard:
    """The server process of one folder, and the orders about it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order; return the state after it."""
        error = ""
        try:
            if order["do"] == "spawn":
                self._spawn(order["argv"], Path(order["log"]))
            elif order["do"] == "signal" and self._child is not None:
                self._child.send_signal(order["signal"])
                if order["signal"] == signal.SIGSTOP:
                    self._await_stop(self._child)
        except OSError as problem:
            error = str(problem)
        self.reap()
        child = self._child
        return {
            "pid": child.pid if child else None,
            "returncode": child.returncode if child else None,
            "error": error,
        }

    def reap(self) -> None:
        """Let a server that has ended go."""
        if self._child is not None:
            self._child.poll()

    def end(self) -> None:
        """Kill the server and remove the folder."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        for _ in range(50):
            shutil.rmtree(self._folder, ignore_errors=True)
            if not self._folder.exists():
                break
            time.sleep(0.1)

    @staticmethod
    def _await_stop(child: subprocess.Popen[bytes]) -> None:
        """Return once every thread stands still: until then the server goes on answering."""
        deadline = time.monotonic() + _STOPS_WITHIN
        while child.returncode is None and time.monotonic() < deadline:
            pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return
            if pid:
                child.returncode = os.waitstatus_to_exitcode(status)
            time.sleep(0.001)

    def _spawn(self, argv: list[str], log: Path) -> None:
        if self._child is not None and self._child.poll() is None:
            raise OSError("the server is running")
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
            )


def _serve(guard: Guard, parent: int) -> None:
    waiting = b""
    # A process that the tests forked may hold the pipe open after them, hence the parent's pid.
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], 0.5)
        guard.reap()
        if not ready:
            continue
        received = os.read(0, 65536)
        if not received:
            return
        *orders, waiting = (waiting + received).split(b"\n")
        for order in orders:
            os.write(1, json.dumps(guard.obey(json.loads(order))).encode() + b"\n")


def _exit(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)


def main() -> None:
    """Serve orders until the tests are gone, then clean up."""
    # Functions, not SIG_IGN: an ignored signal would stay ignored in the server.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _signum, _frame: None)
    signal.signal(signal.SIGTERM, _exit)
    guard = Guard(Path(sys.argv[2]))
    try:
        _serve(guard, int(sys.argv[1]))
    except BrokenPipeError:
        pass
    finally:
        signal.signal(signal.SIGTERM, lambda _signum, _frame: None)
        guard.end()


if __name__ == "__main__":
    main()
