"""Recipes: what people come to a coordination store for, right on every store.

::

    from kvi.recipes import Election, Semaphore

    with kvi.open("etcd://127.0.0.1:2379") as store, Semaphore(store, "reports", 5):
        ...

`kvi.aio.recipes` has their twins for asyncio.
"""

from kvi.recipes.barrier import Barrier
from kvi.recipes.cache import Cache, CacheChange
from kvi.recipes.counter import Counter, Sequence
from kvi.recipes.election import Election, Leader
from kvi.recipes.group import Group, Member, MemberEvent, MemberEventType, MemberInfo
from kvi.recipes.once import Once
from kvi.recipes.queue import DeadJob, Job, Queue
from kvi.recipes.rwlock import ReadLock, RWLock, WriteLock
from kvi.recipes.schedule import Schedule
from kvi.recipes.semaphore import Semaphore
from kvi.recipes.slots import Slot, Slots

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
