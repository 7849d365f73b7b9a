"""The one place that translates what Consul and the network say into errors of kvi.

The question behind every line is *may the write have happened?*

==========================================================  ====================================
what was seen                                               what it means
==========================================================  ====================================
cannot resolve, connect or shake hands; closed at once;     `Unavailable`, `Timeout`: surely not
nothing was sent
certificate refused, by either side                         `AuthenticationFailed`: surely not
sent, then time-out, reset, or an answer that is none       reads: `Timeout`, `Unavailable`;
                                                            writes: `OutcomeUnknown`
409 of a transaction                                        surely not; see `Refusal`
408; 429; 503 "rate limit exceeded"; 3xx; 404; 405; 501;    `Unavailable`: surely not
400 "HTTP request to an HTTPS server"; other 4xx with a
page of HTML;
500 "No cluster leader", "Missing node registration"
500 "rpc error getting client", "node is not the leader",   `Unavailable`: surely not
"leadership transfer in progress", "Raft leader not found
in server lookup mapping", "No known Consul servers"
500 "No path to datacenter"                                 `Unavailable`: surely not
500 "Invalid session"                                       `LeaseLost`: surely not
500 "Invalid Session TTL"                                   `InvalidArgument`: surely not
other 5xx                                                   reads: `Unavailable`;
                                                            writes: `OutcomeUnknown`
401; 403 "ACL not found"                                    `AuthenticationFailed`
other 403                                                   `PermissionDenied`
413                                                         `ValueTooLarge`
400, other 4xx                                              `InvalidArgument`
==========================================================  ====================================

A 404, a 405, a 501 or a redirect is never Consul's answer to what this plugin asks (where it is, as
for a prefix without keys, the caller has handled it): something else listens there.

*Forwarding.* An agent passes a write on to the leader, perhaps by way of a server, and what either
of them says comes back behind "rpc error making call". Before that call it looks for the leader and
takes a connection ("error getting client"). It makes another one only after one that surely changed
nothing, so that its last word is about all of them. A server that is not the leader (any more), or
hands leadership on, says so before it proposes anything; of what it has proposed it says
"leadership lost while committing log", which leaves it unknown.
"""

from __future__ import annotations

import enum
import re
import socket
import ssl

from kvi.errors import (
    AuthenticationFailed,
    InvalidArgument,
    KviError,
    LeaseLost,
    OutcomeUnknown,
    PermissionDenied,
    Timeout,
    Unavailable,
    ValueTooLarge,
)

_OWN = frozenset({"kvi_consul", "json", "ssl", "uuid"})
_SHOWN = 300  # characters of a server's text in a message
NO_LEADER = b"No cluster leader"
NO_TOKEN = b"ACL not found"
_NOT_LED = re.compile(
    r"(rpc error making call: )*("
    r"rpc error getting client: "
    r"|Raft leader not found in server lookup mapping\Z"
    r"|No known Consul servers\Z"
    r"|(node is not the leader|leadership transfer in progress)\Z)"
)
_LIMITED = re.compile(r"(rpc error making call: )*rate limit exceeded")
_PAGE = re.compile(r"\s*<(!doctype|html)", re.IGNORECASE)  # of a gateway, or of what is no agent
_GATEWAYS = {502, 503, 504}  # what those in front of an agent say of one that is away
_PLAIN = re.compile(r"HTTP request (was sent )?to (an )?HTTPS")  # as Go and nginx say it
_LEASE_GONE = "the session of this lease is gone, nothing was written; grant a new lease"
# What a TLS server says when it wants (another) client certificate. With TLS 1.3 it comes after
# the request was sent, but before the server reads it.
_CERTIFICATE_ALERTS = re.compile(
    r"CERTIFICATE_REQUIRED|ALERT_(BAD|UNSUPPORTED|EXPIRED|REVOKED|UNKNOWN)_?C|UNKNOWN_CA"
    r"|ALERT_CERTIFICATE|ALERT_ACCESS_DENIED|HANDSHAKE_FAILURE"
)


def is_certificate_alert(error: BaseException | None) -> bool:
    """Whether the server says that it wants a client certificate, or another one."""
    reason = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
    return bool(_CERTIFICATE_ALERTS.search(reason))


class Broken(Exception):
    """An exchange of request and answer broke; the native error is its ``__cause__``.

    Attributes:
        sent: whether the server may have the request.

    """

    def __init__(self, sent: bool) -> None:
        super().__init__("an answer could not be had")
        self.sent = sent


class Dismissed(ConnectionError):
    """The agent accepted a connection and closed it before it answered anything."""


