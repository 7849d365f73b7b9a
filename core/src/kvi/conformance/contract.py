"""The contract as a list of rules, each with a name.

`SECTIONS` is what every backend promises, sentence by sentence, in the order of the documentation.
Each test of the suite says with `rule` which of them it checks; the report of a run, and the table
in the documentation, go by these names. A rule that depends on a capability names it: where a
backend declares that it lacks it, the tests expect the refusal, or the behaviour, that is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

_Test = TypeVar("_Test", bound=Callable[..., object])


class Rule(NamedTuple):
    """One promise. `needs` is the capability without which it does not hold, if there is one."""

    name: str
    text: str
    needs: str | None = None


class Section(NamedTuple):
    """Promises about one subject."""

    title: str
    rules: tuple[Rule, ...]


SECTIONS = (
    Section(
        "Handles",
        (
            Rule("handle.store", "Two opens of one URI are the same store, and closing a handle loses nothing."),
            Rule("handle.open", "Opening does not wait for a server that is away; the first operation does, within its time-out."),
            Rule("handle.options", "An unknown option or a bad value is `InvalidOption`, which names it."),
            Rule("handle.timeout", "Every call takes `timeout=`, bounds itself by it, and refuses a bad one before anything is sent."),
            Rule("handle.read-only", "With `read_only=True` reads work, and everything that could write raises `PermissionDenied` and writes nothing: through a handle, a view, a `Backend` and a `Loader`."),
            Rule("handle.ping", "`ping()` asks the store now, and changes nothing."),
            Rule("handle.threads", "Any number of threads may use one handle at once."),
            Rule("handle.closed", "After `close()` every call that would touch the store raises `Closed`, and its threads and connections are gone; closing again does nothing."),
            Rule("handle.close-wakes", "Blocked calls wake with `Closed` when their handle is closed."),
            Rule("handle.close-frees", "`close()` releases the handle's locks and revokes its leases."),
            Rule("handle.fork", "A forked child's use of its parent's handle raises `UsedAfterFork`; the parent's handle, leases and locks are untouched."),
            Rule("handle.interrupt", "An exception that a signal handler raises at any moment of any call comes out as it is, and leaves the process whole: all others go on, nothing is half done, no event is lost, nothing stays taken."),
            Rule("handle.uri", "A handle, its views and its errors show the store's redacted URI."),
            Rule("handle.capabilities", "Declared limits keep the contract's own bounds."),
        ),
    ),
    Section(
        "Namespaces",
        (
            Rule("namespace.apart", "Two namespaces never see each other, and `a` never sees `ab`, nor the key `a/` itself."),
            Rule("namespace.relative", "Results, ranges, events, locks and errors of a view have the view's own keys."),
            Rule("namespace.nested", "A namespace of a namespace is the joined one; the option `namespace` says the same."),
            Rule("namespace.names", "Any text is a name, but not an empty one or one with a slash at an end; a name counts into `max_key`."),
            Rule("namespace.closed", "Closing a view leaves its parent open; closing the parent closes its views."),
        ),
    ),
    Section(
        "Keys, values, revisions",
        (
            Rule("key.exact", "Every key of any text round-trips exactly, and is no other key."),
            Rule("key.order", "Keys sort by their UTF-8 bytes."),
            Rule("key.invalid", "What is empty, no text or no UTF-8 is `InvalidKey`; nothing is sent."),
            Rule("key.length", "Keys of `max_key` bytes work, longer ones are refused before anything is sent."),
            Rule("value.exact", "Any bytes come back as they were stored; text is its UTF-8 bytes; `b\"\"` is a value."),
            Rule("value.invalid", "What is neither bytes nor text is `InvalidArgument`; nothing is sent."),
            Rule("value.length", "Values of `max_value` bytes work, longer ones are `ValueTooLarge` before anything is sent."),
            Rule("revision.grows", "Every write that commits gets a larger revision than all before it, over the whole store."),
            Rule("revision.entry", "An entry tells the revision of its last change and of its creation, and how often it was written since."),
            Rule("revision.created", "Deleting and creating a key again gives it a new `create_revision`."),
        ),
    ),
    Section(
        "Reading",
        (
            Rule("get.absent", "`get` of a missing key is `None`, never an error; of a key that is there never `None`."),
            Rule("get.linearizable", "`get` sees every write that was acknowledged before it began, by whichever handle, and nothing that was not written."),
            Rule("range.bounds", "`range` gives exactly the keys of the half-open `[start, end)` or of the prefix, in order, from either end; `count` agrees."),
            Rule("range.limit", "`limit` keeps the first entries in the direction of reading; 0 is none."),
            Rule("range.keys-only", "`keys_only` leaves values out and all else as it is."),
            Rule("range.invalid", "A negative limit, a prefix together with bounds, or bounds that are no text are refused."),
            Rule("range.long", "A range of any length and any size of values comes whole, page by page, and can be iterated again."),
            Rule("range.moment", "The entries of a range by prefix are of one moment.", "atomic_range"),
            Rule("range.snapshot", "All pages of a range are of one revision, its `.revision`.", "snapshot_range"),
            Rule("past.state", "`get` and `range` at a revision give the state as it was then, of whatever change since; at 0 there was nothing.", "read_at_revision"),
            Rule("past.refused", "A revision to come, or none, is `InvalidArgument`, one that is gone `Compacted`.", "read_at_revision"),
            Rule("history.changes", "`history` gives the changes of a key, newest first, each once, as far back as the store has them; `limit` keeps the newest.", "watch_history"),
            Rule("history.previous", "An event of a history tells the entry before, or none; never another one.", "watch_history"),
        ),
    ),
    Section(
        "Writing",
        (
            Rule("store.replaces", "`store` creates or replaces, and returns the new revision."),
            Rule("store.same-value", "Storing the value that is there is a write: a new revision and an event."),
            Rule("delete.tells", "`delete` is true only if the key was there; deleting nothing is no error and no revision."),
            Rule("delete.exact", "`delete` takes its key, and no other."),
            Rule("delete-range.bounds", "`delete_range` takes exactly the keys of its bounds, however many, and returns how many."),
            Rule("delete-range.unbounded", "`delete_range` without any bound is refused."),
            Rule("delete-range.atomic", "`delete_range` is one step, as far as declared.", "atomic_range_delete"),
            Rule("tas.table", "`tas` sets only what has the value tested; `None` is absent, and a missing key matches nothing else."),
            Rule("tas.atomic", "Of several who test and set at once, each sees the others' whole effect: nothing is lost, one wins."),
            Rule("cas.revision", "`cas` sets only if the key's revision is the one given (0: absent), also over a new life of the key."),
            Rule("cas.atomic", "Of several who set by one revision, one wins."),
        ),
    ),
    Section(
        "Transactions",
        (
            Rule("txn.branches", "`then` runs if all compares hold, `otherwise` runs if not, never both."),
            Rule("txn.values", "Values compare as bytes; a value compare of a missing key is false, `!=` too."),
            Rule("txn.numbers", "Revision, create revision, version and lease compare as numbers; those of a missing key are 0."),
            Rule("txn.version", "A key's version can be compared.", "key_version"),
            Rule("txn.existence", "`exists` and `absent` tell whether the key is there, also with an empty value."),
            Rule("txn.order", "Operations run in order: a `Get` sees the writes before it."),
            Rule("txn.results", "There is one result per operation: entry or `None`, revision, whether the key was there."),
            Rule("txn.revision", "`TxnResult.revision` is that of the commit; if nothing was written, the store's present one where the store tells."),
            Rule("txn.atomic", "A branch applies whole, at one revision, or not at all, and nobody sees a part of it."),
            Rule("txn.refused", "One key written twice, an unknown operator, too many operations: an error, before anything is sent."),
            Rule("txn.short", "`transaction` stores one pair or the other, by one compare, and tells which."),
            Rule("update.value", "`update` gives its function the value, or `default` where the key is absent, and stores what it returns; `None` deletes; the key is permanent then."),
            Rule("update.atomic", "`update` and `atomically` run their function again while others interfere, and lose nothing; once the time is up they raise `Contention`, and write nothing."),
            Rule("update.raises", "What the function of `update` or `atomically` raises comes out as it is; nothing is written, and it is not run again."),
            Rule("atomically.reads", "`tx.get` gives what `get` does, or what the run has written before; what was read, absence too, is a condition of the commit, what was only written is none."),
            Rule("atomically.moment", "What `atomically` commits, and what a function that reads several keys returns, is of one moment."),
            Rule("atomically.refused", "A transaction that is too large, and a `tx` whose run is over, are errors; nothing is sent."),
        ),
    ),
    Section(
        "Leases and temporary keys",
        (
            Rule("lease.ttl", "The ttl granted is never shorter than asked; below the store's minimum it is the minimum."),
            Rule("lease.invalid", "A ttl that is not positive, no number, or above the store's maximum is `InvalidArgument`."),
            Rule("lease.keys", "The keys stored with a lease vanish together, with delete events, once it ends, and no others."),
            Rule("lease.last-write", "A key belongs to the lease of its last write; one written without lease is permanent."),
            Rule("lease.not-early", "A lease ends no earlier than its ttl after its last renewal was sent; renewed, it lives on."),
            Rule("lease.not-late", "A lease that nobody renews ends within `lease_expiry_factor` times its ttl and a second."),
            Rule("lease.kept-alive", "A lease is kept alive in the background until it is closed or revoked; with `keep_alive=False` nobody renews it."),
            Rule("lease.alive", "`alive` is computed by the clock: it is false once the ttl has passed without renewal."),
            Rule("lease.lost", "A loss is told by `lost` and its call-backs; one's own `revoke()` or `close()` is none."),
            Rule("lease.gone", "A write with a lease that is gone raises `LeaseLost`, and nothing of it is done."),
            Rule("lease.revoke", "`revoke()`, the end of a `with` block and closing the handle end a lease at once."),
            Rule("lease.listed", "Where the backend tells which leases there are, these are those that are alive, with their ttl and with the keys of the view that they have at that moment."),
            Rule("store.ttl", "A key stored with `ttl` vanishes so long after its last write, whatever becomes of the handle; one written without is permanent; `ttl` and `lease` together are refused."),
            Rule("temp-key.lives", "A temporary key replaces what was there, and is gone once it or its handle is closed."),
            Rule("temp-key.crash", "A temporary key vanishes when its holder renews it no more."),
            Rule("temp-key.own", "Closing a temporary key leaves what others have put in its place."),
        ),
    ),
    Section(
        "Locks",
        (
            Rule("lock.exclusive", "A lock has one holder at a time, among threads, handles and processes."),
            Rule("lock.timeout", "A waiter whose time is up gets `False`, or `LockTimeout`, and its block is never entered."),
            Rule("lock.waits", "A wait may be longer than the handle's time-out; the lock goes to a waiter once it is free."),
            Rule("lock.no-ghost", "A waiter that gave up leaves nothing behind that could win later."),
            Rule("lock.ttl", "What holds a lock lives by its `ttl`, and is renewed until the release; the time-out bounds the wait, and nothing else."),
            Rule("lock.fair", "First come, first served.", "lock_fair"),
            Rule("lock.crash", "A holder that crashes frees its lock after its ttl."),
            Rule("lock.late-claim", "A claim that reaches the store late, after its answer was given up, keeps nobody out of the lock."),
            Rule("lock.fence", "Each holder's fence is larger than those of all before, in whichever process, also after a restart of the store."),
            Rule("lock.guard", "The guard lets the holder write, and nobody who was one."),
            Rule("lock.lost", "A lock that was lost is not held, says so, and its release raises `LeaseLost`, which never masks the block's own exception."),
            Rule("lock.delay", "A lock whose lease was ended early, where `lock_delay_factor` tells that a store may, goes to the next only once its holder is out."),
            Rule("lock.owner", "Only the holder can release; releasing again does nothing, what is not held raises `NotHeld`."),
            Rule("lock.not-reentrant", "A second `acquire` through the same object raises `AlreadyHeld`."),
            Rule("lock.names", "Every key is the name of a lock, and of no other; data below a name is no lock."),
            Rule("lock.invalid", "A bad name or time-out is refused before anything is sent."),
        ),
    ),
    Section(
        "Watches",
        (
            Rule("watch.selects", "A watch sees the keys of its key, prefix or bounds, and no others; one of them must be given."),
            Rule("watch.from-now", "Every change after `watch()` has returned is seen, and none before."),
            Rule("watch.event", "An event tells type, key, value, revision, and the entry before where the store knows it."),
            Rule("watch.writes-only", "What changes nothing makes no event."),
            Rule("watch.types", "`events=` keeps only the types given."),
            Rule("watch.last-state", "Per key ever newer states that really existed, and always the last one."),
            Rule("watch.history", "Every change, once, in revision order, the changes of one revision together.", "watch_history"),
            Rule("watch.from-revision", "`from_revision` starts in the past, inclusive, or waits for the future.", "watch_history"),
            Rule("watch.compacted", "A `from_revision` that the store no longer has is `Compacted`.", "watch_history"),
            Rule("watch.revision", "`revision` moves on with the last change of a revision: a new watch from the next one loses and repeats nothing.", "watch_history"),
            Rule("watch.initial", "`initial=True` delivers the present state in key order, then the changes, without gap or duplicate."),
            Rule("watch.next", "`next` waits for an event, raises `Timeout` if none came, and loses nothing."),
            Rule("watch.cancel", "`cancel()` returns within a second, wakes who waits, and nothing is delivered after it."),
            Rule("watch.callback", "A call-back gets the events one at a time, in order, may use the store, and ends its watch by `False`; an exception in it is logged."),
            Rule("watch.slow", "A consumer that does not read, or a call-back that does not return, holds up nobody else."),
            Rule("watch.many", "Each of many watches gets every event, by a bounded number of threads and connections."),
            Rule("watch.survives", "A watch survives lost connections and restarts without loss or duplicate."),
            Rule("watch.resync", "A watch whose history is gone delivers `RESYNC` with the whole present state, and goes on."),
        ),
    ),
    Section(
        "Recipes",
        (
            Rule("recipe.name", "A name is one recipe's: another recipe, other settings or a lock that is held are `InvalidArgument`, which names both.", "atomic_range"),
            Rule("recipe.invalid", "A bad name or setting is refused before anything is sent."),
            Rule("recipe.leaves", "Who has left leaves nothing, and the recipe no more than its settings.", "atomic_range"),
            Rule("semaphore.limit", "Never more than the limit hold it; what is given back goes to who waits.", "atomic_range"),
            Rule("semaphore.order", "First come, first served.", "atomic_range"),
            Rule("semaphore.resize", "Growing lets in exactly as many more; shrinking takes nothing, and lets nobody in before there is room.", "atomic_range"),
            Rule("semaphore.no-ghost", "A waiter that gave up leaves nothing that could win, or stand in others' way.", "atomic_range"),
            Rule("rwlock.share", "Readers hold it together, a writer alone.", "atomic_range"),
            Rule("rwlock.order", "A reader waits for earlier writers, a writer for all earlier, nobody for later ones.", "atomic_range"),
            Rule("rwlock.downgrade", "A writer goes on as a reader without a writer in between.", "atomic_range"),
            Rule("rwlock.no-upgrade", "Whoever holds a lock of an object gets `AlreadyHeld` for another one of it.", "atomic_range"),
            Rule("slots.unique", "Each index has one holder; the smallest that is free is given out.", "atomic_range"),
            Rule("slots.lost", "A lost index is given out again, once its holder has surely noticed.", "atomic_range"),
            Rule("election.one", "At most one leads, by guard; a resignation lets the next one in.", "atomic_range"),
            Rule("election.leader", "Everybody sees who leads, and what it proclaims.", "atomic_range"),
            Rule("election.observe", "An observer hears of each lasting change, also that nobody leads, and ends at the truth.", "atomic_range"),
            Rule("group.members", "Members are seen at one moment, in the order of joining, until they leave; an id is one member's.", "atomic_range"),
            Rule("group.watch", "A watch begins with all members, and tells each lasting change.", "atomic_range"),
            Rule("group.rejoin", "A member that is lost joins again with its present value; one that has left does not.", "atomic_range"),
            Rule("barrier.all", "All or none pass, and are told the order of arrival, generation by generation.", "atomic_range"),
            Rule("barrier.timeout", "Who does not wait any longer leaves with `LockTimeout`, and the others wait on.", "atomic_range"),
            Rule("barrier.broken", "If a party is lost while others wait, all get `BrokenBarrier`.", "atomic_range"),
            Rule("counter.total", "What many add at once is all in the total.", "atomic_range"),
            Rule("counter.once", "An addition with a name is counted once, however often it is sent.", "atomic_range"),
            Rule("sequence.unique", "No number is given twice, and each caller's grow.", "atomic_range"),
            Rule("once.single", "It runs until one success is recorded; everybody gets that result.", "atomic_range"),
            Rule("once.error", "An error comes out of the call that had it, and lets the next one try.", "atomic_range"),
            Rule("schedule.once", "Each time runs once among all processes.", "atomic_range"),
            Rule("queue.order", "Larger priority first, then first in; a job is gone by `ack`, under its guard.", "atomic_range"),
            Rule("queue.again", "A job is delivered again after a lost lease or a `nack`, and its attempts are counted.", "atomic_range"),
            Rule("queue.waits", "Who waits gets what is put.", "atomic_range"),
            Rule("queue.dedup", "A `dedup` holds until its job is acknowledged.", "atomic_range"),
            Rule("queue.dead", "A job whose attempts are used up is dead, until it is put back or deleted.", "atomic_range"),
            Rule("queue.delay", "Nobody gets a delayed job before its time.", "atomic_range"),
            Rule("cache.live", "A cache follows what is below its prefix; `wait` reads own writes.", "atomic_range"),
            Rule("cache.age", "A cache with `max_age` knows that it is not older.", "atomic_range"),
            Rule("election.lost", "A leader whose lease is gone finds out, and the next one leads.", "atomic_range"),
        ),
    ),
    Section(
        "asyncio",
        (
            Rule("asyncio.cancelled", "A task that is cancelled at any `await` of any call ends with `CancelledError`; no answer goes to another call, no event is lost, and nothing of it stays taken."),
            Rule("asyncio.blocked-loop", "A loop that is blocked for three times the ttl loses no lock, lease or temporary key."),
            Rule("asyncio.free-loop", "No call holds the loop for more than 50 ms."),
        ),
    ),
    Section(
        "As a whole",
        (
            Rule("program.model", "Any program of these operations, through any handles, gives what the contract says."),
        ),
    ),
    Section(
        "Errors and faults",
        (
            Rule("error.place", "Every error carries `operation`, `key` and `uri`, and pickles."),
            Rule("error.typed", "A store that is away raises `Unavailable`, `Timeout` or, of a write, `OutcomeUnknown`, within the time-out, and nothing native."),
            Rule("error.acknowledged", "Nothing acknowledged is ever lost."),
            Rule("error.certain", "What was reported as not applied never shows up."),
            Rule("error.recovers", "A handle works again once its store does."),
        ),
    ),
)  # fmt: skip


def rules() -> Iterator[Rule]:
    """All rules, in the order of the documentation."""
    for section in SECTIONS:
        yield from section.rules


RULES: dict[str, Rule] = {rule.name: rule for rule in rules()}

# What a rule rests on stands before it: a test of locks writes, reads and watches, too. A name
# without a dot stands for the rules of its subject that have no place of their own.
_FOUNDATIONS = (
    *("handle.options", "handle.capabilities", "handle.store", "value.exact", "key.exact"),
    *("store", "get", "delete", "revision", "value", "key"),
    *("range", "delete-range", "txn", "tas", "cas", "past", "history"),
    *("handle.timeout", "handle.threads", "namespace.apart", "error.place"),
    *("watch.next", "watch.from-now", "watch.selects", "watch.event", "watch"),
    *("lease.ttl", "lease.gone", "lease.keys", "lease.last-write", "lease.kept-alive", "lease"),
    *("lock.names", "lock.timeout", "lock.exclusive", "lock"),
    *("update", "atomically", "store.ttl", "temp-key", "watch.callback", "namespace", "handle"),
    *("recipe", "semaphore", "rwlock", "slots", "election", "group", "barrier"),
    *("counter", "sequence", "once", "schedule", "queue", "cache"),
    *("error", "asyncio", "program"),
)


def _foundation(name: str) -> int:
    """The place of a rule in `_FOUNDATIONS`: its own, else that of what stands before its dot."""
    subject = name.partition(".")[0]
    return _FOUNDATIONS.index(name if name in _FOUNDATIONS else subject)


def foundations_first(names: Iterable[str]) -> list[str]:
    """Rules so that those come first whose breaking explains that of others."""
    order = {name: number for number, name in enumerate(RULES)}
    return sorted(names, key=lambda name: (_foundation(name), order[name]))


def rule(*names: str) -> Callable[[_Test], _Test]:
    """Say which rules a test checks, or all tests of a class.

    Raises:
        ValueError: a name is no rule of the contract.

    """
    for name in names:
        if name not in RULES:
            raise ValueError(f"{name} is no rule of the contract: see kvi.conformance.contract")

    def decorate(test: _Test) -> _Test:
        test.kvi_rules = names  # type: ignore[attr-defined]
        return test

    return decorate


def fits(name: str, rule: str) -> bool:
    """Whether a rule is meant by a name: its own, or what stands before its dot."""
    return rule == name or rule.startswith(f"{name}.")


def rules_of(test: object) -> tuple[str, ...]:
    """The names of the rules that a test checks."""
    names: tuple[str, ...] = getattr(test, "kvi_rules", ())
    return names
