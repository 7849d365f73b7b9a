"""The servers behind our four stores, as the conformance suite wants to treat them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kvi
from kvi.conformance.proxy import ProxiedProcess
from kvi.conformance.server import Server
from kvi_memory.state import HISTORY
from kvi_sqlite.schema import TRIM_EVERY

from tests.servers import find_etcdctl

_SCRATCH = "forget"  # the key that `forget` may write to


class ProxiedEtcd(ProxiedProcess):
    """An etcd behind a proxy."""

    def forget(self) -> None:
        """Compact up to now."""
        with kvi.open(self.direct_uri, timeout=30) as store:
            revision = store.store(_SCRATCH, b"")
        endpoint = f"--endpoints={self.process.host}:{self.process.port}"
        command = [str(find_etcdctl().path), endpoint, "compact", str(revision)]
        subprocess.run(command, capture_output=True, timeout=60, check=True)


_HOLD = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
file.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


class SqliteFile(Server):
    """A file that other programs use as well; it has no server that could end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holder: subprocess.Popen[str] | None = None

    @property
    def uri(self) -> str:
        """The file's."""
        return f"sqlite:{self.path}"

    def pause(self) -> None:
        """Another process begins a transaction and stands still: nobody else can write."""
        self._holder = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "held\n"

    def resume(self) -> None:
        """That process ends, having written nothing."""
        assert self._holder is not None
        self._holder.communicate(timeout=30)
        self._holder = None

    def forget(self) -> None:
        """A handle that keeps no more than the last commit trims the history."""
        with kvi.open(self.uri, history=1, timeout=30) as store:
            while store.store(_SCRATCH, b"") % TRIM_EVERY:
                pass


class MemoryStore(Server):
    """A store of this process, which is never away: whatever stops it stops its users too."""

    uri = "mem:faults"

    def forget(self) -> None:
        """As many commits as its history has room for."""
        with kvi.open(self.uri) as store:
            for _ in range(HISTORY):
                store.store(_SCRATCH, b"")
