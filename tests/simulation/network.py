"""The network: each operation is a message to the model and an answer, and both may go astray.

===========  ==============================  =================================================
fate         what becomes of the message     what the caller is told
===========  ==============================  =================================================
fine         delivered                       the answer
refused      is not sent                     `Unavailable`, surely not applied
lost         is lost                         its time is up: "unknown" for what may change
late         delivered after a while, often  the answer, or its time is up before
             after the caller gave up
reset        delivered, soon or late         the connection broke: "unknown" at once
unanswered   delivered                       its time is up
repeated     delivered twice                 the first answer
===========  ==============================  =================================================

A transport may repeat reads, renewals, grants and revocations. It may not repeat a claim: the
second could come after all is over, and the lock would not know of any doubt.

"Unknown" is `OutcomeUnknown` for what may change the store, else `Unavailable` or `Timeout`, as
`kvi.primitives` has it. A claim in a queue is two messages, as in `Primitives._lock_claim`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvi.errors import KviError, OutcomeUnknown, Timeout, Unavailable
from kvi.model import Claim, Get, Key, KeyValue, Put, Scan, Txn
from kvi.ops import ClaimOp, Op, PageOp, PollOp, RenewOp, TxnOp, WatchOp
from kvi.policy.lock import CLAIM, place, queue_key, queue_span
from kvi.policy.retry import Effect

from tests.simulation.model import Model
from tests.simulation.store import SimStore
from tests.simulation.world import World, suspend

SHORT, MIDDLE, LONG = 0.01, 1.5, 25.0  # seconds that a message is under way


@dataclass(slots=True)
class Weather:
    """How likely each fate is; what is left is fine."""

    refused: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    reset: float = 0.0
    unanswered: float = 0.0
    repeated: float = 0.0


class Network:
    """Between all processes and the model.

    Attributes:
        weather: of the messages.
        frozen: the server stands still; what reaches it waits.
        cut: the names of processes whose messages are all lost.
        traps: processes, by name, that are paused for so long once they have sent something.

    """

    def __init__(self, world: World, model: Model) -> None:
        self.world = world
        self.model = model
        self.weather = Weather()
        self.frozen = False
        self.cut: set[str] = set()
        self.traps: dict[str, float] = {}
        self._waiting: list[Callable[[], object]] = []
        self._late: dict[int, Callable[[], object]] = {}
        self._number = 0

    def calm(self) -> None:
        """From now on everything gets through; what is late comes soon."""
        self.weather = Weather()
        self.cut.clear()
        self.traps.clear()
        self.thaw()
        for number in self._late:
            due = self.world.time + self.world.random.random()
            self.world.at(due, None, partial(self._come, number))

    def thaw(self) -> None:
        """The server goes on with what waits, in any order."""
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        for deliver in waiting:
            self.world.soon(None, deliver)

    async def ask(self, op: Op[Any], store: SimStore, timeout: float) -> Any:
        """Do an operation for a process."""
        kind = type(op)
        if kind is ClaimOp and store.capabilities.lock_fair:
            return await self._claim(op, store, timeout)  # type: ignore[arg-type]
        if kind is PageOp:  # there is one page, and it came with the range
            return op.run(store, timeout)
        if kind is PollOp or kind is WatchOp:
            return await self._poll(op, store, timeout)
        effect = op.effect
        changes = effect not in (Effect.READ, Effect.ASKING) and kind is not RenewOp
        # A claim that comes again after it was given back is nothing that TCP does.
        twice = effect is Effect.READ or (
            effect is Effect.REPEATABLE and kind not in (ClaimOp, TxnOp)
        )
        what = op.name if self.world.story is None else f"{op.name} {_about(op)}"
        return await self._send(store, what, partial(op.run, store), timeout, changes, twice)

    async def _claim(self, op: ClaimOp, store: SimStore, timeout: float) -> Claim:
        world, name, lease = self.world, op.key, op.lease
        deadline = world.time + timeout
        key = queue_key(name, lease)
        mine = Txn((Key(key).absent,), (Put(key, CLAIM, lease),), (Get(key),))
        what = f"lock_claim {name} lease {lease}"
        done = await self._send(store, what, partial(store._txn, mine), timeout, True, False)
        created = done.revision
        if not done.succeeded:
            (found,) = done.results
            assert isinstance(found, KeyValue)  # it is not absent
            created = found.create_revision
        left = deadline - world.time
        if left <= 0:
            raise Timeout("the time was up before the queue of the lock was read")
        scan = Scan(queue_span(name), keys_only=True)
        what = f"list queue {name}"
        listing = await self._send(store, what, partial(store._range, scan), left, False, True)
        assert listing.revision is not None  # the model has snapshots
        return place(name, lease, created, listing, listing.revision)

    async def _poll(self, op: Op[Any], store: SimStore, timeout: float) -> Any:
        """What feeds do runs at one moment, after a while; their store is `online` or not."""
        world, draw = self.world, self.world.random.random
        task = world.current
        assert task is not None  # a flow asks
        failure: list[KviError] = []
        x, weather = draw(), self.weather
        delay = draw() * SHORT
        if x < weather.refused or self.model.down or store.closed:
            failure.append(Unavailable("the connection is refused"))
        elif x < weather.refused + weather.lost or store.process.name in self.cut or self.frozen:
            failure.append(Timeout("no answer in time"))
            delay = timeout
        elif x > 1.0 - weather.late:
            delay = draw() * MIDDLE
        world.at(world.time + delay, task.process, partial(task.resume, task.wait))
        await suspend()
        if failure:
            raise failure[0]
        found = op.run(store, timeout)
        if isinstance(op, PollOp):  # a feed that begins is there at once, to be closed
            world.at(world.time + draw() * SHORT, task.process, partial(task.resume, task.wait))
            await suspend()
        return found

    async def _send(
        self,
        store: SimStore,
        what: str,
        work: Callable[[float], Any],
        timeout: float,
        changes: bool,
        twice: bool,
    ) -> Any:
        world, draw, weather = self.world, self.world.random.random, self.weather
        task = world.current
        assert task is not None  # a flow asks
        wait, process, now = task.wait, task.process, world.time
        if store.closed:
            raise Unavailable("the store is closed")
        x = draw()
        go, back = draw() * SHORT, draw() * SHORT
        fate = "fine"
        reply = partial(task.resume, wait)
        deliver = partial(self._arrive, store, what, work, timeout, reply, back)
        if process.name in self.cut:
            fate = "lost"
        elif (x := x - weather.refused) < 0:
            fate = "refused"
            reply(None, Unavailable("the connection is refused"))
        elif (x := x - weather.lost) < 0:
            fate = "lost"
        elif (x := x - weather.late) < 0:
            fate = "late"
            go = draw() * (MIDDLE if draw() < 0.5 else LONG)
        elif (x := x - weather.reset) < 0:
            fate = "reset"
            go = draw() * (SHORT, MIDDLE, LONG)[int(draw() * 3)]
            broken: KviError = (OutcomeUnknown if changes else Unavailable)("the connection broke")
            world.at(now + back, process, partial(reply, None, broken))
            deliver = partial(self._arrive, store, what, work, timeout, None, back)
        elif (x := x - weather.unanswered) < 0:
            fate = "unanswered"
            deliver = partial(self._arrive, store, what, work, timeout, None, back)
        elif twice and (x := x - weather.repeated) < 0:
            fate = "repeated"
            again = partial(self._arrive, store, what, work, timeout, None, back)
            self._send_at(now + draw() * MIDDLE, again)
        if world.story is not None:
            world.tell(process.name, f"asks {what}" + ("" if fate == "fine" else f": {fate}"))
        if fate not in ("lost", "refused"):
            if go > SHORT:
                self._send_at(now + go, deliver)
            else:
                world.at(now + go, None, deliver)
        if fate != "refused":
            world.at(now + timeout, process, partial(self._give_up, reply, changes))
        if self.traps and (seconds := self.traps.pop(process.name, None)) is not None:
            process.pause(seconds)
        return await suspend()

    def _send_at(self, due: float, deliver: Callable[[], object]) -> None:
        self._number += 1
        self._late[self._number] = deliver
        self.world.at(due, None, partial(self._come, self._number))

    def _come(self, number: int) -> None:
        deliver = self._late.pop(number, None)
        if deliver is not None:
            deliver()

    def _give_up(self, reply: Callable[..., object], changes: bool) -> None:
        if changes:
            reply(None, OutcomeUnknown("no answer in time"))
        else:
            reply(None, Timeout("no answer in time"))

    def _arrive(
        self,
        store: SimStore,
        what: str,
        work: Callable[[float], Any],
        timeout: float,
        reply: Callable[..., object] | None,
        back: float,
    ) -> None:
        world = self.world
        if self.frozen:
            again = partial(self._arrive, store, what, work, timeout, reply, back)
            self._waiting.append(again)
            return
        value, error = None, None
        if self.model.down:
            error: KviError | None = Unavailable("the server is down")  # type: ignore[no-redef]
        else:
            try:
                value = work(timeout)
            except KviError as failure:
                error = failure
        if world.story is not None:
            world.tell("store", f"{store.process.name}'s {what}: {_shown(value, error)}")
        if reply is not None:
            world.at(world.time + back, store.process, partial(reply, value, error))


def _about(op: Op[Any]) -> str:
    about = [op.key] if op.key else []
    lease = getattr(op, "lease", None)
    if lease is not None:
        about.append(f"lease {lease}")
    return " ".join(about)


def _shown(value: object, error: KviError | None) -> str:
    if error is not None:
        return f"{type(error).__name__}: {error.message}"
    return str(value)
