"""The table of errors, without a server."""

from __future__ import annotations

import socket
import ssl

import pytest
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
from kvi_consul import errors
from kvi_consul.errors import Broken, Refusal

CALL = "rpc error making call: "


@pytest.mark.parametrize(
    ("status", "text", "read", "write"),
    [
        (401, "", AuthenticationFailed, AuthenticationFailed),
        (403, "ACL not found", AuthenticationFailed, AuthenticationFailed),
        (403, "rpc error making call: ACL not found", AuthenticationFailed, AuthenticationFailed),
        (403, "Permission denied", PermissionDenied, PermissionDenied),
        (403, "<!DOCTYPE html><html>", Unavailable, Unavailable),
        (413, "<html>", ValueTooLarge, ValueTooLarge),
        (400, "Bad request", InvalidArgument, InvalidArgument),
        (400, "Client sent an HTTP request to an HTTPS server.", Unavailable, Unavailable),
        (400, "The plain HTTP request was sent to HTTPS port", Unavailable, Unavailable),
        (413, "too large", ValueTooLarge, ValueTooLarge),
        (408, "", Unavailable, Unavailable),
        (429, "slow down", Unavailable, Unavailable),
        (503, f"{CALL}rate limit exceeded for operation", Unavailable, Unavailable),
        (301, "", Unavailable, Unavailable),
        (404, "", Unavailable, Unavailable),
        (405, "", Unavailable, Unavailable),
        (501, "", Unavailable, Unavailable),
        (500, "No known Consul servers", Unavailable, Unavailable),
        (500, "No cluster leader", Unavailable, Unavailable),
        (500, "rpc error making call: No cluster leader", Unavailable, Unavailable),
        (500, "Invalid session", LeaseLost, LeaseLost),
        (500, "leadership lost while committing log", Unavailable, OutcomeUnknown),
        (500, "rpc error getting client: failed to get conn: x", Unavailable, Unavailable),
        (500, f"{CALL}rpc error getting client: failed to get conn", Unavailable, Unavailable),
        (500, f"{CALL}{CALL}node is not the leader", Unavailable, Unavailable),
        (500, "leadership transfer in progress", Unavailable, Unavailable),
        (500, f"{CALL}Raft leader not found in server lookup mapping", Unavailable, Unavailable),
        (500, f"{CALL}EOF", Unavailable, OutcomeUnknown),
        (500, f"{CALL}key: rpc error getting client: ", Unavailable, OutcomeUnknown),
        (500, "No path to datacenter", Unavailable, Unavailable),
        (503, "", Unavailable, OutcomeUnknown),
    ],
)
def test_statuses(status: int, text: str, read: type[KviError], write: type[KviError]) -> None:
    """A status means the same everywhere; only a write that may have happened is unknown."""
    assert type(errors.of_status(status, text, write=False)) is read
    assert type(errors.of_status(status, text, write=True)) is write


@pytest.mark.parametrize(
    ("cause", "sent", "read", "write"),
    [
        (ConnectionRefusedError("refused"), False, Unavailable, Unavailable),
        (socket.gaierror(-2, "unknown"), False, Unavailable, Unavailable),
        (TimeoutError("timed out"), False, Timeout, Timeout),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] x"), False, Unavailable, Unavailable),
        (TimeoutError("timed out"), True, Timeout, OutcomeUnknown),
        (ConnectionResetError("reset"), True, Unavailable, OutcomeUnknown),
    ],
)
def test_broken_exchanges(
    cause: OSError, sent: bool, read: type[KviError], write: type[KviError]
) -> None:
    """Nothing sent is surely not applied; what was sent is unknown for a write."""
    broken = Broken(sent)
    broken.__cause__ = cause
    assert type(errors.of_broken(broken, "Consul at h:1", write=False)) is read
    assert type(errors.of_broken(broken, "Consul at h:1", write=True)) is write


def test_a_refused_client_certificate_is_not_an_unknown_outcome() -> None:
    """With TLS 1.3 the refusal comes after the request was sent; nothing was processed."""
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    broken = Broken(sent=True)
    broken.__cause__ = alert
    assert type(errors.of_broken(broken, "Consul", write=True)) is AuthenticationFailed


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ('key "a" doesn\'t exist', Refusal.STATE),
        ('key "a" exists', Refusal.STATE),
        ('failed index check for key "a", current modify index 5 != 1', Refusal.STATE),
        ('failed to check index, key "a" doesn\'t exist', Refusal.STATE),
        ('failed session check for key "a", current session "" != "x"', Refusal.STATE),
        ('failed to check session, key "a" doesn\'t exist', Refusal.STATE),
        ('failed to set key "a", index is stale', Refusal.STATE),
        ('failed to delete key "a", index is stale', Refusal.STATE),
        ('failed to unlock key "a", lock isn\'t held, or is held by another', Refusal.STATE),
        ('failed to lock key "a", lock is already held', Refusal.HELD),
        ('failed to lock key "a" due to lock delay', Refusal.DELAY),
        ('invalid session "adf4"', Refusal.SESSION),
        ("Permission denied", Refusal.DENIED),
        ("unknown KV verb", Refusal.OTHER),
    ],
)
def test_refusals(text: str, refusal: Refusal) -> None:
    """Every text of a refused operation has one meaning."""
    assert errors.refusal_of(text) is refusal


@pytest.mark.parametrize(
    "key", ["Permission denied", 'invalid session \\"x\\"', "lock is already held", "a\\nb"]
)
def test_a_key_cannot_pretend_a_refusal(key: str) -> None:
    """The key that a text quotes does not change what the text means."""
    assert errors.refusal_of(f'key "{key}" doesn\'t exist') is Refusal.STATE
    assert errors.refusal_of(f'failed index check for key "{key}", current') is Refusal.STATE


def test_refusals_that_are_final() -> None:
    """What trying again cannot mend is told as what it is."""
    assert type(errors.of_refusal(Refusal.SESSION, "")) is LeaseLost
    assert type(errors.of_refusal(Refusal.DENIED, "x")) is PermissionDenied
    assert type(errors.of_refusal(Refusal.DELAY, "x")) is Unavailable
    assert type(errors.of_refusal(Refusal.OTHER, "x")) is InvalidArgument


def test_answers_without_sense_or_results() -> None:
    """An answer that tells nothing leaves a write unknown and a read unanswered."""
    assert type(errors.of_nonsense("Consul", write=True)) is OutcomeUnknown
    assert type(errors.of_nonsense("Consul", write=False)) is Unavailable
    assert type(errors.of_hidden(write=True)) is OutcomeUnknown
    assert type(errors.of_hidden(write=False)) is PermissionDenied


@pytest.mark.parametrize(
    ("status", "text", "passing"),
    [
        (429, "slow down", True),
        (500, "No cluster leader", True),
        (500, "rpc error making call: EOF", True),
        (503, "", True),
        (301, "", False),
        (404, "", False),
        (500, "No path to datacenter", False),
        (403, "Permission denied", False),
        (413, "too large", False),
    ],
)
def test_what_may_pass(status: int, text: str, passing: bool) -> None:
    """What somebody has to mend first does not pass; for a read that is all there is to know."""
    assert errors.of_status(status, text, write=False).passing is passing
