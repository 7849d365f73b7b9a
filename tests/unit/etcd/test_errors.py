"""gRPC's errors become errors of kvi that say whether a write may have happened."""

from __future__ import annotations

import grpc
import kvi
import pytest
from kvi.policy.failover import Happened
from kvi_etcd.errors import (
    AnswerTooLarge,
    FutureRevision,
    LeaseExists,
    classify,
    refusal,
    translate,
)

C = grpc.StatusCode


class RpcError(grpc.RpcError):  # type: ignore[misc]  # gRPC has no types
    """An error as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__()
        self._code, self._detail = code, detail

    def code(self) -> grpc.StatusCode:  # noqa: D102
        return self._code

    def details(self) -> str:  # noqa: D102
        return self._detail


TABLE = [
    # surely not applied
    (C.UNAVAILABLE, "failed to connect to all addresses; x", kvi.Unavailable, kvi.Unavailable),
    (C.UNAVAILABLE, "DNS resolution failed for x", kvi.Unavailable, kvi.Unavailable),
    (C.UNAVAILABLE, "errors resolving x: [field:…]", kvi.Unavailable, kvi.Unavailable),
    (C.UNAVAILABLE, "errors resolving alerts.SSL: [x]", kvi.Unavailable, kvi.Unavailable),
    (
        C.UNAVAILABLE,
        "failed to connect to all addresses; last error: OPENSSL_internal:T_ALERT_INTERNAL_ERROR",
        kvi.Unavailable,
        kvi.Unavailable,
    ),
    (C.UNKNOWN, "the target uri is not valid: x", kvi.Unavailable, kvi.Unavailable),
    *(
        (
            C.UNAVAILABLE,
            f"failed to connect to all addresses; last error: {why}",
            kvi.AuthenticationFailed,
            kvi.AuthenticationFailed,
        )
        for why in (
            "SSL_ERROR_SSL: x:CERTIFICATE_VERIFY_FAILED: certificate has expired: OK",
            "SSL_ERROR_SSL: x:CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate",
            "Unwrap failed (TSI_DATA_CORRUPTED)",
            "error:10000418:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA: x",
            "error:10000412:SSL routines:OPENSSL_internal:SSLV3_ALERT_BAD_CERTIFICATE: x",
            "Peer name h is not in peer certificate",
        )
    ),
    (C.RESOURCE_EXHAUSTED, "etcdserver: too many requests", kvi.Unavailable, kvi.Unavailable),
    (C.UNAVAILABLE, "etcdserver: no leader", kvi.Unavailable, kvi.Unavailable),
    (
        C.UNAUTHENTICATED,
        "etcdserver: invalid auth token",
        kvi.AuthenticationFailed,
        kvi.AuthenticationFailed,
    ),
    (
        C.INVALID_ARGUMENT,
        "etcdserver: user name is empty",
        kvi.AuthenticationFailed,
        kvi.AuthenticationFailed,
    ),
    (
        C.INVALID_ARGUMENT,
        "etcdserver: authentication failed, invalid user ID or password",
        kvi.AuthenticationFailed,
        kvi.AuthenticationFailed,
    ),
    (
        C.PERMISSION_DENIED,
        "etcdserver: permission denied",
        kvi.PermissionDenied,
        kvi.PermissionDenied,
    ),
    (
        C.FAILED_PRECONDITION,
        "etcdserver: authentication is not enabled",
        kvi.AuthenticationFailed,
        kvi.AuthenticationFailed,
    ),
    (C.NOT_FOUND, "etcdserver: requested lease not found", kvi.LeaseLost, kvi.LeaseLost),
    (
        C.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision has been compacted",
        kvi.Compacted,
        kvi.Compacted,
    ),
    (C.INVALID_ARGUMENT, "etcdserver: request is too large", kvi.ValueTooLarge, kvi.ValueTooLarge),
    (
        C.RESOURCE_EXHAUSTED,
        "Stream removed (CLIENT: Received message larger than max (2 vs. 1))",
        AnswerTooLarge,
        AnswerTooLarge,
    ),
    (
        C.RESOURCE_EXHAUSTED,
        "Received message larger than max (2 vs. 1)",
        AnswerTooLarge,
        AnswerTooLarge,
    ),
    (
        C.RESOURCE_EXHAUSTED,
        "grpc: received message larger than max (2 vs. 1)",
        kvi.ValueTooLarge,
        kvi.ValueTooLarge,
    ),
    (C.DATA_LOSS, "corrupt", kvi.Unavailable, kvi.Unavailable),
    # one member's word, before it proposed anything
    (C.UNAVAILABLE, "etcdserver: rpc not supported for learner", kvi.Unavailable, kvi.Unavailable),
    (C.UNKNOWN, "raft proposal dropped", kvi.Unavailable, kvi.Unavailable),
    # sent, and no answer: a read failed, a write may have happened
    (C.DEADLINE_EXCEEDED, "Deadline Exceeded", kvi.Timeout, kvi.OutcomeUnknown),
    # of a stream of etcd 3.4, which gives up at the call's deadline as the client does
    (C.UNKNOWN, "context deadline exceeded", kvi.Timeout, kvi.OutcomeUnknown),
    (C.CANCELLED, "Channel closed!", kvi.Unavailable, kvi.OutcomeUnknown),
    (C.UNAVAILABLE, "Socket closed", kvi.Unavailable, kvi.OutcomeUnknown),
    (C.UNAVAILABLE, "Stream removed", kvi.Unavailable, kvi.OutcomeUnknown),
    (C.UNAVAILABLE, "etcdserver: request timed out", kvi.Unavailable, kvi.OutcomeUnknown),
    (C.UNAVAILABLE, "etcdserver: leader changed", kvi.Unavailable, kvi.OutcomeUnknown),
    (C.UNAVAILABLE, "etcdserver: server stopped", kvi.Unavailable, kvi.OutcomeUnknown),
    (C.INTERNAL, "stream terminated by RST_STREAM", kvi.Unavailable, kvi.OutcomeUnknown),
    (C.UNKNOWN, "", kvi.Unavailable, kvi.OutcomeUnknown),
    # said after the write was applied
    (
        C.RESOURCE_EXHAUSTED,
        "etcdserver: mvcc: database space exceeded",
        kvi.Unavailable,
        kvi.OutcomeUnknown,
    ),
]


@pytest.mark.parametrize(("code", "detail", "read", "write"), TABLE, ids=lambda x: str(x)[:40])
def test_table(
    code: grpc.StatusCode, detail: str, read: type[kvi.KviError], write: type[kvi.KviError]
) -> None:
    """Each native error has one meaning for a read and one for a write."""
    error = RpcError(code, detail)
    assert type(translate(error, write=False)) is read
    assert type(translate(error, write=True)) is write


def test_every_code_is_an_error_of_kvi() -> None:
    """No status code is without a meaning; what is unknown is uncertain for a write."""
    for code in C:
        if code is C.OK:
            continue
        assert isinstance(translate(RpcError(code, "something new"), write=True), kvi.KviError)
        if classify(code, "something new") is Happened.LOST:
            assert type(translate(RpcError(code, "x"), write=True)) is kvi.OutcomeUnknown


def test_only_unreached_moves_on() -> None:
    """Another endpoint is tried only for what never left; a login only for a refused token."""
    unreached = [row[1] for row in TABLE if classify(row[0], row[1]) is Happened.UNREACHED]
    assert [text for text in unreached if "last error" not in text] == [
        "failed to connect to all addresses; x",
        "DNS resolution failed for x",
        "errors resolving x: [field:…]",
        "errors resolving alerts.SSL: [x]",
        "the target uri is not valid: x",
    ]
    assert classify(C.UNAVAILABLE, "etcdserver: invalid auth token") is Happened.LOGIN_ENDED
    assert (
        classify(C.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")
        is Happened.LOGIN_OLD
    )


@pytest.mark.parametrize(
    ("code", "detail", "expected"),
    [
        (C.FAILED_PRECONDITION, "etcdserver: lease already exists", LeaseExists),
        (C.NOT_FOUND, "etcdserver: requested lease not found", kvi.LeaseLost),
        (
            C.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision is a future revision",
            FutureRevision,
        ),
        (
            C.OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
            kvi.Compacted,
        ),
    ],
)
def test_answers_that_leases_and_watches_read(
    code: grpc.StatusCode, detail: str, expected: type[kvi.KviError]
) -> None:
    """Refusals that mean something to leases and watches have classes of their own."""
    assert type(translate(RpcError(code, detail), write=True)) is expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("etcdserver: permission denied", kvi.PermissionDenied),
        (
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
            kvi.PermissionDenied,
        ),
        ("etcdserver: invalid auth token", kvi.AuthenticationFailed),
        ("etcdserver: revision of auth store is old", kvi.AuthenticationFailed),
        ("rpc error: code = Unauthenticated desc = x", kvi.AuthenticationFailed),
        ("etcdserver: user name is empty", kvi.AuthenticationFailed),
        ("mvcc: watcher duplicate ID provided", kvi.Unavailable),
        ("", kvi.Unavailable),
    ],
)
def test_refusal(reason: str, expected: type[kvi.KviError]) -> None:
    """Why etcd cancelled a watch is read off its reason; what is not known may pass."""
    assert type(refusal(reason)) is expected


@pytest.mark.parametrize(
    ("code", "detail", "passing"),
    [
        (C.UNAVAILABLE, "etcdserver: no leader", True),
        (C.UNAVAILABLE, "etcdserver: leader changed", True),
        (C.UNAVAILABLE, "etcdserver: request timed out", True),
        (C.RESOURCE_EXHAUSTED, "etcdserver: too many requests", True),
        (C.UNAVAILABLE, "failed to connect to all addresses; connection refused", True),
        (C.DEADLINE_EXCEEDED, "Deadline Exceeded", True),
        (C.UNAVAILABLE, "failed to connect to all addresses; Ssl handshake failed", False),
        (C.UNAVAILABLE, "failed to connect to all addresses; Handshake read failed (x)", True),
        (C.UNAVAILABLE, "errors resolving SSL.handshakes", True),
        (C.DATA_LOSS, "etcdserver: corrupt cluster", False),
        (C.UNIMPLEMENTED, "unknown service", False),
        (C.PERMISSION_DENIED, "etcdserver: permission denied", False),
        (C.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", False),
    ],
)
def test_what_may_pass(code: grpc.StatusCode, detail: str, passing: bool) -> None:
    """A leader is elected and a server restarted; what answers in another way stays what it is."""
    assert translate(RpcError(code, detail), write=False).passing is passing