class Unserved(ConnectionError):
    """An agent, or what is in front of it, said why it cannot serve; nothing was done."""

    def __init__(self, error: Unavailable) -> None:
        super().__init__(error.message)
        self.passing = error.passing


class Refusal(enum.Enum):
    """Why an operation of a transaction was refused; nothing of the transaction was applied."""

    STATE = "the key is not in the state that the operation asks for"
    HELD = "another session holds the key"
    DELAY = "a session that ended holds the key for its lock-delay"
    SESSION = "the session does not exist"
    DENIED = "the token may not do this"
    OTHER = "something else"


# The texts quote the key, which may say anything: what is matched stands outside of the quotes.
_REFUSALS = tuple(
    (re.compile(pattern, re.DOTALL), refusal)
    for pattern, refusal in (
        (r"""key ".*" (doesn't exist|exists)\Z""", Refusal.STATE),
        (r"failed index check for key ", Refusal.STATE),
        (r"failed to check index, key ", Refusal.STATE),
        (r"failed session check for key ", Refusal.STATE),
        (r"failed to check session, key ", Refusal.STATE),
        (r"failed to (set|delete) key .*, index is stale\Z", Refusal.STATE),
        (r"failed to unlock key ", Refusal.STATE),
        (r"failed to lock key .*, lock is already held\Z", Refusal.HELD),
        (r"failed to lock key .* due to lock delay\Z", Refusal.DELAY),
        (r"invalid session ", Refusal.SESSION),
        (r"(rpc error making call: )?Permission denied", Refusal.DENIED),
    )
)


def refusal_of(text: str) -> Refusal:
    """What the text of a refused operation means."""
    for pattern, refusal in _REFUSALS:
        if pattern.match(text):
            return refusal
    return Refusal.OTHER


def of_refusal(refusal: Refusal, text: str) -> KviError:
    """The error for a refusal that trying again cannot mend (yet)."""
    match refusal:
        case Refusal.SESSION:
            return LeaseLost(_LEASE_GONE)
        case Refusal.DENIED:
            return PermissionDenied(_denied(text))
        case Refusal.DELAY:
            return Unavailable(
                "Consul still keeps the key for a session that ended (its lock-delay, 15 seconds "
                "unless that session set another); try again after it"
            )
        case _:
            return InvalidArgument(f"Consul refused the transaction: {_short(text)}")


def of_greeting(status: int, text: str) -> Unavailable | None:
    """Why nothing need be sent behind a greeting that was answered so, if that is sure."""
    if status == 200 and _PAGE.match(text):
        return _of_stranger(_short(text))
    if status not in _GATEWAYS and not _PLAIN.search(text):
        return None
    error = of_status(status, text, write=False)
    return error if isinstance(error, Unavailable) else None


def _of_stranger(said: str) -> Unavailable:
    return Unavailable(
        f"what answers is not Consul's API ({said}); check host, port and consul+tls://",
        passing=False,
    )


def of_status(status: int, text: str, *, write: bool, dc: str | None = None) -> KviError:
    """The error for an answer whose status is not what a request to ``dc`` hoped for."""
    said = f"{status} {_short(text)}".rstrip()
    if status == 400 and _PLAIN.search(text):
        return Unavailable(f"what answers speaks TLS ({said}); write consul+tls://", passing=False)
    page = 400 <= status < 500 and status not in (408, 413, 429) and _PAGE.match(text)
    if page or status in (404, 405, 501) or 300 <= status < 400:
        return _of_stranger(said)
    if status == 401 or (status == 403 and NO_TOKEN.decode() in text):
        return AuthenticationFailed(
            f"Consul does not know the token ({said}); check the token of the URI"
        )
    if status == 403:
        return PermissionDenied(_denied(text))
    if status == 413:
        return ValueTooLarge(f"Consul refused the size of the request ({said}); split it")
    if status == 429 or (status == 503 and _LIMITED.match(text)):
        return Unavailable(f"Consul limits the rate of requests ({said}); try again later")
    if status == 408:
        return Unavailable(f"the request came too late ({said}); try again")
    if 400 <= status < 500:
        return InvalidArgument(f"Consul refused the request ({said})")
    if status == 500 and text.startswith("Invalid session"):
        return LeaseLost(_LEASE_GONE)
    if status == 500 and text.startswith("Invalid Session TTL"):
        return InvalidArgument(f"Consul refused the time to live of a lease ({said})")
    if "Missing node registration" in text:
        return Unavailable(
            "the node of this agent is not registered (yet), and a session belongs to a node; try "
            "again later, or leave out the option dc if it names another datacenter"
        )
    if NO_LEADER.decode() in text:
        return Unavailable("Consul has no leader at the moment; try again later")
    if _NOT_LED.match(text):
        return Unavailable(f"Consul's leader cannot be reached at the moment ({said}); try again")
    if "No path to datacenter" in text:  # and so it went to nobody
        return Unavailable(
            f"Consul knows no way to the datacenter {dc!r}; check the option dc", passing=False
        )
    if write:
        return OutcomeUnknown(
            f"Consul failed ({said}); the write may have applied, or may still apply"
        )
    return Unavailable(f"Consul failed ({said}); try again later")


