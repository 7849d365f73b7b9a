"""Programs in processes of their own, which find the store as this one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import kvi
from kvi.registry import redacted

ENDS = 60
"""Seconds after which a program, or a child, hangs that has not ended."""

RAISED = 100  # how a child ends whose call has raised
UNANSWERED = 101
"""What the call of a child returns if the store did not answer it."""


_NO_ANSWER = tuple(
    f"{error.__module__}.{error.__name__}:"
    for error in (kvi.Timeout, kvi.Unavailable, kvi.OutcomeUnknown)
)  # how the last line of a program begins that raised it


def environment() -> dict[str, str]:
    """That of this process, and its path: by what was put there the store may be found."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def in_another_process(program: str, uri: str, *arguments: str) -> list[str]:
    """The lines that a program prints, which is given the URI and the arguments; it must end."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program, str(uri), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=ENDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the other process did not end within {ENDS} s") from None
    told = ended.stderr.replace(str(uri), redacted(str(uri)))
    error = told.strip().rpartition("\n")[2]
    if error.startswith(_NO_ANSWER):
        raise kvi.Unavailable(f"the store did not answer the other process: {error}")
    assert ended.returncode == 0, f"the other process failed: {told}"
    return ended.stdout.splitlines()


def in_a_child(call: Callable[[], int]) -> int:
    """What a call returns in a forked child; it must end. -1 if it raised, or killed the child.

    Raises `Unavailable` if it returns `UNANSWERED`.
    """
    child = os.fork()
    if child == 0:
        status = RAISED
        try:
            status = call()
        finally:
            os._exit(status)
    deadline = time.monotonic() + ENDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code == UNANSWERED:
                raise kvi.Unavailable("the store did not answer a forked child")
            return code if 0 <= code < RAISED else -1
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the child did not end within {ENDS} s")
        time.sleep(0.005)
