"""Store URIs: text in, parts out, secrets hidden."""

from __future__ import annotations

import traceback

import kvi
import pytest
from kvi.uri import StoreUri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mem:", StoreUri("mem")),
        ("mem:NAME", StoreUri("mem", path="NAME")),
        ("MEM:x", StoreUri("mem", path="x")),
        ("sqlite:dir/a%20b%25.db", StoreUri("sqlite", path="dir/a b%.db")),
        ("sqlite:///abs/x.db", StoreUri("sqlite", path="/abs/x.db", authority=True)),
        ("sqlite:%FF%C3%A9", StoreUri("sqlite", path="\udcffé")),
        ("sqlite:/abs/x.db", StoreUri("sqlite", path="/abs/x.db")),
        (
            "etcd://h:2379",
            StoreUri("etcd", hosts=(("h", 2379),), authority=True),
        ),
        (
            "etcd+tls://u:p%40ss@h1:1,h2,[::1]:3/ns/deep?timeout=2&x=a%26b",
            StoreUri(
                "etcd+tls",
                "u",
                "p@ss",
                (("h1", 1), ("h2", None), ("::1", 3)),
                "/ns/deep",
                True,
                (("timeout", "2"), ("x", "a&b")),
            ),
        ),
        (
            "consul://to%3Aken@127.0.0.1:8500/",
            StoreUri("consul", "to:ken", hosts=(("127.0.0.1", 8500),), path="/", authority=True),
        ),
    ],
)
def test_parts(text: str, expected: StoreUri) -> None:
    """Each part is found and percent-decoded."""
    assert StoreUri.parse(text) == expected


def test_scheme_parts() -> None:
    """The scheme up to + names the plugin, the rest the variant."""
    uri = StoreUri.parse("etcd+tls://h")
    assert (uri.backend, uri.variant) == ("etcd", "tls")
    assert (StoreUri.parse("mem:").backend, StoreUri.parse("mem:").variant) == ("mem", "")


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("", "scheme"),
        ("/just/a/path", "scheme"),
        ("1mem:", "scheme"),
        ("etcd+:x", "scheme"),
        ("sqlite:a b", "%20"),
        ("sqlite:a\nb", "%XX"),
        ("sqlite:100%", "%25"),
        ("sqlite:a#b", "%23"),
        ("sqlite:a#", "%23"),
        ("etcd://h:99999", "port"),
        ("etcd://h:0", "port"),
        ("etcd://h:port", "name:port"),
        ("etcd://::1:2379", "IPv6"),
        ("etcd://h1:1,,h2:2", "host 2"),
        ("etcd://[::1:2379", "host"),
        ("mem:?timeout", "name=value"),
        ("mem:?timeout=1&timeout=2", "twice"),
        ("etcd://%FF@h", "user .* no UTF-8"),
        ("etcd://u:%FF@h", "password .* no UTF-8"),
        ("etcd://h1,h%FF", "host 2 .* no UTF-8"),
        ("etcd://h?namespace=%FF", "option .* no UTF-8"),
        ("etcd://h?%FF=1", "option .* no UTF-8"),
    ],
)
def test_malformed(text: str, mend: str) -> None:
    """A malformed URI is InvalidOption that names the part and how to write it."""
    with pytest.raises(kvi.InvalidOption, match=mend):
        StoreUri.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "etcd://user:hunter2@h:port",
        "etcd://user:hunter2@h:1 x",
        "consul://hunter2@h:1#x",
        "etcd://user:hunter2@h:1?a",
        "nonsense://user:hunter2@h:1",
        "etcd://user:hunter2%@h:1",
        "etcd://user:a/hunter2@h:1",
        "consul://hunter2:@h:1",
        "etcd:user:hunter2@h:1",
        "user:hunter2@h:1",
        "etcd://h?pwd=hunter2",
        "etcd://user:a?x=hunter2@h:1",
        "consul://a/hunter2@h:1",
        "etcd://user:hunter2@ho\u2100st",
        "consul://h?hunter2",
        "etcd://user:hunter2\ud800@h",
        "etcd://user:hunter2%FF@h",
        "consul://hunter2%FF@h",
        "consul://h?token=hunter2%FF",
    ],
)
def test_errors_do_not_quote_secrets(text: str) -> None:
    """No error about a URI shows what may be a secret."""
    with pytest.raises(kvi.KviError) as caught:
        kvi.open(text)
    error = caught.value
    assert "hunter2" not in "".join(traceback.format_exception(error, limit=0))
    assert error.operation == "open"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("etcd://user:pw@h:1/ns", "etcd://user:***@h:1/ns"),
        ("consul://token@h:1", "consul://***@h:1"),
        ("consul://token:@h:1", "consul://***@h:1"),
        ("consul://h?tokn=abc&namespace=x", "consul://h?tokn=***&namespace=x"),
        ("etcd:user:pw@h:1", "etcd:***@h:1"),
        ("user:pw@h:1", "user:***@h:1"),
        ("sqlite:///a%20b?timeout=2", "sqlite:///a%20b?timeout=2"),
        ("sqlite:///a%FFb", "sqlite:///a%FFb"),
        ("etcd://[::1]:2379", "etcd://[::1]:2379"),
        ("etcd://h/a%40b", "etcd://h/a%40b"),
    ],
)
def test_redacted(text: str, shown: str) -> None:
    """Redacted and repr show the URI with *** for secrets; what has none reads as written."""
    uri = StoreUri.parse(text)
    assert uri.redacted == shown
    assert repr(uri) == f"StoreUri({shown!r})"


@pytest.mark.parametrize("text", ["mem:%FF", "etcd://h/%FF", "consul://h/a%FFb"])
def test_path_that_is_no_file_is_text(text: str) -> None:
    """Where the path names a namespace, or a store in memory, it has to be UTF-8."""
    with pytest.raises(kvi.InvalidOption, match="UTF-8"):
        kvi.open(text)


def test_options_that_are_no_secrets() -> None:
    """Values are shown of the options that a plugin declares as no secrets; no others are."""
    uri = StoreUri.parse("x:y?pin=1234&dc=one")
    assert uri.redacted == "x:y?pin=***&dc=***"
    assert uri.showing(["dc"]).redacted == "x:y?pin=***&dc=one"
