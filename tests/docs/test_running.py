"""What the pages on running etcd and Consul tell to type, typed; their URIs opened.

Each indented block of a page has a function here that does what it says, on servers of its own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kvi
import pytest
from kvi.conformance.server_process import free_ports

from tests.servers import ConsulServer, EtcdServer, find_consul, find_etcdctl
from tests.servers.cluster import EtcdCluster
from tests.support.secure import SecureConsul, SecureEtcd
from tests.support.tls import Certificates

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"(?<=\n\n)(?:(?:    .*\n)+|```sh\n(?:.+\n)+?(?=```\n))")
PASSWORD = "p%ss"  # of the users that are made here


def blocks(page: str) -> list[list[str]]:
    """The lines of each block of a shell, and of each indented one."""
    found = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [
        [line.strip() for line in block.removeprefix("```sh\n").splitlines()] for block in found
    ]


def type_in(line: str, tools: dict[str, list[str]], answer: str = "") -> str:
    """Run a line of a shell, with ``tools`` in place of the commands of that name."""
    command, *words = line.split()
    command_line = [*tools[command], *words]
    done = subprocess.run(command_line, input=answer, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def etcdctl(server: EtcdServer) -> dict[str, list[str]]:
    """The tool, speaking to that server."""
    return {"etcdctl": [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}"]}


def value(store: kvi.Kvi) -> bytes | None:
    """What is under the key of these tests."""
    entry = store.get("k")
    return entry and entry.value


def works(uri: str, **options: str) -> None:
    """A store can be written and read below a namespace of the URI."""
    assert urlsplit(uri).path == "/inventory"
    with kvi.open(uri, **options) as store:
        store.store("k", "v")
        assert value(store) == b"v"
        with store.lock("l", timeout=10) as held:
            assert held.held


def refused(uri: str, key: str) -> None:
    """What is not below the namespace may not be written."""
    with kvi.open(uri) as store, pytest.raises(kvi.PermissionDenied):
        store.store(key, "v")


# -- etcd ------------------------------------------------------------------------------------------


def three_members(lines: list[str], folder: Path) -> None:
    """The URI of a cluster; it bears the loss of one."""
    (uri,) = lines
    with EtcdCluster() as cluster:
        hosts = ",".join(f"{member.host}:{member.port}" for member in cluster.members)
        uri = uri.replace("a:2379,b:2379,c:2379", hosts)
        works(uri)
        cluster.leader().kill()
        with kvi.open(uri) as store:
            assert value(store) == b"v"  # the election is bridged
        works(uri)


def a_snapshot(lines: list[str], folder: Path) -> None:
    """It is taken, and can be restored."""
    (line,) = lines
    copy = folder / "backup.etcd"
    with EtcdServer(fast=True) as server:
        with kvi.open(server.uri) as store:
            store.store("k", "v")
        type_in(line.replace("backup.etcd", str(copy)), etcdctl(server))
        restored = folder / "restored"
        type_in(f"etcdctl snapshot restore {copy} --data-dir={restored}", etcdctl(server))
    assert (restored / "member" / "snap" / "db").exists()


def etcd_certificates(lines: list[str], folder: Path) -> None:
    """Each URI opens; the one with a user as well."""
    files = Certificates.make(folder)
    names = {"ca.pem": files.ca, "client.pem": files.client_cert, "client.key": files.client_key}
    for line in lines:
        mutual = "cert=" in line
        with SecureEtcd(files, mutual=mutual) as server:
            if "@" in line:
                tool = etcdctl(server)
                tool["etcdctl"][1] = f"--endpoints=https://{server.host}:{server.port}"
                tool["etcdctl"] += [f"--cacert={files.ca}"]
                make_user(tool, the_role())
            uri = line.replace("PASSWORD", PASSWORD.replace("%", "%25"))
            uri = re.sub(r"a:2379(,b:2379)?", f"{server.host}:{server.port}", uri)
            for name, path in names.items():
                uri = uri.replace(f"={name}", f"={path}")
            works(uri)


def the_role() -> list[str]:
    """The lines of the page that make a user for one namespace."""
    (lines,) = (each for each in blocks("running-etcd.md") if each[0].startswith("etcdctl role"))
    return lines


def make_user(tools: dict[str, list[str]], lines: list[str]) -> None:
    """Do as the page says, and switch authentication on."""
    for line in lines:
        # a password is asked for on a terminal, which there is not here
        words = line.replace("user add", "user add --interactive=false")
        type_in(words, tools, answer=f"{PASSWORD}\n")
    type_in("etcdctl user add --interactive=false root", tools, answer="rootpw\n")
    type_in("etcdctl user grant-role root root", tools)
    type_in("etcdctl auth enable", tools)


def a_user(lines: list[str], folder: Path) -> None:
    """It may do all below its namespace, and nothing else."""
    with EtcdServer(fast=True) as server:
        make_user(etcdctl(server), lines)
        address = f"{server.host}:{server.port}"
        user = f"etcd://inventory:{PASSWORD.replace('%', '%25')}@{address}"
        works(f"{user}/inventory")
        refused(user, "other")


# -- Consul ----------------------------------------------------------------------------------------


def an_agent(lines: list[str], folder: Path) -> None:
    """The URI of the agent of this host."""
    (uri,) = lines
    with ConsulServer() as server:
        works(uri.replace("127.0.0.1:8500", f"{server.host}:{server.port}"))


def consul_snapshot(lines: list[str], folder: Path) -> None:
    """What was changed after it is as it was before."""
    save, restore = lines
    with ConsulServer() as server, kvi.open(server.uri, timeout=20) as store:
        tools = {"consul": ["env", f"CONSUL_HTTP_ADDR={server.host}:{server.port}"]}
        tools["consul"].append(str(find_consul().path))
        store.store("k", "before")
        type_in(save.replace("backup.snap", str(folder / "backup.snap")), tools)
        store.store("k", "after")
        type_in(restore.replace("backup.snap", str(folder / "backup.snap")), tools)
        assert value(store) == b"before"


def consul_certificates(lines: list[str], folder: Path) -> None:
    """The URI with certificates, and the one with a token."""
    secure, with_token = lines
    files = Certificates.make(folder)
    (port,) = free_ports(1)
    config: dict[str, Any] = {
        "ca_file": str(files.ca),
        "cert_file": str(files.server_cert),
        "key_file": str(files.server_key),
        "verify_incoming_rpc": False,
        "verify_incoming_https": True,
        "ports": {"https": port},
    }
    with ConsulServer(config=config):
        uri = secure.replace("8501", str(port)).replace("=ca.pem", f"={files.ca}")
        uri = uri.replace("=client.pem", f"={files.client_cert}")
        works(uri.replace("=client.key", f"={files.client_key}"))
    with SecureConsul() as secured:
        uri = with_token.replace("127.0.0.1:8500", secured.address)
        works(uri.replace("TOKEN", secured.master))


def a_policy(lines: list[str], folder: Path) -> None:
    """Its token may do all below the namespace, and nothing else."""
    with SecureConsul() as secured:
        token = secured.token("\n".join(lines))["SecretID"]
        works(f"consul://{token}@{secured.address}/inventory")
        refused(f"consul://{token}@{secured.address}", "other")


Does = Callable[[list[str], Path], None]
ETCD: list[Does] = [three_members, a_snapshot, etcd_certificates, a_user]
CONSUL: list[Does] = [an_agent, consul_snapshot, consul_certificates, a_policy]


@pytest.mark.slow
@pytest.mark.etcd
@pytest.mark.parametrize("number", range(len(ETCD)), ids=[does.__name__ for does in ETCD])
def test_etcd(number: int, tmp_path: Path) -> None:
    """The block of that number does what the page says."""
    ETCD[number](blocks("running-etcd.md")[number], tmp_path)


@pytest.mark.slow
@pytest.mark.consul
@pytest.mark.parametrize("number", range(len(CONSUL)), ids=[does.__name__ for does in CONSUL])
def test_consul(number: int, tmp_path: Path) -> None:
    """The block of that number does what the page says."""
    CONSUL[number](blocks("running-consul.md")[number], tmp_path)


def test_each_block_is_run() -> None:
    """No page has a block that nothing here runs."""
    assert len(blocks("running-etcd.md")) == len(ETCD)
    assert len(blocks("running-consul.md")) == len(CONSUL)
    assert blocks("running-sqlite.md") == []
