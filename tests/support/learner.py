"""An etcd member that may not vote, and refuses what clients ask."""

from __future__ import annotations

import subprocess
from typing import Any

from tests.servers import EtcdServer, find_etcdctl


class Learner(EtcdServer):
    """Joins the cluster of ``voter``, to learn from it."""

    def __init__(self, voter: EtcdServer) -> None:
        super().__init__(
            fast=True, extra_args=["--initial-cluster-state=existing", "--strict-reconfig-check"]
        )
        self._voter = voter

    def command(self) -> list[str]:
        """Its own, once the others know of it."""
        command = super().command()
        own = f"http://{self.host}:{self.ports['peer']}"
        done = subprocess.run(
            [
                str(find_etcdctl().path),
                f"--endpoints={self._voter.host}:{self._voter.port}",
                "member",
                "add",
                self._name,
                "--learner",
                f"--peer-urls={own}",
            ],
            check=True,
            capture_output=True,
            text=True,
            env={"ETCDCTL_API": "3"},
        )
        (cluster,) = (
            line.partition("=")[2].strip('"')
            for line in done.stdout.splitlines()
            if line.startswith("ETCD_INITIAL_CLUSTER=")
        )
        return [*command, f"--initial-cluster={cluster}"]

    def probe(self, timeout: float) -> None:
        """A learner calls itself unhealthy; what it says of itself shows that it serves."""
        answer: tuple[int, Any] = self._ask(
            "POST", "/v3/maintenance/status", b"{}", timeout=timeout
        )
        if answer[0] != 200:
            raise OSError(answer[1])
