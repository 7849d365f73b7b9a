"""Run one etcd or Consul server on this machine, for as long as a test needs it.

What any server does is `kvi.conformance.server_process`, and its states stand there.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from kvi.conformance.server_process import ServerProcess

from tests.servers.binary import Binary, EtcdSource, Tool, version_tuple
from tests.servers.find import find_consul, find_etcd


class _NotReady(Exception):
    """The server answers, but it cannot serve yet."""


class Server(ServerProcess):
    """A server whose program was found, which speaks HTTP."""

    scheme: ClassVar[Tool]
    _env_prefix: ClassVar[str]
    """Variables that the server would take as settings; they are kept from it."""

    def __init__(
        self,
        binary: Binary,
        extra_args: Sequence[str] = (),
        ports: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(ports)
        self.binary = binary
        self._extra_args = tuple(extra_args)
        self._name = f"kvi-{secrets.token_hex(6)}"

    @property
    def version(self) -> str:
        """The server's version, as its program tells it."""
        return self.binary.version

    def environment(self) -> Mapping[str, str]:
        """Without what the server would take as settings."""
        return {k: v for k, v in os.environ.items() if not k.startswith(self._env_prefix)}

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line, having written what files it needs."""

    def __str__(self) -> str:
        return str(self.binary)

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
    port_names = ("client", "peer")
    _env_prefix = "ETCD_"

    def __init__(
        self,
        binary: Binary | None = None,
        *,
        prefer: EtcdSource | None = None,
        fast: bool = False,
        extra_args: Sequence[str] = (),
        ports: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(binary or find_etcd(prefer), extra_args, ports)
        self._fast = fast

    def command(self) -> list[str]:
        """The only member of a cluster."""
        client = f"http://{self.host}:{self.ports['client']}"
        peer = f"http://{self.host}:{self.ports['peer']}"
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

    def probe(self, timeout: float) -> None:
        """Ask for its health, and whose port it is."""
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
    port_names = ("http", "server", "serf_lan")
    _env_prefix = "CONSUL_"

    def __init__(
        self,
        binary: Binary | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        extra_args: Sequence[str] = (),
        ports: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(binary or find_consul(), extra_args, ports)
        self._config = dict(config or {})
        self._has_served = False

    def command(self) -> list[str]:
        """An agent that is a server, with its configuration in a file."""
        path = self.home / "consul.json"
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
            "ports": {**self.ports, **dict.fromkeys(disabled, -1)},
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

    def probe(self, timeout: float) -> None:
        """Ask for the leader, whose port it is, and write or read a key."""
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
