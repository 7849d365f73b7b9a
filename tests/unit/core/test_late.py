"""Forks amid late imports, and signals amid forks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork"),
]


def output(program: str, folder: Path) -> str:
    """What a program of its own prints; it has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "call",
    [
        's.update("k", lambda old: "1")',
        's.store("k", "v", ttl=10)',
        "s.lease(10)",
        's.lock("l").acquire()',
        's.watch("k")',
        "kvi.Loader",
        "kvi.recipes",
    ],
)
@pytest.mark.parametrize("uri", ["mem:late", "sqlite:late.db"])
def test_fork_amid_a_late_import(tmp_path: Path, uri: str, call: str) -> None:
    """A child can do what its parent was just importing the means for."""
    program = f"""
        import os, signal, threading, time
        import kvi
        from kvi import late

        s = kvi.open({uri!r})
        s.get("a")
        inside, real = threading.Event(), __import__

        def slowly(name, *rest):
            inside.set()
            time.sleep(0.02)  # so long a module is locked
            return real(name, *rest)

        late.__import__ = slowly

        def work():
            return {call}

        threading.Thread(target=work).start()
        assert inside.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            with kvi.open({uri!r}) as s:
                work()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os._exit(0)
    """
    assert output(program, tmp_path) == "0\n"


def test_signals_amid_forks(tmp_path: Path) -> None:
    """What handlers raise around a fork leaves nothing taken: stores of all kinds can be used.

    Python's own hooks around a fork can be struck as well: the lock of `logging` then stays taken.
    """
    program = """
        import logging, os, signal, sys, threading, time
        import kvi

        class Struck(Exception):
            pass

        def strike(number, frame):
            raise Struck

        sys.unraisablehook = lambda it: None  # Python tells of each that a hook could not pass on
        signal.signal(signal.SIGALRM, strike)
        held = [kvi.open("mem:struck"), kvi.open("sqlite:struck.db")]
        for store in held:
            store.store("k", "v")
        for number in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + number * 0.000005)
                child = os.fork()
                if child == 0:
                    os._exit(0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Struck:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        logging._lock = threading.RLock()
        signal.alarm(30)  # a hang becomes a failure
        for store in held:
            store.update("k", lambda old: old + b"!")
            store.close()
        for uri in ("mem:struck", "sqlite:struck.db", "etcd://127.0.0.1:1", "consul://127.0.0.1:1"):
            kvi.open(uri).close()
        child = os.fork()
        if child == 0:
            kvi.open("sqlite:struck.db").get("k")
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert output(program, tmp_path) == "0\n"
