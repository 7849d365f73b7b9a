"""The loaders of groups, flows and meters that kvi replaces (VOLTHA's, VOL-3121), row by row."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kvi
import pytest
from kvi.loader import Handle, Loader

from tests.support.faulty import Faulty
from tests.support.waiting import until

Entity = dict[str, Any]


def group(id: int, **members: Any) -> Entity:
    return {"id": id, **members}


@pytest.fixture
def store(uri: str) -> Iterator[kvi.Kvi]:
    with kvi.open(uri) as store:
        yield store
        store.delete_range(prefix="")


@pytest.fixture
def peer(uri: str) -> Iterator[kvi.Kvi]:
    """Another process's handle."""
    with kvi.open(uri) as store:
        yield store


def loader(store: kvi.Kvi, path: str = "groups", **options: Any) -> Loader[int, Entity]:
    made: Loader[int, Entity] = Loader(
        store, path, kvi.JsonCodec(), lambda entity: int(entity["id"]), **options
    )
    made.load()
    return made


def stored(store: kvi.Kvi, id: int, path: str = "groups") -> Entity | None:
    entry = store.get(f"{path}/{id}")
    found: Entity | None = None if entry is None else entry.json()
    return found


def create(loader: Loader[int, Entity], *entities: Entity) -> None:
    for entity in entities:
        handle, created = loader.lock_or_create(entity)
        assert created
        handle.unlock()


def locked(loader: Loader[int, Entity], id: int) -> Handle[Entity]:
    handle = loader.lock(id, 0)
    assert handle is not None
    return handle


# -- loading --------------------------------------------------------------------------------------


def test_load_reads_all_once(store: kvi.Kvi) -> None:
    """Load fills the map from the store; what is known is then locked without asking it."""
    create(loader(store), group(1, type="all"), group(2, type="select"))
    store.store("groupsother/3", b"{}")
    again = loader(store)
    assert sorted(again.list()) == [1, 2]
    with locked(again, 2) as handle:
        assert handle.value == group(2, type="select")


def test_one_loader_serves_all_kinds(store: kvi.Kvi) -> None:
    """Groups, flows and meters are the same loader on different paths, with ids of any type."""
    groups = loader(store)
    flows: Loader[str, Entity] = Loader(store, "flows", kvi.JsonCodec(), lambda one: str(one["f"]))
    flows.load()
    create(groups, group(1))
    flows.lock_or_create({"f": "in/1 port"})[0].unlock()
    assert groups.list() == [1]
    assert flows.list() == ["in/1 port"]
    assert store.get("flows/in/1 port") is not None


def test_bad_record_hides_no_other(store: kvi.Kvi) -> None:
    """A record that is none is reported with its key; the others are loaded."""
    create(loader(store), group(1), group(3))
    store.store("groups/2", b"{broken")
    store.store("groups/4", kvi.JsonCodec().encode(group(5)))
    store.store("groups/6", b"[]")
    again: Loader[int, Entity] = Loader(
        store, "groups", kvi.JsonCodec(), lambda one: int(one["id"])
    )
    bad = again.load()
    assert sorted(str(error.key) for error in bad) == ["groups/2", "groups/4", "groups/6"]
    assert sorted(again.bad) == ["groups/2", "groups/4", "groups/6"]
    assert sorted(again.list()) == [1, 3]
    with pytest.raises(kvi.BadRecord, match="groups/2") as caught:
        again.lock(2)
    assert caught.value.key == "groups/2"
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(kvi.BadRecord, match="belongs under 'groups/5'"):
        again.lock_or_create(group(4))
    store.store("groups/2", kvi.JsonCodec().encode(group(2)))
    with locked(again, 2) as handle:
        assert handle.value == group(2)
    assert sorted(again.bad) == ["groups/4", "groups/6"]


# -- LockOrCreate ---------------------------------------------------------------------------------


def test_lock_or_create(store: kvi.Kvi) -> None:
    """The first creates, in store and map; who comes later gets what is there."""
    groups = loader(store)
    first, created = groups.lock_or_create(group(1, by="first"))
    assert created
    assert first.value == stored(store, 1) == group(1, by="first")
    first.unlock()
    second, created = groups.lock_or_create(group(1, by="second"))
    assert not created
    assert second.value == stored(store, 1) == group(1, by="first")
    second.unlock()
    assert groups.list() == [1]


