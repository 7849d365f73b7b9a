"""Libraries that replace the process's threads: what works, works; what cannot is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

GEVENT = "import gevent.monkey; gevent.monkey.patch_all()"
READY = f"{GEVENT}; import grpc.experimental.gevent as known; known.init_gevent()"
EVENTLET = "import eventlet; eventlet.monkey_patch()"

OPEN = """
import kvi
try:
    kvi.open({uri!r})
except kvi.NotSupported as error:
    print("refused:", error)
"""

USE = """
import kvi
with kvi.open({uri!r}, timeout=20) as store, store.watch("green") as watch:
    with store.lock("green/jobs", timeout=20):
        store.store("green", "v")
        print("told", watch.next(20).value)
"""


def run(code: str) -> str:
    """What a program of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("patch", "uri", "says"),
    [
        (GEVENT, "etcd://127.0.0.1:1", "init_gevent"),
        (EVENTLET, "etcd://127.0.0.1:1", "eventlet"),
        (EVENTLET, "consul://127.0.0.1:1", "eventlet"),
    ],
)
def test_refused(patch: str, uri: str, says: str) -> None:
    """The error names the library, before anything hangs."""
    told = run(f"{patch}\n{OPEN.format(uri=uri)}")
    assert told.startswith("refused: ")
    assert says in told


@pytest.mark.parametrize("patch", [GEVENT, EVENTLET])
@pytest.mark.parametrize("uri", ["mem:", "sqlite:{tmp_path}/green.db"])
def test_embedded_stores_work(patch: str, uri: str, tmp_path: object) -> None:
    """A lock and a watch, in one greenlet."""
    assert run(f"{patch}\n{USE.format(uri=uri.format(tmp_path=tmp_path))}") == "told b'v'\n"


@pytest.mark.etcd
@pytest.mark.xdist_group("etcd")
def test_etcd_with_gevent(etcd_uri: str) -> None:
    """With gRPC's own patch."""
    assert run(f"{READY}\n{USE.format(uri=f'{etcd_uri}/green')}") == "told b'v'\n"


@pytest.mark.consul
@pytest.mark.xdist_group("consul")
def test_consul_with_gevent(consul_uri: str) -> None:
    """As it is."""
    assert run(f"{GEVENT}\n{USE.format(uri=f'{consul_uri}/green')}") == "told b'v'\n"
