"""`etcd grpc-proxy` before a server."""

from __future__ import annotations

import http.client

from tests.servers import EtcdServer


class GrpcProxy(EtcdServer):
    """Passes calls on to ``server``, over few connections of its own."""

    def __init__(self, server: EtcdServer) -> None:
        super().__init__()
        self._server = server

    def command(self) -> list[str]:
        """The proxy's."""
        return [
            str(self.binary.path),
            "grpc-proxy",
            "start",
            f"--endpoints={self._server.host}:{self._server.port}",
            f"--listen-addr={self.host}:{self.port}",
            f"--advertise-client-url={self.host}:{self.port}",
            f"--data-dir={self.data_dir}",
        ]

    def probe(self, timeout: float) -> None:
        """Ask for its health."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status != 200:
                raise OSError("not healthy yet")
        finally:
            connection.close()
