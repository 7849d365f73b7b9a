"""Certificates, users and tokens on real servers: what is wrong is told, and no secret ever is."""

from __future__ import annotations

import json
import logging
import subprocess
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kvi
import pytest
from kvi import observers
from kvi.conformance.server_process import free_ports
from kvi.hookspecs import ObservedOperation, hookimpl

from tests.servers import ConsulServer, EtcdServer, find_etcdctl
from tests.support.secure import SecureEtcd
from tests.support.tls import Certificates
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MASTER = "11111111-2222-3333-4444-555555555555"
PASSWORD = "s3cr3t-p4ssw0rd"
TOKENS_LAST = 2  # seconds, of etcd's tokens: a call later than that after the last needs a login


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Good and bad certificates."""
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def reachable(uri: str, **options: str) -> None:
    """Write and read, watch and lock once."""
    with kvi.open(uri, timeout=10, **options) as store:
        with store.watch("k") as watch, store.lock("jobs"):
            store.store("k", "v")
            assert watch.next(20).value == b"v"
        store.delete("k")


def refusal(uri: str, **options: str) -> kvi.KviError:
    """What a call ends with that cannot get through."""
    with kvi.open(uri, timeout=5, **options) as store, pytest.raises(kvi.KviError) as caught:
        store.store("k", "v")
    return caught.value


# -- certificates ---------------------------------------------------------------------------------


@pytest.mark.etcd
def test_etcd_certificates(files: Certificates) -> None:
    """TLS and mutual TLS; a wrong CA, and a client certificate that is missing, strange or old."""
    client = {"cert": str(files.client_cert), "key": str(files.client_key)}
    ca = {"ca": str(files.ca)}
    with SecureEtcd(files, mutual=True) as server:
        reachable(server.uri, **ca, **client)
        reachable(server.uri.replace("etcd+tls", "https"), **ca, **client)
        wrong: list[tuple[dict[str, str], str]] = [
            ({"ca": str(files.stranger_ca), **client}, "option ca"),
            (client, "option ca"),
            (ca, "cert and key"),
            (
                {**ca, "cert": str(files.stranger_cert), "key": str(files.stranger_key)},
                "cert and key",
            ),
            (
                {**ca, "cert": str(files.expired_cert), "key": str(files.expired_key)},
                "cert and key",
            ),
        ]
        for options, says in wrong:
            error = refusal(server.uri, **options)
            assert isinstance(error, kvi.AuthenticationFailed), error
            assert says in str(error)
        plain = refusal(f"etcd://{server.address}")
        assert isinstance(plain, kvi.Unavailable)
    with SecureEtcd(files) as server:
        reachable(server.uri, **ca)


@pytest.mark.etcd
def test_etcd_expired_certificate(files: Certificates) -> None:
    """The server's own certificate has ended: that is what the text says."""
    with SecureEtcd(files, cert=files.expired_cert, key=files.expired_key) as server:
        error = refusal(server.uri, ca=str(files.ca))
    assert isinstance(error, kvi.AuthenticationFailed)
    assert "expired" in str(error)


@pytest.mark.consul
def test_consul_certificates(files: Certificates) -> None:
    """The same for Consul, whose certificates are for the host as well."""
    client = {"cert": str(files.client_cert), "key": str(files.client_key)}
    ca = {"ca": str(files.ca)}

    def config(cert: Path, key: Path, port: int) -> dict[str, Any]:
        return {
            "ca_file": str(files.ca),
            "cert_file": str(cert),
            "key_file": str(key),
            "verify_incoming_rpc": False,
            "verify_incoming_https": True,
            "ports": {"https": port},
        }

    (port,) = free_ports(1)
    uri = f"consul+tls://127.0.0.1:{port}"
    with ConsulServer(config=config(files.server_cert, files.server_key, port)):
        reachable(uri, **ca, **client)
        wrong: list[tuple[dict[str, str], str]] = [
            ({"ca": str(files.stranger_ca), **client}, "option ca"),
            (ca, "cert and key"),
            (
                {**ca, "cert": str(files.stranger_cert), "key": str(files.stranger_key)},
                "cert and key",
            ),
            (
                {**ca, "cert": str(files.expired_cert), "key": str(files.expired_key)},
                "cert and key",
            ),
        ]
        for options, says in wrong:
            error = refusal(uri, **options)
            assert isinstance(error, kvi.AuthenticationFailed), error
            assert says in str(error)
    (port,) = free_ports(1)
    with ConsulServer(config=config(files.expired_cert, files.expired_key, port)):
        error = refusal(f"consul+tls://127.0.0.1:{port}", **ca, **client)
    assert isinstance(error, kvi.AuthenticationFailed)
    assert "expired" in str(error)


# -- users and tokens -----------------------------------------------------------------------------


def etcdctl(server: EtcdServer, *args: str) -> None:
    """Run a command as root."""
    subprocess.run(
        [str(find_etcdctl().path), f"--endpoints={server.host}:{server.port}", *args],
        check=True,
        capture_output=True,
        env={"ETCDCTL_API": "3"},
    )


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdServer]:
    """An etcd with users, whose tokens last for two seconds."""
    with EtcdServer(fast=True, extra_args=[f"--auth-token-ttl={TOKENS_LAST}"]) as server:
        for command in (
            "user add root:rootpw",
            "user grant-role root root",
            f"user add ada:{PASSWORD}",
            "role add app",
            "role grant-permission app --prefix=true readwrite app/",
            "user grant-role ada app",
            "auth enable",
        ):
            etcdctl(server, *command.split())
        yield server


