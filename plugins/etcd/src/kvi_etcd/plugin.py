"""The plugin's hooks: describe the etcd store and open it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from kvi.backend.green import replaced_threads
from kvi.errors import InvalidOption, NotSupported
from kvi.hookspecs import BackendInfo, hookimpl
from kvi.options import Option
from kvi.primitives import Primitives
from kvi.uri import StoreUri

from kvi_etcd.client import Tls
from kvi_etcd.driver import Credentials
from kvi_etcd.store import CAPABILITIES, EtcdKvi

DEFAULT_PORT = 2379


@hookimpl
def kvi_describe() -> BackendInfo:
    """Describe the etcd store."""
    return BackendInfo(
        name="etcd",
        interface="1.0",
        schemes=("etcd", "etcd+tls", "http", "https"),
        capabilities=CAPABILITIES,
        options=(
            Option(name="ca", kind="text", help="file of the authorities to trust (PEM), for TLS"),
            Option(name="cert", kind="text", help="file of the client's certificate (PEM)"),
            Option(name="key", kind="text", help="file of the client certificate's key (PEM)"),
            Option(
                name="grpc_aio",
                kind="flag",
                help="kvi.aio awaits its calls over grpc.aio, and the process must never fork",
            ),
        ),
        path_is_namespace=True,
    )


@hookimpl
def kvi_open(uri: StoreUri, options: Mapping[str, Any]) -> Primitives:
    """Open a handle; the first operation connects."""
    if not uri.hosts:
        raise InvalidOption("an etcd URI names a host; write etcd://host:2379")
    if (uri.username is None) != (uri.password is None):
        raise InvalidOption("an etcd user needs a password; write etcd://user:password@host:2379")
    library = replaced_threads()
    if library == "eventlet":
        raise NotSupported("gRPC, and so etcd, does not work with the threads of eventlet")
    if library == "gevent" and "grpc.experimental.gevent" not in sys.modules:
        raise NotSupported(
            "gevent has replaced the threads, and gRPC does not know; call "
            "grpc.experimental.gevent.init_gevent() behind monkey.patch_all()"
        )
    return EtcdKvi(
        uri.redacted,
        [(host, port or DEFAULT_PORT) for host, port in uri.hosts],
        tls=_tls(uri, options),
        credentials=Credentials.of(uri.username, uri.password),
        awaits=bool(options["grpc_aio"]),
        timeout=options["timeout"],
    )


def _tls(uri: StoreUri, options: Mapping[str, Any]) -> Tls | None:
    ca, cert, key = options["ca"], options["cert"], options["key"]
    if uri.scheme not in ("etcd+tls", "https"):
        if ca or cert or key:
            raise InvalidOption("ca, cert and key are for TLS; write etcd+tls://host:2379")
        return None
    return Tls(ca, cert, key)
