"""Libraries that replace the process's threads by their own: a clear error, and no call hangs."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

OPEN = """
import kvi
try:
    kvi.open({uri!r})
except kvi.NotSupported as error:
    print("refused:", error)
"""

USE = """
import kvi
with kvi.open("mem:") as store, store.watch("k") as watch, store.lock("jobs", timeout=5):
    store.store("k", "v")
    print("told", watch.next(5).value)
"""


def run(code: str) -> str:
    """What a program of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "patch",
    [
        "import gevent.monkey; gevent.monkey.patch_all()",
        "import eventlet; eventlet.monkey_patch()",
    ],
)
@pytest.mark.parametrize("uri", ["mem:", "etcd://127.0.0.1:1", "consul://127.0.0.1:1"])
def test_refused(patch: str, uri: str) -> None:
    """The error names the library and the mend, whatever the store."""
    told = run(f"{patch}\n{OPEN.format(uri=uri)}")
    assert told.startswith("refused: ")
    assert patch.split()[1].partition(".")[0].strip(";") in told
    assert "monkey_patch(thread=False)" in told


@pytest.mark.parametrize(
    "patch",
    [
        "",
        "import gevent.monkey; gevent.monkey.patch_all(thread=False)",
        "import eventlet; eventlet.monkey_patch(thread=False)",
    ],
)
def test_real_threads_work(patch: str) -> None:
    """With the threads left alone all goes on."""
    assert run(f"{patch}\n{USE}") == "told b'v'\n"