@pytest.mark.etcd
def test_expired_tokens_are_renewed(guarded: EtcdServer) -> None:
    """Between calls and under a watch: nobody notices that a token has run out."""
    address = f"{guarded.host}:{guarded.port}"
    with (
        kvi.open(f"etcd://ada:{PASSWORD}@{address}/app") as store,
        kvi.open(f"etcd://root:rootpw@{address}/app") as root,
        store.watch(prefix="") as watch,
    ):
        logins = 0
        for turn in range(3):
            link = store.client  # the login of this moment
            token = link.metadata
            root.store("k", str(turn))
            assert watch.next(30).value == str(turn).encode()
            # Simple tokens end a while after their last use; the server says so to the next call.
            refused: list[bool] = []

            def ended(token: object = token, refused: list[bool] = refused) -> bool:
                refused.append(True)
                return _refuses(guarded, token)

            until(ended, within=60)
            assert store.get("k") is not None
            logins += store.client.metadata != token
            with store.watch("other") as another:
                root.store("other", str(turn))
                assert another.next(30).key == "other"
            while watch.next(30).key != "other":
                pass
        assert logins == 3


def _refuses(server: EtcdServer, token: Any) -> bool:
    """Whether the server knows the token no more; to ask keeps it alive, so it is asked rarely."""
    time.sleep(TOKENS_LAST + 1.5)
    request = urllib.request.Request(
        f"http://{server.host}:{server.port}/v3/kv/range",
        data=json.dumps({"key": "YXBwL2s="}).encode(),
        headers={"Authorization": token[0][1]},
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        with error:
            return b"invalid auth token" in error.read()
    return False


class Notes:
    """An observer that writes down all that it is told."""

    def __init__(self) -> None:
        self.text = ""

    @hookimpl
    def kvi_operation(self, operation: ObservedOperation) -> None:
        """Write it down."""
        self.text += repr(operation)


@pytest.fixture(params=["etcd", "consul"])
def denied(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str]]:
    """A URI whose user may do nothing, one that is not known, and the secret in both."""
    if request.param == "etcd":
        guarded: EtcdServer = request.getfixturevalue("guarded")
        address = f"{guarded.host}:{guarded.port}"
        yield f"etcd://ada:{PASSWORD}@{address}", f"etcd://eve:{PASSWORD}@{address}", PASSWORD
        return
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}
    with ConsulServer(config={"primary_datacenter": "dc1", "acl": acl}) as server:
        address = f"{server.host}:{server.port}"
        anonymous = f"consul://{address}"
        with kvi.open(f"consul://{MASTER}@{address}") as root:
            until(lambda: _works(lambda: root.store("probe", "v")))
        unknown = "99999999-2222-3333-4444-555555555555"
        yield anonymous, f"consul://{unknown}@{address}", unknown


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except kvi.KviError:
        return False
    return True


@pytest.mark.etcd
@pytest.mark.consul
def test_who_may_not_is_told_so_and_no_secret_is(
    denied: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong password or token, and a missing permission; in no text, log, trace or `repr`."""
    may_not, unknown, secret = denied
    notes = Notes()
    observers.register(notes)
    texts: list[str] = []
    kinds: set[tuple[type[kvi.KviError], type[kvi.KviError]]] = set()
    try:
        with caplog.at_level(logging.DEBUG):
            for uri, wanted in (
                (may_not, kvi.PermissionDenied),
                (unknown, kvi.AuthenticationFailed),
            ):
                with kvi.Backend(uri, timeout=5) as store:
                    calls: list[Callable[[], object]] = [
                        lambda store=store: store.get("other/k"),  # type: ignore[misc]
                        lambda store=store: store.store("other/k", "v"),  # type: ignore[misc]
                        lambda store=store: store.tas("other/k", None, "v"),  # type: ignore[misc]
                        lambda store=store: list(store.range(prefix="other/")),  # type: ignore[misc]
                        lambda store=store: store.watch("other/k"),  # type: ignore[misc]
                        lambda store=store: store.lock("other").acquire(0),  # type: ignore[misc]
                    ]
                    for call in calls:
                        try:
                            call()
                        except kvi.KviError as error:
                            kinds.add((type(error), wanted))
                            texts += [str(error), repr(error), repr(vars(error))]
                            texts += traceback.format_exception(error)
                        else:
                            # What Consul hides, it leaves out of ranges and watches in silence.
                            assert uri.startswith("consul")
                    texts += [repr(store), store.uri, repr(store.namespace("n"))]
                    assert store.alive, "a refusal is an answer"
    finally:
        observers.unregister(notes)
    texts += [caplog.text, notes.text]
    assert kinds == {
        (wanted, wanted) for wanted in (kvi.PermissionDenied, kvi.AuthenticationFailed)
    }
    for text in texts:
        assert secret not in text
