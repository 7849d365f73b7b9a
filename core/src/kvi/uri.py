"""The address of a store: text in, a frozen `StoreUri` out (RFC 3986 syntax).

A URI may carry secrets, so no error of this module quotes it, and ``repr`` and ``redacted`` show
``***`` in their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote

from kvi.errors import InvalidOption

__all__ = ["StoreUri"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9.-]*(\+[A-Za-z0-9.-]+)?\Z")
# The parts behind the scheme, by RFC 3986, appendix B. The standard library's own `urlsplit` takes
# several hosts in one version of Python and refuses them in the next.
_PARTS = re.compile(r"(//(?P<authority>[^/?#]*))?(?P<path>[^?#]*)(\?(?P<query>[^#]*))?(?P<rest>#?)")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<name>[^:\[\]/]+))(?::(?P<port>[0-9]{1,5}))?\Z"
)
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HIDDEN = "***"
_USER = re.compile(r"://\S*@")
_QUERY = re.compile(r"(\w:\S*\?)[^\s'\"]+")
_COMMON = frozenset({"timeout", "namespace", "retry", "read_only"})


@dataclass(frozen=True, slots=True, repr=False)
class StoreUri:
    """A parsed store URI.

    Attributes:
        scheme: all before the first colon, in lower case, such as ``"etcd+tls"``.
        username: percent-decoded, or ``None``.
        password: percent-decoded, or ``None``.
        hosts: the ``(host, port)`` pairs in the order given; the port is ``None`` if left out.
        path: percent-decoded, with its leading slash if it had one. As it may name a file, bytes
            that are no UTF-8 stay what they are: `os.fsencode` has them.
        authority: whether ``//`` was written, so that ``sqlite://x`` can be told from ``sqlite:x``.
        query: the ``name=value`` pairs behind ``?``, percent-decoded.
        shown_names: the query options whose values may be shown; what is unknown may be a
            misspelt secret.

    """

    scheme: str
    username: str | None = None
    password: str | None = None
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    authority: bool = False
    query: tuple[tuple[str, str], ...] = ()
    shown_names: frozenset[str] = field(default=_COMMON, compare=False)

    @classmethod
    def parse(cls, text: str) -> StoreUri:
        """Parse ``text``; raises `InvalidOption` that tells which part is wrong, not its value."""
        if not isinstance(text, str):
            raise InvalidOption(f"a store URI is text, not {type(text).__name__}")
        scheme, colon, _ = text.partition(":")
        if not colon or not _SCHEME.match(scheme):
            raise InvalidOption(
                "a store URI begins with a scheme and a colon, such as mem: or etcd://host:2379"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidOption(
                "the URI has a character that is no UTF-8; percent-encode its bytes"
            ) from None
        if _CONTROL.search(text):
            raise InvalidOption("the URI has a space or control character; write it as %20 or %XX")
        if bad := _ESCAPE.search(text):
            raise InvalidOption(
                f"the URI has a % at position {bad.start()} that starts no escape; write it as %25"
            )
        parts = _PARTS.match(text, len(scheme) + 1)
        assert parts is not None  # each part may be empty
        authority, path, query = parts["authority"] or "", parts["path"], parts["query"] or ""
        if parts["rest"]:
            raise InvalidOption("a store URI has no fragment; write # as %23")
        if authority and "@" in path + query:
            # most likely a password with a slash in it, which must not be shown as a path
            raise InvalidOption(
                "the URI has an @ behind its host; in a user, password or token write / as %2F, "
                "? as %3F and @ as %40"
            )
        username, password, hosts = _authority(authority)
        return cls(
            scheme=scheme.lower(),
            username=username,
            password=password,
            hosts=hosts,
            path=unquote(path, errors="surrogateescape"),
            authority=parts["authority"] is not None,
            query=tuple(_query(query)),
        )

    @property
    def backend(self) -> str:
        """The name of the plugin: the scheme up to its ``+``."""
        return self.scheme.partition("+")[0]

    @property
    def variant(self) -> str:
        """The scheme behind its ``+``, such as ``"tls"``, or empty."""
        return self.scheme.partition("+")[2]

    def showing(self, names: Iterable[str]) -> StoreUri:
        """The same URI, whose query options ``names`` are no secrets."""
        return replace(self, shown_names=_COMMON.union(names))

    @property
    def redacted(self) -> str:
        """The URI as text, fit for logs: secrets are ``***``."""
        text = f"{self.scheme}:"
        if self.authority:
            text += "//" + self._userinfo() + ",".join(map(_join_host, self.hosts))
        path = self.path
        if not self.authority and "@" in path:  # a user and password whose // was forgotten?
            path = f"{_HIDDEN}{path[path.rindex('@') :]}"
        safe = "/:!$&'()*+,;=~" if self.authority else "/:@!$&'()*+,;=~"
        text += quote(path, safe=safe, errors="surrogateescape")
        if self.query:
            text += "?" + "&".join(f"{quote(n)}={self._shown(n, v)}" for n, v in self.query)
        return text

    def _userinfo(self) -> str:
        if self.password:
            return f"{quote(self.username or '', safe='')}:{_HIDDEN}@"
        # alone, the name may be a token
        return f"{_HIDDEN}@" if self.username is not None else ""

    def _shown(self, name: str, value: str) -> str:
        return quote(value, safe="/:@,") if name in self.shown_names else _HIDDEN

    def __repr__(self) -> str:
        return f"StoreUri({self.redacted!r})"


def hidden(text: str) -> str:
    """What somebody else says of what was given, and may be a URI: without user and query."""
    return _QUERY.sub(rf"\1{_HIDDEN}", _USER.sub(f"://{_HIDDEN}@", text))


def _authority(
    netloc: str,
) -> tuple[str | None, str | None, tuple[tuple[str, int | None], ...]]:
    if not netloc:
        return None, None, ()
    userinfo, at, endpoints = netloc.rpartition("@")
    name, colon, password = userinfo.partition(":")
    hosts = tuple(_host(position, text) for position, text in enumerate(endpoints.split(","), 1))
    return (
        _decoded(name, "the user") if at else None,
        _decoded(password, "the password") if colon else None,
        hosts,
    )


def _host(position: int, text: str) -> tuple[str, int | None]:
    match = _HOST.match(text)
    if match is None or not _is_plain(text):
        raise InvalidOption(
            f"host {position} of the URI is malformed; write name:port, or [address]:port for IPv6"
        )
    port = match["port"]
    if port is not None and not 0 < int(port) < 65536:
        raise InvalidOption(f"host {position} of the URI has a port outside of 1 to 65535")
    name = match["six"] or _decoded(match["name"], f"host {position}")
    return name, None if port is None else int(port)


def _is_plain(text: str) -> bool:
    """Whether no character of a host comes to stand for others, such as a slash or a colon."""
    if text.isascii():
        return True
    from unicodedata import normalize  # rarely needed

    return normalize("NFKC", text) == text


def _join_host(pair: tuple[str, int | None]) -> str:
    host, port = pair
    shown = f"[{host}]" if ":" in host else quote(host)
    return shown if port is None else f"{shown}:{port}"


def _query(text: str) -> list[tuple[str, str]]:
    if not text:
        return []
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")
    except UnicodeDecodeError:
        raise _no_text("an option") from None
    except ValueError:  # not chained: its text quotes what may be a secret
        raise InvalidOption("the options behind ? are written name=value and joined by &") from None
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidOption(f"option {name!r} is given twice in the URI")
    return pairs


def _decoded(text: str, part: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:  # not chained: its text quotes what may be a secret
        raise _no_text(part) from None


def _no_text(part: str) -> InvalidOption:
    return InvalidOption(
        f"{part} of the URI has percent-encoded bytes that are no UTF-8; write é as %C3%A9"
    )
