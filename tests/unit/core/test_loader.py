"""`Loader`, `Handle`, `commit`: what becomes of doubt, of late news, and of bad arguments."""

from __future__ import annotations

import gc
import os
import secrets
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kvi
import pytest
from kvi.coroutine import run
from kvi.driver.threads import ThreadPort
from kvi.entities.cache import Known
from kvi.entities.loader import LoaderFlow
from kvi.loader import Handle, Loader
from kvi.model import Event, EventType, KeyValue

from tests.support.faulty import Faulty
from tests.support.waiting import until

Entity = dict[str, Any]
Flow = LoaderFlow[int, Entity]


def entity(id: int, **members: Any) -> Entity:
    return {"id": id, **members}


def loader(store: kvi.Kvi, path: str = "e", **options: Any) -> Loader[int, Entity]:
    return Loader(store, path, kvi.JsonCodec(), lambda one: int(one["id"]), **options)


def encoded(value: Entity) -> bytes:
    return kvi.JsonCodec().encode(value)


@pytest.fixture
def scripted() -> Iterator[Faulty]:
    with Faulty(kvi.open(f"mem:{secrets.token_hex(8)}")) as store:
        yield store


@pytest.fixture
def peer(scripted: Faulty) -> Iterator[kvi.Kvi]:
    with kvi.open(scripted.uri) as store:
        yield store


def held(loader: Loader[int, Entity], id: int) -> Handle[Entity]:
    handle = loader.lock(id, 0)
    assert handle is not None
    return handle


# -- writes of unknown fate ------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [True, False])
def test_doubt_after_an_update_is_cleared_by_reading(scripted: Faulty, applied: bool) -> None:
    """After `OutcomeUnknown` nothing is believed: the next use reads what is there."""
    entities = loader(scripted)
    entities.load()
    with entities.lock_or_create(entity(1, n=0))[0] as handle:
        (scripted.loses if applied else scripted.fails)("update", kvi.OutcomeUnknown("lost"))
        with pytest.raises(kvi.OutcomeUnknown):
            handle.update(entity(1, n=1))
        reads = scripted.times("get")
        assert handle.value == entity(1, n=int(applied))
        assert scripted.times("get") == reads + 1
        assert handle.value == entities.peek(1)
        assert scripted.times("get") == reads + 1
        handle.update(entity(1, n=2))
    assert entities.peek(1) == entity(1, n=2)


@pytest.mark.parametrize("applied", [True, False])
def test_doubt_outlives_the_handle(scripted: Faulty, applied: bool) -> None:
    """Whoever locks the entity next gets what is there, also if that is nothing."""
    entities = loader(scripted)
    entities.load()
    with entities.lock_or_create(entity(1, n=0))[0] as handle:
        (scripted.loses if applied else scripted.fails)("delete", kvi.OutcomeUnknown("lost"))
        with pytest.raises(kvi.OutcomeUnknown):
            handle.delete()
    again = entities.lock(1, 0)
    assert (again is None) == applied
    assert (entities.list() == []) == applied


def test_doubt_after_a_commit(scripted: Faulty) -> None:
    """Every entity that the commit would have changed is read again; the others are not."""
    entities = loader(scripted)
    entities.load()
    for number in (1, 2, 3):
        entities.lock_or_create(entity(number, n=0))[0].unlock()
    with entities.lock_many([1, 2, 3]) as handles:
        handles[1].stage(entity(1, n=1))
        handles[2].stage_delete()
        scripted.loses("commit", kvi.OutcomeUnknown("lost"))
        with pytest.raises(kvi.OutcomeUnknown):
            kvi.commit(*handles.values())
        reads = scripted.times("get")
        assert handles[3].value == entity(3, n=0)
        assert scripted.times("get") == reads
        assert handles[1].value == entity(1, n=1)
        assert not handles[2].exists
        assert scripted.times("get") == reads + 2
        with pytest.raises(kvi.InvalidArgument, match="staged"):
            handles.commit()


def test_create_of_unknown_fate_is_found_later(scripted: Faulty) -> None:
    """It leaves nothing in the cache; what it did to the store is seen by the next who asks."""
    entities = loader(scripted)
    entities.load()
    scripted.loses("lock_or_create", kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.OutcomeUnknown):
        entities.lock_or_create(entity(1, n=0))
    assert entities.list() == []
    with held(entities, 1) as handle:
        assert handle.value == entity(1, n=0)