def test_what_is_known_is_locked_without_the_store(store: kvi.Kvi) -> None:
    """LockOrCreate and Lock of a known entity ask the store for nothing."""
    scripted = Faulty(store)
    groups = loader(scripted)
    create(groups, group(1))
    calls = len(scripted.calls)
    groups.lock_or_create(group(1))[0].unlock()
    locked(groups, 1).unlock()
    assert len(scripted.calls) == calls


@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown])
def test_failed_create_leaves_no_trace(
    store: kvi.Kvi, error: Callable[[str], kvi.KviError]
) -> None:
    """If the store fails there is nothing in the map, and the next attempt creates."""
    scripted = Faulty(store)
    groups = loader(scripted)
    scripted.fails("lock_or_create", error("away"))
    with pytest.raises(kvi.KviError, match="away") as caught:
        groups.lock_or_create(group(1))
    assert caught.value.key == "groups/1"
    assert groups.list() == []
    assert groups.peek(1) is None
    until(lambda: not groups._flow.records.cache._slots)
    assert groups.lock(1, 0) is None
    handle, created = groups.lock_or_create(group(1))
    assert created
    assert handle.value == group(1)


def test_creators_agree(store: kvi.Kvi, peer: kvi.Kvi) -> None:
    """Of many threads of two processes that create the same entity, one does; all see its own."""
    loaders = [loader(store), loader(peer)]

    def attempt(number: int) -> tuple[bool, Any]:
        handle, created = loaders[number % 2].lock_or_create(group(1, by=number))
        with handle:
            return created, handle.value["by"]

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    winners = [by for created, by in outcomes if created]
    assert len(winners) == 1
    assert {by for _, by in outcomes} == set(winners)
    assert stored(store, 1) == group(1, by=winners[0])


# -- Lock -----------------------------------------------------------------------------------------


def test_lock_of_nothing(store: kvi.Kvi) -> None:
    """An entity that is not there gives no handle, and leaves nothing behind."""
    groups = loader(store)
    assert groups.lock(1) is None
    assert groups.list() == []
    until(lambda: not groups._flow.records.cache._slots)


def test_one_holder_at_a_time(store: kvi.Kvi) -> None:
    """Increments that only the entity's lock guards add up."""
    groups = loader(store)
    create(groups, group(1, count=0))

    def increment() -> None:
        for _ in range(10):
            handle = groups.lock(1, 60)
            assert handle is not None
            with handle:
                handle.update(group(1, count=handle.value["count"] + 1))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(increment) for _ in range(4)]:
            done.result()
    assert stored(store, 1) == group(1, count=40)


def test_waiters_on_a_deleted_entity_see_it_gone(store: kvi.Kvi) -> None:
    """Whoever waited for the lock while it was deleted gets none; one that creates it anew does."""
    groups = loader(store)
    create(groups, group(1))
    handle = locked(groups, 1)

    def wait() -> Entity | None:
        found = groups.lock(1, 60)
        if found is None:
            return None
        with found:
            return found.value

    with ThreadPoolExecutor(4) as pool:
        waiters = [pool.submit(wait) for _ in range(3)]
        creator = pool.submit(groups.lock_or_create, group(1, new=True), 60)
        handle.delete()
        anew, created = creator.result(60)
        assert created
        assert anew.value == group(1, new=True)
        anew.unlock()
        for waiter in waiters:  # who comes after the one that created it anew finds that
            assert waiter.result(60) in (None, group(1, new=True))
    assert groups.list() == [1]


def test_waiters_get_none_after_a_delete(store: kvi.Kvi) -> None:
    """Those who only lock find nothing."""
    groups = loader(store)
    create(groups, group(1))
    handle = locked(groups, 1)
    with ThreadPoolExecutor(3) as pool:
        waiters = [pool.submit(groups.lock, 1, 60) for _ in range(3)]
        handle.delete()
        assert [waiter.result(60) for waiter in waiters] == [None] * 3
    assert groups.list() == []
    assert stored(store, 1) is None
    until(lambda: not groups._flow.records.cache._slots)


