"""The one place that turns gRPC errors into errors of kvi, and says whether a write may have run.

gRPC's status code alone does not tell: etcd answers UNAVAILABLE both before it proposes a request
and after. So the detail text decides too. The texts are etcd's own (``rpctypes/error.go`` of
etcd 3.4 and 3.5) and gRPC's.

What a failure means for the request, and where it goes on, is `kvi.policy.failover`'s table.
"""

from __future__ import annotations

import re

import grpc
from kvi.errors import (
    AuthenticationFailed,
    Compacted,
    InvalidArgument,
    KviError,
    LeaseLost,
    OutcomeUnknown,
    PermissionDenied,
    Timeout,
    Unavailable,
    ValueTooLarge,
)
from kvi.policy.failover import Happened

_Code = grpc.StatusCode


_UNRESOLVED = ("errors resolving", "dns resolution failed", "name resolution")
_UNREACHED = ("failed to connect to all addresses", "target uri is not valid", *_UNRESOLVED)
_FULL = "database space exceeded"  # no refusal: etcd may say so after it has applied it
# What ended a TLS handshake, as BoringSSL names it; those below are about the client's certificate.
_ALERT = re.compile(r"OPENSSL_internal:\w*ALERT_(\w+)")
_CERTIFICATE_ALERTS = frozenset(
    {
        "ACCESS_DENIED",
        "BAD_CERTIFICATE",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_REQUIRED",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_UNKNOWN",
        "DECRYPT_ERROR",
        "HANDSHAKE_FAILURE",
        "UNKNOWN_CA",
        "UNSUPPORTED_CERTIFICATE",
    }
)
# One member's word, given before it proposed anything: it leads nobody and knows no leader, it is a
# learner, it is behind, it has too much to do.
_REFUSED = (
    "too many requests",
    "etcdserver: no leader",
    "not supported for learner",
    "raft proposal dropped",
)
# What gRPC makes of the word of a gateway, or of an HTTP server, that let nothing through to etcd.
_FOREIGN = re.compile(r"http2 header with status: 40[134]\b", re.IGNORECASE)
_LOGIN_ENDED = ("invalid auth token", "user name is empty")
_LOGIN_OLD = "revision of auth store is old"
_LOGIN_REFUSED = "authentication failed"
_FINAL_CODES = frozenset(
    {
        _Code.INVALID_ARGUMENT,
        _Code.NOT_FOUND,
        _Code.ALREADY_EXISTS,
        _Code.FAILED_PRECONDITION,
        _Code.OUT_OF_RANGE,
        _Code.PERMISSION_DENIED,
        _Code.UNAUTHENTICATED,
        _Code.DATA_LOSS,
    }
)


def classify(code: grpc.StatusCode, detail: str) -> Happened:
    """What a call that failed with ``code`` and ``detail`` means for its request."""
    text = detail.lower()
    if _LOGIN_OLD in text:
        return Happened.LOGIN_OLD
    if any(part in text for part in _LOGIN_ENDED):
        return Happened.LOGIN_ENDED
    if _LOGIN_REFUSED in text:
        return Happened.LOGIN_REFUSED
    if any(part in text for part in _UNREACHED):
        return Happened.UNREACHED
    if any(part in text for part in _REFUSED) or _is_foreign(code, text):
        return Happened.REFUSED
    if code in _FINAL_CODES or (code is _Code.RESOURCE_EXHAUSTED and "larger than max" in text):
        return Happened.FINAL
    # A member that gives up at the call's own deadline may say so before this client does; etcd 3.4
    # says it of a stream without a code for it.
    late = code is _Code.DEADLINE_EXCEEDED or text == "context deadline exceeded"
    return Happened.SILENT if late else Happened.LOST


def _is_foreign(code: grpc.StatusCode, detail: str) -> bool:
    """Whether what answers is no etcd: it has none of the methods, or no gRPC."""
    return code is _Code.UNIMPLEMENTED or bool(_FOREIGN.search(detail))


MAKE_ROOM = "compact, defragment and disarm the alarm (etcdctl alarm disarm)"
PROXY = (
    "what answers is no member of etcd but probably `etcd grpc-proxy`, which begins no watches and "
    "keeps no leases as kvi asks for them; name the members themselves in the URI"
)


class AnswerTooLarge(Unavailable):
    """The answer to a read was larger than this client receives; the store asks for less."""

    passing = False


class FutureRevision(Unavailable):
    """A read at a revision that the store has not come to yet."""


class LeaseExists(Unavailable):
    """A lease with the id that this client chose is there already."""


def translate(error: grpc.RpcError, *, write: bool) -> KviError:
    """The error of kvi for ``error``; ``write``: the request would change the store."""
    code, detail = error.code(), error.details() or ""
    happened = classify(code, detail)
    # A server (in Go) that finds a request too large says the same in lower case.
    if code is _Code.RESOURCE_EXHAUSTED and "Received message larger than max" in detail:
        return AnswerTooLarge(f"the answer is larger than kvi receives at once: {detail}")
    if happened in (Happened.LOST, Happened.SILENT):
        return _lost(code, detail, write, slow=happened is Happened.SILENT)
    if happened is Happened.UNREACHED:
        return _unreached(detail)
    if happened is Happened.LOGIN_REFUSED:
        return AuthenticationFailed(f"etcd refused the login: {detail}")
    if happened in (Happened.LOGIN_OLD, Happened.LOGIN_ENDED) and "is empty" not in detail:
        return AuthenticationFailed(
            f"etcd does not accept the login: {detail}; give user:password@ in the URI"
        )
    if _is_foreign(code, detail):
        return Unavailable(
            f"what answers is no etcd, or lets this client not through; check the port: {detail}",
            passing=False,
        )
    if happened is Happened.REFUSED:
        return Unavailable(f"etcd refused the request and did nothing: {detail}")
    return _final(code, detail)


