"""Real servers with TLS, users and tokens."""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import kvi

from tests.servers import ConsulServer, EtcdServer
from tests.support.tls import Certificates
from tests.support.waiting import until


class SecureEtcd(EtcdServer):
    """An etcd that speaks TLS to its clients; with ``mutual`` it asks them for a certificate."""

    def __init__(
        self,
        files: Certificates,
        *,
        cert: Path | None = None,
        key: Path | None = None,
        mutual: bool = False,
        extra_args: Sequence[str] = (),
    ) -> None:
        tls = [f"--cert-file={cert or files.server_cert}", f"--key-file={key or files.server_key}"]
        if mutual:
            tls += ["--client-cert-auth", f"--trusted-ca-file={files.ca}"]
        super().__init__(fast=True, extra_args=[*tls, *extra_args])
        # The server's certificate may be bad on purpose: whether it serves is asked all the same.
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.load_cert_chain(files.client_cert, files.client_key)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def uri(self) -> str:
        """The store's URI, without any files."""
        return f"etcd+tls://{self.address}"

    def command(self) -> list[str]:
        """Its own, over TLS."""
        client = f"https://{self.host}:{self.ports['client']}"
        urls = [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        return [*super().command(), *urls]

    def _ask(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            self.host, self.port, timeout=timeout, context=self._context
        )
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def probe(self, timeout: float) -> None:
        """Ask for its health alone."""
        status, answer = self._ask("GET", "/health", timeout=timeout)
        if status != 200 or json.loads(answer).get("health") != "true":
            raise OSError(answer.decode(errors="replace"))


class SecureConsul:
    """A server with ACLs; what `ask` asks, the master asks."""

    def __init__(self) -> None:
        self.master = "11111111-2222-3333-4444-555555555555"
        config = {
            "primary_datacenter": "dc1",
            "acl": {
                "enabled": True,
                "default_policy": "deny",
                "token_ttl": "0s",
                "tokens": {"master": self.master},
            },
        }
        self.server = ConsulServer(config=config)

    def __enter__(self) -> Self:
        self.server.start()
        self.address = urlsplit(self.server.uri).netloc
        with kvi.open(f"consul://{self.master}@{self.address}", timeout=10) as store:
            until(lambda: _stored(store), within=20)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.close()

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask, and return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, path, json.dumps(body), {"X-Consul-Token": self.master})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            return json.loads(content)
        finally:
            connection.close()

    def token(self, rules: str) -> Any:
        """A token with a policy of its own."""
        name = secrets.token_hex(4)
        self.ask("PUT", "/v1/acl/policy", {"Name": name, "Rules": rules})
        return self.ask("PUT", "/v1/acl/token", {"Policies": [{"Name": name}]})


def _stored(store: kvi.Kvi) -> bool:
    """Whether a key could be stored."""
    try:
        store.store("probe", "v")
    except kvi.KviError:
        return False
    return True
