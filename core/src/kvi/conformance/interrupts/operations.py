"""The calls that are interrupted, each with what must be true afterwards."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import ClassVar

import kvi
from kvi.conformance.interrupts.striking import Broken
from kvi.conformance.interrupts.world import LIMIT, World, in_time, must, until

_SEVERAL = 20  # keys of a transaction
_MANY = 700  # entries of a range, more than a page has
_THREADS, _FILES = 4, 8  # how many more there may be in passing


class Operation:
    """A call that is interrupted.

    Attributes:
        waits: it waits for what others do, until it is interrupted.

    """

    waits: ClassVar[bool] = False

    def __init__(self, world: World) -> None:
        self.world = world

    def call(self) -> None:
        """Make the call; anything but an interrupt that comes out of it is a fault."""
        raise NotImplementedError

    def struck(self) -> None:
        """Give back what the call has returned before it was interrupted, and look around."""

    def end(self) -> None:
        """Look around once more, and put away."""


class Get(Operation):
    """`get` of a key that is there."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        world.store.store("data", b"value")

    def call(self) -> None:
        """Read."""
        entry = self.world.store.get("data")
        must(entry is not None and entry.value == b"value", "get does not tell what is there")


class Range(Operation):
    """`range` over several pages."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        size = min(100, world.capabilities.max_txn_ops or 100)
        for first in range(0, _MANY, size):
            numbers = range(first, min(first + size, _MANY))
            world.store.txn(then=[kvi.Put(f"data/{n:04}", b"v" * 50) for n in numbers])

    def call(self) -> None:
        """Read them all."""
        must(len(list(self.world.store.range(prefix="data/"))) == _MANY, "the range is not whole")

    def struck(self) -> None:
        """Others still read them all."""
        in_time("range in another thread", self.call)

    def end(self) -> None:
        """Put them away."""
        self.world.store.delete_range(prefix="data/")


class Count(Range):
    """`count` of many keys."""

    def call(self) -> None:
        """Count."""
        must(self.world.store.count(prefix="data/") == _MANY, "the count is wrong")


class Past(Operation):
    """`get` and `range` at a revision, and `history`, where the store has a past."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._then = world.store.store("data", b"old")
        world.store.store("data", b"new")

    def call(self) -> None:
        """Read what was."""
        store, then = self.world.store, self._then
        if self.world.capabilities.read_at_revision:
            entry = store.get("data", revision=then)
            must(entry is not None and entry.value == b"old", "get does not tell what was there")
            found = {one.key: one.value for one in store.range(prefix="data", revision=then)}
            must(found.get("data") == b"old", "range does not tell what was there")
        if self.world.capabilities.watch_history:
            values = [event.value for event in store.history("data", limit=2)]
            must(values == [b"new", b"old"], "the history is wrong")


class Store(Operation):
    """`store` of one key, again and again."""

    def call(self) -> None:
        """Write."""
        value = str(self.world.number())
        self.world.store.store("writes/store", value)
        self.world.acknowledge("writes/store", value)

    def end(self) -> None:
        """Watches saw it."""
        in_time("watches", self.world.witness, 3 * LIMIT)


class Update(Operation):
    """`update` and `atomically` of one key, again and again."""

    def call(self) -> None:
        """Write."""
        value = ""

        def change(old: object) -> str:
            nonlocal value
            value = str(self.world.number())
            return value

        self.world.store.update("writes/update", change)
        self.world.acknowledge("writes/update", value)
        self.world.store.atomically(lambda tx: tx.put("writes/update", change(tx.get("data"))))
        self.world.acknowledge("writes/update", value)

    def end(self) -> None:
        """Watches saw it."""
        in_time("watches", self.world.witness, 3 * LIMIT)