def login_refused(error: KviError) -> bool:
    """Whether ``error`` is an endpoint's word that it does not take the credentials."""
    cause = error.__cause__
    return (
        isinstance(cause, grpc.RpcError)
        and classify(cause.code(), cause.details() or "") is Happened.LOGIN_REFUSED
    )


def is_full(error: KviError) -> bool:
    """Whether ``error`` is etcd's word that its database is full."""
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and _FULL in (cause.details() or "")


def _lost(code: grpc.StatusCode, detail: str, write: bool, *, slow: bool) -> KviError:
    if write:
        return OutcomeUnknown(
            f"the write was sent and {'no answer came in time' if slow else 'its answer lost'}; "
            f"it may have applied, or may still: {code.name} {detail}{_mend(detail)}"
        )
    if slow:
        return Timeout(f"no answer from etcd in time: {detail}")
    return Unavailable(f"etcd could not answer: {code.name} {detail}{_mend(detail)}")


def _unreached(detail: str) -> KviError:
    text = detail.lower()
    # first, for these texts hold the host's name, in which any word may be
    if any(part in text for part in _UNRESOLVED):
        return Unavailable(f"no connection to etcd; its host's name cannot be resolved: {detail}")
    if why := _distrust(detail):
        return AuthenticationFailed(why)
    guess, passing = _guess(detail)
    return Unavailable(f"no connection to etcd; {guess}: {detail}", passing=passing)


def _distrust(detail: str) -> str | None:
    """What is wrong with a certificate, if that is why there is no connection."""
    _, failed, reason = detail.partition("CERTIFICATE_VERIFY_FAILED: ")
    if "certificate signature failure" in detail:  # an authority of the right name, another key
        failed = reason = "signed by another authority of the same name"
    if failed:
        reason = reason.removesuffix(": OK")
        if "expired" in reason or "not yet valid" in reason:
            return f"the certificate of etcd cannot be trusted ({reason}); it must be renewed"
        return (
            f"the certificate of etcd cannot be trusted ({reason}); name the file of its "
            "authority with the option ca"
        )
    if "not in peer certificate" in detail or "Hostname Verification" in detail:
        return f"the certificate of etcd is not for the host that the URI names: {detail}"
    alert = _ALERT.search(detail)
    # With TLS 1.3 the server looks at the client's certificate after the handshake, and what it
    # then says arrives as data that is corrupted.
    if "TSI_DATA_CORRUPTED" in detail or (alert and alert[1] in _CERTIFICATE_ALERTS):
        return (
            "etcd refused the client certificate, or wants one; check the options cert and key: "
            f"{detail}"
        )
    return None


def _guess(detail: str) -> tuple[str, bool]:
    """What may be wrong there, and whether that passes."""
    if "Handshake read failed" in detail:  # as one that restarts behind a balancer does
        return "it ended the TLS handshake; is it running there, and does it speak TLS?", True
    if alert := _ALERT.search(detail):
        return f"it ended the TLS handshake with the alert {alert[1]}", True
    if "andshake" in detail or "SSL" in detail:
        return (
            "what answers does not speak TLS as the URI says (for plain etcd write etcd://)",
            False,
        )
    if "HTTP/2" in detail or "HTTP2" in detail:
        return "what answers is not a plain etcd; check the port, or write etcd+tls://", False
    return "is it running there?", True


def _mend(detail: str) -> str:
    return f"; {MAKE_ROOM}" if _FULL in detail else ""


def _final(code: grpc.StatusCode, detail: str) -> KviError:
    text = detail.lower()
    if code is _Code.PERMISSION_DENIED:
        return PermissionDenied(f"the etcd user may not do this: {detail}")
    if code is _Code.UNAUTHENTICATED or "user name" in text:
        hint = "; write etcd://user:password@host:2379" if "is empty" in text else ""
        return AuthenticationFailed(f"etcd refused the login: {detail}{hint}")
    if "authentication is not enabled" in text:
        return AuthenticationFailed("this etcd has no users; leave out user:password@")
    if "lease not found" in text:
        return LeaseLost("the lease is not alive; grant a new one")
    if "lease already exists" in text:
        return LeaseExists("there is a lease with this id already")
    if "is a future revision" in text:
        return FutureRevision("etcd has not come to this revision yet")
    if "has been compacted" in text:
        return Compacted("etcd has compacted the revision that this read began at; read again")
    if "too large" in text or "larger than max" in text:
        return ValueTooLarge(f"the request is larger than etcd takes: {detail}")
    if code is _Code.INVALID_ARGUMENT:
        return InvalidArgument(f"etcd refused the request: {detail}")
    return Unavailable(f"etcd cannot serve this: {code.name} {detail}", passing=False)


def _stale(text: str) -> bool:
    return _LOGIN_OLD in text or any(part in text for part in _LOGIN_ENDED)


def refusal(reason: str) -> KviError:
    """The error of kvi for a watch that etcd cancelled, from the reason it gave."""
    text = reason.lower()
    if "permission denied" in text:
        return PermissionDenied(f"the etcd user may not watch this: {reason}")
    if "unauthenticated" in text or "user name" in text or _stale(text):
        return AuthenticationFailed(f"etcd does not accept the login of the watch: {reason}")
    return Unavailable(f"etcd cancelled the watch: {reason or 'it gave no reason'}")
