"""The retrying etcd client that kvi replaces (VOLTHA's, VOL-4154), row by row."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterator

import grpc
import kvi
import pytest
from kvi.policy.retry import Effect
from kvi.sync.backend import Backend
from kvi_etcd.errors import translate

from tests.support.faulty import Faulty
from tests.support.waiting import until
from tests.unit.etcd.test_errors import RpcError

AT_ONCE = kvi.RetryPolicy(min_wait=0, max_wait=0, factor=0)
AS_ORIGIN = kvi.RetryPolicy(idempotent=True)
"""The origin repeated a put also if the lost one may have applied."""
CALLS: dict[str, Callable[[kvi.Kvi], object]] = {
    "get": lambda store: store.get("k"),
    "store": lambda store: store.store("k", "v"),
    "delete": lambda store: store.delete("k"),
}
C = grpc.StatusCode


@pytest.fixture
def scripted() -> Iterator[Faulty]:
    with Faulty(kvi.open(f"mem:{secrets.token_hex(8)}")) as store:
        yield store


@pytest.fixture
def backend(uri: str) -> Iterator[Backend]:
    with Backend(uri) as backend:
        yield backend
        backend.release_all_reservations()
        backend.delete_range(prefix="")


@pytest.fixture
def other(uri: str) -> Iterator[Backend]:
    with Backend(uri) as backend:
        yield backend


@pytest.mark.parametrize("name", CALLS)
def test_get_put_and_delete_are_retried(name: str, scripted: Faulty) -> None:
    """Until they work."""
    scripted.fails(name, *[kvi.Unavailable("etcdserver: no leader")] * 3)
    CALLS[name](Backend(scripted, retry=AT_ONCE))
    assert scripted.times(name) == 4


RETRIED = [
    (C.UNAVAILABLE, "etcdserver: leader changed"),
    (C.UNAVAILABLE, "etcdserver: no leader"),
    (C.UNAVAILABLE, "etcdserver: request timed out"),
    (C.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
    (C.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
]
NOT_RETRIED = [
    (C.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    (C.PERMISSION_DENIED, "etcdserver: permission denied"),
    (C.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"),
    (C.FAILED_PRECONDITION, "etcdserver: authentication is not enabled"),
    (C.NOT_FOUND, "etcdserver: requested lease not found"),
    (C.DATA_LOSS, "etcdserver: corrupt cluster"),
]


@pytest.mark.parametrize(("code", "detail"), RETRIED)
def test_what_is_retried(code: grpc.StatusCode, detail: str) -> None:
    """Leader changed, no leader, timed out, also due to leader failure or a lost connection.

    Reads always; writes too where they surely did not apply, else if the caller allows it.
    """
    for policy, effect, again in (
        (kvi.RetryPolicy(), Effect.READ, True),
        (AS_ORIGIN, Effect.WRITE, True),
        (kvi.RetryPolicy(), Effect.WRITE, detail.endswith("no leader")),
    ):
        error = translate(RpcError(code, detail), write=effect is Effect.WRITE)
        assert (policy.decide(error, effect, attempt=1, left=60) is not None) is again


@pytest.mark.parametrize(("code", "detail"), NOT_RETRIED)
def test_what_is_not_retried(code: grpc.StatusCode, detail: str) -> None:
    """Other errors of the server."""
    for effect in (Effect.READ, Effect.WRITE):
        error = translate(RpcError(code, detail), write=effect is Effect.WRITE)
        assert AS_ORIGIN.decide(error, effect, attempt=1, left=60) is None


def test_empty_key_is_not_retried(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused before anything is sent."""
    with caplog.at_level(logging.WARNING, logger="kvi"), pytest.raises(kvi.InvalidKey):
        backend.store("", "v")
    assert not caplog.records


def test_not_retried_on_cancel(scripted: Faulty) -> None:
    """A handle that is closed meanwhile ends the call."""
    backend = Backend(scripted, retry=AT_ONCE)
    scripted.fails("get", kvi.Closed("cancelled"))
    with pytest.raises(kvi.Closed):
        backend.get("k")
    assert scripted.times("get") == 1


def test_until_the_deadline_then_the_last_error(scripted: Faulty) -> None:
    """The caller's deadline bounds all of it."""
    backend = Backend(scripted, retry=kvi.RetryPolicy(min_wait=0.01, max_wait=0.01))
    scripted.fails("get", *[kvi.Unavailable(f"fault {n}") for n in range(1000)])
    with pytest.raises(kvi.Unavailable) as caught:
        backend.get("k", timeout=0.2)
    assert caught.value.message == f"fault {scripted.times('get') - 1}"
    assert scripted.times("get") > 1


