"""Interrupts: the rule as `kvi.conformance.interrupts` checks it, in processes of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import kvi
from kvi.conformance.contract import rule
from kvi.conformance.interrupts import GROUPS, HITS
from kvi.conformance.processes import environment
from kvi.conformance.rules import Rules
from kvi.registry import redacted

ENDS = 110
"""Seconds after which a process hangs that is still there."""


class TestInterrupts(Rules):
    """An exception of a signal handler comes out of every call, and leaves the process whole."""

    @rule("handle.interrupt")
    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this platform has no timers")
    @pytest.mark.parametrize("group", GROUPS)
    def test_interrupted_calls(self, kvi_uri: str, group: str) -> None:
        """Others go on, nothing is half done or stays taken, no event is lost."""
        with kvi.open(kvi_uri):  # what is wrong with the URI is told here, as what it is
            pass
        options = [f"--operation={name}" for name in GROUPS[group]] + [f"--hits={HITS}"]
        with subprocess.Popen(
            [sys.executable, "-m", "kvi.conformance.interrupts", str(kvi_uri), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as process:
            try:
                told, stacks = process.communicate(timeout=ENDS)
            except subprocess.TimeoutExpired:
                pytest.fail(f"the calls of {group} did not end within {ENDS} s", pytrace=False)
            finally:
                process.kill()
        if process.returncode:
            shown = redacted(str(kvi_uri))
            again = f"python -m kvi.conformance.interrupts {shown} {' '.join(options)}"
            broken = (told.splitlines() or ["it ended"])[-1]
            message = f"{broken}\nsee it again: {again}\n{stacks}".replace(str(kvi_uri), shown)
            pytest.fail(message, pytrace=False)
