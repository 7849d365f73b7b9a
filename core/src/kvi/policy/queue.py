"""Where the jobs of a queue are, and what each step changes: pure decisions.

==========================  ======================================================================
key                         what it is
==========================  ======================================================================
``.kvi/next``               the number of the next job
``.kvi.items/r/ID``         a job that is ready; see `Item`
``.kvi.items/c/ID``         a job that is claimed, or delayed
``.kvi.by/ID``              whoever has it: a key kept by a lease, with no value
``.kvi.dead/ID``            a job whose attempts are used up
``.kvi.dedup/TEXT``         the id of the job that was put with this ``dedup``
==========================  ======================================================================

An id is the priority, turned round, then the number: so the keys are in the order of their turns.

============  =============================  =====================================================
a job is      guarantee                      left by
============  =============================  =====================================================
*ready*       nobody has it                  `claim`: *claimed*
*claimed*     its claim's key is there, and  `ack`, under the guard: gone; `nack`, under the guard:
              one holder has the guard       *ready*, *delayed*, or *dead* after its last attempt;
                                             its lease ends: *orphan*
*delayed*     as claimed, by nobody: the     the lease ends: *orphan*
              lease is not renewed
*left*        as delayed, by whoever has the  `resume`, under the guard: *claimed*; the lease ends:
              claim's name (`Layout.leave`)  *orphan*
*orphan*      claimed, without its key       `recover`, by whoever looks: *ready*, or *dead* after
                                             its last attempt
*dead*        nobody gets it                 `revive`: *ready*, as if it was never tried; or deleted
============  =============================  =====================================================

Each step is one transaction, so a crash leaves a job in one of these states, and never in two or
none. A job counts an attempt when it is claimed.

*A step whose answer is lost* can be taken again: its guard fails if it has applied, and also if the
claim was lost; so it looks at the job then. After an `ack` the job is nowhere. After a `nack` it
says which claim gave it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvi.capabilities import Capabilities
from kvi.errors import InvalidArgument, InvalidKey, shown
from kvi.model import Compare, Delete, Get, Key, KeyValue, Operation, Put, Span, Txn
from kvi.policy.lease import check_ttl
from kvi.policy.line import HIGHEST, Place, check_count, dumps, record, same
from kvi.text import check_key, check_value

_MORE = 1024  # bytes that a job may have beside its value
_LONGEST = 512  # bytes of a dedup


class DeadJob(NamedTuple):
    """A job whose attempts are used up: its id, value, and how often it was tried."""

    id: str
    value: bytes
    attempts: int


class NewJob(NamedTuple):
    """A job to be put, with checked arguments."""

    value: bytes
    priority: int = 0
    delay: float = 0.0
    dedup: str | None = None


class Item(NamedTuple):
    """A job as it is stored: a line of JSON, its ``dedup``, and its value as it is."""

    id: str
    value: bytes
    dedup: str | None
    attempts: int = 0
    back: int = 0  # the revision of the last claim that gave it back

    @classmethod
    def of(cls, entry: KeyValue) -> Item:
        """What an entry holds. Raises `BadRecord`."""
        line, _, rest = (entry.value or b"").partition(b"\n")
        said = record(entry._replace(value=line), a=int, b=int, d=int)
        size = said["d"]
        dedup = rest[:size].decode(errors="replace") or None
        id = entry.key.rpartition("/")[2]
        return cls(id, rest[size:], dedup, said["a"], said["b"])

    def dumps(self) -> bytes:
        """What is stored."""
        dedup = (self.dedup or "").encode()
        return (
            dumps({"a": self.attempts, "b": self.back, "d": len(dedup)})
            + b"\n"
            + dedup
            + self.value
        )


class Layout:
    """The keys of one queue, and the transactions of its steps.

    Attributes:
        items: the directory of all jobs but the dead.
        by: that of the claims.
        dead: that of the dead.
        ready: the ready jobs, in the order of their turns.
        claimed: those that are claimed or delayed.
        next: the key of the next number.

    """

    def __init__(self, place: Place, most: int | None, limits: Capabilities) -> None:
        """``most``: how many attempts a job has; ``None``: any number."""
        self.items, self.by = place.aside("items"), place.aside("by")
        self.dead = place.aside("dead")
        self.ready = Span.of_prefix(f"{self.items}r/")
        self.claimed = Span.of_prefix(f"{self.items}c/")
        self.next = f"{place.root}next"
        self._dedup = place.aside("dedup")
        self._most = most
        self._limits = limits

    # -- arguments --------------------------------------------------------------------------------

    def check(self, value: object, priority: object, delay: object, dedup: object) -> NewJob:
        """Check what is to be put; raises `InvalidArgument`, `InvalidKey`, `ValueTooLarge`."""
        limits = self._limits
        largest = None if limits.max_value is None else limits.max_value - _MORE
        data = check_value(value, largest)
        urgency = check_count("priority", priority, -HIGHEST)
        if dedup is not None:
            room = _LONGEST
            if limits.max_key is not None:
                room = min(room, limits.max_key - len(self._dedup.encode()))
            dedup = check_key(dedup, room)
        return NewJob(data, urgency, self.check_delay(delay), dedup)

    def check_delay(self, delay: object) -> float:
        """Return a delay in seconds, 0 or what a lease of the store takes."""
        if delay == 0 and not isinstance(delay, bool):
            return 0.0
        return check_ttl(delay, self._limits, "delay")

    # -- steps ------------------------------------------------------------------------------------

    def put(self, job: NewJob, number: int, revision: int, until: int | None) -> tuple[str, Txn]:
        """Make a job, ready or until a lease ends delayed; its id, and how.

        ``number`` is the next one, as it stood at ``revision``. If it is not, the next number is
        read, and the job with the same ``dedup``.
        """
        id = f"{HIGHEST - job.priority:08x}-{number:012x}"
        when, otherwise = [same(self.next, revision)], [Get(self.next)]
        then: list[Operation] = [Put(self.next, dumps({"next": number + 1}))]
        then += self._waiting(Item(id, job.value, job.dedup), until)
        if job.dedup is not None:
            dedup = f"{self._dedup}{job.dedup}"
            when.append(Key(dedup).absent)
            then.append(Put(dedup, id.encode()))
            otherwise.append(Get(dedup))
        return id, _txn("queue_put", when, then, otherwise)

    def claim(self, entry: KeyValue, lease: int) -> tuple[Item, Txn]:
        """Take a ready job for the holder of a lease; the job as it is then, and how."""
        before = Item.of(entry)
        item = before._replace(attempts=before.attempts + 1)
        then = [Delete(entry.key), *self._waiting(item, lease)]
        return item, _txn("queue_get", [same(entry.key, entry.revision)], then)

    def guard(self, id: str, claim: int) -> Compare:
        """True as long as the claim of this revision stands."""
        return Key(f"{self.by}{id}").revision == claim

    def keep(self, id: str, claim: int, lease: int, operation: str) -> Txn:
        """Let a claim stand on another lease; it is another claim then."""
        return self._end(operation, id, claim, [Put(f"{self.by}{id}", b"", lease)])

    def ack(self, item: Item, claim: int) -> Txn:
        """A job is done."""
        then: list[Operation] = [Delete(f"{self.claimed.start}{item.id}")]
        then += [Delete(f"{self.by}{item.id}"), *self._forget(item)]
        return self._end("queue_ack", item.id, claim, then)

    def nack(self, item: Item, claim: int, until: int | None) -> Txn:
        """A job is given back: it is ready, or delayed until a lease ends, or dead."""
        item = item._replace(back=claim)
        if until is not None:
            return self._end("queue_nack", item.id, claim, self._waiting(item, until))
        then = [Delete(f"{self.by}{item.id}"), *self._again(item)]
        return self._end("queue_nack", item.id, claim, then)

    def recover(self, entry: KeyValue) -> tuple[bool, Txn]:
        """Make an orphan ready, or bury it; whether it is ready then, and how."""
        item = Item.of(entry)
        when = [same(entry.key, entry.revision), Key(f"{self.by}{item.id}").absent]
        return not self.is_last(item), _txn("queue_recover", when, self._again(item))

    def grave(self, id: object) -> str:
        """The key of a dead job. Raises `InvalidArgument` for what is no id."""
        if not isinstance(id, str):
            raise InvalidArgument(f"a job's id is text, as of DeadJob.id, not {shown(id)}")
        try:
            return check_key(f"{self.dead}{id}", self._limits.max_key)
        except InvalidKey as error:
            raise InvalidArgument(f"a job's id, as of DeadJob.id: {error.message}") from None

    def revive(self, entry: KeyValue) -> Txn:
        """Make a dead job ready, with all its attempts before it; its ``dedup`` is forgotten."""
        item = Item.of(entry)._replace(attempts=0, back=0, dedup=None)
        then = [Delete(entry.key), *self._waiting(item, None)]
        return _txn("queue_retry", [same(entry.key, entry.revision)], then)

    def is_last(self, item: Item) -> bool:
        """Whether a job's attempts are used up."""
        return self._most is not None and item.attempts >= self._most

    # -- what has become of a step whose answer was lost ------------------------------------------

    def has_acked(self, seen: Sequence[object]) -> bool:
        """Whether the job is gone, by what the `ack` has seen whose guard failed."""
        return not any(isinstance(one, KeyValue) for one in seen)

    def has_nacked(self, seen: Sequence[object], claim: int) -> bool:
        """Whether the job was given back by a claim."""
        return any(isinstance(one, KeyValue) and Item.of(one).back == claim for one in seen)

    # -- parts ------------------------------------------------------------------------------------

    def _end(self, operation: str, id: str, claim: int, then: Sequence[Operation]) -> Txn:
        look = [Get(f"{place}{id}") for place in (self.ready.start, self.claimed.start, self.dead)]
        return _txn(operation, [self.guard(id, claim)], then, look)

    def _waiting(self, item: Item, until: int | None) -> list[Operation]:
        if until is None:
            return [Put(f"{self.ready.start}{item.id}", item.dumps())]
        claimed = Put(f"{self.claimed.start}{item.id}", item.dumps())
        return [claimed, Put(f"{self.by}{item.id}", b"", until)]

    def _again(self, item: Item) -> list[Operation]:
        gone = Delete(f"{self.claimed.start}{item.id}")
        if self.is_last(item):
            return [gone, Put(f"{self.dead}{item.id}", item.dumps()), *self._forget(item)]
        return [gone, *self._waiting(item, None)]

    def _forget(self, item: Item) -> list[Operation]:
        return [] if item.dedup is None else [Delete(f"{self._dedup}{item.dedup}")]


def _txn(
    operation: str,
    when: Sequence[Compare],
    then: Sequence[Operation],
    otherwise: Sequence[Get] = (),
) -> Txn:
    return Txn(tuple(when), tuple(then), tuple(otherwise), operation)
