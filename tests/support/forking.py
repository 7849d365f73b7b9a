"""Work in a forked child."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import kvi
import pytest


def in_child(work: Callable[[], object], seconds: float = 30.0) -> int:
    """Fork; the child runs ``work`` and ends at once. The exit code: 0 if it returned, else 1."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  (pytest must not run on here)
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(1)
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.002)


def refuses(call: Callable[[], object]) -> None:
    """The call raises UsedAfterFork."""
    with pytest.raises(kvi.UsedAfterFork):
        call()
