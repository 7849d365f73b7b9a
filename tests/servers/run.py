"""Run one etcd or Consul server on this machine, for as long as a test needs it.

    created --start--> running --stop, kill--> stopped --start--> running ...
    any of them --close--> closed (the process is gone, its data folder removed)

Ports and data are kept from the first `start` until `close`, so a server that was stopped or
killed comes back as itself. While it runs it can be paused and resumed. A guard process ends it
with the process that started it (see `guard`).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.servers.binary import Binary, EtcdSource, ServerFailed, Tool, version_tuple
from tests.servers.find import find_consul, find_etcd
from tests.servers.guarded import GuardedProcess, ProcessState

_HOST = "127.0.0.1"
_POLL = 0.01
_PORT_TRIES = 5
_TAKEN = "address already in use"
# Below the ports that systems give to outgoing connections: a client that keeps connecting to a
# stopped server must not, by chance of the source port, connect to itself and hold the port.
_PORTS = range(20000, 32768)


class _NotReady(Exception):
    """The server answers, but it cannot serve yet."""


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free now, for TCP and UDP. Another may take them."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        if port not in found and port_is_free(port):
            found.append(port)
    return found


def port_is_free(port: int) -> bool:
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


class Server(ABC):
    """One server process on 127.0.0.1; a context manager that starts it and closes it.

    Control (`start`, `stop`, `kill`, `restart`, `close`) belongs to one thread at a time;
    `pause`, `resume`, `kill` and `status` may also be called from another one meanwhile.
    """

    scheme: ClassVar[Tool]
    host: ClassVar[str] = _HOST
    _port_names: ClassVar[tuple[str, ...]]
    """What the ports are for; the first is the one that clients use."""
    _env_prefix: ClassVar[str]
    """Variables that the server would take as settings; they are kept from it."""

    def __init__(self, binary: Binary, extra_args: Sequence[str] = ()) -> None:
        self.binary = binary
        self._extra_args = tuple(extra_args)
        self._name = f"kvi-{secrets.token_hex(6)}"
        self._ports: dict[str, int] = {}
        self._folder: Path | None = None
        self._process: GuardedProcess | None = None

    @property
    def version(self) -> str:
        """The server's version, as its program tells it."""
        return self.binary.version

    @property
    def port(self) -> int:
        """The port for clients; known from the first `start` on."""
        if not self._ports:
            raise ServerFailed("the server was not started yet")
        return self._ports[self._port_names[0]]

    @property
    def uri(self) -> str:
        """The store's URI, as kvi takes it."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def data_dir(self) -> Path:
        """The folder of the server's data; removed by `close`."""
        return self._home / "data"

    @property
    def log_path(self) -> Path:
        """The file of all the server said, over restarts; removed by `close`."""
        return self._home / "server.log"

    @property
    def pid(self) -> int | None:
        """The pid of the server while it runs."""
        state = self.status()
        return state.pid if state.running else None

    def status(self) -> ProcessState:
        """Return whether the process runs, and how it ended."""
        return self._guarded.status() if self._process is not None else ProcessState(None, None)

    def start(self, timeout: float = 30.0) -> Self:
        """Start the server and wait until it is ready; `ServerFailed` after `timeout` seconds.

        The first start chooses free ports and makes an empty data folder; later ones use both
        again. A first start that fails leaves nothing behind.
        """
        deadline = time.monotonic() + timeout
        if self._process is not None:
            if self.status().running:
                raise ServerFailed("the server is running")
            self._start_again(deadline)
            return self
        self._folder = Path(tempfile.mkdtemp(prefix=f"kvi-{self.scheme}-"))
        try:
            kept = {k: v for k, v in os.environ.items() if not k.startswith(self._env_prefix)}
            self._process = GuardedProcess(self._folder, kept)
            self._start_first(deadline)
        except BaseException:
            self.close()
            raise
        return self

    def stop(self, timeout: float = 10.0) -> None:
        """End the server by SIGTERM, by SIGKILL after `timeout` seconds; its data stays."""
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
        """Stop the server if it runs and start it on the same ports and data."""
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
        """Return as soon as the server serves reads and writes.

        `ServerFailed`, with what the log says, when `timeout` seconds are over, and at once
        when the process has ended.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._check_alive()
            left = deadline - time.monotonic()
            try:
                self._check_ready(min(1.0, max(left, _POLL)))
                self._check_alive()
                return
            except (OSError, http.client.HTTPException, ValueError, _NotReady) as error:
                if left <= 0:
                    raise ServerFailed(
                        f"{self.binary} is not ready after {timeout:g} s ({error})"
                        f"{self._log_tail()}"
                    ) from error
            time.sleep(_POLL)

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line, having written what files it needs."""

    @abstractmethod
    def _check_ready(self, timeout: float) -> None:
        """Return if *this* server serves; raise `_NotReady` or what the connection raises."""

    @property
    def _home(self) -> Path:
        if self._folder is None:
            raise ServerFailed("the server was not started yet, or was closed")
        return self._folder

    @property
    def _guarded(self) -> GuardedProcess:
        if self._process is None:
            raise ServerFailed("the server was not started yet, or was closed")
        return self._process

    def _start_first(self, deadline: float) -> None:
        for remaining in reversed(range(_PORT_TRIES)):
            self._ports = dict(
                zip(self._port_names, free_ports(len(self._port_names)), strict=True)
            )
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.data_dir.mkdir(mode=0o700)
            self.log_path.write_bytes(b"")
            try:
                self._spawn(deadline)
                return
            except ServerFailed:
                # Between choosing a port and listening on it, another process may be quicker.
                if not remaining or self.status().running or _TAKEN not in self._log():
                    raise

    def _start_again(self, deadline: float) -> None:
        while not all(map(port_is_free, self._ports.values())):
            if time.monotonic() >= deadline:
                raise ServerFailed(f"a port of {self.uri} was taken while the server was stopped")
            time.sleep(_POLL)
        self._spawn(deadline)

    def _spawn(self, deadline: float) -> None:
        self._guarded.spawn(self._command(), self.log_path)
        self.wait_ready(max(deadline - time.monotonic(), 0.0))

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
            raise ServerFailed(
                f"{self.binary} ended with code {state.returncode}{self._log_tail()}"
            )

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

    def _ask(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class EtcdServer(Server):
    """A cluster of one etcd node.

    `fast` leaves out fsync: much quicker writes, but a machine's crash may lose them (a killed
    process loses nothing). `extra_args` are appended to the command line, where they win.
    """

    scheme = "etcd"
    _port_names = ("client", "peer")
    _env_prefix = "ETCD_"

    def __init__(
        self,
        binary: Binary | None = None,
        *,
        prefer: EtcdSource | None = None,
        fast: bool = False,
        extra_args: Sequence[str] = (),
    ) -> None:
        super().__init__(binary or find_etcd(prefer), extra_args)
        self._fast = fast

    def _command(self) -> list[str]:
        client = f"http://{self.host}:{self._ports['client']}"
        peer = f"http://{self.host}:{self._ports['peer']}"
        return [
            str(self.binary.path),
            f"--name={self._name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={self._name}={peer}",
            "--logger=zap",
            "--log-level=error",
            "--log-outputs=stderr",
            *(["--unsafe-no-fsync"] if self._fast else []),
            *self._extra_args,
        ]

    def _check_ready(self, timeout: float) -> None:
        status, answer = self._ask("GET", "/health", timeout=timeout)
        if status != 200 or json.loads(answer).get("health") != "true":
            raise _NotReady(answer.decode(errors="replace"))
        # The port's owner could be another test run's server, which was quicker than ours.
        status, answer = self._ask("POST", "/v3/cluster/member/list", b"{}", timeout=timeout)
        if status == 200 and self._name not in [m.get("name") for m in _members(answer)]:
            raise _NotReady("another server has the port")


def _members(answer: bytes) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json.loads(answer).get("members", [])
    return members


class ConsulServer(Server):
    """A Consul datacenter of one server.

    `config` is laid over the configuration file (one level deep: a nested table is merged), for
    instance to switch ACLs on; `extra_args` are appended to the command line. The first start
    writes and deletes one key; a restart adds nothing to the store.
    """

    scheme = "consul"
    _port_names = ("http", "server", "serf_lan")
    _env_prefix = "CONSUL_"

    def __init__(
        self,
        binary: Binary | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        super().__init__(binary or find_consul(), extra_args)
        self._config = dict(config or {})
        self._has_served = False

    def _command(self) -> list[str]:
        path = self._home / "consul.json"
        path.write_text(json.dumps(self._merged(), indent=1))
        return [str(self.binary.path), "agent", f"-config-file={path}", *self._extra_args]

    def _merged(self) -> dict[str, Any]:
        disabled = ["dns", "grpc", "https", "serf_wan"]
        if version_tuple(self.version) >= (1, 14):
            disabled.append("grpc_tls")
        config: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": self._name,
            "bind_addr": self.host,
            "client_addr": self.host,
            "data_dir": str(self.data_dir),
            "ports": {**self._ports, **dict.fromkeys(disabled, -1)},
            "performance": {"raft_multiplier": 1},
            "log_level": "err",
            "disable_update_check": True,
            "disable_host_node_id": True,
            # A server that leaves its datacenter on SIGTERM would not come back as its leader.
            "leave_on_terminate": False,
        }
        for key, value in self._config.items():
            both = isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
            config[key] = {**config[key], **value} if both else value
        return config

    def _check_ready(self, timeout: float) -> None:
        # A refusal (403) by the ACLs of a test is a sign of life too.
        if json.loads(self._expect("GET", "/v1/status/leader", timeout=timeout)) == "":
            raise _NotReady("no leader yet")
        agent = self._expect("GET", "/v1/agent/self", timeout=timeout)
        # The port's owner could be another test run's server, which was quicker than ours.
        if agent is not _REFUSED and json.loads(agent)["Config"]["NodeName"] != self._name:
            raise _NotReady("another server has the port")
        key = f"/v1/kv/{self._name}"
        if not self._has_served:
            self._expect("PUT", key, b"ready", timeout=timeout)
        # A consistent read needs a leader that has been confirmed, so writes will work too.
        self._expect("GET", f"{key}?consistent", timeout=timeout)
        if not self._has_served:
            self._expect("DELETE", key, timeout=timeout)
        self._has_served = True

    def _expect(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> bytes:
        status, answer = self._ask(method, path, body, timeout=timeout)
        if status == 403:
            return _REFUSED
        if status != 200 and not (status == 404 and self._has_served):
            raise _NotReady(f"{status} {answer.decode(errors='replace')}")
        return answer


_REFUSED = b'"refused"'