class Transaction(Operation):
    """`txn` that writes several keys."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        number = min(_SEVERAL, world.capabilities.max_txn_ops or _SEVERAL)
        self._keys = [f"writes/txn/{n:02}" for n in range(number)]

    def call(self) -> None:
        """Write."""
        value = str(self.world.number())
        self.world.store.txn(then=[kvi.Put(key, value) for key in self._keys])
        for key in self._keys:
            self.world.acknowledge(key, value)

    def struck(self) -> None:
        """It is done whole or not at all."""
        found = self.world.peer.txn(then=[kvi.Get(key) for key in self._keys]).results
        values = {entry.value if isinstance(entry, kvi.KeyValue) else None for entry in found}
        must(len(values) == 1, f"a transaction is half done: its keys have {len(values)} values")

    def end(self) -> None:
        """Watches saw it."""
        in_time("watches", self.world.witness, 3 * LIMIT)


class DeleteRange(Operation):
    """`delete_range` of keys that are written together."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        number = min(_SEVERAL, world.capabilities.max_txn_ops or _SEVERAL)
        self._keys = [f"deleted/{n:02}" for n in range(number)]

    def call(self) -> None:
        """Write and delete."""
        self.world.store.txn(then=[kvi.Put(key, b"") for key in self._keys])
        self.world.store.delete_range(prefix="deleted/")

    def struck(self) -> None:
        """All are there, or none."""
        found = self.world.peer.txn(then=[kvi.Get(key) for key in self._keys]).results
        there = sum(entry is not None for entry in found)
        whole = there in (0, len(self._keys))
        must(
            whole or self.world.capabilities.atomic_range_delete == "no",
            f"{there} of {len(self._keys)} keys are there, which come and go together",
        )


class View(Operation):
    """What a namespace's view does: a write, a read, a lock, a watch."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._name = ""

    def call(self) -> None:
        """Use a view."""
        self._name = f"lock-{self.world.number()}"
        with self.world.store.namespace("view") as view:
            value = str(self.world.number())
            view.store("k", value)
            with view.watch("k") as watch, view.lock(self._name, ttl=self.world.ttl, timeout=LIMIT):
                view.store("k", f"{value}!")
                event = watch.next(LIMIT)
                must(_text(event) == f"{value}!", f"the watch of a view tells {event}")

    def struck(self) -> None:
        """Another view works, and the lock will be free."""
        self.world.free(f"view/{self._name}")
        with self.world.store.namespace("view") as view:
            in_time("another thread, a view", lambda: view.store("other", b""))


class Lease(Operation):
    """A lease is granted, a key stored with it, and it is revoked."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._lease: kvi.Lease | None = None

    def call(self) -> None:
        """Take one, and give it back."""
        world = self.world
        self._lease = world.store.lease(world.ttl)
        world.store.store(f"leased/{world.number()}", b"", lease=self._lease)
        self._lease.revoke()
        self._lease = None

    def struck(self) -> None:
        """It can still be revoked; one that the program was never given ends by itself."""
        lease, self._lease = self._lease, None
        if lease is not None:
            in_time("revoke()", lease.revoke)
        self.world.gone("leased/")


class TempKey(Operation):
    """A temporary key is made and closed."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._key: kvi.TempKey | None = None

    def call(self) -> None:
        """Make one, and close it."""
        world = self.world
        self._key = world.store.temp_key(f"temporary/{world.number()}", b"", ttl=world.ttl)
        self._key.close()
        self._key = None

    def struck(self) -> None:
        """It can still be closed; one that the program was never given vanishes."""
        key, self._key = self._key, None
        if key is not None:
            in_time("close() of a temporary key", key.close)
        self.world.gone("temporary/")


class Lock(Operation):
    """A lock is acquired and released."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._lock = world.store.lock("unused")
        self._name = ""

    def call(self) -> None:
        """Acquire and release."""
        self._name = f"lock-{self.world.number()}"
        self._lock = self.world.store.lock(self._name, ttl=self.world.ttl)
        must(self._lock.acquire(LIMIT), f"nobody holds {self._name}, and it cannot be had")
        self._lock.release()

    def struck(self) -> None:
        """If it is held it can be released; in any case it will be free."""
        lock = self._lock
        with suppress(kvi.NotHeld):  # lost, or not held any more
            if lock.held:
                in_time("release()", lock.release)
        must(not lock.held, "the lock is held after its release")
        self.world.free(self._name)


