"""Leases as Consul's sessions, and locks as `consul lock` makes them.

*Leases.* A session with ``Behavior: delete`` takes its keys along when it ends, in one step. It has
no checks, which would tie it to the health of the agent's node, and no lock-delay, which would keep
its keys from being written again for a while. Consul ends it between one and two times its TTL
after the last renewal, and a new leader lets all of them begin anew. But it ends at once, whatever
its TTL, when its node leaves the cluster, as an agent does that is told to leave.

*A lock's lease* must not let a second holder in then. So it has a lock-delay, half its TTL and at
most `MOST_DELAY`: once it ended, in whatever way, nobody gets its key for that long. The holder
counts on the lock for the lock-delay after each renewal, and not for the TTL: if the session ended
right after the last one, the holder is out when the next can be in. A key that was deleted by its
holder has no delay, so who gives such a lease up deletes the key first.

*Locks.* The key ``NAME/.lock``, marked by its Flags, belongs to the session that holds the lock. To
claim is one transaction: the key is absent, and is created as held. What else can be:

=====================================  =========================================================
the key                                the claim
=====================================  =========================================================
is held by another session             waits for it
is held by the claim's own session     is the one that holds it: an answer was lost before
is kept for a session's lock-delay     waits; nothing will tell when that is over
is held by nobody, marked as a lock    takes it: `consul lock` leaves its key behind
is held by nobody, marked otherwise    is an error, as for `consul lock`: it is somebody's data,
                                       or a semaphore
=====================================  =========================================================

A release deletes the key, if it is still as it was claimed.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from kvi.model import Claim, Key, LeaseInfo

from kvi_consul import wire
from kvi_consul.wire import Op

LOCK = 0x2DDCCBC058A50C18  # the Flags by which `consul lock` knows its keys

DELAY_FACTOR = 0.5  # of a lock's lease: its lock-delay for its TTL
MOST_DELAY = 60.0  # seconds; Consul takes no more

_DURATION = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def delay_of(ttl: float) -> float:
    """The lock-delay of a lock's lease, in seconds."""
    return min(ttl * DELAY_FACTOR, MOST_DELAY)


def encode_session(ttl: float, delay: float = 0.0) -> bytes:
    """The body that creates a session that lives at least ``ttl`` seconds."""
    return json.dumps(
        {
            "TTL": f"{math.ceil(ttl * 1000)}ms",
            "Behavior": "delete",
            # as text: Consul takes a number 0 for "the default", which is 15 seconds
            "LockDelay": f"{math.ceil(delay * 1000)}ms" if delay else "0s",
            # the two newer names and the one that was before them
            "NodeChecks": [],
            "ServiceChecks": [],
            "Checks": [],
        }
    ).encode()


def decode_created(body: bytes) -> int:
    """The lease id of the session that was created. Raises `ValueError` and the like."""
    return wire.lease_of(json.loads(body)["ID"])


def decode_ttl(body: bytes) -> float | None:
    """What a renewal is good for: the TTL of the session, or its lock-delay if that is less.

    ``None`` if it has none. Raises `ValueError` and the like.
    """
    (session,) = json.loads(body)
    ttl, delay = _seconds(session["TTL"]), _seconds(session.get("LockDelay", 0))
    return min(ttl or delay, delay or ttl) or None


def decode_sessions(body: bytes) -> list[LeaseInfo]:
    """The sessions that are leases: those with a TTL. Raises `ValueError` and the like."""
    found = json.loads(body)
    if not isinstance(found, list):
        raise ValueError("no list of sessions")
    return [
        LeaseInfo(wire.lease_of(session["ID"]), ttl, None, None)
        for session in found
        if (ttl := _seconds(session.get("TTL", "")))
    ]


def _seconds(given: str | int) -> float:
    """Seconds of a duration; Consul writes some as text and some as nanoseconds."""
    if isinstance(given, int):
        return given / 1e9  # times 1e-9 is more, now and then, than what was granted
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(given))


def lock_op(key: str, lease: int) -> Op:
    """What takes the lock's key for a lease."""
    return Op("lock", key, b"", session=wire.session_of(lease), flags=LOCK)


def held(key: str, revision: int) -> Claim:
    """The claim of who holds the lock since ``revision``."""
    return Claim(key, revision, Key(key).revision == revision, None, revision)


def waiting(key: str, lease: int) -> Claim:
    """The claim of who waits; its guard is true should the lease hold the lock all the same."""
    return Claim(key, 0, Key(key).lease == lease, key, 0)


def owner(kv: dict[str, Any], lease: int) -> Claim | bool:
    """The claim of ``lease`` on the key as it is; else whether the key is free and a lock's."""
    session = kv.get("Session")
    if not session:
        return bool(kv["Flags"] == LOCK)
    if wire.lease_of(session) == lease:
        return held(kv["Key"], kv["ModifyIndex"])
    return waiting(kv["Key"], lease)


def release_ops(claim: Claim) -> tuple[Op, ...]:
    """What lets go of a claim that still stands."""
    operand = claim.guard.operand
    assert isinstance(operand, int)  # see `held` and `waiting`
    if claim.ahead is None:
        check = Op("check-index", claim.key, revision=operand)
    else:
        check = Op("check-session", claim.key, session=wire.session_of(operand))
    return check, Op("delete", claim.key)
