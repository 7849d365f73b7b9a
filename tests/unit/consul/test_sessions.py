"""Sessions and locks, without a server."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from kvi.model import Claim, Key
from kvi_consul import sessions, wire
from kvi_consul.wire import Op

SESSION = "dc36ce9f-e620-f930-af49-310313d1c24c"
LEASE = UUID(SESSION).int


@pytest.mark.parametrize(
    ("ttl", "text"),
    [(10, "10000ms"), (10.5, "10500ms"), (10.0001, "10001ms"), (86_400, "86400000ms")],
)
def test_a_session_lives_no_shorter_than_asked(ttl: float, text: str) -> None:
    """The TTL is rounded up; neither checks nor a lock-delay are tied to the session."""
    assert json.loads(sessions.encode_session(ttl)) == {
        "TTL": text,
        "Behavior": "delete",
        "LockDelay": "0s",
        "NodeChecks": [],
        "ServiceChecks": [],
        "Checks": [],
    }


@pytest.mark.parametrize(
    ("text", "ttl"),
    [("10500ms", 10.5), ("10s", 10), ("1m30s", 90), ("1h0m0.5s", 3600.5), ("", None)],
)
def test_a_ttl_is_read_as_go_writes_it(text: str, ttl: float | None) -> None:
    """Other tools write other units; a session without a TTL has none."""
    assert sessions.decode_ttl(json.dumps([{"ID": SESSION, "TTL": text}]).encode()) == ttl


def test_a_session_is_a_lease() -> None:
    """The id of a session is the id of the lease."""
    assert sessions.decode_created(json.dumps({"ID": SESSION}).encode()) == LEASE


LOCK_KEY: dict[str, Any] = {"Key": "n/.lock", "ModifyIndex": 9}


@pytest.mark.parametrize(
    ("kv", "found"),
    [
        ({"Flags": sessions.LOCK}, True),
        ({"Flags": sessions.LOCK, "Session": ""}, True),
        ({"Flags": 0}, False),
        ({"Flags": 0xE0F69A2BAA414DE0}, False),
        (
            {"Flags": sessions.LOCK, "Session": SESSION},
            Claim("n/.lock", 9, Key("n/.lock").revision == 9, None, 9),
        ),
        (
            {"Flags": sessions.LOCK, "Session": "00000000-0000-0000-0000-000000000001"},
            Claim("n/.lock", 0, Key("n/.lock").lease == LEASE, "n/.lock", 0),
        ),
    ],
)
def test_who_holds_a_lock(kv: dict[str, Any], found: Claim | bool) -> None:
    """A lock's key is ours, another's, free, or no lock's at all."""
    assert sessions.owner({**LOCK_KEY, **kv}, LEASE) == found


def test_a_release_touches_nothing_of_others() -> None:
    """What is deleted is the key as it was claimed, or one that the waiter's own session holds."""
    delete = Op("delete", "n/.lock")
    held, waiting = sessions.held("n/.lock", 9), sessions.waiting("n/.lock", LEASE)
    assert sessions.release_ops(held) == (Op("check-index", "n/.lock", revision=9), delete)
    check = Op("check-session", "n/.lock", session=SESSION)
    assert sessions.release_ops(waiting) == (check, delete)
    assert sessions.lock_op("n/.lock", LEASE) == Op(
        "lock", "n/.lock", b"", session=SESSION, flags=sessions.LOCK
    )
    assert wire.nonce(sessions.LOCK) != sessions.LOCK
