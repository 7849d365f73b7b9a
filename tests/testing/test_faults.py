"""Faults on order, on every store and for both faces."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kvi
import kvi.recipes
import pytest
from kvi.testing import Fault, Faults

from tests.support.waiting import until


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Faults that are on."""
    with Faults() as on:
        yield on


@pytest.fixture
def store(faults: Faults, uri: str) -> Iterator[kvi.Kvi]:
    """A store that has them."""
    with kvi.open(uri) as opened:
        yield opened
        faults.clear()


@pytest.fixture
def mem(faults: Faults, request: pytest.FixtureRequest) -> Iterator[kvi.Kvi]:
    """A store in memory that has them."""
    with kvi.open(f"mem:{request.node.nodeid}".replace("[", "-").replace("]", "")) as opened:
        opened.delete_range(prefix="")
        yield opened


@pytest.mark.parametrize("applied", [True, False])
def test_unknown(store: kvi.Kvi, faults: Faults, applied: bool) -> None:
    """The write was applied or was not, as ordered; the caller cannot tell, and the next works."""
    fault = faults.unknown("store", key="k", applied=applied)
    store.store("other", "v")
    with pytest.raises(kvi.OutcomeUnknown) as raised:
        store.store("k", "v")
    assert (raised.value.operation, raised.value.key) == ("store", "k")
    found = store.get("k")
    assert (found is not None and found.text == "v") is applied
    assert store.store("k", "w")
    assert (fault.hits, fault.active) == (1, False)


@pytest.mark.parametrize("applied", [True, False])
def test_unknown_transaction(store: kvi.Kvi, faults: Faults, applied: bool) -> None:
    """A transaction, and what is one, matches by any key of it; it is not tried again."""
    faults.unknown("txn", key="b", applied=applied)
    with pytest.raises(kvi.OutcomeUnknown):
        store.txn(then=[kvi.Put("a", "1"), kvi.Put("b", "1")])
    assert store.count() == 2 * applied
    faults.unknown("update", applied=applied)
    with pytest.raises(kvi.OutcomeUnknown):
        store.update("n", lambda old: str(int(old) + 1), default="0")
    assert (store.get("n") is not None) is applied


def test_unavailable(store: kvi.Kvi, faults: Faults) -> None:
    """Nothing is applied; the error comes at once, and kvi's own retries do not hide it."""
    fault = faults.unavailable("store", "get", times=2)
    began = time.monotonic()
    with pytest.raises(kvi.Unavailable):
        store.store("k", "v")
    with pytest.raises(kvi.Unavailable):
        store.get("k")
    assert store.get("k") is None
    assert fault.hits == 2
    assert time.monotonic() - began < 20


def test_delay(store: kvi.Kvi, faults: Faults) -> None:
    """A call comes later, or ends with `Timeout` at its own time-out, and then nothing applied."""
    store.store("k", "v")
    faults.delay(0.3, "get")
    began = time.monotonic()
    assert store.get("k") is not None
    assert 0.3 <= time.monotonic() - began < 20
    faults.delay(30, "store")
    began = time.monotonic()
    with pytest.raises(kvi.Timeout):
        store.store("k", "w", timeout=0.2)
    assert time.monotonic() - began < 20
    found = store.get("k")
    assert found is not None
    assert found.text == "v"


def test_lost_lock(store: kvi.Kvi, faults: Faults) -> None:
    """The holder of a lost lock knows at once, its guard is refused, and its block ends so."""
    held = store.lock("jobs", ttl=30)
    assert held.acquire(5)
    guard = held.guard
    faults.lose(held)
    assert not held.held
    assert held.lost.wait(5)
    assert not store.txn([guard], [kvi.Put("k", "v")])
    with pytest.raises(kvi.LeaseLost):
        held.release()
    with pytest.raises(kvi.NotHeld):
        faults.lose(store.lock("another"))


def test_lost_lock_is_free(store: kvi.Kvi, faults: Faults) -> None:
    """Somebody else gets a lost lock, after the lock-delay that the store has."""
    held = store.lock("jobs", ttl=10)
    assert held.acquire(5)
    faults.lose(held)
    limits = store.capabilities
    with store.lock("jobs", ttl=10, timeout=limits.lock_delay_factor * 10 + 15) as other:
        assert other.held
        assert not held.held


def test_lost_lease(store: kvi.Kvi, faults: Faults) -> None:
    """The keys of a lost lease are gone, and call-backs hear of it."""
    told = threading.Event()
    lease = store.lease(30)
    lease.lost.add_callback(told.set)
    store.store("k", "v", lease=lease)
    faults.lose(lease)
    assert not lease.alive
    assert told.wait(5)
    until(lambda: store.get("k") is None)
    with pytest.raises(kvi.LeaseLost):
        store.store("k", "v", lease=lease)
    with pytest.raises(kvi.LeaseLost):
        faults.lose(lease)
    temporary = store.temp_key("t", ttl=30)
    faults.lose(temporary)
    assert not temporary.alive
    assert store.get("t") is None


