"""Bugs put into the flows on purpose, each as small as the mistake that would make it.

A planted bug is a name, the scenario that has to find it, and what it replaces for as long as it
is there. That the simulation finds each is what its silence about the real flows is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from kvi.backend.history import HistoryFeed
from kvi.flow.lease import LeaseFlow
from kvi.flow.lending import Lending
from kvi.flow.lock import LockFlow, _Attempt
from kvi.flow.recipes import counter, job, schedule
from kvi.flow.recipes.barrier import _Party
from kvi.flow.recipes.cache import CacheFlow
from kvi.flow.recipes.claims import Claims
from kvi.flow.recipes.counter import CounterFlow, SequenceFlow
from kvi.flow.recipes.election import ElectionLine
from kvi.flow.recipes.following import FollowFlow
from kvi.flow.recipes.group import MemberFlow
from kvi.flow.recipes.job import JobFlow
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.observing import Notice
from kvi.flow.recipes.once import OnceLine
from kvi.flow.recipes.queue import GetterLine, QueueFlow
from kvi.flow.recipes.register import Register
from kvi.flow.recipes.rwlock import ReadWriteLine
from kvi.flow.recipes.schedule import ScheduleFlow
from kvi.flow.recipes.semaphore import SemaphoreLine
from kvi.flow.recipes.slots import SlotLine
from kvi.flow.scope import Ledger, Scope
from kvi.flow.watch import WatchFlow
from kvi.policy.failover import Failover
from kvi.policy.lease import Term
from kvi.policy.queue import Layout
from kvi.policy.retry import RetryPolicy
from kvi.primitives import Primitives

from tests.simulation import (
    gathering_mistakes,
    line_mistakes,
    mistakes,
    network,
    queue_mistakes,
    register_mistakes,
)
from tests.simulation.store import SimChanges
from tests.simulation.world import Signal


class Planted(NamedTuple):
    """One bug: which scenario finds it, and what stands in the place of what."""

    scenario: str
    owner: Any
    name: str
    wrong: Callable[[Any], Any]  # makes the wrong from the right


PLANTED: dict[str, Planted] = {
    "phantom leader": Planted("lock", Term, "renewed", mistakes.phantom),
    "renewal after a loss revives": Planted("lock", Term, "renewed", mistakes.revived),
    "lease reused in doubt": Planted("reuse", LockFlow, "_enter", mistakes.reused),
    "lost wake-up": Planted("lock", Signal, "wait", mistakes.deaf),
    "over-admission": Planted("lock", _Attempt, "_watched", mistakes.believing),
    "lease given twice": Planted("lock", Ledger, "give_idle", mistakes.given_twice),
    "release without guard": Planted(
        "single", Primitives, "_lock_release", mistakes.released_twice
    ),
    "guard that is always true": Planted("lock", network, "place", mistakes.unguarded),
    "retry of a deciding write": Planted("lock", RetryPolicy, "decide", mistakes.retried),
    "waiter leaves its claim": Planted("lock", _Attempt, "_withdraw", mistakes.left_waiting),
    "next in line is not told": Planted("single", Ledger, "leave_line", mistakes.left_in_silence),
    "claim in doubt stands in line": Planted(
        "single", _Attempt, "_stand_in_line", mistakes.trusting
    ),
    "lease forgotten": Planted("lock", LeaseFlow, "abandon", mistakes.not_abandoned),
    "lock of a caller who left": Planted("lock", LockFlow, "give_up", mistakes.given_up_silently),
    "keep-alive stops at first failure": Planted("keep", Term, "failed", mistakes.first_failure),
    "close stops at first failure": Planted("close", Scope, "settle", mistakes.impatient_close),
    "close wakes nobody": Planted("close", Scope, "shut", mistakes.sleeping_close),
    "close leaves watches": Planted("close", WatchFlow, "shut", mistakes.watching_on),
    "watch resumes too late": Planted("watch", HistoryFeed, "_follow", mistakes.one_too_late),
    "position moves too early": Planted("watch", WatchFlow, "take", mistakes.moved_too_early),
    "event stays lent": Planted("watch", Lending, "left", mistakes.kept_for_main),
    "wake-up during a poll is lost": Planted("watch", WatchFlow, "wake", mistakes.woken_too_late),
    "RESYNC starves": Planted("watch", WatchFlow, "_poll", mistakes.starved),
    "call-back stays busy": Planted("watch", WatchFlow, "_deliver", mistakes.delivered_once),
    "revision runs ahead": Planted("watch", WatchFlow, "end", mistakes.running_ahead),
    "restore unnoticed": Planted("watch", SimChanges, "poll", mistakes.restored_unnoticed),
    "endpoint speaks for the store": Planted(
        "failover", Failover, "decide", mistakes.judged_by_one
    ),
    "unanswered write is sent again": Planted("failover", Failover, "decide", mistakes.sent_again),
    "silent endpoint is kept": Planted("failover", Failover, "decide", mistakes.loyal),
    "learner speaks for the store": Planted(
        "failover", Failover, "decide", mistakes.learner_believed
    ),
    "permits counted, not places": Planted(
        "semaphore", SemaphoreLine, "verdict", line_mistakes.counted
    ),
    "limit that has changed": Planted("semaphore", Line, "_enter", line_mistakes.stale_limit),
    "early end unnoticed": Planted("semaphore", Line, "_noticed", line_mistakes.careless),
    "slot of the dead given at once": Planted("slots", Line, "_noticed", line_mistakes.careless),
    "index by the place in line": Planted("slots", SlotLine, "_enter", line_mistakes.by_place),
    "readers wait for later writers": Planted(
        "rwlock", ReadWriteLine, "verdict", line_mistakes.polite
    ),
    "writers wait for nobody's reading": Planted(
        "rwlock", ReadWriteLine, "verdict", line_mistakes.rude
    ),
    "downgrade by way of nothing": Planted(
        "rwlock", ReadWriteLine, "downgrade", line_mistakes.in_two_steps
    ),
    "campaign leaves its key": Planted("election", ElectionLine, "release", line_mistakes.stays),
    "failed resign forgets": Planted("election", LockFlow, "release", line_mistakes.forgets),
    "dead candidate leads": Planted("election", _Attempt, "_next", line_mistakes.undead),
    "addition read and written again": Planted(
        "counter", CounterFlow, "add", register_mistakes.read_and_added_again
    ),
    "addition recorded beside": Planted("counter", Register, "change", register_mistakes.beside),
    "doubt told as sure": Planted("counter", counter, "settled", register_mistakes.sure),
    "block given in doubt": Planted("sequence", SequenceFlow, "fetch", register_mistakes.hopeful),
    "block written over another": Planted(
        "sequence", Register, "change", register_mistakes.overwritten
    ),
    "work outlives its lock": Planted("once", OnceLine, "record", register_mistakes.unguarded),
    "late recording told as lost": Planted("once", OnceLine, "record", register_mistakes.believing),
    "loser goes on": Planted("once", OnceLine, "verdict", register_mistakes.going_on),
    "done again": Planted("once", OnceLine, "verdict", register_mistakes.unseen),
    "time run in doubt": Planted("schedule", ScheduleFlow, "_try", register_mistakes.run_in_doubt),
    "turn not asked for again": Planted(
        "schedule", ScheduleFlow, "_turn", register_mistakes.not_asked_again
    ),
    "the lost seen anew by each": Planted("schedule", Line, "_noticed", register_mistakes.anew),
    "time that follows itself": Planted(
        "schedule", schedule, "times_of", register_mistakes.rounded
    ),
    "job gone before it is done": Planted("queue", Layout, "claim", queue_mistakes.deleted_first),
    "job taken twice": Planted("queue", Layout, "claim", queue_mistakes.not_atomic),
    "attempt not counted": Planted("queue", Layout, "claim", queue_mistakes.not_counted),
    "job done by who has lost it": Planted("queue", Layout, "ack", queue_mistakes.unguarded),
    "job taken from another": Planted("queue", Layout, "keep", queue_mistakes.taken_back),
    "job given back, and kept": Planted("queue", Layout, "nack", queue_mistakes.in_two_places),
    "lost job told as done": Planted("queue", Layout, "has_acked", queue_mistakes.sure),
    "job that is done told as lost": Planted("queue", Layout, "has_acked", queue_mistakes.unsure),
    "lease of a job ended once more": Planted(
        "queue", JobFlow, "let_go", queue_mistakes.let_go_twice
    ),
    "job passed over": Planted("queue", Claims, "_answer", queue_mistakes.passed_over),
    "job put again": Planted("queue", QueueFlow, "put", queue_mistakes.put_again),
    "two jobs of one number": Planted("queue", Layout, "put", queue_mistakes.unchecked_number),
    "getter is not woken": Planted("queue", Notice, "wait", queue_mistakes.deaf),
    "getter stays in line": Planted("queue", GetterLine, "release", queue_mistakes.stays),
    "getter looks once": Planted("queue", QueueFlow, "_patiently", queue_mistakes.looked_once),
    "delay ends with its handle": Planted("queue", job, "lasting", queue_mistakes.bound),
    "passed on a wake-up": Planted("barrier", _Party, "look", gathering_mistakes.woken),
    "broken one goes on": Planted("barrier", _Party, "look", gathering_mistakes.swallowed),
    "lost one waits on": Planted("barrier", _Party, "look", gathering_mistakes.waiting_on),
    "generation written over": Planted("barrier", _Party, "_change", gathering_mistakes.forgetting),
    "party of two generations": Planted("barrier", _Party, "_read", gathering_mistakes.mixed),
    "left without a word": Planted("barrier", _Party, "give_up", gathering_mistakes.silent),
    "lost party counts": Planted("barrier", _Party, "_read", gathering_mistakes.trusting),
    "joins again with an old value": Planted(
        "group", MemberFlow, "_enter", gathering_mistakes.outdated
    ),
    "joins again after leaving": Planted(
        "group", MemberFlow, "leave", gathering_mistakes.left_later
    ),
    "joining under way outlives leaving": Planted(
        "group", MemberFlow, "leave", gathering_mistakes.left_behind
    ),
    "leaving cannot be repeated": Planted(
        "group", MemberFlow, "leave", gathering_mistakes.left_once
    ),
    "lost lease goes on": Planted("group", MemberFlow, "_end", gathering_mistakes.believed_lost),
    "late update overtakes": Planted("group", MemberFlow, "_put", gathering_mistakes.overtaken),
    "id of another": Planted("group", MemberFlow, "_put", gathering_mistakes.taken_over),
    "refused value is said": Planted(
        "group", MemberFlow, "update", gathering_mistakes.kept_in_mind
    ),
    "deletion swallowed": Planted("cache", CacheFlow, "_apply", gathering_mistakes.newest_only),
    "missed deletion not told": Planted(
        "cache", CacheFlow, "_resync", gathering_mistakes.undeleted
    ),
    "missed deletion not made": Planted(
        "cache", CacheFlow, "_resync", gathering_mistakes.unapplied
    ),
    "copy as new as the store": Planted("cache", CacheFlow, "confirm", gathering_mistakes.believed),
    "early change forgotten": Planted("cache", CacheFlow, "_load", gathering_mistakes.hasty),
    "copy goes back": Planted("cache", CacheFlow, "_apply", gathering_mistakes.backwards),
    "change while it is read": Planted(
        "following", FollowFlow, "_read", gathering_mistakes.unnoticed
    ),
    "read before it is watched": Planted(
        "following", FollowFlow, "look", gathering_mistakes.unwatched
    ),
    "told after the end": Planted(
        "following", FollowFlow, "_hand_over", gathering_mistakes.unended
    ),
    "failed look not repeated": Planted(
        "following", FollowFlow, "_rest", gathering_mistakes.content
    ),
    "watch deaf to what it missed": Planted("group", Notice, "wait", gathering_mistakes.deaf),
}


@contextmanager
def planted(name: str) -> Iterator[str]:
    """Put the bug in; gives the scenario that has to find it."""
    bug = PLANTED[name]
    real = getattr(bug.owner, bug.name)
    setattr(bug.owner, bug.name, bug.wrong(real))
    try:
        yield bug.scenario
    finally:
        setattr(bug.owner, bug.name, real)
