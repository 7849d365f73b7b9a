"""Real etcd and Consul servers for tests, demo and benchmarks: found or fetched, run, ended.

    with EtcdServer() as server:
        ... server.uri, server.pause(), server.kill(), server.restart() ...

From a shell: `python -m tests.servers -- COMMAND`.
"""

from __future__ import annotations

from kvi.conformance.server_process import ServerFailed

from tests.servers.binary import (
    Binary,
    BinaryUnusable,
    EtcdSource,
    ServerError,
    ServerMissing,
)
from tests.servers.cluster import Cluster, ConsulCluster, EtcdCluster
from tests.servers.find import find_consul, find_etcd, find_etcdctl
from tests.servers.run import ConsulServer, EtcdServer, Server

__all__ = [
    "Binary",
    "BinaryUnusable",
    "Cluster",
    "ConsulCluster",
    "ConsulServer",
    "EtcdCluster",
    "EtcdServer",
    "EtcdSource",
    "Server",
    "ServerError",
    "ServerFailed",
    "ServerMissing",
    "find_consul",
    "find_etcd",
    "find_etcdctl",
]