def test_lock_gives_up_at_its_deadline(store: kvi.Kvi) -> None:
    """A lock attempt ends after its time-out, and leaves nothing behind."""
    groups = loader(store)
    create(groups, group(1), group(2))
    with locked(groups, 1), ThreadPoolExecutor(1) as pool:
        for seconds in (0, 0.05):
            with pytest.raises(kvi.LockTimeout, match="groups/1"):
                pool.submit(groups.lock, 1, seconds).result(60)
            with pytest.raises(kvi.LockTimeout, match="groups/1"):
                pool.submit(groups.lock_or_create, group(1), seconds).result(60)
            with pytest.raises(kvi.LockTimeout, match="groups/1"):
                pool.submit(groups.lock_many, [2, 1], seconds).result(60)
        other = pool.submit(groups.lock, 2, 0).result(60)
        assert other is not None
        assert other.value == group(2)
    locked(groups, 1).unlock()


def test_thread_that_holds_it_is_refused(store: kvi.Kvi) -> None:
    """Locking what this thread holds would wait for ever: it is an error at once."""
    groups = loader(store)
    create(groups, group(1))
    with locked(groups, 1), pytest.raises(kvi.AlreadyHeld, match="groups/1"):
        groups.lock(1)
    with groups.lock_many([1, 2]), pytest.raises(kvi.AlreadyHeld):
        groups.lock_or_create(group(2))


# -- the handle -----------------------------------------------------------------------------------


def test_value_is_shared(store: kvi.Kvi) -> None:
    """Reading copies nothing: every handle gives the same object."""
    groups = loader(store)
    create(groups, group(1))
    with locked(groups, 1) as handle:
        value = handle.value
    with locked(groups, 1) as handle:
        assert handle.value is value
    assert groups.peek(1) is value
    assert next(iter(groups)) is value


def test_update(store: kvi.Kvi) -> None:
    """It replaces the entity in the store, and then in the map."""
    groups = loader(store)
    create(groups, group(1, n=1))
    with locked(groups, 1) as handle:
        new = group(1, n=2)
        handle.update(new)
        assert handle.value is new
        handle.update(group(1, n=3))
    assert stored(store, 1) == groups.peek(1) == group(1, n=3)


@pytest.mark.parametrize("error", [kvi.Unavailable, kvi.Timeout])
def test_failed_update_changes_nothing(
    store: kvi.Kvi, error: Callable[[str], kvi.KviError]
) -> None:
    """The store is written first, and the map only if that worked."""
    scripted = Faulty(store)
    groups = loader(scripted)
    create(groups, group(1, n=1))
    scripted.fails("update", error("away"))
    scripted.fails("delete", error("away"))
    with locked(groups, 1) as handle:
        with pytest.raises(kvi.KviError, match="away"):
            handle.update(group(1, n=2))
        assert handle.value == groups.peek(1) == stored(store, 1) == group(1, n=1)
        with pytest.raises(kvi.KviError, match="away"):
            handle.delete()
        assert handle.value == groups.peek(1) == stored(store, 1) == group(1, n=1)
        handle.update(group(1, n=3))
    assert stored(store, 1) == group(1, n=3)


def test_delete_unlocks(store: kvi.Kvi) -> None:
    """It deletes the entity from store and map, and lets go of it."""
    groups = loader(store)
    create(groups, group(1), group(2))
    handle = locked(groups, 1)
    handle.delete()
    assert stored(store, 1) is None
    assert groups.list() == [2]
    assert groups.lock(1, 0) is None
    create(groups, group(1, anew=True))
    assert stored(store, 1) == group(1, anew=True)


def test_use_after_unlock_fails(store: kvi.Kvi) -> None:
    """A handle that was unlocked, or deleted, refuses everything but another unlock."""
    groups = loader(store)
    create(groups, group(1), group(2), group(3))
    unlocked, deleted, left = (locked(groups, id) for id in (1, 2, 3))
    unlocked.unlock()
    deleted.delete()
    with left:
        pass
    uses: list[Callable[[Handle[Entity]], object]] = [
        lambda handle: handle.value,
        lambda handle: handle.exists,
        lambda handle: handle.revision,
        lambda handle: handle.update(group(1)),
        lambda handle: handle.delete(),
        lambda handle: handle.refresh(),
        lambda handle: handle.stage(group(1)),
        lambda handle: handle.stage_delete(),
        lambda handle: handle.__enter__(),
    ]
    for handle in (unlocked, deleted, left):
        for use in uses:
            with pytest.raises(kvi.NotHeld, match=handle.key):
                use(handle)
        handle.unlock()
    with locked(groups, 1) as again:
        unlocked.unlock()
        assert again.value == group(1), "a second unlock is not another holder's"


