"""One agent: a process whose threads add, change and delete what the device has.

Whatever belongs together is locked together and committed together. So it does not matter at which
moment the process is killed: what it was about to do has happened wholly, or not at all.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import kvi
from google.protobuf.message import Message

from docs.examples.device_agent.device import POOL, TEMPLATES, Device
from docs.examples.device_agent.device_pb2 import Flow, Group, Meter, Pool, Profile

FLOWS, METERS, GROUPS, SUBSCRIBERS = 120, 8, 6, 40
"""How many of each there may be: few, so that agents meet."""

THREADS = 2
WAIT = 20.0  # seconds for an entity that another thread of the agent holds
CONVERGES_WITHIN = 20.0  # seconds

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Job:
    """What every agent is told."""

    uri: str
    namespace: str
    whole: bool = True
    """Whether what belongs together is committed together."""


def serve(job: Job, seed: int, program: Connection) -> None:
    """Be an agent until the program says ``end``; tell what was done, now and then."""
    with kvi.open(job.uri) as base, base.namespace(job.namespace) as store, Device(store) as device:
        began = time.monotonic()
        device.load()
        agent = Agent(device, seed, whole=job.whole)
        program.send(("loaded", time.monotonic() - began, len(device.profiles)))
        threads = [
            threading.Thread(target=agent.work, args=(number,), daemon=True)
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        while not program.poll(0.1):
            program.send(("did", dict(agent.done)))
            agent.refuse_failure()
        program.recv()  # "rest"
        agent.over.set()
        for thread in threads:
            thread.join()
        agent.refuse_failure()
        program.send(("rests", dict(agent.done)))
        wanted = program.recv()
        began = time.monotonic()
        while digest(device.contents()) != wanted:
            if time.monotonic() - began > CONVERGES_WITHIN:
                program.send(("strayed", None))
                return
            time.sleep(0.005)
        program.send(("agrees", time.monotonic() - began))


def digest(contents: Iterable[tuple[str, bytes]]) -> str:
    """A short text that is the same for the same contents."""
    sum_ = hashlib.sha256()
    for key, value in contents:
        sum_.update(f"{key} {len(value)} ".encode() + value)
    return sum_.hexdigest()


def changed(message: M, **members: Any) -> M:
    """A copy with other members: what a loader gives out is never modified."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name, value in members.items():
        setattr(copy, name, value)
    return copy


def one_by_one(*handles: kvi.Handle[Any]) -> None:
    """What one should not do: write what belongs together one after the other."""
    for handle in handles:
        kvi.commit(handle)