def test_asyncio(faults: Faults, uri: str) -> None:
    """Handles of `kvi.aio` have the same faults and losses; a delay does not block the loop."""

    async def main() -> None:
        async with kvi.aio.open(uri) as store:
            faults.unknown("store", applied=True)
            with pytest.raises(kvi.OutcomeUnknown):
                await store.store("k", "v")
            assert (await store.get("k")) is not None
            faults.delay(30, "get")
            with pytest.raises(kvi.Timeout):
                await store.get("k", timeout=0.2)
            faults.delay(30, "get")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await store.get("k")
            held = store.lock("jobs", ttl=30)
            assert await held.acquire(5)
            await faults.lose(held)
            assert not held.held
            assert await held.lost.wait(5)
            with pytest.raises(kvi.LeaseLost):
                await held.release()
            temporary = await store.temp_key("t", ttl=30)
            await faults.lose(temporary)
            assert not temporary.alive
            assert await store.get("t") is None

    asyncio.run(main())


def test_lock(mem: kvi.Kvi, faults: Faults) -> None:
    """A claim whose answer is lost leaves nothing that could win later."""
    faults.unknown("lock", key="jobs", applied=True)
    with pytest.raises(kvi.Unavailable):  # surely not held
        mem.lock("jobs", timeout=0).acquire()
    with mem.lock("jobs", timeout=5) as held:
        assert held.held


@pytest.mark.parametrize("applied", [True, False])
def test_release(mem: kvi.Kvi, faults: Faults, applied: bool) -> None:
    """A release is known by the name of its lock; one in doubt frees it with its lease at least."""
    held = mem.lock("jobs", ttl=1)
    assert held.acquire(5)
    fault = faults.unknown("release", key="jobs", applied=applied)
    with pytest.raises(kvi.OutcomeUnknown):
        held.release()
    assert fault.hits == 1
    assert mem.lock("jobs").acquire(10)


def test_recipe(mem: kvi.Kvi, faults: Faults) -> None:
    """What is held like a lock can be lost like one."""
    election = kvi.recipes.Election(mem, "leader", ttl=30)
    assert election.campaign(5)
    faults.lose(election)
    assert not election.held
    assert kvi.recipes.Election(mem, "leader").campaign(5)


def test_backend_tries_again(faults: Faults) -> None:
    """A `Backend` stands around the faults, so that a test sees its policy at work."""
    policy = kvi.RetryPolicy(max_wait=0.1)
    with kvi.Backend("mem:faults-backend", retry=policy) as backend:
        fault = faults.unavailable("get", times=2)
        assert backend.get("nothing") is None
        assert fault.hits == 2
        with faults.unavailable(times=None), pytest.raises(kvi.Unavailable):
            backend.get("nothing", timeout=0.3)
        assert not backend.alive
        assert backend.get("nothing") is None


def test_prefix(mem: kvi.Kvi, faults: Faults) -> None:
    """A prefix matches keys below it, and ranges that reach into it."""
    faults.unavailable(prefix="jobs/", times=None)
    for call in (
        lambda: mem.get("jobs/1"),
        lambda: mem.delete("jobs/1"),
        lambda: mem.count(),
        lambda: mem.count(prefix="jobs/1"),
        lambda: mem.delete_range(prefix="jo"),
        lambda: mem.tas("jobs/1", None, "v"),
        lambda: list(mem.range("a", "z")),
        lambda: mem.namespace("jobs").get("1"),
    ):
        with pytest.raises(kvi.Unavailable):
            call()
    assert mem.get("jobs") is None
    assert mem.count(prefix="jobs0") == 0
    assert list(mem.range("jobs0", "z")) == []


@pytest.mark.parametrize("given", [{"key": "k1900"}, {"prefix": "k19"}, {"prefix": "k"}, {}])
def test_pages_of_a_range(faults: Faults, tmp_path: Path, given: dict[str, Any]) -> None:
    """Each page matches by any key of its range, as the range itself does."""
    with kvi.open(f"sqlite:{quote(str(tmp_path))}/pages.db", retry=None) as store:
        store.txn(then=[kvi.Put(f"k{number:04}", "") for number in range(2000)], timeout=60)
        beyond = faults.unavailable("range_page", key="l")
        fault = faults.unavailable("range_page", **given)
        with pytest.raises(kvi.Unavailable):
            list(store.range(prefix="k"))
        assert (fault.hits, beyond.hits) == (1, 0)
        assert len(list(store.range(prefix="k"))) == 2000


def test_pages_of_a_view(faults: Faults, tmp_path: Path) -> None:
    """They match by the name that a key has in the handle that was opened."""
    with kvi.open(f"sqlite:{quote(str(tmp_path))}/pages.db", retry=None) as store:
        view = store.namespace("app")
        view.txn(then=[kvi.Put(f"k{number:04}", "") for number in range(2000)], timeout=60)
        beyond = faults.unavailable("range_page", key="k1900")
        fault = faults.unavailable("range_page", key="app/k1900")
        with pytest.raises(kvi.Unavailable):
            list(view.range())
        assert (fault.hits, beyond.hits) == (1, 0)
        assert [entry.key for entry in view.range()][-1] == "k1999"


