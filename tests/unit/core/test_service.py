"""`Backend`: a prefix, one policy, liveness, and reservations."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import kvi
import pytest

from tests.support.faulty import Faulty
from tests.support.inside import revoke
from tests.support.waiting import until

_numbers = itertools.count()
AT_ONCE = kvi.RetryPolicy(min_wait=0, max_wait=0, factor=0)


@pytest.fixture
def uri() -> str:
    return f"mem:service-{next(_numbers)}"


@pytest.fixture
def inner(uri: str) -> Iterator[Faulty]:
    with Faulty(kvi.open(uri)) as store:
        yield store


@pytest.fixture
def backend(inner: Faulty) -> Iterator[kvi.Backend]:
    with kvi.Backend(inner, "service/voltha", retry=AT_ONCE) as backend:
        yield backend


# -- the whole ------------------------------------------------------------------------------------


def test_it_is_a_store_below_a_prefix(backend: kvi.Backend, inner: kvi.Kvi) -> None:
    """Keys get the prefix and a slash, and come back without."""
    assert isinstance(backend, kvi.Kvi)
    backend.store("k", "v")
    assert inner.get("service/voltha/k") is not None
    found = backend.get("k")
    assert found is not None
    assert found.key == "k"
    assert [entry.key for entry in backend.range()] == ["k"]
    inner.store("service/volthax", "")
    assert backend.count() == 1
    assert "'service/voltha'" in backend.uri


def test_list_gives_what_is_below(backend: kvi.Backend) -> None:
    """`get` of a parent does not return children, `list` does, and not the parent."""
    for key in ("a", "a/1", "a/2/3", "ab", "b/1"):
        backend.store(key, key)
    assert [e.key for e in backend.list("a")] == ["a/1", "a/2/3"]
    assert [e.text for e in backend.list("a/")] == ["a/1", "a/2/3"]
    assert len(list(backend.list())) == 5
    assert list(backend.list("nothing")) == []
    assert backend.get("a/2") is None


def test_it_opens_a_uri_and_closes_it(uri: str) -> None:
    """What it opened it closes, what it was given it does not."""
    with kvi.Backend(uri, "p") as backend:
        backend.store("k", "v")
        inner = backend._owned
    assert inner is not None
    assert inner.closed
    with kvi.open(uri) as store:
        with kvi.Backend(store) as backend:
            assert backend.get("p/k") is not None
        assert not store.closed
        with pytest.raises(kvi.Closed):
            backend.get("k")
        other = kvi.Backend(store)
    with pytest.raises(kvi.Closed):
        other.get("k")


def test_its_policy_is_the_only_one(uri: str) -> None:
    """That of the store does not multiply it, and ``None`` tries once."""
    for policy, tries in [(kvi.RetryPolicy(min_wait=0, factor=0, max_attempts=4), 4), (None, 1)]:
        with Faulty(kvi.open(uri)) as faulty:
            faulty.fails("get", *[kvi.Unavailable("x")] * 100)
            backend = kvi.Backend(kvi.Backend(faulty, retry=AT_ONCE), retry=policy)
            with pytest.raises(kvi.Unavailable):
                backend.get("k")
            assert faulty.times("get") == tries


def test_errors_have_the_callers_key(backend: kvi.Backend, inner: Faulty) -> None:
    """Operation, key and URI, as of any store."""
    inner.fails("store", kvi.PermissionDenied("no"))
    with pytest.raises(kvi.PermissionDenied) as caught:
        backend.store("k", "v")
    error = caught.value
    assert (error.operation, error.key, error.uri) == ("store", "k", backend.uri)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"path_prefix": "/p"}, "/p"),
        ({"path_prefix": "p/"}, "p/"),
        ({"path_prefix": 7}, "path_prefix="),
        ({"timeout": 0}, "timeout="),
        ({"retry": 3}, "retry="),
        ({"liveness_interval": 0}, "liveness_interval="),
        ({"liveness_interval": "often"}, "liveness_interval="),
    ],
)
def test_bad_arguments(uri: str, options: dict[str, Any], names: str) -> None:
    """They are named before anything is opened, or leave nothing open."""
    with pytest.raises(kvi.InvalidArgument, match=names):
        kvi.Backend(uri, **options)
    with pytest.raises(kvi.UnknownBackend):
        kvi.Backend("nonsense://x")


def test_views_of_it_keep_what_it_does(backend: kvi.Backend, inner: Faulty) -> None:
    """A namespace of a backend tries again, and makes it alive."""
    inner.fails("get", kvi.Unavailable("x"))
    backend.namespace("n").get("k")
    assert inner.times("get") == 2
    assert backend.alive


def test_closing_does_not_wait_for_retries(inner: Faulty) -> None:
    """A lease is revoked as soon as the store is back, however long the policy would wait."""
    backend = kvi.Backend(inner, retry=kvi.RetryPolicy(min_wait=30, max_wait=30), timeout=100)
    backend.lease(60)
    inner.fails("lease_revoke", kvi.Unavailable("gone"), kvi.Unavailable("gone"))
    closing = threading.Thread(target=backend.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert inner.times("lease_revoke") == 3


def test_interrupted_close_goes_on(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that it owns is closed, too, though the caller has gone."""
    backend = kvi.Backend(uri)
    backend.lease(60)
    owned = backend._owned
    assert owned is not None
    primitives, main, go_on = owned._scope.primitives, threading.get_ident(), threading.Event()
    revoke, closed = primitives._lease_revoke, primitives._close
    ended: list[None] = []

    def slowly(*arguments: Any) -> None:
        signal.pthread_kill(main, signal.SIGUSR1)
        assert go_on.wait(20)
        revoke(*arguments)

    def close() -> None:
        closed()
        ended.append(None)

    def interrupt(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(primitives, "_lease_revoke", slowly)
    monkeypatch.setattr(primitives, "_close", close)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(InterruptedError):
            backend.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
        go_on.set()
    assert backend.closed
    until(lambda: ended)


# -- liveness -------------------------------------------------------------------------------------


def test_check_asks_now_and_once(backend: kvi.Backend, inner: Faulty) -> None:
    """It returns the state, also when the store is gone; a retry would be no answer to "now"."""
    assert backend.perform_liveness_check(1) is True
    inner.fails("ping", kvi.Timeout("x"))
    assert backend.perform_liveness_check() is False
    assert (backend.alive, inner.times("ping")) == (False, 2)
    inner.fails("ping", kvi.PermissionDenied("not this key"))
    assert backend.perform_liveness_check() is True
    with pytest.raises(kvi.InvalidArgument):
        backend.perform_liveness_check(0)
    backend.close()
    for call in (backend.perform_liveness_check, backend.enable_liveness_channel):
        with pytest.raises(kvi.Closed):
            call()


def test_fault_that_a_retry_bridges_is_none(backend: kvi.Backend, inner: Faulty) -> None:
    """The state is that of operations, not of tries."""
    channel = backend.enable_liveness_channel()
    backend.get("k")
    inner.fails("get", kvi.Unavailable("x"), kvi.Unavailable("x"))
    backend.get("k")
    assert [channel.get(0) for _ in range(len(channel))] == [False, True]


# -- reservations ---------------------------------------------------------------------------------


@pytest.fixture
def other(inner: Faulty) -> Iterator[kvi.Backend]:
    with kvi.Backend(inner, "service/voltha") as backend:
        yield backend


def test_who_comes_first_holds_it(backend: kvi.Backend, other: kvi.Backend) -> None:
    """`reserve` tells the value of the holder, to both."""
    assert backend.reserve("k", "one", 30) == b"one"
    assert other.reserve("k", "two", 30) == b"one"
    entry = other.get("k")
    assert entry is not None
    assert (entry.text, entry.lease is not None) == ("one", True)
    backend.release_reservation("k")
    assert other.get("k") is None
    assert other.reserve("k", "two", 30) == b"two"


def test_a_permanent_key_is_held_by_whoever_stored_it(backend: kvi.Backend) -> None:
    """A key that is there cannot be reserved."""
    backend.store("k", "mine")
    assert backend.reserve("k", "x", 30) == b"mine"
    entry = backend.get("k")
    assert entry is not None
    assert entry.lease is None


def test_put_on_a_reserved_key_keeps_its_lease(backend: kvi.Backend) -> None:
    """By `store`, `cas`, `tas` and transactions; another key has none."""
    backend.reserve("k", "0", 30)
    begin = backend.get("k")
    assert begin is not None
    backend.store("k", "1")
    found = backend.get("k")
    assert found is not None
    assert backend.cas("k", found.revision, "2")
    assert backend.tas("k", "2", "3")
    backend.txn([kvi.Key("k").absent], [], [kvi.Put("k", "4"), kvi.Put("l", "4")])
    found = backend.get("k")
    assert found is not None
    assert (found.text, found.lease) == ("4", begin.lease)
    free = backend.get("l")
    assert free is not None
    assert free.lease is None
    with backend.lease(30) as lease:
        backend.store("k", "5", lease=lease)
        found = backend.get("k")
        assert found is not None
        assert found.lease == lease.id


def test_update_of_a_reserved_key(backend: kvi.Backend) -> None:
    """It tells the lease that the key keeps, also through a view."""
    view = backend.namespace("a")
    for store, key, whole in ((backend, "k", "k"), (view, "k", "a/k")):
        backend.reserve(whole, "v", 60)
        made = store.update(key, lambda value: value + b"!")
        assert made == store.get(key)
        assert made is not None
        assert made.lease is not None
        backend.release_reservation(whole)
        made = store.update(key, lambda value: value + b"!", default=b"")
        assert made == store.get(key)
        assert made is not None
        assert made.lease is None


def test_reserving_again_replaces_value_and_ttl(backend: kvi.Backend, inner: Faulty) -> None:
    """Of what this backend holds; the lease before is gone."""
    backend.reserve("k", "1", 30)
    before = backend.get("k")
    assert backend.reserve("k", "2", 60) == b"2"
    after = backend.get("k")
    assert before is not None
    assert after is not None
    assert (after.text, after.lease != before.lease) == ("2", True)
    backend.renew_reservation("k")
    backend.store("k", "3")
    kept = backend.get("k")
    assert kept is not None
    assert kept.lease == after.lease


def test_renewing(backend: kvi.Backend, other: kvi.Backend) -> None:
    """Only what is held can be renewed; what has ended is lost, and says so once."""
    with pytest.raises(kvi.NotHeld, match="reserve it first"):
        backend.renew_reservation("k")
    backend.reserve("k", "1", 30)
    backend.renew_reservation("k")
    with pytest.raises(kvi.NotHeld):
        other.renew_reservation("k")
    lease = backend._reservations.lease_of("k")
    assert lease is not None
    revoke(other, lease)
    with pytest.raises(kvi.LeaseLost):
        backend.renew_reservation("k")
    with pytest.raises(kvi.NotHeld) as caught:
        backend.renew_reservation("k")
    assert not isinstance(caught.value, kvi.LeaseLost)


def test_store_after_the_end_is_told(backend: kvi.Backend, other: kvi.Backend) -> None:
    """A reservation never turns into a permanent key in silence."""
    backend.reserve("k", "1", 30)
    lease = backend._reservations.lease_of("k")
    assert lease is not None
    revoke(other, lease)
    with pytest.raises(kvi.LeaseLost):
        backend.store("k", "2")
    assert backend.get("k") is None
    backend.store("k", "3")
    entry = backend.get("k")
    assert entry is not None
    assert entry.lease is None


def test_reserving_what_was_lost(backend: kvi.Backend, other: kvi.Backend) -> None:
    """After somebody else took or deleted the key, a reservation is a new one."""
    backend.reserve("k", "1", 30)
    other.delete("k")
    assert backend.reserve("k", "2", 30) == b"2"
    other.store("k", "theirs")
    assert backend.reserve("k", "3", 30) == b"theirs"
    with pytest.raises(kvi.NotHeld):
        backend.renew_reservation("k")


def test_releasing(backend: kvi.Backend, other: kvi.Backend, inner: Faulty) -> None:
    """One, or all of this backend's; what is not held is no error."""
    backend.release_reservation("nothing")
    backend.release_all_reservations()
    for key in ("a", "b", "c"):
        backend.reserve(key, "1", 30)
    other.reserve("d", "2", 30)
    backend.release_reservation("a")
    assert [e.key for e in other.range()] == ["b", "c", "d"]
    inner.fails("lease_revoke", kvi.PermissionDenied("no"))
    with pytest.raises(kvi.PermissionDenied):
        backend.release_all_reservations()
    assert [e.key for e in other.range()] in (["b", "d"], ["c", "d"]), "the others were released"
    backend.release_all_reservations()


def test_closing_releases_all(uri: str) -> None:
    """Reservations end with the handle."""
    with kvi.open(uri) as store:
        with kvi.Backend(store) as backend:
            backend.reserve("k", "1", 30)
            assert store.count() == 1
        assert store.count() == 0


def test_unknown_reservation_goes_with_its_lease(
    backend: kvi.Backend, other: kvi.Backend, inner: Faulty
) -> None:
    """Nobody holds a key that nobody knows of."""
    inner.loses("reserve", kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.OutcomeUnknown) as caught:
        backend.reserve("k", "1", 30)
    assert (caught.value.operation, caught.value.key) == ("reserve", "k")
    with pytest.raises(kvi.NotHeld):
        backend.renew_reservation("k")
    until(lambda: other.get("k") is None)
    assert other.reserve("k", "2", 30) == b"2"


def test_unknown_reservation_of_what_was_held(
    backend: kvi.Backend, other: kvi.Backend, inner: Faulty
) -> None:
    """After it nothing is held: two must never believe that they hold one key."""
    backend.reserve("k", "1", 30)
    inner.loses("reserve", kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.OutcomeUnknown):
        backend.reserve("k", "2", 30)
    with pytest.raises(kvi.NotHeld):
        backend.renew_reservation("k")
    until(lambda: other.reserve("k", "theirs", 30) == b"theirs")
    with pytest.raises(kvi.NotHeld):
        backend.renew_reservation("k")


def test_transaction_after_the_end_is_told_once(backend: kvi.Backend, other: kvi.Backend) -> None:
    """As a store is; other reservations stay."""
    backend.reserve("k", "1", 30)
    backend.reserve("l", "1", 30)
    lease = backend._reservations.lease_of("k")
    assert lease is not None
    revoke(other, lease)
    with pytest.raises(kvi.LeaseLost):
        backend.tas("k", None, "2")
    assert backend.tas("k", None, "2")
    backend.renew_reservation("l")


@pytest.mark.parametrize("ttl", [0, -1, "30", float("nan")])
def test_bad_reservations(backend: kvi.Backend, ttl: Any) -> None:
    """The ttl, the key and the value are checked before anything is sent."""
    with pytest.raises(kvi.InvalidArgument, match="ttl"):
        backend.reserve("k", "v", ttl)
    with pytest.raises(kvi.InvalidKey):
        backend.reserve("", "v", 30)
    with pytest.raises(kvi.InvalidKey):
        backend.release_reservation("")
    with pytest.raises(kvi.InvalidArgument):
        backend.reserve("k", 7, 30)  # type: ignore[arg-type]


def test_one_of_many_gets_it(inner: Faulty) -> None:
    """However many try at once, all of them learn the same holder."""
    told: list[bytes] = []
    backends = [kvi.Backend(inner) for _ in range(8)]

    def attempt(number: int) -> None:
        told.append(backends[number].reserve("k", str(number), 30))

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(told) == 8
    assert len(set(told)) == 1
    for backend in backends:
        backend.close()
    assert inner.count() == 0
