"""The only module that touches python-consul: its client, on this plugin's own transport.

It is the escape hatch (`kvi.Kvi.client`) for what kvi does not cover, such as services, health or
ACLs, and is imported when it is first asked for: python-consul brings ``requests`` along, which
would cost every program a tenth of a second.

What differs from ``consul.Consul``: calls end by a time-out; connections are pooled and shared with
the handle; the token travels in a header, not in the URL; a redirect is an error (it names another
key); the environment (``CONSUL_HTTP_ADDR``, ``CONSUL_HTTP_TOKEN`` …) changes nothing; what goes
wrong on the network is a ``consul.Timeout`` or a ``consul.ConsulException``. After the handle was
closed, so is its client.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partialmethod
from time import monotonic
from typing import Any
from urllib.parse import quote, urlencode

import consul

from kvi_consul.errors import Broken
from kvi_consul.transport import Transport

_WAIT = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?\Z")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DEFAULT_WAIT = 300.0  # what a blocking query waits if it does not say
_LONGEST_WAIT = 600.0
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")

_Callback = Callable[[Any], Any]
_Params = list[tuple[str, Any]] | dict[str, Any] | None


class HttpClient:
    """What python-consul takes for its HTTP client: one method for each HTTP method.

    A read waits longer if its parameters make it a blocking query.
    """

    def __init__(self, transport: Transport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout

    def _ask(
        self,
        method: str,
        callback: _Callback,
        path: str,
        params: _Params = None,
        data: bytes | str = "",
    ) -> Any:
        pairs = list(params.items() if isinstance(params, dict) else params or ())
        given = dict(pairs)
        token = given.get("token")
        if token is not None and not _TOKEN.match(token):
            raise consul.ConsulException("a Consul token is printable ASCII without spaces")
        query = urlencode([pair for pair in pairs if pair[0] != "token"])
        target = quote(path, safe="/:") + ("?" + query if query else "")
        body = data.encode() if isinstance(data, str) else data
        transport, wait = self._transport, _waits(given)
        try:
            answer = transport.exchange(
                transport.head(method, target, token),
                body or b"",
                monotonic() + self._timeout + wait,
                read_only=method == "GET",
                waits=wait > 0,
                elsewhere=False,  # much of it is an agent's own
            )
        except Broken as broken:
            cause = broken.__cause__
            kind = consul.Timeout if isinstance(cause, TimeoutError) else consul.ConsulException
            raise kind(f"{transport.where}: {cause}") from cause
        if 300 <= answer.status < 400:
            raise consul.ConsulException(
                f"{answer.status}: Consul redirects this path to another one; "
                "a key with //, . or .. or a leading / has none of its own"
            )
        headers = {
            "-".join(part.capitalize() for part in name.decode("latin-1").split("-")): value.decode(
                "latin-1"
            )
            for name, value in answer.headers.items()
        }
        return callback(
            consul.base.Response(answer.status, headers, answer.body.decode(errors="replace"))
        )

    get = partialmethod(_ask, "GET")
    put = partialmethod(_ask, "PUT")
    delete = partialmethod(_ask, "DELETE")
    post = partialmethod(_ask, "POST")


def _waits(params: dict[str, Any]) -> float:
    """How long the server may wait with its answer; it adds up to a sixteenth."""
    if params.get("index") is None:
        return 0.0
    match = _WAIT.match(str(params.get("wait", "")))
    wait = float(match[1]) * _UNITS[match[2] or "s"] if match else _DEFAULT_WAIT
    return min(wait or _DEFAULT_WAIT, _LONGEST_WAIT) * 17 / 16


class ConsulClient(consul.Consul):  # type: ignore[misc]  # python-consul has no types
    """python-consul's client of one agent, on the transport of a handle."""

    def __init__(self, transport: Transport, *, dc: str | None, timeout: float) -> None:
        # Not super().__init__: it lets the environment choose another agent and token, or fails
        # on the environment's form. What it would set up besides is below.
        self._transport = transport
        self._timeout = timeout
        self.scheme = "http" if transport.tls is None else "https"
        self.http = self.connect(transport.host, transport.port, self.scheme)
        self.token = None  # it would go into every URL; the transport sends it as a header
        self.dc = dc
        self.consistency = "default"
        for name, kind in vars(consul.base.Consul).items():
            if isinstance(kind, type):  # Consul.KV is to be self.kv, and so on
                setattr(self, name.lower(), kind(self))

    def connect(
        self, host: str, port: int, scheme: str, verify: object = True, cert: object = None
    ) -> HttpClient:
        """The HTTP client on the handle's transport, whatever the arguments say."""
        return HttpClient(self._transport, self._timeout)
