"""Barriers: parties that come, wait for each other, lose patience, die, and come again.

*At the store*: those that wait change by one who comes, or who leaves; all of them pass in one
change, as many as there are parties, in the order in which they came; they are broken only if one
of them is gone. *To the parties*: who goes on has passed, and is told its place; who is told that
the barrier is broken has not passed; who is told that its time is up waits no more, and has neither
passed nor is it broken for others. If nothing goes wrong nobody is told of a broken one. *In the
calm*: whoever has passed, or was broken, is told soon; and nothing of the parties stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvi.errors import BrokenBarrier, Closed, KviError, LockTimeout
from kvi.flow.recipes.barrier import LEAVE, WAIT, BarrierFlow, _Party
from kvi.policy.line import Place, loads
from kvi.policy.txn import Change
from kvi.port import Cancelled, Port

from tests.simulation.client import Client
from tests.simulation.network import Weather
from tests.simulation.scenarios.registers import Sharing
from tests.simulation.world import World

_PLACE = Place("b")


@dataclass(slots=True, eq=False)
class Visit:
    """One call of a party.

    Attributes:
        client: whose it is.
        lease: what the store knows the party by; 0 before it has one.
        fate: what became of it, as the store has it: ``passed``, ``broken``, ``lost``, ``left``.
        order: with which it has passed.
        passes: how often all had passed, when its fate was decided.
        since: when it was decided.

    """

    client: Client = field(repr=False)
    lease: int = 0
    fate: str = ""
    order: int = -1
    passes: int = 0
    since: float = 0.0


class _Flow(BarrierFlow):
    """A barrier whose parties say which lease they have."""

    visit: Visit
    visits: dict[str, Visit]

    async def _through(self, port: Port, party: _Party, deadline: float) -> int:
        self.visit.lease = party.lease.id
        self.visits[f"{party.lease.id:x}"] = self.visit
        return await super()._through(port, party, deadline)


class Meetings(Sharing):
    """A barrier, at whose two gates parties meet."""

    def __init__(self, world: World) -> None:
        random = world.random
        self.fine = random.random() < 0.2  # nothing goes wrong
        self.most = 0 if self.fine else 3
        super().__init__(world, early=True)
        if self.fine:
            self.network.weather = Weather()
            world.stall = 0.0
        self.parties = random.randint(1, 3)
        self.gates = random.choice(((WAIT,), (WAIT, LEAVE)))
        self.visits: dict[str, Visit] = {}
        self.open: list[Visit] = []
        self.passes = 0
        self.gone: dict[str, float] = {}  # since when parties are
        self.helping = False
        self.soon = self.timeout + 1.5  # seconds within which who has an outcome is told

    # -- the parties ------------------------------------------------------------------------------

    async def _work(self, client: Client) -> None:
        random = self.world.random
        for _ in range(random.randint(1, 2)):
            for gate in self.gates:
                await client.port.sleep(random.random() * random.choice((0.0, 0.5, 2.0)))
                wait = random.choice((None, None, 0.0, 3.0 * random.random()))
                if not await self._meet(client, gate, wait):
                    return

    async def _meet(self, client: Client, gate: str, wait: float | None) -> bool:
        """Come once; whether it can come again."""
        flow = _Flow(client.scope, "b", self.parties, self.ttl)
        visit = flow.visit = Visit(client)
        flow.visits = self.visits
        self._tell(client, f"comes to {gate}, for {wait}")
        self.open.append(visit)
        try:
            order = await client.call(lambda port: flow.meet(port, gate, wait))
        except (Closed, Cancelled):
            return False
        except KviError as error:
            self._tell(client, f"lease {visit.lease} does not go on: {error!r}")
            self._refused(visit, error)
        else:
            self._tell(client, f"lease {visit.lease} GOES ON as {order}")
            if (visit.fate, visit.order) != ("passed", order):
                self.world.fail(f"it goes on as {order}, and not all have come: {visit}")
        finally:
            self.open.remove(visit)
        return True

    def _refused(self, visit: Visit, error: KviError) -> None:
        if self.fine and not isinstance(error, LockTimeout):
            self.world.fail(f"all was well, and it does not go on: {error!r}")
        if isinstance(error, BrokenBarrier) and visit.fate == "passed":
            # Of those that are gone the outcome is kept until the next have passed.
            gone = _PLACE.contender(visit.lease) not in self.model.entries
            if not gone or self.passes == visit.passes:
                self.world.fail(f"the others went on, and it is told of a broken one: {visit}")
        if isinstance(error, BrokenBarrier) and visit.fate == "left":
            self.world.fail(f"it has left, and is told of a broken one: {visit}")
        if isinstance(error, LockTimeout) and visit.fate not in ("left", "lost"):
            self.world.fail(f"its time is up, and it counts: {visit}")

    def _ease(self) -> None:
        helper = self._client("helper")
        for gate in self.gates:
            for number in range(self.parties - 1):
                helper.program(f"{gate} {number}", self._help(helper, gate))

    async def _help(self, client: Client, gate: str) -> None:
        """Once who should be told has been told: come for those that wait without end."""
        await client.port.sleep(self.soon)
        if not self.helping:
            self.helping = True
            for visit in self.open:
                gone = visit.client.dead or visit.client.scope.closed
                if visit.fate and not gone and self.world.time - visit.since >= self.soon:
                    self.world.fail(f"it still waits: {visit}")
                beside = self._waiting_beside(visit)
                if not gone and any(self._is_gone(one) for one in beside):
                    self.world.fail(f"one of {beside} is gone, and nobody is told")
        while not self._quiet():
            await self._meet(client, gate, 2.0 + self.world.random.random())

    def _waiting_beside(self, visit: Visit) -> list[str]:
        """Those that wait at the same gate, if it waits."""
        waiting = [list(self._said(gate).get("waiting", ())) for gate in self.gates]
        return next((ones for ones in waiting if f"{visit.lease:x}" in ones), [])

    def _is_gone(self, one: str) -> bool:
        """Whether it is gone for so long that all know."""
        since = self.gone.get(one)
        return since is not None and self.world.time - since >= self.soon

    async def _probe(self, client: Client) -> None:
        """Nothing of the parties stays, but for the outcomes of the last that have passed."""
        await client.port.sleep(self.ttl + 2.0)
        left = set(self.model.entries) - {_PLACE.settings, *map(_key, (WAIT, LEAVE))}
        if left:
            self.world.fail(f"parties have left {sorted(left)}")
        for gate in self.gates:
            said = self._said(gate)
            waiting, outcomes = list(said.get("waiting", ())), dict(said.get("outcomes", {}))
            if len(waiting) >= self.parties or len(outcomes) > 2 * self.parties:
                self.world.fail(f"at {gate} there is more than is in use: {said}")

    # -- the store --------------------------------------------------------------------------------

    def _said(self, gate: str) -> dict[str, Any]:
        entry = self.model.entries.get(_key(gate))
        return loads(None if entry is None else entry.value)

    def _witness(self, revision: int, changes: tuple[Change, ...]) -> None:
        for _, old, new in changes:
            if old is not None and old.lease is not None and new is None:
                self.gone[f"{old.lease:x}"] = self.world.time
        for key, old, new in changes:
            if key in (_key(WAIT), _key(LEAVE)) and new is not None:
                self._changed(loads(None if old is None else old.value), loads(new.value))

    def _changed(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        before, now = list(old.get("waiting", ())), list(new.get("waiting", ()))
        known, outcomes = dict(old.get("outcomes", {})), dict(new.get("outcomes", {}))
        passed = {one: n for one, n in outcomes.items() if n >= 0 and one not in known}
        stayed = [one for one in before if one in now]
        came = [one for one in now if one not in before]
        if now != stayed + came or len(came) > 1 or len(now) >= self.parties > 1:
            self.world.fail(f"those that wait were {before}, and are {now}")
        if passed:
            self._passed(before, now, passed)
            return
        gone = [one for one in before if one not in now]
        broken = [one for one in gone if outcomes.get(one) is not None]
        lost = [one for one in before if not self._stands(one)]
        if (broken or len(gone) > 1) and not lost:
            self.world.fail(f"it is broken, and nobody of {before} is gone")
        if len(gone) > 1 and (untold := set(gone) - set(broken) - set(lost)):
            self.world.fail(f"it is broken, and {untold} are not told")
        for one in gone:
            left = len(gone) == 1 and now and not broken
            self._decide(one, "broken" if one in broken else "left" if left else "lost")

    def _passed(self, before: list[str], now: list[str], passed: dict[str, int]) -> None:
        order = sorted(passed, key=lambda one: passed[one])
        if now or len(passed) != self.parties or order[:-1] != before:
            self.world.fail(f"{before} waited, and {passed} have passed")
        if self.helping and (lost := [one for one in order if self._is_gone(one)]):
            self.world.fail(f"all have passed, and {lost} were gone")
        self.passes += 1
        for one, number in passed.items():
            self.visits[one].order = number
            self._decide(one, "passed")

    def _decide(self, one: str, fate: str) -> None:
        visit = self.visits[one]
        visit.fate, visit.passes, visit.since = fate, self.passes, self.world.time

    def _stands(self, one: str) -> bool:
        return _PLACE.contender(int(one, 16)) in self.model.entries


def _key(gate: str) -> str:
    return f"{_PLACE.root}{gate}"


def barrier(world: World) -> None:
    """Two or three processes meet at a barrier."""
    Meetings(world).run()