def test_delay_and_unknown(mem: kvi.Kvi, faults: Faults) -> None:
    """A delay and an error may hit one call."""
    delay, lost = faults.delay(0.05, "store"), faults.unknown("store", applied=False)
    with pytest.raises(kvi.OutcomeUnknown):
        mem.store("k", "v")
    assert (delay.hits, lost.hits) == (1, 1)


def test_closing_ends_a_delay(faults: Faults) -> None:
    """A call that is held up ends when its handle is closed."""
    store = kvi.open("mem:faults-closing")
    delay = faults.delay(60, "get")
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            store.get("k", timeout=60)
        except kvi.KviError as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: delay.hits)
    store.close()
    thread.join(20)
    assert [type(error) for error in ended] == [kvi.Closed]


def test_times(mem: kvi.Kvi, faults: Faults) -> None:
    """Of many threads exactly as many calls are hit as ordered."""
    fault = faults.unavailable("get", times=50)
    failed: list[int] = []

    def ask() -> None:
        for _ in range(50):
            try:
                mem.get("k")
            except kvi.Unavailable:
                failed.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(failed), fault.hits) == (50, 50)


def test_reads_are_never_unknown(mem: kvi.Kvi, faults: Faults) -> None:
    """A fault of any operation leaves reads alone where they cannot have it."""
    fault = faults.unknown(applied=True)
    assert mem.get("k") is None
    assert mem.count() == 0
    mem.ping()
    assert not mem.txn(then=[kvi.Get("k")]).results[0]
    assert fault.hits == 0
    with pytest.raises(kvi.OutcomeUnknown):
        mem.delete("k")


def test_other_handles(faults: Faults) -> None:
    """A handle that was opened before has faults once they are attached, and none after `close`."""
    faults.close()
    with kvi.open("mem:faults-others") as before, Faults() as later:
        before.store("k", "v")
        later.unavailable(times=None)
        assert before.get("k") is not None
        later.attach(before)
        later.attach(before)
        for _ in range(2):
            with pytest.raises(kvi.Unavailable):
                before.get("k")
        with kvi.open("mem:faults-others") as opened:
            with pytest.raises(kvi.Unavailable):
                opened.get("k")
            later.close()
            assert opened.get("k") is not None
        with kvi.open("mem:faults-others") as after:
            assert after.get("k") is not None
        assert before.get("k") is not None


def test_attached_asyncio() -> None:
    """Faults can be attached to a handle of `kvi.aio` too."""

    async def main() -> None:
        async with kvi.aio.open("mem:faults-attached") as store:
            await store.store("k", "v")
            with Faults() as faults:
                faults.attach(store)
                faults.unavailable("get")
                with pytest.raises(kvi.Unavailable):
                    await store.get("k")
                assert await store.get("k") is not None

    asyncio.run(main())


def test_fault(faults: Faults, mem: kvi.Kvi) -> None:
    """Any error of kvi can be ordered; each call gets its own; a block ends its fault."""
    with faults.fail(kvi.PermissionDenied("not you"), "store", times=None) as fault:
        errors = []
        for _ in range(2):
            with pytest.raises(kvi.PermissionDenied, match="not you") as raised:
                mem.store("k", "v")
            errors.append(raised.value)
        assert errors[0] is not errors[1]
        assert repr(fault) == "<Fault PermissionDenied of store, 2 hits>"
    assert mem.store("k", "v")
    faults.timed_out("get")
    with pytest.raises(kvi.Timeout):
        mem.get("k")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (lambda f: f.unavailable("put"), "no operation is called 'put'; some are"),
        (lambda f: f.unavailable(7), "no operation is called 7"),
        (lambda f: f.unavailable(times=0), "times= is a number of calls above 0, or None"),
        (lambda f: f.unavailable(times=True), "times= is"),
        (lambda f: f.unavailable(key="a", prefix="b"), "key= or prefix=, not both"),
        (lambda f: f.unavailable(key=b"a"), "key= is text, not b'a'"),
        (lambda f: f.unknown("get", applied=True), "'get' only reads"),
        (lambda f: f.unknown("store", applied=None), "applied= is True or False, not None"),
        (lambda f: f.delay(0, "get"), "positive number of seconds, not 0"),
        (lambda f: f.delay(float("nan"), "get"), "positive number of seconds"),
        (lambda f: f.fail(ValueError("x"), "get"), "an error of kvi"),
        (lambda f: f.lose("x"), "a lease, a temporary key or a lock, not 'x'"),
        (lambda f: f.attach("x"), "takes a handle, not 'x'"),
    ],
)
def test_mistakes(order: Callable[[Any], Fault], words: str) -> None:
    """What makes no sense is refused, with what to do."""
    with pytest.raises(kvi.InvalidArgument) as raised:
        order(Faults())
    assert words in str(raised.value)