_TIMES, _NAMES, _ISSUERS = {9, 10}, {62, 64}, {2, 7, 18, 19, 20, 21}  # OpenSSL's X509_V_ERR_…


def _mend(error: ssl.SSLCertVerificationError) -> str:
    """What to do about a certificate that was not believed."""
    if error.verify_code in _TIMES:
        return "it must be renewed, or a clock is wrong"
    if error.verify_code in _NAMES:
        return "name the host in the URI as the certificate does"
    if error.verify_code in _ISSUERS:
        return "the option ca must name the file of its CA"
    return "it must be issued anew"


def is_own(error: BaseException | None) -> bool:
    """Whether ``error`` comes from what this package does, and not from a signal's handler.

    Handlers run in the main thread alone, and may raise what a socket or a parser raises.
    """
    step = None if error is None else error.__traceback__
    if step is None:
        return True
    while step.tb_next is not None:
        step = step.tb_next
    return step.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _OWN


def of_broken(broken: Broken, where: str, *, write: bool) -> KviError:
    """The error for an exchange that broke; ``where`` names the agent."""
    cause = broken.__cause__
    if isinstance(cause, Unserved):
        return Unavailable(str(cause), passing=cause.passing)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return AuthenticationFailed(
            f"the certificate of {where} cannot be trusted ({cause.verify_message}); {_mend(cause)}"
        )
    reason = (getattr(cause, "reason", None) or "") if isinstance(cause, ssl.SSLError) else ""
    if is_certificate_alert(cause):
        return AuthenticationFailed(
            f"{where} refused the client certificate ({reason}); check the options cert and key"
        )
    late = isinstance(cause, TimeoutError)
    if broken.sent and write:
        how = "did not answer in time" if late else f"broke off the connection ({cause})"
        return OutcomeUnknown(f"{where} {how}; the write may have applied, or may still apply")
    if late:
        return Timeout(
            f"{where} did not answer in time"
            if broken.sent
            else f"no connection to {where} in time; nothing was sent"
        )
    if isinstance(cause, Dismissed):
        return Unavailable(
            f"{where} closed a new connection at once; nothing was sent ({cause}). If it runs, it "
            "has as many as it allows from one address (limits.http_max_conns_per_client): share a "
            "handle, or lower the option connections"
        )
    if broken.sent:
        return Unavailable(f"{where} broke off the connection ({cause}); try again")
    if isinstance(cause, socket.gaierror):
        return Unavailable(f"the host of {where} cannot be resolved ({cause}); check the URI")
    if isinstance(cause, ssl.SSLError):
        if "EOF" in reason or "ALERT" in reason:  # as one that restarts behind a balancer does
            return Unavailable(f"{where} ended the TLS handshake ({reason}); is it running there?")
        return Unavailable(
            f"no TLS connection to {where} ({reason or cause}); for an agent without TLS "
            "write consul://",
            passing=not reason,
        )
    return Unavailable(f"{where} cannot be reached ({cause}); is the agent running?")


def of_nonsense(where: str, *, write: bool) -> KviError:
    """The error for an answer with a good status that cannot be understood."""
    if write:
        return OutcomeUnknown(
            f"{where} answered a write with something that is not Consul's; it may have applied"
        )
    return Unavailable(
        f"{where} answered with something that is not Consul's; check host and port", passing=False
    )


def of_foreign(key: str) -> KviError:
    """The error for a lock whose key is something else."""
    return InvalidArgument(
        f"the key {key!r} of this lock holds other data, or is a semaphore of Consul; "
        "choose another name for the lock"
    )


def of_hidden(*, write: bool) -> KviError:
    """The error for results that were held back: the token may not read what was asked for."""
    if write:
        return OutcomeUnknown(
            "the transaction applied, but the token may not read what it was to return"
        )
    return PermissionDenied(_denied(""))


def _denied(text: str) -> str:
    said = f" ({_short(text)})" if text else ""
    return f"the token has no permission for this{said}; it needs a policy for it"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"
