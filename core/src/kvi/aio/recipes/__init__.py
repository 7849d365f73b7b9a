"""Recipes for asyncio: the twins of `kvi.recipes`; whatever talks to the store is awaited."""

from kvi.aio.recipes.barrier import Barrier
from kvi.aio.recipes.cache import Cache, CacheChange
from kvi.aio.recipes.counter import Counter, Sequence
from kvi.aio.recipes.election import Election, Leader
from kvi.aio.recipes.group import Group, Member, MemberEvent, MemberEventType, MemberInfo
from kvi.aio.recipes.once import Once
from kvi.aio.recipes.queue import DeadJob, Job, Queue
from kvi.aio.recipes.rwlock import ReadLock, RWLock, WriteLock
from kvi.aio.recipes.schedule import Schedule
from kvi.aio.recipes.semaphore import Semaphore
from kvi.aio.recipes.slots import Slot, Slots

__all__ = [
    "Barrier",
    "Cache",
    "CacheChange",
    "Counter",
    "DeadJob",
    "Election",
    "Group",
    "Job",
    "Leader",
    "Member",
    "MemberEvent",
    "MemberEventType",
    "MemberInfo",
    "Once",
    "Queue",
    "RWLock",
    "ReadLock",
    "Schedule",
    "Semaphore",
    "Sequence",
    "Slot",
    "Slots",
    "WriteLock",
]