def test_each_retry_is_a_warning(scripted: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    """With key, error and attempt."""
    scripted.fails("store", kvi.Unavailable("no leader"), kvi.Unavailable("leader changed"))
    with caplog.at_level(logging.WARNING, logger="kvi"):
        Backend(scripted, retry=AT_ONCE).store("my/key", "v")
    first, second = caplog.records
    assert (first.levelno, second.levelno) == (logging.WARNING, logging.WARNING)
    for record, error, attempt in ((first, "no leader", 1), (second, "leader changed", 2)):
        for part in ("my/key", error, f"try {attempt}"):
            assert part in record.getMessage()


def test_attempt_zero_waits_for_nothing() -> None:
    """The first try is made at once."""
    assert kvi.RetryPolicy().wait(0) == 0.0


@pytest.mark.parametrize("attempt", range(1, 13))
def test_backoff_numbers(attempt: int) -> None:
    """100 ms minimum, 5,000 ms maximum, factor 1.2·e^attempt ms, ±20 %."""
    policy = kvi.RetryPolicy()
    middle = min(5.0, 0.1 + 0.0012 * math.e**attempt)
    waits = [policy.wait(attempt, chance / 100) for chance in range(101)]
    assert all(0.1 <= wait <= 5.0 for wait in waits)
    assert all(abs(wait - middle) <= 0.2 * middle + 1e-9 for wait in waits)
    assert len(set(waits)) == 101, "the jitter is not cancelled"


def test_backoff_grows() -> None:
    """With the attempt."""
    waits = [kvi.RetryPolicy().wait(attempt) for attempt in range(10)]
    assert waits == sorted(waits)
    assert waits[9] > 40 * waits[1]


def test_backoff_ends_early_with_the_deadline(scripted: Faulty) -> None:
    """If the wait would outlive it, the error comes at once instead."""
    backend = Backend(scripted, retry=kvi.RetryPolicy(min_wait=1000, max_wait=1000))
    scripted.fails("get", kvi.Unavailable("no leader"))
    with pytest.raises(kvi.Unavailable):
        backend.get("k", timeout=100)
    assert scripted.times("get") == 1


# -- reservations ---------------------------------------------------------------------------------


def test_put_under_reservation_keeps_its_lease(backend: Backend) -> None:
    """A later put does not make the key permanent."""
    assert backend.reserve("k", "mine", 10) == b"mine"
    reserved = backend.get("k")
    backend.store("k", "changed")
    changed = backend.get("k")
    assert reserved is not None
    assert changed is not None
    assert changed.text == "changed"
    assert changed.lease == reserved.lease is not None


def test_reserve_tells_who_holds_it(backend: Backend, other: Backend) -> None:
    """The value of the first one, to everybody."""
    assert backend.reserve("k", "first", 10) == b"first"
    assert other.reserve("k", "second", 10) == b"first"
    with pytest.raises(kvi.NotHeld):
        other.renew_reservation("k")


def test_renew_reservation(backend: Backend) -> None:
    """Its time begins anew; what is not reserved cannot be renewed."""
    backend.reserve("k", "v", 10)
    backend.renew_reservation("k")
    with pytest.raises(kvi.NotHeld):
        backend.renew_reservation("l")


def test_release_reservation(backend: Backend, other: Backend) -> None:
    """The key is free for the next."""
    backend.reserve("k", "v", 10)
    backend.release_reservation("k")
    assert other.get("k") is None
    assert other.reserve("k", "w", 10) == b"w"
    other.release_reservation("k")


def test_release_all_reservations(backend: Backend, other: Backend) -> None:
    """All of this backend's, and of no other."""
    for key in ("a", "b"):
        backend.reserve(key, "v", 10)
    other.reserve("c", "w", 10)
    backend.release_all_reservations()
    assert [entry.key for entry in other.list()] == ["c"]
    other.release_all_reservations()


@pytest.mark.slow
def test_reservation_ends_without_renewal(backend: Backend, other: Backend) -> None:
    """After its ttl, within the store's bound, unless it is renewed."""
    capabilities = backend.capabilities
    ttl = max(1.0, capabilities.lease_min_ttl)
    bound = ttl * capabilities.lease_expiry_factor
    backend.reserve("k", "v", ttl)
    until(lambda: other.get("k") is None, within=bound + 30)
    with pytest.raises(kvi.LeaseLost):
        backend.renew_reservation("k")
