"""Clusters of three servers on this machine, whose leader can be found and killed.

    with EtcdCluster() as cluster:
        ... cluster.uri, cluster.leader().kill() ...

All members start side by side, for none is ready before most are there.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from kvi.conformance.server_process import ServerFailed, free_ports

from tests.servers.run import ConsulServer, EtcdServer, Server

SIZE = 3
_TRIES = 3
_POLL = 0.02


S = TypeVar("S", bound=Server)


class Cluster(ABC, Generic[S]):
    """Servers that elect a leader; a context manager that starts and closes them."""

    def __init__(self) -> None:
        self.members: Sequence[S] = ()

    @property
    def uri(self) -> str:
        """The store's URI, with all members."""
        return self.uri_from(0)

    def uri_from(self, first: int) -> str:
        """The same, beginning with another member."""
        order = [*self.members[first:], *self.members[:first]]
        hosts = ",".join(f"{member.host}:{member.port}" for member in order)
        return f"{self.members[0].scheme}://{hosts}"

    def leader(self, timeout: float = 30.0) -> S:
        """The member that leads, as those who run agree; waits until there is one."""
        deadline = time.monotonic() + timeout
        while True:
            running = [member for member in self.members if member.status().running]
            told = {self._leader_of(member) for member in running}
            for member in running:
                if told == {self._id_of(member)}:
                    return member
            if time.monotonic() >= deadline:
                raise ServerFailed(f"the members agree on no leader: {told}")
            time.sleep(_POLL)

    def __enter__(self) -> Self:
        for remaining in reversed(range(_TRIES)):
            self.members = self._made()
            try:
                with ThreadPoolExecutor(SIZE) as pool:
                    list(pool.map(lambda member: member.start(60), self.members))
                self.leader()
                return self
            except ServerFailed:  # perhaps a port was taken meanwhile
                self._close()
                if not remaining:
                    raise
            except BaseException:
                self._close()
                raise
        raise AssertionError("unreachable")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        for member in self.members:
            member.close()

    @abstractmethod
    def _made(self) -> Sequence[S]:
        """The members, not started yet, which know of each other."""

    @abstractmethod
    def _leader_of(self, member: S) -> object:
        """Whom a member believes to lead; something that nobody is, if it cannot tell."""

    @abstractmethod
    def _id_of(self, member: S) -> object:
        """What `_leader_of` calls this member."""


class EtcdMember(EtcdServer):
    """One of several etcd nodes; its ports are chosen before it starts."""

    def __init__(self, ports: dict[str, int]) -> None:
        super().__init__(ports=ports)
        self.others: str = ""

    @property
    def peer(self) -> str:
        """How the others know it."""
        return f"{self._name}=http://{self.host}:{self.ports['peer']}"

    def command(self) -> list[str]:
        """Its own, with the others."""
        return [*super().command(), f"--initial-cluster={self.others}"]

    def state(self) -> dict[str, Any]:
        """What it says of itself."""
        _, answer = self._ask("POST", "/v3/maintenance/status", b"{}", timeout=2)
        told: dict[str, Any] = json.loads(answer)
        return told


class EtcdCluster(Cluster[EtcdMember]):
    """Three etcd nodes."""

    def _made(self) -> Sequence[EtcdMember]:
        ports = iter(free_ports(2 * SIZE))
        members = [EtcdMember({"client": next(ports), "peer": next(ports)}) for _ in range(SIZE)]
        for member in members:
            member.others = ",".join(one.peer for one in members)
        return members

    def _leader_of(self, member: EtcdMember) -> object:
        try:
            return member.state().get("leader", "0")
        except (OSError, ValueError):
            return None

    def _id_of(self, member: EtcdMember) -> object:
        try:
            return member.state()["header"]["member_id"]
        except (OSError, ValueError, KeyError):
            return member


class ConsulMember(ConsulServer):
    """One of several Consul servers; its ports are chosen before it starts."""

    def __init__(self, ports: dict[str, int]) -> None:
        super().__init__(config={"bootstrap_expect": SIZE}, ports=ports)

    @property
    def gossip(self) -> str:
        """Where the others find it."""
        return f"{self.host}:{self.ports['serf_lan']}"

    @property
    def raft(self) -> str:
        """How the others know it."""
        return f"{self.host}:{self.ports['server']}"

    def join(self, others: Sequence[str]) -> None:
        """Look for the others there, once it starts."""
        self._config["retry_join"] = list(others)
        self._config["retry_interval"] = "1s"

    def told_leader(self) -> object:
        """Whom it believes to lead."""
        _, answer = self._ask("GET", "/v1/status/leader", timeout=2)
        return json.loads(answer)


class ConsulCluster(Cluster[ConsulMember]):
    """Three Consul servers."""

    def _made(self) -> Sequence[ConsulMember]:
        ports = iter(free_ports(3 * SIZE))
        members = [
            ConsulMember({name: next(ports) for name in ("http", "server", "serf_lan")})
            for _ in range(SIZE)
        ]
        for member in members:
            member.join([one.gossip for one in members if one is not member])
        return members

    def _leader_of(self, member: ConsulMember) -> object:
        try:
            return member.told_leader() or "nobody"
        except (OSError, ValueError):
            return None

    def _id_of(self, member: ConsulMember) -> object:
        return member.raft
