"""`ServerProcess`: a server program on this machine, for as long as a test needs it.

An author says how the program is called, and how to tell that it serves::

    class AcmeServer(ServerProcess):
        scheme = "acme"

        def command(self):
            return ["acme-server", f"--port={self.port}", f"--data={self.data_dir}"]

        def probe(self, timeout):
            with kvi.open(self.uri, timeout=timeout) as store:
                store.ping()

    with AcmeServer() as server:
        ... server.uri, server.pause(), server.kill(), server.restart() ...

===========  ==========================================  ========================================
state        there is                                    left by
===========  ==========================================  ========================================
new          nothing                                     `start`: running, or new if it fails
running      the process, its ports, its folder          `stop`, `kill`, its own end: stopped
stopped      the ports are known, the folder is there    `start`: running, on the same ports and
                                                         data
closed       nothing; its process and folder are gone    nothing
===========  ==========================================  ========================================

`close` leads from each of them to closed. While it runs it can be paused and resumed.

*Who ends it.* The process belongs to a guard (`kvi.conformance.guard`), a tiny process of its own,
that kills it and removes its folder when the tests end, in whatever way: also by SIGKILL. It needs
POSIX.

For the suite's fixture, `kvi.conformance.proxy.ProxiedProcess` puts a proxy before it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from kvi.conformance.guarded import GuardedProcess, ProcessState, ServerFailed

__all__ = ["ProcessState", "ServerFailed", "ServerProcess", "free_ports"]

_HOST = "127.0.0.1"
_POLL = 0.01  # seconds
_PORT_TRIES = 5
_TAKEN = "address already in use"
# Below the ports that systems give to outgoing connections: a client that keeps connecting to a
# stopped server must not, by chance of the source port, connect to itself and hold the port.
_PORTS = range(20000, 32768)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free now, for TCP and UDP. Another may take them."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        if port not in found and _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind is socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                return False
    return True


class ServerProcess(ABC):
    """One server process on 127.0.0.1; a context manager that starts it and closes it.

    Control (`start`, `stop`, `kill`, `restart`, `close`) belongs to one thread at a time;
    `pause`, `resume`, `kill` and `status` may also be called from another thread meanwhile. All
    but `close` raise `ServerFailed` if the server was not started yet, or was closed.

    Attributes:
        scheme: that of the store's URIs.
        host: where it listens.
        port_names: what its ports are for; the first is the one that clients use.
        ports: the ports by these names; empty until the first start has chosen them.

    """

    scheme: ClassVar[str]
    host: ClassVar[str] = _HOST
    port_names: ClassVar[tuple[str, ...]] = ("client",)

    def __init__(self, ports: Mapping[str, int] | None = None) -> None:
        """``ports``: by their names; without them, the first start chooses free ones."""
        self.ports: dict[str, int] = dict(ports or {})
        self._chooses = ports is None
        self._folder: Path | None = None
        self._process: GuardedProcess | None = None

    # -- what an author gives ---------------------------------------------------------------------

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the program and its arguments, for `port` and `data_dir`; asked at each start.

        What the program prints goes to `log_path`. It must stay in the foreground.
        """

    @abstractmethod
    def probe(self, timeout: float) -> None:
        """Return if *this* server serves reads and writes; raise any `Exception` if not (yet).

        Asked again and again, for at most ``timeout`` seconds each time, until the start's time is
        up. Another program may have got the port: where the server can tell who it is, ask.
        """

    def environment(self) -> Mapping[str, str]:
        """Return the program's environment; this process's own, unless it is overridden."""
        return os.environ

    # -- where it is ------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port for clients; known from the first `start` on."""
        if not self.ports:
            raise ServerFailed("the server was not started yet")
        return self.ports[self.port_names[0]]

    @property
    def uri(self) -> str:
        """The store's URI, as kvi takes it."""
        return self.uri_at(self.host, self.port)

    def uri_at(self, host: str, port: int) -> str:
        """The same by another way, such as a proxy; override it for a user, a path or options."""
        return f"{self.scheme}://{host}:{port}"

    @property
    def home(self) -> Path:
        """The program's working directory, in which it may write; removed by `close`."""
        if self._folder is None:
            raise ServerFailed("the server was not started yet, or was closed")
        return self._folder

    @property
    def data_dir(self) -> Path:
        """The folder of the server's data: empty at the first start, kept over later ones."""
        return self.home / "data"

    @property
    def log_path(self) -> Path:
        """The file of all the server said, over restarts; removed by `close`."""
        return self.home / "server.log"

    @property
    def pid(self) -> int | None:
        """The pid of the server while it runs."""
        state = self.status()
        return state.pid if state.running else None

    def status(self) -> ProcessState:
        """Return whether the process runs, and how it ended."""
        return self._guarded.status() if self._process is not None else ProcessState(None, None)

    # -- control ----------------------------------------------------------------------------------

    def start(self, timeout: float = 30.0) -> Self:
        """Start the server and wait until it is ready; `ServerFailed` ``timeout`` seconds later.

        The first start chooses free ports and makes an empty data folder; later ones use both
        again. A first start that fails leaves nothing behind. The error has the end of the log.
        """
        if self._process is not None:
            if self.status().running:
                raise ServerFailed("the server is running")
            self._start_again(timeout)
            return self
        self._folder = Path(tempfile.mkdtemp(prefix=f"kvi-{self.scheme}-"))
        try:
            self._process = GuardedProcess(self._folder, dict(self.environment()))
            self._start_first(timeout)
        except BaseException:
            self.close()
            raise
        return self

    def stop(self, timeout: float = 10.0) -> None:
        """End the server by SIGTERM, by SIGKILL after ``timeout`` seconds; its data stays."""
        self._guarded.signal(signal.SIGTERM)
        self.resume()  # a paused process would not see the SIGTERM
        if not self._ended_within(timeout):
            self.kill()

    def kill(self) -> None:
        """End the server at once by SIGKILL; its data stays as it was at that moment."""
        self._guarded.signal(signal.SIGKILL)
        if not self._ended_within(30.0):
            raise ServerFailed("the server does not end even by SIGKILL")

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing is answered."""
        self._guarded.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        self._guarded.signal(signal.SIGCONT)

    def restart(self, timeout: float = 30.0) -> None:
        """Stop the server if it runs and start it on the same ports and data.

        ``timeout`` is in seconds, for the start.
        """
        self.stop()
        self.start(timeout)

    def close(self) -> None:
        """End the server and remove its data; nothing to do if that was done already."""
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        if process is not None:
            process.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Return as soon as the server serves reads and writes, as `probe` tells.

        `ServerFailed`, with what the log says, when ``timeout`` seconds are over, and at once
        when the process has ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._check_alive()
            left = deadline - time.monotonic()
            try:
                self.probe(min(1.0, max(left, _POLL)))
            except Exception as error:
                if left <= 0:
                    raise ServerFailed(
                        f"{self} is not ready after {timeout:g} s ({error}){self._log_tail()}"
                    ) from error
            else:
                self._check_alive()  # what answered may be another program, which has the port
                return
            time.sleep(_POLL)

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __str__(self) -> str:
        return type(self).__name__

    # -- inside -----------------------------------------------------------------------------------

    @property
    def _guarded(self) -> GuardedProcess:
        if self._process is None:
            raise ServerFailed("the server was not started yet, or was closed")
        return self._process

    def _start_first(self, timeout: float) -> None:
        for remaining in reversed(range(_PORT_TRIES if self._chooses else 1)):
            if self._chooses:
                found = free_ports(len(self.port_names))
                self.ports = dict(zip(self.port_names, found, strict=True))
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.data_dir.mkdir(mode=0o700)
            self.log_path.write_bytes(b"")
            try:
                self._spawn(timeout)
                return
            except ServerFailed:
                # Between choosing a port and listening on it, another process may be quicker.
                if not remaining or self.status().running or _TAKEN not in self._log().lower():
                    raise

    def _start_again(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not all(map(_is_free, self.ports.values())):
            if time.monotonic() >= deadline:
                raise ServerFailed(f"a port of {self.uri} was taken while the server was stopped")
            time.sleep(_POLL)
        self._spawn(timeout)

    def _spawn(self, timeout: float) -> None:
        self._guarded.spawn(self.command(), self.log_path)
        self.wait_ready(timeout)

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.status().running:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        return True

    def _check_alive(self) -> None:
        state = self.status()
        if not state.running:
            raise ServerFailed(f"{self} ended with code {state.returncode}{self._log_tail()}")

    def _log(self) -> str:
        try:
            return self.log_path.read_text(errors="replace")
        except OSError:
            return ""

    def _log_tail(self) -> str:
        lines = self._log().splitlines()
        if len(lines) > 25:  # a refused setting is told first, above pages of usage
            lines = [*lines[:5], "...", *lines[-20:]]
        return "; from its log:\n" + "\n".join(lines) if lines else "; its log is empty"
