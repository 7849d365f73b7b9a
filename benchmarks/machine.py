"""What ran: this machine, the packages, the servers and how they were set up."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sqlite3
import urllib.request
from collections.abc import Iterable
from types import ModuleType
from urllib.parse import urlsplit

import kvi

PEERS = {
    "aetcd": "aetcd",
    "etcetra": "etcetra",
    "etcd3": "etcd3",
    "etcd3gw": "etcd3gw",
    "opendal": "opendal",
    "consul": "python-consul",
    "tooz": "tooz",
}


def installed(module: str) -> ModuleType | None:
    """Import a peer if it is installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def has(module: str) -> bool:
    """Whether a peer is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def versions() -> list[str]:
    """Lines that say what the numbers were made with."""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    ours = _packages(["kvi-core", "kvi-memory", "kvi-sqlite", "kvi-etcd", "kvi-consul"])
    others = _packages([*PEERS.values(), "grpcio", "protobuf", "sortedcontainers"])
    return [
        f"{python}, {os.cpu_count()} processors, {load} at the start",
        f"kvi: {ours}",
        f"peers and floors: {others}, SQLite {sqlite3.sqlite_version}",
    ]


def _packages(names: Iterable[str]) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def address(uri: str) -> tuple[str, int]:
    """Host and port of a server's URI."""
    parts = urlsplit(uri)
    if parts.hostname is None or parts.port is None:
        raise SystemExit(f"a benchmark needs scheme://host:port, not {uri}")
    return parts.hostname, parts.port


def handled(uri: str) -> dict[str, int]:
    """How many messages of clients an etcd has received, by method; by its own count."""
    found = re.findall(
        r'^grpc_server_msg_received_total\{grpc_method="(\w+)".*\} (\S+)$',
        _fetch(uri, "/metrics"),
        re.M,
    )
    return {method: int(float(count)) for method, count in found}


def etcd_version(uri: str) -> str:
    """The server's version, and whether it syncs a write to disk, by its own count of syncs."""
    version = json.loads(_fetch(uri, "/version"))["etcdserver"]
    before = _syncs(uri)
    with kvi.open(uri) as store:
        store.store("benchmark/sync", "")
    synced = _syncs(uri) > before
    return f"etcd {version}, one node, {'syncing' if synced else 'NOT syncing'} writes to disk"


def _syncs(uri: str) -> float:
    name = "etcd_disk_wal_fsync_duration_seconds_count "
    lines = _fetch(uri, "/metrics").splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def consul_version(uri: str) -> str:
    """The server's version."""
    version = json.loads(_fetch(uri, "/v1/agent/self"))["Config"]["Version"]
    return f"Consul {version}, one server"


def _fetch(uri: str, path: str) -> str:
    host, port = address(uri)
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text