def test_interrupt_amid_a_write_is_doubt(scripted: Faulty) -> None:
    """Ctrl-C may come after the request was sent: the entity is read again."""
    entities = loader(scripted)
    entities.load()
    handle, _ = entities.lock_or_create(entity(1, n=0))
    scripted.loses("update", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        handle.update(entity(1, n=1))
    assert handle.value == entity(1, n=1)


def test_staged_changes_wait_for_another_try(scripted: Faulty) -> None:
    """What surely did not apply is staged still; after a conflict nothing is."""
    entities = loader(scripted)
    entities.load()
    with entities.lock_or_create(entity(1, n=0))[0] as handle:
        handle.stage(entity(1, n=1))
        scripted.fails("commit", kvi.Timeout("late"))
        with pytest.raises(kvi.Timeout):
            kvi.commit(handle)
        assert handle.value == entity(1, n=0)
        kvi.commit(handle)
        assert handle.value == entity(1, n=1)
        handle.stage(entity(1, n=2))
        scripted.store("e/1", encoded(entity(1, n=50)))
        with pytest.raises(kvi.Conflict):
            kvi.commit(handle)
        with pytest.raises(kvi.InvalidArgument, match="staged"):
            kvi.commit(handle)
        assert handle.value == entity(1, n=50)


# -- commits -------------------------------------------------------------------------------------


def test_commit_creates_changes_and_deletes(scripted: Faulty) -> None:
    """All at one revision; handles of what was not there create it."""
    entities = loader(scripted)
    entities.load()
    for number in (1, 2):
        entities.lock_or_create(entity(number))[0].unlock()
    with entities.lock_many([1, 2, 3]) as handles:
        assert [handle.exists for handle in handles.values()] == [True, True, False]
        with pytest.raises(kvi.NotFound):
            _ = handles[3].value
        with pytest.raises(kvi.NotFound):
            handles[3].stage_delete()
        with pytest.raises(kvi.NotFound):
            handles[3].update(entity(3))
        handles[1].stage(entity(1, new=True))
        handles[2].stage_delete()
        handles[3].stage(entity(3))
        handles.commit()
        assert handles[1].revision == handles[3].revision
        assert [handle.exists for handle in handles.values()] == [True, False, True]
    assert sorted(entities.list()) == [1, 3]
    assert {entry.key for entry in scripted.range()} == {"e/1", "e/3"}


def test_unchanged_handles_are_conditions(scripted: Faulty, peer: kvi.Kvi) -> None:
    """An entity that a decision rests on may be named: if it changed, nothing is applied."""
    entities = loader(scripted)
    entities.load()
    entities.lock_or_create(entity(1))[0].unlock()
    with entities.lock_many([1, 2]) as handles:
        peer.store("e/1", encoded(entity(1, theirs=True)))
        handles[2].stage(entity(2))
        with pytest.raises(kvi.Conflict, match="'e/1'") as caught:
            handles.commit()
        assert caught.value.keys == ("e/1",)
        assert handles[1].value == entity(1, theirs=True)
    assert entities.list() == [1]


def test_conditions_beside(scripted: Faulty) -> None:
    """A lock's guard, or any compare, may be a condition; if it fails, that is said."""
    entities = loader(scripted)
    entities.load()
    with scripted.lock("jobs") as lock, entities.lock_or_create(entity(1, n=0))[0] as handle:
        handle.stage(entity(1, n=1))
        kvi.commit(handle, when=[lock.guard])
        guard = lock.guard
        lock.release()
        handle.stage(entity(1, n=2))
        with pytest.raises(kvi.Conflict, match="condition"):
            kvi.commit(handle, when=[guard])
        handle.stage(entity(1, n=2))
        with pytest.raises(kvi.InvalidArgument, match="list"):
            kvi.commit(handle, when=guard)  # type: ignore[arg-type]
        assert handle.value == entity(1, n=1)
        assert lock.acquire()


def test_commit_of_two_stores_is_refused(scripted: Faulty, peer: kvi.Kvi) -> None:
    """One transaction is of one store; nothing is sent."""
    ours, theirs = loader(scripted), loader(peer, "other")
    one, two = ours.lock_or_create(entity(1))[0], theirs.lock_or_create(entity(1))[0]
    one.stage(entity(1, n=1))
    with pytest.raises(kvi.InvalidArgument, match="same handle"):
        kvi.commit(one, two)
    with pytest.raises(kvi.InvalidArgument, match="once"):
        kvi.commit(one, one)
    with pytest.raises(kvi.InvalidArgument, match="staged"):
        kvi.commit()
    assert one.value == entity(1)


def test_lock_many_takes_each_once(scripted: Faulty) -> None:
    """Refs twice are refused, ids twice are one; none stays locked after a refusal."""
    entities = loader(scripted)
    with (
        pytest.raises(kvi.InvalidArgument, match="once"),
        kvi.lock_many(entities.at(1), entities.at(2), entities.at(1)),
    ):
        pass
    with entities.lock_many([1, 1, 2]) as handles:
        assert list(handles) == [1, 2]
        assert len(handles) == 2
    with entities.lock_many([]) as handles, kvi.lock_many() as none:
        assert (len(handles), none) == (0, ())
    until(lambda: not entities._flow.records.cache._slots)


def test_lock_many_that_fails_holds_nothing(scripted: Faulty) -> None:
    """If the second cannot be read, the first is let go."""
    entities = loader(scripted)
    scripted.fails("get", None, kvi.Unavailable("away"))
    with pytest.raises(kvi.Unavailable):
        entities.lock_many([1, 2])
    until(lambda: not entities._flow.records.cache._slots)
    scripted.store("e/2", b"{")
    with pytest.raises(kvi.BadRecord):
        entities.lock_many([1, 2])
    until(lambda: not entities._flow.records.cache._slots)


def test_block_that_fails_unlocks(scripted: Faulty) -> None:
    """The end of the block lets all go, whatever happened in it."""
    entities = loader(scripted)
    with (
        pytest.raises(ZeroDivisionError),
        kvi.lock_many(entities.at(1), entities.at(2)) as (one, two),
    ):
        one.stage(entity(1 // 0))
    for handle in (one, two):
        with pytest.raises(kvi.NotHeld):
            _ = handle.exists
        with pytest.raises(kvi.NotHeld):
            kvi.commit(handle)
    assert scripted.count() == 0


def test_handle_outlives_its_thread(scripted: Faulty) -> None:
    """What a thread holds that has ended is not held by a later thread that gets its ident."""
    entities = loader(scripted)
    entities.load()
    handles: list[Handle[Entity]] = []
    holders: list[int] = []
    told: dict[int, BaseException] = {}

    def lock() -> None:
        try:
            handles.append(entities.lock_or_create(entity(1), 0)[0])
        except kvi.KviError as error:
            told.setdefault(threading.get_ident(), error)
        else:
            holders.append(threading.get_ident())

    for _ in range(1000):
        thread = threading.Thread(target=lock)
        thread.start()
        thread.join(20)
        if told.keys() & holders:
            break
    assert {type(error) for error in told.values()} == {kvi.LockTimeout}
    handles[0].unlock()


# -- late news -----------------------------------------------------------------------------------


def put(id: int, revision: int, **members: Any) -> Event:
    return Event(EventType.PUT, f"e/{id}", encoded(entity(id, **members)), revision)


def gone(id: int, revision: int) -> Event:
    return Event(EventType.DELETE, f"e/{id}", None, revision)


def test_older_never_replaces_newer(scripted: Faulty) -> None:
    """Events of what was long overtaken change nothing."""
    entities = loader(scripted, follow=True)
    entities.load()
    handle, _ = entities.lock_or_create(entity(1, n=0))
    handle.update(entity(1, n=1))
    now = handle.revision
    for event in (put(1, now - 1, n=-1), gone(1, now - 1), put(1, now, n=-1)):
        entities._flow.on_event(event, None)
        assert entities.peek(1) == handle.value == entity(1, n=1)


def test_event_from_before_a_delete_raises_no_dead(scripted: Faulty) -> None:
    """An entity that was deleted here is not brought back by the event of its last change."""
    entities = loader(scripted)
    entities._flow.records.cache._following = lambda: True  # the events are those of the test
    entities.load()
    handle, _ = entities.lock_or_create(entity(1))
    revision = handle.revision
    handle.delete()
    entities._flow.on_event(put(1, revision), None)
    assert entities.peek(1) is None
    entities._flow.on_event(put(1, revision + 2, anew=True), None)
    assert entities.peek(1) == entity(1, anew=True)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("looked", [True, False])
def test_page_from_before_a_delete_raises_no_dead(
    scripted: Faulty, monkeypatch: pytest.MonkeyPatch, looked: bool, known: bool
) -> None:
    """What is deleted while it is loaded, here or by others, is not brought back by its page.

    Be it that the page was compared before with what is known, or not.
    """
    for number in range(1, 5):
        revision = scripted.store(f"e/{number}", encoded(entity(number)))
    entities = loader(scripted)
    if known:
        entities.load()
    real = LoaderFlow._news

    def late(self: LoaderFlow[int, Entity], page: list[KeyValue]) -> list[tuple[KeyValue, str]]:
        found = real(self, page) if looked else []
        held(entities, 2).delete()
        self.on_event(gone(3, revision + 100), None)
        with held(entities, 4) as handle:
            handle.update(entity(4, new=True))
        return found if looked else real(self, page)

    monkeypatch.setattr(LoaderFlow, "_news", late)
    entities.load()
    assert dict(entities.items()) == {1: entity(1), 4: entity(4, new=True)}


def test_entity_deleted_while_it_is_read(scripted: Faulty) -> None:
    """An answer that was overtaken by the news of its end is asked for again."""
    entities = loader(scripted, follow=True)
    entities.load()
    entities.close()
    entities._flow.records.closed = False
    revision = scripted.store("e/1", encoded(entity(1)))
    overtaken: list[bool] = []

    def overtake() -> None:
        if not overtaken:
            overtaken.append(scripted.delete("e/1"))
            entities._flow.on_event(gone(1, revision + 1), None)

    scripted.after["get"] = overtake
    assert entities.lock(1) is None
    assert overtaken == [True]
    until(lambda: not entities._flow.records.cache._slots)


def test_resync_is_the_whole_truth(scripted: Faulty) -> None:
    """What a snapshot does not have is gone, and what it has is there."""
    entities = loader(scripted, follow=True)
    for number in (1, 2):
        scripted.store(f"e/{number}", encoded(entity(number)))
    entities.load()
    with held(entities, 2) as handle:
        snapshot = [KeyValue("e/3", encoded(entity(3)), 50, 50), KeyValue("e/4", b"{", 51, 51)]
        entities._flow.on_event(Event(EventType.RESYNC, "", None, 60, snapshot=snapshot), None)
        assert entities.list() == [3]
        assert list(entities.bad) == ["e/4"]
        assert handle.value == entity(2), "what the holder has seen stays as it is"
        handle.refresh()
        assert handle.exists
    entities._flow.on_event(Event(EventType.RESYNC, "", None, 70, snapshot=[]), None)
    assert entities.list() == []
    assert entities.bad == {}


def test_bad_news(scripted: Faulty, peer: kvi.Kvi) -> None:
    """An entity that becomes a bad record is told so, and comes back when it is mended."""
    entities = loader(scripted, follow=True)
    scripted.store("e/1", encoded(entity(1)))
    entities.load()
    peer.store("e/1", b"{")
    until(lambda: "e/1" in entities.bad)
    assert entities.list() == []
    with pytest.raises(kvi.BadRecord):
        entities.lock(1)
    peer.store("e/1", encoded(entity(1, mended=True)))
    until(lambda: entities.peek(1) == entity(1, mended=True))
    assert entities.bad == {}
    peer.store("e/1", b"{")
    until(lambda: "e/1" in entities.bad)
    peer.delete("e/1")
    until(lambda: entities.bad == {})


def test_conflict_with_a_bad_record(scripted: Faulty, peer: kvi.Kvi) -> None:
    """If what is there instead is no entity, that is the error; nothing was applied."""
    entities = loader(scripted)
    handle, _ = entities.lock_or_create(entity(1))
    peer.store("e/1", b"{")
    with pytest.raises(kvi.BadRecord, match="'e/1'"):
        handle.update(entity(1, n=1))
    with pytest.raises(kvi.BadRecord, match="'e/1'"):
        _ = handle.value
    assert peer.get("e/1").value == b"{"  # type: ignore[union-attr]


def test_tombstones_are_cleared(scripted: Faulty) -> None:
    """Creating and deleting without end leaves nothing behind."""
    entities = loader(scripted, follow=True)
    entities.load()
    for number in range(400):
        entities.lock_or_create(entity(number))[0].delete()
    entities.lock_or_create(entity(1000))
    until(lambda: not entities._flow.records.cache._tombstones)
    until(lambda: list(entities._flow.records.cache._slots) == ["1000"])


@pytest.mark.parametrize("revision", [0, 2, 10_000])
def test_resync_counts_whatever_its_revision(scripted: Faulty, revision: int) -> None:
    """A store that was restored, or whose deleted keys left no trace, counts anew."""
    entities = loader(scripted, follow=True)
    for number in range(20):
        scripted.store(f"e/{number % 3}", encoded(entity(number % 3, n=number)))
    entities.load()
    snapshot = [KeyValue("e/0", encoded(entity(0, n=4)), 1, 1)]
    entities._flow.on_event(Event(EventType.RESYNC, "", None, revision, snapshot=snapshot), None)
    assert dict(entities.items()) == {0: entity(0, n=4)}
    entities._flow.on_event(put(1, 3, n=77), None)
    entities._flow.on_event(put(0, 4, n=78), None)
    assert dict(entities.items()) == {0: entity(0, n=78), 1: entity(1, n=77)}


def test_resync_of_another_value_at_the_same_revision(scripted: Faulty, peer: kvi.Kvi) -> None:
    """A snapshot counts whatever its revisions; who holds the entity reads it before it is used."""
    entities = loader(scripted, follow=True)
    revisions = [scripted.store(f"e/{n}", encoded(entity(n))) for n in (1, 2, 3)]
    entities.load()
    same = entities.peek(3)
    with held(entities, 2) as handle:
        snapshot = [
            KeyValue(f"e/{n}", encoded(entity(n, m=n)) if n < 3 else encoded(entity(n)), at, at)
            for n, at in zip((1, 2, 3), revisions, strict=True)
        ]
        entities._flow.on_event(Event(EventType.RESYNC, "", None, 9, snapshot=snapshot), None)
        assert entities.peek(1) == entity(1, m=1)
        assert entities.peek(3) is same
        assert handle._flow.in_doubt
        peer.store("e/2", encoded(entity(2, m=2)))
        assert handle.value == entity(2, m=2)
        assert not handle._flow.in_doubt


def test_resync_amid_loading(scripted: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages from before a snapshot bring back nothing that it does not have."""
    for number in (1, 2):
        scripted.store(f"e/{number}", encoded(entity(number)))
    entities = loader(scripted)
    real = LoaderFlow._decode
    came: list[bool] = []

    def late(
        self: LoaderFlow[int, Entity], name: str, entry: KeyValue
    ) -> tuple[int, Known[Entity]] | kvi.BadRecord:
        if not came:
            came.append(True)
            scripted.delete_range(prefix="")
            self.on_event(Event(EventType.RESYNC, "", None, 50, snapshot=[]), None)
        return real(self, name, entry)

    monkeypatch.setattr(LoaderFlow, "_decode", late)
    told: list[int] = []
    entities.load(told.append)
    assert came
    assert entities.list() == []
    assert told == [0]


def test_restored_store_is_loaded_again(scripted: Faulty) -> None:
    """Loading believes the store, also if it counts from lower numbers than before."""
    entities = loader(scripted)
    entities._flow.records.cache.learn("1", 1, Known(entity(1, n=1), 1000))
    scripted.store("e/1", encoded(entity(1, n=2)))
    entities.load()
    assert entities.peek(1) == entity(1, n=2)


@pytest.mark.parametrize("what", ["update", "lock_or_create"])
def test_write_that_is_overtaken_by_its_end(scripted: Faulty, what: str) -> None:
    """If an event tells of the entity's end before the writer is back, it stays gone."""
    entities = loader(scripted, follow=True)
    entities.load()
    handle, _ = entities.lock_or_create(entity(1, n=0))
    if what == "lock_or_create":
        handle.delete()
        until(lambda: ((entities._flow.watch and entities._flow.watch.revision) or 0) >= 2)
        until(lambda: not entities._flow.records.cache._slots)
    told = entities._flow.records.cache._slots["1"].told if what == "update" else 0

    def overtaken() -> None:
        scripted.delete("e/1")
        until(lambda: entities.peek(1) is None and slot().told > told)

    def slot() -> Any:
        return entities._flow.records.cache._slots["1"]

    scripted.after[what] = overtaken
    if what == "update":
        handle.update(entity(1, n=1))
    else:
        handle, created = entities.lock_or_create(entity(1, n=1))
        assert created
    assert handle.value == entity(1, n=1), "what the holder has seen"
    assert entities.peek(1) is None
    assert entities.list() == []
    with pytest.raises(kvi.Conflict):
        handle.update(entity(1, n=2))
    handle.unlock()
    until(lambda: not entities._flow.records.cache._slots)


def test_lock_or_create_never_gives_nothing(
    scripted: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """News of the end of what was found come too late to make the handle one of nothing."""
    entities = loader(scripted, follow=True)
    entities.load()
    entities.lock_or_create(entity(1))[0].unlock()
    real = Handle.__init__

    def late(self: Handle[Entity], *args: Any) -> None:
        entities._flow.on_event(gone(1, 10_000), None)
        real(self, *args)

    monkeypatch.setattr(Handle, "__init__", late)
    handle, created = entities.lock_or_create(entity(1))
    assert not created
    assert handle.value == entity(1)


def test_refresh_drops_what_rests_on_what_was(scripted: Faulty, peer: kvi.Kvi) -> None:
    """A change that was staged on an older state is not applied to a newer one unseen."""
    entities = loader(scripted)
    for number in (1, 2):
        entities.lock_or_create(entity(number, n=0))[0].unlock()
    with entities.lock_many([1, 2]) as handles:
        handles[1].stage_delete()
        handles[2].stage(entity(2, n=1))
        handles[1].refresh()  # nothing has changed: it stays staged
        peer.delete("e/1")
        handles[1].refresh()
        peer.store("e/2", encoded(entity(2, n=100)))
        handles[2].refresh()
        with pytest.raises(kvi.InvalidArgument, match="staged"):
            handles.commit()
        handles[2].stage(entity(2, n=handles[2].value["n"] + 1))
        handles.commit()
    assert scripted.get("e/2").json() == entity(2, n=101)  # type: ignore[union-attr]
    assert scripted.get("e/1") is None


@pytest.mark.parametrize("main", [True, False])
def test_finalizers_may_unlock_anywhere(scripted: Faulty, main: bool) -> None:
    """A block of `lock_many` that is collected while the same thread lists hangs nothing."""
    entities = loader(scripted)
    entities.load()
    for number in range(10):
        entities.lock_or_create(entity(number))[0].unlock()

    def collect() -> None:
        block = kvi.lock_many(entities.at(1), entities.at(100))
        block.__enter__()
        with entities._flow.records.cache._mutex:  # as if the collector ran within
            del block
            gc.collect()

    if main:
        collect()
    else:
        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    with held(entities, 1):
        pass
    until(lambda: "100" not in entities._flow.records.cache._slots)


def test_bad_is_what_is_bad_now(scripted: Faulty, peer: kvi.Kvi) -> None:
    """Records that were replaced, mended or found bad on the way are told as they are."""
    scripted.store("e/1", b"{")
    entities = loader(scripted)
    entities.load()
    peer.delete("e/1")
    handle, created = entities.lock_or_create(entity(1))
    assert created
    assert entities.bad == {}
    peer.store("e/1", b"{")
    with pytest.raises(kvi.BadRecord):
        handle.update(entity(1, n=1))
    handle.unlock()
    assert list(entities.bad) == ["e/1"]
    assert entities.peek(1) is None
    assert entities.list() == []
    error = entities.bad["e/1"]
    entities._flow.records.cache.learn("1", 1, Known(entity(1), 10_000))
    entities._flow.records.cache.spoil("1", error, 9_000)
    assert entities.bad == {}
    entities._flow.records.cache.spoil("1", error, 11_000)

    def stop(count: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError):
        entities.load(stop)
    assert list(entities.bad) == ["e/1"], "a load that fails forgets nothing"
    peer.delete("e/1")
    entities.load()
    assert entities.bad == {}


def test_ids_are_those_of_the_entities(scripted: Faulty) -> None:
    """An id of another type with the same name does not stay in the list."""
    entities = loader(scripted)
    assert entities.lock("1") is None  # type: ignore[arg-type]
    with entities.lock_many(["1"]):  # type: ignore[list-item]
        scripted.store("e/1", encoded(entity(1)))
        entities.load()
    assert entities.list() == [1]
    with entities.lock_many([1, "1"]) as handles:  # type: ignore[list-item]
        assert len(handles) == 1


def test_later_tombstones_are_not_dug_up(scripted: Faulty) -> None:
    """While loading, an own delete does not undo what was learnt of a later one."""
    cache = loader(scripted)._flow.records.cache
    with cache.loading():
        taken = run(cache.take(ThreadPort(), "owner", 1, "1", 0, lambda: None))
        assert taken is not None
        slot, hold = taken
        cache.forget("1", 62)
        cache.deleted(slot, 55)
        cache.learn("1", 1, Known(entity(1), 61))
        assert cache.find("1") is None
        cache.release(slot, hold)


def test_events_that_end_leave_no_tombstones(scripted: Faulty) -> None:
    """After the watch has ended, deleting keeps nothing for events that never come."""
    entities = loader(scripted, follow=True)
    entities.load()
    assert entities._flow.watch is not None
    entities._flow.watch.end()
    for number in range(100):
        entities.lock_or_create(entity(number))[0].delete()
    assert not entities._flow.records.cache._tombstones


# -- loading -------------------------------------------------------------------------------------


def test_loading_again_brings_it_up_to_date(scripted: Faulty, peer: kvi.Kvi) -> None:
    """Changed, new and deleted entities, and records that went bad or well."""
    entities = loader(scripted)
    for number in range(1, 5):
        scripted.store(f"e/{number}", encoded(entity(number)))
    assert entities.load() == ()
    same = entities.peek(1)
    peer.store("e/2", encoded(entity(2, new=True)))
    peer.delete("e/3")
    peer.store("e/4", b"{")
    peer.store("e/5", encoded(entity(5)))
    with held(entities, 3) as handle:
        assert [error.key for error in entities.load()] == ["e/4"]
        assert handle.value == entity(3), "what the holder has seen stays as it is"
    assert dict(entities.items()) == {1: entity(1), 2: entity(2, new=True), 5: entity(5)}
    assert entities.peek(1) is same, "what did not change is not read anew"
    peer.store("e/4", encoded(entity(4)))
    assert entities.load() == ()
    assert sorted(entities.list()) == [1, 2, 4, 5]


def test_load_that_fails_keeps_what_it_read(
    scripted: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known and what was read is there; another load ends it."""
    entities = loader(scripted)
    for number in range(1, 4):
        scripted.store(f"e/{number}", encoded(entity(number)))
    entities.load()
    scripted.delete("e/3")
    calls: list[int] = []

    def stop(count: int) -> None:
        calls.append(count)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        entities.load(stop)
    assert sorted(entities.list()) == [1, 2, 3]
    entities.load()
    assert sorted(entities.list()) == [1, 2]


def test_progress_is_told(scripted: Faulty) -> None:
    """Every thousand entities, and at the end."""
    for start in range(0, 2500, 100):
        numbers = range(start, start + 100)
        scripted.txn(then=[kvi.Put(f"e/{n}", encoded(entity(n))) for n in numbers])
    told: list[int] = []
    loader(scripted).load(told.append)
    assert told == [1000, 2000, 2500]
    loader(scripted, "nothing").load(told.append)
    assert told == [1000, 2000, 2500, 0]
    entities = loader(scripted)
    with pytest.raises(kvi.InvalidArgument, match="under way"):
        entities.load(lambda count: entities.load())


@pytest.mark.slow
def test_hundred_thousand_entities(tmp_path: Any) -> None:
    """They load in one pass beside little more memory than they take; no entity's lock is taken."""
    with kvi.open(f"sqlite:{tmp_path}/many.db", timeout=60) as plain:
        for start in range(0, 100_000, 10_000):
            puts = [
                kvi.Put(f"e/{n}", encoded(entity(n, text="x" * 100)))
                for n in range(start, start + 10_000)
            ]
            plain.txn(then=puts)
        store = Faulty(plain)
        entities = loader(store)
        told: list[int] = []
        tracemalloc.start()
        try:
            assert entities.load(told.append) == ()
            gc.collect()
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert told == list(range(1000, 100_001, 1000))
        assert store.times("range") == 1
        assert len(entities) == 100_000
        assert peak - kept < 8 * 2**20, f"{(peak - kept) / 2**20:.1f} MiB beside the entities"
        entities._flow.records.cache.take = None  # type: ignore[method-assign, assignment]
        assert len(entities.list()) == 100_000
        assert sum(1 for _ in entities) == 100_000
        assert sum(id for id, _ in entities.items()) == sum(range(100_000))


# -- pack and unpack -----------------------------------------------------------------------------


def test_small_records_for_large_instances(scripted: Faulty, peer: kvi.Kvi) -> None:
    """The store has the record, the cache the instance, rebuilt from it where it is loaded."""
    templates = {"home": ["queue"] * 100}

    def pack(instance: Entity) -> list[Any]:
        return [instance["id"], instance["template"], instance["ports"]]

    def unpack(record: list[Any]) -> Entity:
        number, template, ports = record
        return entity(number, template=template, ports=ports, queues=templates[template])

    whole = entity(1, template="home", ports=[5, 6], queues=templates["home"])
    entities = loader(scripted, pack=pack, unpack=unpack)
    handle, _ = entities.lock_or_create(whole)
    assert handle.value is whole
    assert scripted.get("e/1").json() == [1, "home", [5, 6]]  # type: ignore[union-attr]
    again = loader(peer, pack=pack, unpack=unpack)
    peer.store("e/2", encoded([2, "office", []]))  # type: ignore[arg-type]
    (bad,) = again.load()
    assert bad.key == "e/2"
    assert isinstance(bad.__cause__, KeyError)
    assert again.peek(1) == whole
    handle.update({**whole, "ports": [7]})
    with held(again, 1) as theirs:
        with pytest.raises(kvi.Conflict):
            theirs.update({**whole, "ports": [8]})
        assert theirs.value == {**whole, "ports": [7]}


def test_pack_that_fails_sends_nothing(scripted: Faulty) -> None:
    """Its own error comes through, and nothing has changed."""

    def fail(instance: Entity) -> Entity:
        if instance.get("bad"):
            raise ZeroDivisionError
        return instance

    entities = loader(scripted, pack=fail, unpack=lambda record: record)
    with entities.lock_or_create(entity(1))[0] as handle:
        with pytest.raises(ZeroDivisionError):
            handle.update(entity(1, bad=True))
        assert handle.value == entity(1)
    with pytest.raises(ZeroDivisionError):
        entities.lock_or_create(entity(2, bad=True))
    assert list(entities._flow.records.cache._slots) == ["1"]


# -- arguments and the end -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "a/", "/a", 5, None, "\ud800"])
def test_bad_paths(scripted: Faulty, path: Any) -> None:
    """A path is text that neither begins nor ends with a slash."""
    with pytest.raises(kvi.InvalidArgument):
        loader(scripted, path)


def test_no_path_is_all_of_the_store(scripted: Faulty) -> None:
    """An empty path puts the ids right at the top."""
    entities = loader(scripted, "", follow=True)
    entities.lock_or_create(entity(1))[0].unlock()
    assert scripted.get("1") is not None
    entities.load()
    assert entities.list() == [1]


def test_pack_without_unpack(scripted: Faulty) -> None:
    """One of the two is none."""
    with pytest.raises(kvi.InvalidArgument, match="both"):
        loader(scripted, pack=lambda one: one)


def test_names_of_ids(scripted: Faulty) -> None:
    """`name` says how an id stands in the key; what is no name is refused before anything else."""
    entities = loader(scripted, name=lambda id: f"{id:04}")
    entities.lock_or_create(entity(7))[0].unlock()
    assert [entry.key for entry in scripted.range()] == ["e/0007"]
    entities.load()
    assert entities.list() == [7]
    for name in ("", "\ud800", 5):
        with pytest.raises(kvi.InvalidArgument, match="name"):
            loader(scripted, name=lambda id, name=name: name).lock(1)


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
def test_bad_timeouts(scripted: Faulty, timeout: Any) -> None:
    """They are refused before anything is locked."""
    entities = loader(scripted)
    calls: list[Callable[[], object]] = [
        lambda: entities.lock(1, timeout),
        lambda: entities.lock_or_create(entity(1), timeout),
        lambda: entities.lock_many([1], timeout),
        lambda: entities.load(timeout=timeout),
    ]
    for call in calls:
        with pytest.raises(kvi.InvalidArgument):
            call()
    until(lambda: not entities._flow.records.cache._slots)


def test_before_loading(scripted: Faulty) -> None:
    """Nothing is listed that was not loaded; locking reads what it needs."""
    scripted.store("e/1", encoded(entity(1)))
    entities = loader(scripted)
    for call in (entities.list, entities.__len__, lambda: list(entities)):
        with pytest.raises(kvi.InvalidArgument, match="load"):
            call()
    with held(entities, 1) as handle:
        assert handle.value == entity(1)
    assert not entities.following


def test_closed_store_and_closed_loader(scripted: Faulty) -> None:
    """What is known is no longer given out either; closing again does nothing."""
    entities = loader(scripted, follow=True)
    entities.load()
    handle, _ = entities.lock_or_create(entity(1))
    with entities:
        pass
    entities.close()
    assert not scripted.closed
    calls: list[Callable[[], object]] = [
        lambda: entities.lock(1),
        lambda: entities.lock_or_create(entity(1)),
        lambda: entities.lock_many([1]),
        lambda: entities.list(),
        lambda: entities.peek(1),
        lambda: entities.load(),
    ]
    for call in calls:
        with pytest.raises(kvi.Closed, match="loader"):
            call()
    handle.update(entity(1, n=1))  # what is held may be ended in good order
    handle.unlock()
    other = loader(scripted)
    handle, _ = other.lock_or_create(entity(1))
    scripted.close()
    with pytest.raises(kvi.Closed):
        other.lock(2)
    with pytest.raises(kvi.Closed):
        handle.update(entity(1))
    handle.unlock()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_child_of_a_fork_waits_for_nobody(scripted: Faulty) -> None:
    """What a thread of the parent holds is refused in the child, not waited for; and let go."""
    entities = loader(scripted)
    with ThreadPoolExecutor(1) as pool:
        handle = pool.submit(entities.lock_or_create, entity(1)).result()[0]
        with entities._flow.records.cache._mutex:  # as another thread may at that moment
            child = os.fork()
        if child == 0:
            status = 1
            try:
                entities.lock(1)
            except kvi.UsedAfterFork:
                handle.unlock()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        handle.unlock()


def test_reprs(scripted: Faulty) -> None:
    """They tell the state, and no secret."""
    entities = loader(scripted)
    assert repr(entities) == f"<Loader 'e/' not loaded {scripted.uri}>"
    entities.load()
    handle, _ = entities.lock_or_create(entity(1))
    assert repr(handle) == f"<Handle 'e/1' locked {scripted.uri}>"
    handle.unlock()
    assert repr(handle) == f"<Handle 'e/1' unlocked {scripted.uri}>"
    entities.close()
    assert repr(entities) == f"<Loader 'e/' closed {scripted.uri}>"


def test_starting_up_imports_no_loader() -> None:
    """Programs that only read and write do not pay for it."""
    import subprocess

    code = (
        "import kvi, sys; kvi.open('mem:'); "
        "print([m for m in sys.modules if m.startswith(('kvi.loader', 'kvi.entities'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_errors_say_where(scripted: Faulty) -> None:
    """Whatever is wrong with a call, its error tells the operation and the store."""
    loader = Loader(scripted, "l", kvi.JsonCodec(), key=str)
    later: dict[str, Callable[[], object]] = {
        "list": loader.list,
        "items": lambda: list(loader.items()),
        "lock": lambda: loader.lock("1"),
        "peek": lambda: loader.peek("1"),
        "bad": lambda: loader.bad,
        "past": lambda: loader.past("1", 1),
    }
    wrong: dict[str, Callable[[], object]] = {
        "list": loader.list,
        "items": lambda: list(loader.items()),
        "lock": lambda: loader.lock("1", -1),
        "past": lambda: loader.past("", 1),
    }
    for calls, error in ((wrong, kvi.InvalidArgument), (later, kvi.Closed)):
        for operation, call in calls.items():
            with pytest.raises(error) as caught:
                call()
            assert (caught.value.operation, caught.value.uri) == (operation, scripted.uri)
        loader.close()