class LockWith(Operation):
    """A lock is held by a ``with`` block."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._name = ""

    def call(self) -> None:
        """Hold it."""
        self._name = f"block-{self.world.number()}"
        with self.world.store.lock(self._name, ttl=self.world.ttl, timeout=LIMIT) as held:
            must(held.held, "the block was entered without the lock")

    def struck(self) -> None:
        """It will be free, although nobody has the object that held it."""
        self.world.free(self._name)


class LockWait(Operation):
    """A lock that another handle holds is waited for."""

    waits = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._held = world.peer.lock("contended", ttl=world.ttl)
        must(self._held.acquire(LIMIT), "nobody holds the lock, and it cannot be had")
        self._lock = world.store.lock("contended", ttl=world.ttl)

    def call(self) -> None:
        """Wait for it."""
        must(not self._lock.acquire(LIMIT), "a lock has two holders")
        must(False, "it was not interrupted in time")

    def struck(self) -> None:
        """Who gave up does not hold it."""
        must(not self._lock.held, "a lock has two holders")
        must(self._held.held, "the holder has lost its lock")

    def end(self) -> None:
        """Once it is released, no waiter that gave up stands in the way."""
        self._held.release()
        self.world.free("contended")


class _Watched(Operation):
    """A watch of a key that another thread writes numbers to."""

    waits = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._key = f"numbers/{world.number()}"
        self._over = threading.Event()
        self._written = 0
        # Events, for nothing may come between what gives one and `append`, which is in C.
        self._got: list[kvi.Event] = []
        self._hits: dict[int, list[str]] = {}  # by how many were told before
        self._watch = world.store.watch(self._key)
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self._writer.start()

    def _write(self) -> None:
        while not self._over.wait(0.003):
            self.world.peer.store(self._key, str(self._written + 1))
            self._written += 1

    def struck(self) -> None:
        """Note how far it had got."""
        self._hits.setdefault(len(self._got), []).append(self.world.where)

    def end(self) -> None:
        """Every number was told, once, in order (or the last one, where there is no history)."""
        self._over.set()
        self._writer.join(LIMIT)
        in_time("next() in another thread", self._drain, 2 * LIMIT)
        got = [int(_text(event)) for event in self._got]
        if self.world.capabilities.watch_history:
            wrong = [(a, b) for a, b in zip([0, *got], got, strict=False) if b != a + 1]
            if wrong:
                before, number = wrong[0]
                where = " and in ".join(self._hits.get(got.index(number), ["no call"]))
                raise Broken(f"it told {number} after {before}, and after an interrupt in {where}")
        must(got == sorted(set(got)), "the watch told a state again, or an older one")
        self._watch.cancel()

    def _drain(self) -> None:
        while not self._got or int(_text(self._got[-1])) < self._written:
            self._got.append(self._watch.next(LIMIT))


class WatchNext(_Watched):
    """`Watch.next`."""

    def call(self) -> None:
        """Take an event."""
        self._got.append(self._watch.next(LIMIT))


class WatchIterate(_Watched):
    """Iteration over a watch."""

    def call(self) -> None:
        """Take events."""
        for event in self._watch:
            self._got.append(event)


class WatchCallback(_Watched):
    """A watch with a call-back is begun and cancelled, while others have their events."""

    waits = False

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._begun: kvi.Watch | None = None
        self._told: list[kvi.Event] = []

    def call(self) -> None:
        """Begin and cancel."""
        told = self._told = []
        self._begun = self.world.store.watch(
            self._key, callback=lambda event, data: told.append(event)
        )
        self._begun.cancel()
        self._begun = None

    def struck(self) -> None:
        """It can still be cancelled, and is quiet then."""
        begun, self._begun = self._begun, None
        if begun is not None:
            in_time("cancel()", begun.cancel)
            told, written = len(self._told), self._written
            deadline = monotonic() + LIMIT
            until(lambda: self._written > written + 1, "the writer does not go on", deadline)
            must(len(self._told) == told, "events came after cancel()")


class LoaderUpdate(Operation):
    """An entity of a `Loader` is locked and updated."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._path = f"loader-{world.number()}"
        self._loader: kvi.Loader[str, str] = kvi.Loader(
            world.store, self._path, kvi.TextCodec(), lambda text: text.partition("=")[0]
        )
        self._loader.load()
        for entity in ("a=0", "b=0"):
            self._loader.lock_or_create(entity)[0].unlock()

    def call(self) -> None:
        """Update."""
        with self._loader.lock("a", LIMIT) as handle:  # type: ignore[union-attr]
            handle.update(f"a={self.world.number()}")

    def struck(self) -> None:
        """Other threads can lock the entities, see what is stored, and change it."""
        in_time("another thread, a Loader", lambda: list(map(self._change, "ab")))

    def _change(self, name: str) -> None:
        for again in (False, True):
            handle = self._loader.lock(name, LIMIT / 4)
            must(handle is not None, "an entity is gone")
            assert handle is not None
            with handle:
                try:
                    handle.update(f"{name}=0")
                except kvi.Conflict:  # the write under way has applied; now it is known
                    must(not again, "an entity conflicts for ever")
                    continue
                stored = self.world.peer.get(f"{self._path}/{name}")
                must(
                    stored is not None and stored.text == handle.value, "the cache is not the store"
                )
                return