def test_update_of_another_entity_is_refused(store: kvi.Kvi) -> None:
    """An entity cannot be stored under the id of another one."""
    groups = loader(store)
    create(groups, group(1))
    with locked(groups, 1) as handle, pytest.raises(kvi.InvalidArgument, match="groups/2"):
        handle.update(group(2))
    assert stored(store, 2) is None


# -- List and iteration ---------------------------------------------------------------------------


def test_list_is_a_snapshot(store: kvi.Kvi) -> None:
    """What happens later does not change it."""
    groups = loader(store)
    create(groups, group(1), group(2))
    ids = groups.list()
    create(groups, group(3))
    assert sorted(ids) == [1, 2]
    assert sorted(groups.list()) == [1, 2, 3]
    assert len(groups) == 3


def test_iteration_waits_for_no_holder(store: kvi.Kvi) -> None:
    """With every entity locked by somebody, listing and iterating go on."""
    groups = loader(store)
    create(groups, *map(group, range(5)))
    with groups.lock_many(range(5)) as handles, ThreadPoolExecutor(1) as pool:
        handles[3].update(group(3, new=True))
        assert sorted(pool.submit(groups.list).result(60)) == [0, 1, 2, 3, 4]
        items = dict(pool.submit(lambda: list(groups.items())).result(60))
        assert items == {0: group(0), 1: group(1), 2: group(2), 3: group(3, new=True), 4: group(4)}
        assert len(pool.submit(lambda: list(groups)).result(60)) == 5
        assert pool.submit(groups.peek, 3).result(60) == group(3, new=True)


# -- the to-dos: prefix, transactions, lock order, other processes --------------------------------


def test_path_prefix_is_the_store_handle_s(uri: str, store: kvi.Kvi) -> None:
    """A loader on a `Backend` with a path prefix, or on a namespace, is below it."""
    with kvi.Backend(store, "service/voltha") as backend:
        create(loader(backend), group(1, on="backend"))
    create(loader(store.namespace("team")), group(1, on="team"))
    assert stored(store, 1, "service/voltha/groups") == group(1, on="backend")
    assert stored(store, 1, "team/groups") == group(1, on="team")


def test_error_between_two_updates_leaves_nothing_half_done(store: kvi.Kvi) -> None:
    """Changes of entities of several loaders are applied together, or not at all."""
    scripted = Faulty(store)
    flows, meters = loader(scripted, "flows"), loader(scripted, "meters")
    create(flows, group(7, meter=3))
    create(meters, group(3, flows=1))
    with kvi.lock_many(flows.at(7), meters.at(3)) as (flow, meter):
        flow.stage_delete()
        meter.stage(group(3, flows=0))
        scripted.fails("commit", kvi.Unavailable("away"))
        with pytest.raises(kvi.Unavailable):
            kvi.commit(flow, meter)
        assert stored(store, 7, "flows") is not None
        assert stored(store, 3, "meters") == group(3, flows=1)
        assert flow.value == group(7, meter=3)
        assert meter.value == group(3, flows=1)
        kvi.commit(flow, meter)
        assert not flow.exists
        assert meter.value == group(3, flows=0)
    assert stored(store, 7, "flows") is None
    assert stored(store, 3, "meters") == group(3, flows=0)
    assert flows.list() == []


def test_opposite_orders_never_deadlock(store: kvi.Kvi) -> None:
    """Threads that lock the same entities in opposite orders, together, all come through."""
    left, right = loader(store, "left"), loader(store, "right")
    create(left, group(1, n=0), group(2, n=0))
    create(right, group(1, n=0))

    def together(backwards: bool) -> None:
        for _ in range(10):
            with left.lock_many([2, 1] if backwards else [1, 2], 60) as handles:
                for id, handle in handles.items():
                    handle.stage(group(id, n=handle.value["n"] + 1))
                handles.commit()
            refs = [left.at(1), right.at(1)]
            with kvi.lock_many(*(reversed(refs) if backwards else refs), timeout=60) as pair:
                for handle in pair:
                    handle.stage(group(1, n=handle.value["n"] + 1))
                kvi.commit(*pair)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(together, bool(number % 2)) for number in range(4)]:
            done.result(120)
    assert stored(store, 1, "left") == group(1, n=80)
    assert stored(store, 2, "left") == group(2, n=40)
    assert stored(store, 1, "right") == group(1, n=40)


