"""Leases: granted under an id that this client chose, kept alive by plain calls.

*Granting.* An id of our own makes a grant recognisable: sent again after a lost answer, "already
exists" means that it had worked. So a grant is sent again, within its deadline, until its fate is
known. What is left of one whose fate stays unknown is a lease that nobody renews. One whose task
was cancelled is revoked in the background.

*Renewing.* etcd has a stream for it, of any number of requests and answers. A stream with one of
each is a plain call on the wire (`kvi_etcd.channel.Endpoint`), and as such has all that calls have:
a deadline, a login, another endpoint, and nothing that a restart of the server could break.

*Who renewed.* A renewal is kept in the memory of the leader alone. One that was stopped, or cut off
from the others, takes itself for the leader still when it goes on, and renews what the new leader
ends sooner (before etcd 3.4.31 and 3.5.13). So a linearizable read goes after each renewal, and the
renewal counts if both answers tell the same *term*:

============================  ====================================================================
the read's term               is at least that of every leader elected before the read began: only
                              the last one could confirm it, and whoever answers has first applied
                              what that leader began its term with
the renewal's term            was taken before it was made, from what that member had applied. Who
                              has applied the beginning of a term knows of its leader: it renews as
                              that leader, or by that leader
both the same                 so nobody was elected after the leader that renewed, until the renewal
                              was answered. Who comes later gives each lease its whole time anew
============================  ====================================================================

Otherwise it is renewed again. What such a leader says of a lease that it does not know does not
count either. Who may not read that key is refused by a member that has come to know the term as
well, and which tells it when it is asked for its status. That is the same member if no call has
gone to another endpoint meanwhile, as an endpoint is taken for one member.

(A member that was sent a snapshot tells the term from before it until the next entry. So a leader
that was stopped, missed thousands of entries, and got them at the very moment between renewal and
read, with no entry after them, is not found out.)

*Looking.* etcd lists the ids, and tells the rest of one lease at a time. Several are asked for at
once, a bounded number.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from itertools import islice
from typing import Any

import grpc
from kvi.coroutine import run
from kvi.errors import KviError, LeaseLost, OutcomeUnknown, PermissionDenied, Timeout, Unavailable
from kvi.model import MAX_NUMBER, Grant, LeaseInfo, Span

from kvi_etcd import wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.driver import Calls, Connection, Pending
from kvi_etcd.errors import MAKE_ROOM, PROXY, LeaseExists, is_full
from kvi_etcd.wire import lease_id

MIN_TTL = 2  # seconds: what etcd, with its default election time-out, grants at the least
MAX_TTL = 9_000_000_000  # seconds: etcd takes no more
PAUSE = 0.05  # seconds between a grant or a renewal that did not count and the next
PATIENCE = 1.0  # seconds for revoking a lease that nobody has got
AT_ONCE = 32  # leases that are asked for at once


async def grant(calls: Calls[Any], ttl: float, timeout: float) -> Grant:
    """Grant a lease of at least ``ttl`` seconds."""
    deadline = time.monotonic() + timeout
    seconds = max(MIN_TTL, math.ceil(ttl))
    lost: OutcomeUnknown | None = None
    lease = _new_id()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise lost or Timeout("the lease could not be granted in time")
        request = pb.LeaseGrantRequest(TTL=seconds, ID=lease)
        try:
            answer = await calls.ask("grant", request, left, write=True)
            return Grant(answer.ID, float(answer.TTL))
        except LeaseExists:
            if lost is None:  # another's
                lease = _new_id()
                continue
            with suppress(LeaseLost, Unavailable, Timeout):  # it tells what was granted
                return Grant(lease, await renew(calls, lease, max(0.001, left)))
        except OutcomeUnknown as error:
            if is_full(error):  # and stays so; what it has granted even so ends by itself
                raise Unavailable(
                    f"etcd's database is full, so that it grants no lease; {MAKE_ROOM}",
                    passing=False,
                ) from error
            lost = error
        except (Unavailable, Timeout):
            if lost is None:
                raise
        except asyncio.CancelledError:
            calls.later(_give_up(calls, lease))
            raise
        await calls.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))


async def renew(calls: Calls[Any], lease: int, timeout: float) -> float:
    """Let the time of ``lease`` begin anew; its ttl in seconds."""
    deadline = time.monotonic() + timeout
    request = pb.LeaseKeepAliveRequest(ID=lease_id(lease))
    while True:
        answer = await _keep_alive(calls, request, _rest(deadline))
        if await _term(calls, deadline) == answer.header.raft_term:
            break
        await calls.sleep(min(PAUSE, _rest(deadline)))
    if answer.TTL <= 0:
        raise LeaseLost("the lease has ended; grant a new one")
    return float(answer.TTL)


async def _keep_alive(calls: Calls[Any], request: pb.LeaseKeepAliveRequest, timeout: float) -> Any:
    try:
        return await calls.ask("keep_alive", request, timeout, write=False)
    except Unavailable as error:
        # Who ended it was not this client. Since etcd 3.5 a proxy says so in the words of a member
        # that is being stopped, so that it has to be asked again.
        cause = error.__cause__
        if isinstance(cause, grpc.RpcError) and cause.details() == "context canceled":
            passing = cause.code() is grpc.StatusCode.CANCELLED
            raise Unavailable(
                f"the lease could not be renewed: {PROXY}", passing=passing
            ) from error
        raise


async def _term(calls: Calls[Any], deadline: float) -> int | None:
    """The term of a linearizable read that begins now; ``None`` if it could not be told whose."""
    turns = calls.turns
    try:
        answer = await calls.ask("range", wire.NOTHING, _rest(deadline), write=False)
    except PermissionDenied:
        answer = await calls.ask("status", pb.StatusRequest(), _rest(deadline), write=False)
        if calls.turns != turns:
            return None
    return int(answer.header.raft_term)


def _rest(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Timeout("the lease could not be renewed in time")
    return left


async def revoke(calls: Calls[Any], lease: int, timeout: float) -> None:
    """End ``lease``, if it has not ended."""
    with suppress(LeaseLost):
        request = pb.LeaseRevokeRequest(ID=lease_id(lease))
        await calls.ask("revoke", request, timeout, write=True)


async def _give_up(calls: Calls[Any], lease: int) -> None:
    """End a lease that nobody has got, if it was granted; or it ends by itself.

    The grant that was cancelled may come after the first word of its end.
    """
    for pause in (0, 0.1, 0.5):
        await calls.sleep(pause)
        with suppress(KviError):
            await revoke(calls, lease, PATIENCE)


def told(
    connection: Connection, ids: Collection[int] | None, span: Span | None, timeout: float
) -> list[LeaseInfo]:
    """The leases that are alive, of ``ids`` or all, and their keys within ``span``."""
    deadline = time.monotonic() + timeout
    if ids is None:
        ids = _ids(connection, deadline)
    todo = (lease for lease in ids if 0 < lease <= MAX_NUMBER)

    def begin(lease: int) -> Pending:
        request = pb.LeaseTimeToLiveRequest(ID=lease, keys=span is not None)
        return connection.begin("left", request, _until(deadline))

    found = []
    under_way = deque((lease, begin(lease)) for lease in islice(todo, AT_ONCE))
    try:
        while under_way:
            lease, pending = under_way.popleft()
            try:
                answer = run(pending.answer(deadline))
                keys = None if span is None else wire.keys_within(span, answer.keys)
            except PermissionDenied:  # not to read one of its keys; all else is told to anybody
                request = pb.LeaseTimeToLiveRequest(ID=lease)
                answer = connection.call("left", request, _until(deadline), write=False)
                keys = None
            under_way.extend((another, begin(another)) for another in islice(todo, 1))
            if answer.TTL >= 0:  # else it has ended meanwhile
                found.append(LeaseInfo(lease, float(answer.grantedTTL), float(answer.TTL), keys))
    finally:
        for _, pending in under_way:
            pending.cancel()
    return found


def _ids(connection: Connection, deadline: float) -> list[int]:
    """The leases that the current endpoint knows."""
    # It tells what it has come to know so far, which a linearizable read brings up to date.
    with suppress(PermissionDenied):
        connection.call("range", wire.NOTHING, _until(deadline), write=False)
    answer = connection.call("leases", pb.LeaseLeasesRequest(), _until(deadline), write=False)
    return [lease.ID for lease in answer.leases]


def _until(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Timeout("the leases could not be looked through in time")
    return left


def _new_id() -> int:
    return secrets.randbelow(MAX_NUMBER) + 1