class LoaderCommit(LoaderUpdate):
    """Two entities are committed in one transaction."""

    def call(self) -> None:
        """Commit."""
        number = self.world.number()
        with self._loader.lock_many(["a", "b"], LIMIT) as handles:
            for handle in (handles["a"], handles["b"]):
                handle.stage(f"{handle.value[0]}={number}")
            with suppress(kvi.Conflict):  # an interrupted commit has applied
                handles.commit()

    def struck(self) -> None:
        """Both are stored, or none; and as above."""
        keys = [f"{self._path}/{name}" for name in "ab"]
        found = self.world.peer.txn(then=[kvi.Get(key) for key in keys]).results
        numbers = {e.text.partition("=")[2] for e in found if isinstance(e, kvi.KeyValue)}
        must(len(numbers) == 1, "a commit is half done")
        super().struck()


class Backend(Operation):
    """Calls of a `Backend`, which keep an eye on the store's liveness."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._backend = kvi.Backend(world.store, "backend", timeout=LIMIT / 2)
        self._backend.ping()  # not alive before
        self._channel = self._backend.enable_liveness_channel()

    def call(self) -> None:
        """Use it."""
        self._backend.store("k", str(self.world.number()))
        must(self._backend.get("k") is not None, "what was written is not there")
        must(
            self._backend.perform_liveness_check(LIMIT / 2), "the check says that the store is dead"
        )

    def struck(self) -> None:
        """An interrupt says nothing about the store, and others go on."""
        must(self._backend.alive, "the interrupt was taken for a fault of the store")
        in_time("another thread, a Backend", self.call)
        in_time("another thread, the channel", self._look)

    def _look(self) -> None:
        with suppress(kvi.Timeout):
            while self._channel.get(0.001):
                pass
            must(False, "the channel says that the store is dead")

    def end(self) -> None:
        """Close it; the store stays open."""
        in_time("close() of a Backend", self._backend.close)


class Channel(Backend):
    """The liveness channel is read."""

    waits = True

    def call(self) -> None:
        """Wait for what it says."""
        must(self._channel.get(LIMIT), "the channel says that the store is dead")

    def struck(self) -> None:
        """Others can use the backend, whose calls post to the channel."""
        in_time("another thread, a Backend", lambda: Backend.call(self))
        self._look()


class Open(Operation):
    """A handle is opened, used and closed."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._handle: kvi.Kvi | None = None
        self.call()
        self._threads, self._files = threading.active_count(), _open_files()

    def call(self) -> None:
        """Open."""
        self._handle = self.world.open()
        self._handle.ping()
        self._handle.close()
        self._handle = None

    def struck(self) -> None:
        """Closing again does nothing, or what is left."""
        handle, self._handle = self._handle, None
        if handle is not None:
            in_time("close()", handle.close)
            must(handle.closed, "a handle is open after close()")

    def end(self) -> None:
        """Threads and connections are gone."""
        world = self.world
        threads, files = self._threads + _THREADS, self._files + _FILES
        world.eventually("threads stay", lambda: threading.active_count() <= threads)
        world.eventually("files or connections stay open", lambda: _open_files() <= files)


