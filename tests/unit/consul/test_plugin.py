"""URIs and options of Consul stores."""

from __future__ import annotations

import ssl
from pathlib import Path

import kvi
import pytest
from kvi.errors import InvalidOption
from kvi_consul.store import ConsulKvi

from tests.support.inside import inmost

TOKEN = "b1gs33cr3t"


def inner(store: kvi.Kvi) -> ConsulKvi:
    """The Consul handle itself, below its namespace if it has one."""
    found = inmost(store)
    assert isinstance(found, ConsulKvi)
    return found


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("consul://h", "Consul at h:8500"),
        ("consul://h:1/ns", "Consul at h:1"),
        ("consul://[::1]:1", "Consul at [::1]:1"),
        ("consul://bücher.example:1", "Consul at xn--bcher-kva.example:1"),
        ("consul+tls://h:1", "Consul at h:1"),
        ("consul://h:1,i/ns", "Consul at h:1, i:8500"),
    ],
)
def test_hosts(uri: str, where: str) -> None:
    """The agent's host and port are taken from the URI; opening sends nothing."""
    with kvi.open(uri) as store:
        assert inner(store)._transport.where == where


@pytest.mark.parametrize(
    ("uri", "options", "says"),
    [
        ("consul:", {}, "needs its agent's host"),
        ("consul://a,b..c", {}, "neither a name"),
        ("consul://user:pass@h", {}, "consul://TOKEN@host"),
        ("consul://@h", {}, "not empty"),
        ("consul://a%0Ab@h", {}, "printable"),
        ("consul://h%0d%0aX:1", {}, "neither a name"),
        ("consul://a..b", {}, "neither a name"),
        ("consul://x@h", {"token": "y"}, "keep one"),
        ("consul://h", {"token": "a b"}, "printable"),
        ("consul://h", {"ca": "/x"}, "consul\\+tls"),
        ("consul+tls://h", {"ca": "/nonexistent"}, "'ca'"),
        ("consul+tls://h", {"cert": "/nonexistent"}, "'cert'"),
        ("consul+tls://h", {"key": "/nonexistent"}, "give both"),
        ("consul://h?dc=", {}, "dc"),
    ],
)
def test_what_cannot_be_opened(uri: str, options: dict[str, str], says: str) -> None:
    """A URI or option that makes no sense is refused at once, with its mend."""
    with pytest.raises(InvalidOption, match=says):
        kvi.open(uri, **options)


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    """Bad TLS files are found when the store is opened, not at the first call."""
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    for options in ({"ca": str(bad)}, {"cert": str(bad)}):
        with pytest.raises(InvalidOption, match=next(iter(options))):
            kvi.open("consul+tls://h", **options)


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        (f"consul://{TOKEN}@localhost:1", {}),
        (f"consul://localhost:1?token={TOKEN}", {}),
        ("consul://localhost:1", {"token": TOKEN}),
    ],
)
def test_the_token_is_a_secret(uri: str, options: dict[str, str]) -> None:
    """The token is in no representation and no error, and in the header of every request."""
    with kvi.open(uri, **options) as store:
        with pytest.raises(kvi.Unavailable) as caught:
            store.get("k", timeout=1)
        assert TOKEN not in f"{store!r} {store.uri} {caught.value} {caught.value!r}"
        assert f"X-Consul-Token: {TOKEN}".encode() in inner(store)._txn_head
        assert store.client.token is None


def test_tls_checks_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS means a checked certificate of the host that was asked for."""
    store = kvi.open("consul+tls://localhost:1")
    tls = inner(store)._transport.tls
    assert tls is not None
    assert tls.context().check_hostname
    assert tls.context().verify_mode is ssl.CERT_REQUIRED
    store.close()


@pytest.mark.parametrize("address", ["elsewhere:1", "http://elsewhere:1", "elsewhere"])
def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Variables made for Consul's own tools send a store to no other agent, token or scheme."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", address)
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "other")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    monkeypatch.setenv("CONSUL_HTTP_SSL_VERIFY", "false")
    with kvi.open("consul://localhost:1?dc=dc2") as store:
        client = store.client
        assert (client.scheme, client.token, client.dc) == ("http", None, "dc2")
        assert client.http._transport.where == "Consul at localhost:1"
        assert {"kv", "session", "agent", "acl", "status"} <= set(vars(client))