def test_two_processes_update_one_entity(store: kvi.Kvi, peer: kvi.Kvi) -> None:
    """One gets `Conflict`, sees the other's change, and succeeds on top of it; nothing is lost."""
    ours = loader(store)
    create(ours, group(1, n=0))
    theirs = loader(peer)
    with locked(ours, 1) as mine, locked(theirs, 1) as other:
        mine.update(group(1, n=1))
        with pytest.raises(kvi.Conflict, match="groups/1") as caught:
            other.update(group(1, n=100))
        assert caught.value.keys == ("groups/1",)
        assert other.value == theirs.peek(1) == group(1, n=1)
        other.update(group(1, n=other.value["n"] + 100))
        with pytest.raises(kvi.Conflict):
            mine.delete()
        assert mine.value == group(1, n=101)
        mine.delete()
    with locked(theirs, 1) as other:
        with pytest.raises(kvi.Conflict):
            other.update(group(1, n=5))
        assert not other.exists
        with pytest.raises(kvi.NotFound, match="groups/1"):
            _ = other.value
    assert theirs.list() == []
    assert stored(store, 1) is None


def test_counts_of_two_processes_add_up(store: kvi.Kvi, peer: kvi.Kvi) -> None:
    """Every increment of any thread of any process is there at the end."""
    loaders = [loader(store), loader(peer, follow=True)]
    create(loaders[0], group(1, n=0))

    def increment(groups: Loader[int, Entity]) -> None:
        for _ in range(10):
            handle = groups.lock(1, 60)
            assert handle is not None
            with handle:
                while True:
                    try:
                        handle.update(group(1, n=handle.value["n"] + 1))
                        break
                    except kvi.Conflict:
                        continue

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(increment, groups) for groups in loaders * 2]:
            done.result(120)
    assert stored(store, 1) == group(1, n=40)


def test_followers_stay_in_step(store: kvi.Kvi, peer: kvi.Kvi) -> None:
    """With `follow=True` what another process does comes by itself."""
    ours, theirs = loader(store, follow=True), loader(peer, follow=True)
    assert theirs.following
    create(ours, *map(group, range(10)))
    with locked(ours, 3) as handle:
        handle.update(group(3, new=True))
    locked(ours, 4).delete()
    until(lambda: dict(theirs.items()) == dict(ours.items()))
    assert theirs.peek(3) == group(3, new=True)
    assert theirs.peek(4) is None
    create(theirs, group(4, by="them"))
    until(lambda: ours.peek(4) == group(4, by="them"))
    peer.delete_range(prefix="groups/")
    until(lambda: ours.list() == theirs.list() == [])
    theirs.close()
    assert not theirs.following
    with pytest.raises(kvi.Closed):
        theirs.lock(1)
    with pytest.raises(kvi.Closed):
        theirs.list()


def test_agents_of_many_threads(store: kvi.Kvi, peer: kvi.Kvi) -> None:
    """Threads of two processes create, change and delete the same few entities; all stays true."""
    loaders = [loader(store, follow=True), loader(peer)]
    ends = threading.Event()
    failures: list[BaseException] = []

    def work(groups: Loader[int, Entity], seed: int) -> None:
        try:
            for number in range(25):
                if ends.is_set():
                    return
                id = (seed + number * 7) % 3
                handle, _ = groups.lock_or_create(group(id, n=0), 60)
                with handle:
                    try:
                        if number % 5 == 4:
                            handle.delete()
                        elif handle.exists:
                            handle.update(group(id, n=number))
                            assert handle.value == group(id, n=number)
                    except kvi.Conflict:
                        pass
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
            ends.set()

    threads = [threading.Thread(target=work, args=(loaders[n % 2], n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    truth = {int(entry.key.split("/")[1]): entry.json() for entry in store.range(prefix="groups/")}
    until(lambda: dict(loaders[0].items()) == truth)
    loaders[1].load()
    assert dict(loaders[1].items()) == truth