class Close(Open):
    """A handle is closed that holds a temporary key and a lock, and has a watch."""

    def call(self) -> None:
        """Open and close."""
        world = self.world
        name = world.number()
        self._handle = world.open()
        self._handle.temp_key(f"closing/{name}", b"", ttl=world.ttl)
        self._name = f"closing-{name}"
        lock = self._handle.lock(self._name, ttl=world.ttl)
        watch = self._handle.watch("closing")
        must(lock.acquire(LIMIT), "nobody holds the lock, and it cannot be had")
        self._handle.close()
        must(not lock.held, "a lock is held after close()")
        must(not watch.active, "a watch is active after close()")
        self._handle = None

    def struck(self) -> None:
        """What it held will be free."""
        super().struck()
        self.world.gone("closing/")
        self.world.free(self._name)


class Permit(Operation):
    """The permit of a semaphore is taken and given back."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._permit: kvi.Lock = self._semaphore(world.store)

    def _semaphore(self, store: kvi.Kvi) -> kvi.recipes.Semaphore:
        return kvi.recipes.Semaphore(store, "permits", 1, ttl=self.world.ttl)

    def call(self) -> None:
        """Take it and give it back."""
        self._permit = self._semaphore(self.world.store)
        must(self._permit.acquire(2 * LIMIT), "nobody holds the permit, and it cannot be had")
        self._permit.release()

    def struck(self) -> None:
        """If it is held it can be given back; in any case it will be free."""
        permit = self._permit
        with suppress(kvi.NotHeld):  # lost, or not held any more
            if permit.held:
                in_time("release()", permit.release)
        must(not permit.held, "the permit is held after its release")
        self.world.eventually("nobody gets the permit", self._is_free)

    def _is_free(self) -> bool:
        other = self._semaphore(self.world.peer)
        if not other.acquire(0):
            return False
        other.release()
        return True


class Work(Operation):
    """A job is put into a queue, got and acknowledged."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._queue = kvi.recipes.Queue(world.store, "jobs", ttl=world.ttl)
        self._other = kvi.recipes.Queue(world.peer, "jobs", ttl=world.ttl)

    def call(self) -> None:
        """Put it, get one, acknowledge that."""
        self._queue.put(str(self.world.number()))
        job = self._queue.get(2 * LIMIT)
        must(job is not None, "what was put cannot be had")
        assert job is not None
        job.ack()

    def struck(self) -> None:
        """Whatever is left can be had by another, and done."""
        self.world.eventually("a job stays in the queue, and nobody gets it", self._is_done)

    def _is_done(self) -> bool:
        while (job := self._other.get(0)) is not None:
            job.ack()
        return self._other.count() == 0


def _text(event: kvi.Event) -> str:
    return (event.value or b"").decode()


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.exists() else 0


OPERATIONS: dict[str, type[Operation]] = {
    "get": Get,
    "range": Range,
    "count": Count,
    "store": Store,
    "past": Past,
    "update": Update,
    "txn": Transaction,
    "delete-range": DeleteRange,
    "view": View,
    "lease": Lease,
    "temp-key": TempKey,
    "lock": Lock,
    "lock-with": LockWith,
    "lock-wait": LockWait,
    "watch-next": WatchNext,
    "watch-iterate": WatchIterate,
    "watch-callback": WatchCallback,
    "loader-update": LoaderUpdate,
    "loader-commit": LoaderCommit,
    "backend": Backend,
    "channel": Channel,
    "permit": Permit,
    "work": Work,
    "open": Open,
    "close": Close,
}
