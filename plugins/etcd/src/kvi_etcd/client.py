"""The bridge to the old ``etcd3`` client, the only module that knows it.

*Why a bridge.* ``etcd3`` 0.12 ships stubs made for a protobuf of 2018, which no protobuf since 4.0
can import. Its client code is fine. So stubs made from our own ``wire.proto`` stand in as
``etcd3.etcdrpc`` before it is imported. From the client we take the channel, its TLS and the stub
objects; requests, time-outs, tokens and errors are ours.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from kvi.errors import InvalidOption

from kvi_etcd import wire_pb2 as pb

Pems = tuple[bytes | None, bytes | None, bytes | None]  # as gRPC wants them

STUBS = "etcd3.etcdrpc"

# bytes: bounds what one page of a range, or one answer of a watch, may hold in memory
MAX_PAGE = 32 * 1024 * 1024

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "etcdserverpb.KV", "method": "Range"},
                {"service": "etcdserverpb.Watch", "method": "Watch"},
            ],
            "maxResponseMessageBytes": MAX_PAGE,
        }
    ]
}
_OPTIONS = (
    # a transaction's answer must come through whatever its size: the transaction has been applied
    ("grpc.max_receive_message_length", -1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_send_message_length", -1),  # what is too large for etcd is refused before
    ("grpc.keepalive_time_ms", 10_000),  # etcd drops clients that ping more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    # for gRPC's own ping, which measures the line: while it waits, no keepalive is sent
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # close() closes this handle's connection and no other
    ("grpc.enable_http_proxy", 0),  # it would be given the password
    ("grpc.dns_min_time_between_resolutions_ms", 500),  # a name that moves is found as soon
    ("grpc.enable_retries", 0),  # whether to send again is decided here
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a server that is back is found within a second
)

# service → method → (request, response); "~" marks a stream of requests or responses
_SERVICES: dict[str, dict[str, tuple[str, str]]] = {
    "KV": {
        "Range": ("RangeRequest", "RangeResponse"),
        "Put": ("PutRequest", "PutResponse"),
        "DeleteRange": ("DeleteRangeRequest", "DeleteRangeResponse"),
        "Txn": ("TxnRequest", "TxnResponse"),
        "Compact": ("CompactionRequest", "CompactionResponse"),
    },
    "Watch": {"Watch": ("~WatchRequest", "~WatchResponse")},
    "Lease": {
        "LeaseGrant": ("LeaseGrantRequest", "LeaseGrantResponse"),
        "LeaseRevoke": ("LeaseRevokeRequest", "LeaseRevokeResponse"),
        "LeaseKeepAlive": ("~LeaseKeepAliveRequest", "~LeaseKeepAliveResponse"),
        "LeaseTimeToLive": ("LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse"),
        "LeaseLeases": ("LeaseLeasesRequest", "LeaseLeasesResponse"),
    },
    "Cluster": {
        "MemberAdd": ("MemberAddRequest", "MemberAddResponse"),
        "MemberRemove": ("MemberRemoveRequest", "MemberRemoveResponse"),
        "MemberUpdate": ("MemberUpdateRequest", "MemberUpdateResponse"),
        "MemberList": ("MemberListRequest", "MemberListResponse"),
    },
    "Maintenance": {
        "Alarm": ("AlarmRequest", "AlarmResponse"),
        "Status": ("StatusRequest", "StatusResponse"),
        "Defragment": ("DefragmentRequest", "DefragmentResponse"),
        "Hash": ("HashRequest", "HashResponse"),
        "Snapshot": ("SnapshotRequest", "~SnapshotResponse"),
    },
    "Auth": {"Authenticate": ("AuthenticateRequest", "AuthenticateResponse")},
}


def _stub_class(service: str) -> type:
    """A class like those that the gRPC compiler writes: one attribute per method."""

    def init(self: Any, channel: grpc.Channel) -> None:
        for method, (request, response) in _SERVICES[service].items():
            shape = "_".join("stream" if m[0] == "~" else "unary" for m in (request, response))
            call = getattr(channel, shape)(
                f"/etcdserverpb.{service}/{method}",
                request_serializer=getattr(pb, request.lstrip("~")).SerializeToString,
                response_deserializer=getattr(pb, response.lstrip("~")).FromString,
            )
            setattr(self, method, call)

    return type(f"{service}Stub", (), {"__init__": init})


# What the store calls, by the name that it has here.
_CALLS = {
    "range": ("KV", "Range"),
    "put": ("KV", "Put"),
    "delete": ("KV", "DeleteRange"),
    "txn": ("KV", "Txn"),
    "grant": ("Lease", "LeaseGrant"),
    "revoke": ("Lease", "LeaseRevoke"),
    # A stream with one request and one answer is, on the wire, a plain call; as such it needs no
    # thread and has a deadline.
    "keep_alive": ("Lease", "LeaseKeepAlive"),
    "left": ("Lease", "LeaseTimeToLive"),
    "leases": ("Lease", "LeaseLeases"),
    "status": ("Maintenance", "Status"),
    "authenticate": ("Auth", "Authenticate"),
}


def calls(channel: Any) -> dict[str, Any]:
    """The plain calls that the store makes over a channel of gRPC, blocking or of asyncio."""
    made = {}
    for name, (service, method) in _CALLS.items():
        request, response = (one.lstrip("~") for one in _SERVICES[service][method])
        made[name] = channel.unary_unary(
            f"/etcdserverpb.{service}/{method}",
            request_serializer=getattr(pb, request).SerializeToString,
            response_deserializer=getattr(pb, response).FromString,
        )
    return made


def _import_etcd3() -> ModuleType:
    if STUBS not in sys.modules:
        stubs = ModuleType(STUBS, "Stubs for etcd3, made from kvi_etcd/wire.proto.")
        stubs.__dict__.update({k: v for k, v in vars(pb).items() if not k.startswith("_")})
        for service in _SERVICES:
            setattr(stubs, f"{service}Stub", _stub_class(service))
        sys.modules[STUBS] = stubs
    return importlib.import_module("etcd3")


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of PEM text for TLS.

    Without ``ca`` the authorities that gRPC brings are trusted.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def read(self) -> Pems:
        """Read the files; raises `InvalidOption` that names the option of one that cannot be."""
        if (self.cert is None) != (self.key is None):
            raise InvalidOption("a client certificate needs both options, cert and key")
        return _pem("ca", self.ca), _pem("key", self.key), _pem("cert", self.cert)


def _pem(option: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InvalidOption(
            f"option {option!r} names a file that cannot be read: {error}"
        ) from error
    if b"-----BEGIN" not in text:
        raise InvalidOption(f"option {option!r} names a file without PEM text")
    return text


def open_channel(host: str, port: int, pems: Pems | None) -> Any:
    """A channel for the running event loop, that connects at its first call; not etcd3's."""
    target = f"{_bracketed(host)}:{port}"
    if pems is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(*pems), options=_OPTIONS)


def connect(host: str, port: int, pems: Pems | None) -> Any:
    """A client of one endpoint, with a channel that connects at its first call."""
    etcd3 = _import_etcd3()

    class Client(etcd3.Etcd3Client):  # type: ignore[name-defined, misc]
        """The client, with TLS as kvi configures it."""

        def _get_secure_creds(self, *_files: object) -> grpc.ChannelCredentials:
            assert pems is not None
            return grpc.ssl_channel_credentials(*pems)

    return Client(
        _bracketed(host),
        port,
        ca_cert=None if pems is None else "",  # not None switches TLS on; the bytes are ours
        grpc_options=_OPTIONS,
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
