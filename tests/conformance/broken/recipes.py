"""Stores on which recipes go wrong: because of the store, or because the recipe is.

A recipe's mistake is put into its flow for as long as the suite runs on the mutant (``plants``).
"""

# What a mutant breaks is told by its class.

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import sleep
from typing import Any, ClassVar

import kvi.flow.recipes.election as election_flow
import kvi.flow.recipes.group as group_flow
import kvi.flow.recipes.semaphore as semaphore_flow
import kvi.recipes.election as election_face
import kvi.recipes.group as group_face
import kvi.recipes.once as once_face
from kvi.flow.recipes.barrier import _Party
from kvi.flow.recipes.cache import CacheFlow
from kvi.flow.recipes.job import JobFlow
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.once import OnceLine
from kvi.flow.recipes.queue import QueueFlow
from kvi.flow.recipes.register import Register
from kvi.flow.recipes.rwlock import Holders, ReadWriteLine
from kvi.flow.recipes.schedule import ScheduleFlow
from kvi.flow.recipes.semaphore import SemaphoreLine
from kvi.flow.recipes.state import Owner
from kvi.model import Claim, Key, KeyValue, RangeResult, Scan
from kvi.policy.queue import Layout, NewJob

from tests.conformance.broken.correct import Correct, broken
from tests.simulation import line_mistakes

Plant = tuple[Any, str, Callable[[Any], Any]]


def _always(value: object) -> Callable[[Any], Any]:
    """A function that gives the same, whatever it is asked."""
    return lambda real: lambda *given, **options: value


def _always_later(value: object) -> Callable[[Any], Any]:
    """As `_always`, for a coroutine function."""

    def wrong(real: Any) -> Any:
        async def answer(*given: Any, **options: Any) -> Any:
            return value

        return answer

    return wrong


class _Planted(Correct):
    plants: ClassVar[tuple[Plant, ...]] = ()


@broken("range.moment", snapshot_range=False, lock_fair=False, watch_history=False)
class KeysOfTheirMoments(Correct):
    """A range by prefix is read key by key, each as of another moment."""

    def _range(self, scan: Scan, timeout: float) -> RangeResult:
        keys = [entry.key for entry in super()._range(scan, timeout)]

        def pages() -> Iterator[list[KeyValue]]:
            for key in keys:
                sleep(0.001)  # others have a turn
                now = self._get(key, timeout)
                yield [] if now is None else [now]

        return RangeResult(None, pages)


@broken("recipe.name")
class AnybodysName(_Planted):
    """Nobody looks whose a name is."""

    plants = ((Owner, "check", _always(None)), (Owner, "_ensure_mine", _always(None)))


@broken("recipe.invalid")
class AnyLimit(_Planted):
    """Any limit will do."""

    plants = ((semaphore_flow, "check_count", lambda real: lambda name, count: count),)


@broken("recipe.leaves", "semaphore.no-ghost")
class StaysInLine(_Planted):
    """Who leaves the line stays in it."""

    plants = ((Line, "leaving", _always(())),)


@broken("semaphore.limit", "semaphore.order", "semaphore.resize", "slots.unique")
class EverybodyEnters(_Planted):
    """There is always room."""

    plants = ((SemaphoreLine, "verdict", _always(None)),)


@broken("rwlock.share", "rwlock.order", "rwlock.downgrade")
class WriteTogether(_Planted):
    """Readers and writers wait for nobody."""

    plants = ((ReadWriteLine, "verdict", _always(None)),)


@broken("rwlock.no-upgrade")
class WaitsForItself(_Planted):
    """Whoever reads may wait for writing."""

    plants = ((Holders, "ensure_free", _always(None)),)


@broken("slots.lost")
class SlotOfTheDead(_Planted):
    """The index of a lost holder is free at once."""

    plants = ((Line, "_noticed", line_mistakes.careless),)


def _leading(real: Any) -> Any:
    def place(*given: Any) -> Claim:
        claim: Claim = real(*given)
        return claim._replace(ahead=None, guard=Key("never").absent)

    return place


@broken("election.one", "election.lost")
class EverybodyLeads(_Planted):
    """Every candidate leads, and its guard is always true."""

    plants = ((election_flow, "place", _leading),)


@broken("election.leader", "election.observe")
class NobodyLeads(_Planted):
    """Nobody is ever seen to lead."""

    plants = (
        (election_flow, "look", _always_later((None, []))),
        (election_face, "look", _always_later((None, []))),
    )


@broken("group.members", "group.watch", "group.rejoin")
class EmptyGroup(_Planted):
    """No member is ever seen."""

    plants = (
        (group_flow, "members_of", _always_later([])),
        (group_face, "members_of", _always_later([])),
    )


@broken("barrier.all", "barrier.timeout", "barrier.broken")
class OpenBarrier(_Planted):
    """Whoever comes passes."""

    plants = ((_Party, "look", _always_later(0)),)


@broken("counter.total", "counter.once", "sequence.unique")
class ForgetfulRegister(_Planted):
    """What is changed is said to be, and is not."""

    plants = ((Register, "change", _always_later(True)),)


@broken("once.single", "once.error")
class AgainAndAgain(_Planted):
    """Everybody does it, done or not."""

    plants = (
        (OnceLine, "verdict", _always(None)),
        (once_face, "result_of", _always_later(None)),
    )


def _alone(real: Any) -> Any:
    mine: dict[ScheduleFlow, float] = {}

    async def tried(flow: ScheduleFlow, *given: Any) -> Any:
        now = flow.wall()
        decision = flow._decide(mine.setdefault(flow, now), now)
        if not decision.due:
            return decision.time - now
        mine[flow] = decision.time
        return decision.time, None

    return tried


@broken("schedule.once")
class EverybodysTime(_Planted):
    """Each process runs every time, and asks nobody."""

    plants = ((ScheduleFlow, "_try", _alone),)


def _plain(real: Any) -> Any:
    def check(layout: Layout, *given: Any) -> NewJob:
        job: NewJob = real(layout, *given)
        return NewJob(job.value)

    return check


@broken("queue.order", "queue.dedup", "queue.delay")
class PlainQueue(_Planted):
    """Priority, delay and dedup are left aside."""

    plants = ((Layout, "check", _plain),)


def _done(real: Any) -> Any:
    async def nack(job: JobFlow, call: Any, delay: float) -> None:
        await job.ack(call)

    return nack


@broken("queue.again", "queue.dead")
class GivenBackIsGone(_Planted):
    """A job that is given back is gone."""

    plants = ((JobFlow, "nack", _done),)


def _hasty(real: Any) -> Any:
    async def get(flow: QueueFlow, port: Any, wait: float | None) -> JobFlow | None:
        job: JobFlow | None = await real(flow, port, 0)
        return job

    return get


@broken("queue.waits")
class WaitsForNoJob(_Planted):
    """Nobody waits for a job."""

    plants = ((QueueFlow, "get", _hasty),)


@broken("cache.live")
class FrozenCache(_Planted):
    """A cache stays as it was."""

    plants = ((CacheFlow, "_on_event", _always(None)),)


@broken("cache.age")
class AgingCache(_Planted):
    """A cache never looks whether it is the truth."""

    plants = ((CacheFlow, "step", _always_later(None)),)