class Agent:
    """What an agent does; its threads share everything."""

    def __init__(self, device: Device, seed: int, *, whole: bool = True) -> None:
        self.done: Counter[str] = Counter()
        self.over = threading.Event()
        self._device = device
        self._seed = seed
        self._commit: Callable[..., None] = kvi.commit if whole else one_by_one
        self._failure: BaseException | None = None

    def work(self, number: int) -> None:
        """Do one thing after the other until it is over."""
        dice = random.Random(f"{self._seed} {number}")
        deeds = (
            (self.add_flow, 35),
            (self.delete_flow, 20),
            (self.move_flow, 15),
            (self.change_meter, 8),
            (self.add_meter, 6),
            (self.delete_meter, 2),
            (self.change_group, 4),
            (self.add_subscriber, 6),
            (self.delete_subscriber, 4),
        )
        choices, weights = zip(*deeds, strict=True)
        try:
            while not self.over.is_set():
                (deed,) = dice.choices(choices, weights)
                self._insist(deed, dice)
        except BaseException as error:  # noqa: BLE001  (told by the agent's first thread)
            self._failure = error

    def refuse_failure(self) -> None:
        """Raise what ended a thread."""
        if self._failure is not None:
            raise self._failure

    def _insist(self, deed: Callable[[random.Random], bool], dice: random.Random) -> None:
        """Do it, again if another agent was faster."""
        state = dice.getstate()
        while not self.over.is_set():
            try:
                self.done[deed.__name__ if deed(dice) else "nothing to do"] += 1
                return
            except kvi.Conflict:  # handles and caches are fresh by now: the same, on what is new
                self.done["conflicts"] += 1
                dice.setstate(state)
            except (kvi.Unavailable, kvi.Timeout, kvi.Contention, kvi.LockTimeout):
                self.done["failures"] += 1  # surely not done
            except kvi.NotFound:  # a flow's old meter: one loader's cache is ahead of the other's
                self.done["stale views"] += 1
                return
            except kvi.OutcomeUnknown:  # done wholly, or not at all: nothing to mend
                self.done["unknown outcomes"] += 1
                return

    # -- flows and meters: a meter's count changes with its flows ---------------------------------

    def add_flow(self, dice: random.Random) -> bool:
        """A new flow through a meter."""
        flows, meters = self._device.flows, self._device.meters
        id, meter_id = dice.randint(1, FLOWS), dice.randint(1, METERS)
        with kvi.lock_many(flows.at(id), meters.at(meter_id), timeout=WAIT) as (flow, meter):
            if flow.exists or not meter.exists:
                return False
            ports = dice.sample(range(64), 2)
            flow.stage(Flow(id=id, in_port=ports[0], vlan=id, out_port=ports[1], meter=meter_id))
            meter.stage(changed(meter.value, flows=meter.value.flows + 1))
            self._commit(flow, meter)
        return True

    def delete_flow(self, dice: random.Random) -> bool:
        """Delete a flow, and count it off its meter."""
        flows, meters = self._device.flows, self._device.meters
        id = dice.randint(1, FLOWS)
        known = flows.peek(id)
        if known is None:
            return False
        with kvi.lock_many(flows.at(id), meters.at(known.meter), timeout=WAIT) as (flow, meter):
            if not flow.exists or flow.value.meter != known.meter:
                return False
            flow.stage_delete()
            meter.stage(changed(meter.value, flows=meter.value.flows - 1))
            self._commit(flow, meter)
        return True

    def move_flow(self, dice: random.Random) -> bool:
        """Let a flow use another meter; three entities change together."""
        flows, meters = self._device.flows, self._device.meters
        id, to_id = dice.randint(1, FLOWS), dice.randint(1, METERS)
        known = flows.peek(id)
        if known is None or known.meter == to_id:
            return False
        with kvi.lock_many(
            flows.at(id), meters.at(known.meter), meters.at(to_id), timeout=WAIT
        ) as (flow, meter, to):
            if not flow.exists or flow.value.meter != known.meter or not to.exists:
                return False
            flow.stage(changed(flow.value, meter=to_id))
            meter.stage(changed(meter.value, flows=meter.value.flows - 1))
            to.stage(changed(to.value, flows=to.value.flows + 1))
            self._commit(flow, meter, to)
        return True

    def add_meter(self, dice: random.Random) -> bool:
        """A meter, if it is not there."""
        id = dice.randint(1, METERS)
        meter = Meter(id=id, rate_kbps=dice.randint(64, 10_000), burst_kb=64)
        handle, created = self._device.meters.lock_or_create(meter, WAIT)
        handle.unlock()
        return created

    def change_meter(self, dice: random.Random) -> bool:
        """Another rate; a single entity needs no commit."""
        handle = self._device.meters.lock(dice.randint(1, METERS), WAIT)
        if handle is None:
            return False
        with handle:
            handle.update(changed(handle.value, rate_kbps=dice.randint(64, 10_000)))
        return True

    def delete_meter(self, dice: random.Random) -> bool:
        """Delete a meter that no flow uses; one that is about to use it would be a conflict."""
        handle = self._device.meters.lock(dice.randint(1, METERS), WAIT)
        if handle is None:
            return False
        with handle:
            if handle.value.flows:
                return False
            handle.delete()
        return True

    def change_group(self, dice: random.Random) -> bool:
        """A group with these ports, new or not."""
        group = Group(id=dice.randint(1, GROUPS), ports=sorted(dice.sample(range(64), 4)))
        handle, created = self._device.groups.lock_or_create(group, WAIT)
        with handle:
            if not created:
                handle.update(group)
        return True

    # -- subscribers: what a profile gets, the pool has no longer ----------------------------------

    def add_subscriber(self, dice: random.Random) -> bool:
        """A profile from a template, with ports from the pool."""
        profiles, pools = self._device.profiles, self._device.pools
        id = dice.randint(1, SUBSCRIBERS)
        template = TEMPLATES[dice.choice(list(TEMPLATES))]
        with kvi.lock_many(profiles.at(id), pools.at(POOL), timeout=WAIT) as (profile, pool):
            if profile.exists:
                return False
            left = pool.value if pool.exists else Pool(id=POOL, next=1)
            need = len(template.queues)
            ports = list(left.free[:need])
            fresh = need - len(ports)
            ports += range(left.next, left.next + fresh)
            profile.stage(Profile(subscriber=id, template=template, ports=ports))
            pool.stage(Pool(id=POOL, next=left.next + fresh, free=left.free[need:]))
            self._commit(profile, pool)
        return True

    def delete_subscriber(self, dice: random.Random) -> bool:
        """Delete a profile, and give its ports back."""
        profiles, pools = self._device.profiles, self._device.pools
        id = dice.randint(1, SUBSCRIBERS)
        with kvi.lock_many(profiles.at(id), pools.at(POOL), timeout=WAIT) as (profile, pool):
            if not profile.exists:
                return False
            free = [*pool.value.free, *profile.value.ports]
            profile.stage_delete()
            pool.stage(Pool(id=POOL, next=pool.value.next, free=free))
            self._commit(profile, pool)
        return True
