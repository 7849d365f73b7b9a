"""The plugin's hooks: describe Consul, check a URI and its options, open the store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvi.backend.green import replaced_threads
from kvi.errors import InvalidOption, NotSupported
from kvi.hookspecs import BackendInfo, hookimpl
from kvi.options import Option
from kvi.primitives import Primitives
from kvi.uri import StoreUri

from kvi_consul.store import CAPABILITIES, ConsulKvi
from kvi_consul.tls import Tls
from kvi_consul.transport import CONNECTIONS, Transport

PORT = 8500

_OPTIONS = (
    Option(name="token", kind="text", secret=True, help="the ACL token; or write it before the @"),
    Option(name="dc", kind="text", help="the datacenter, if it is not the agent's own"),
    Option(
        name="connections",
        kind="integer",
        default=CONNECTIONS,
        minimum=1,
        maximum=200,
        help="how many connections are open at once for calls, and as many more for watches",
    ),
    Option(name="ca", kind="text", help="file of the CA certificates to trust (consul+tls)"),
    Option(name="cert", kind="text", help="file of the client's certificate (consul+tls)"),
    Option(name="key", kind="text", help="file of the client's key, if not in cert (consul+tls)"),
)
# Both go into the head of a request as they are: a line break there would be a header of its own.
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")
_HOST = re.compile(r"[A-Za-z0-9._:%-]+\Z")


@hookimpl
def kvi_describe() -> BackendInfo:
    """Describe the Consul store."""
    return BackendInfo(
        name="consul",
        interface="1.0",
        schemes=("consul", "consul+tls"),
        capabilities=CAPABILITIES,
        options=_OPTIONS,
        path_is_namespace=True,
    )


@hookimpl
def kvi_open(uri: StoreUri, options: Mapping[str, Any]) -> Primitives:
    """Open the store of the agents; nothing is sent yet."""
    first, *others = _agents(uri)
    if replaced_threads() == "eventlet":
        raise NotSupported("the sockets of eventlet lack what a Consul store needs; use gevent")
    transport = Transport(
        *first,
        *others,
        token=_token(uri, options["token"]),
        tls=_tls(uri.variant == "tls", options),
        connections=options["connections"],
    )
    return ConsulKvi(uri.redacted, transport, dc=options["dc"], timeout=options["timeout"])


def _agents(uri: StoreUri) -> list[tuple[str, int]]:
    if not uri.hosts:
        raise InvalidOption("a Consul store needs its agent's host: consul://127.0.0.1:8500")
    return [(_plain(host), PORT if port is None else port) for host, port in uri.hosts]


def _plain(host: str) -> str:
    try:
        plain = host.encode("idna").decode("ascii")
    except UnicodeError:
        plain = ""
    if not _HOST.match(plain):
        raise InvalidOption("a host of the URI is neither a name nor an address")
    return plain


def _token(uri: StoreUri, option: str | None) -> str | None:
    if uri.password is not None:
        raise InvalidOption(
            "Consul has tokens, not users with passwords; write consul://TOKEN@host"
        )
    if uri.username is not None and option is not None:
        raise InvalidOption("the token is given before the @ and as an option; keep one")
    token = option if uri.username is None else uri.username
    if token is not None and not _TOKEN.match(token):
        raise InvalidOption("a Consul token is printable ASCII without spaces, and not empty")
    return token


def _tls(wanted: bool, options: Mapping[str, Any]) -> Tls | None:
    ca, cert, key = (options[name] for name in ("ca", "cert", "key"))
    if not wanted:
        for name in ("ca", "cert", "key"):
            if options[name] is not None:
                raise InvalidOption(f"option {name!r} is for consul+tls://; change the scheme")
        return None
    if key is not None and cert is None:
        raise InvalidOption("option 'key' is the key of option 'cert'; give both")
    return Tls(ca, cert, key)
