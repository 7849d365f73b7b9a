"""Mistakes that one could make in what many change by turns, from the right to the wrong.

Those that others have made are in kazoo's counter (from source), and in the trackers of ShedLock
(9, 606) and redbeat (129). `planted` puts them in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvi.call import Call
from kvi.errors import LeaseLost, OutcomeUnknown
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.counter import CounterFlow, SequenceFlow
from kvi.flow.recipes.line import Line
from kvi.flow.recipes.once import OnceLine, result_key
from kvi.flow.recipes.register import Register, Seen
from kvi.flow.recipes.schedule import ScheduleFlow
from kvi.flow.scope import Scope
from kvi.model import Compare, Delete, Put, Txn
from kvi.ops import TxnOp
from kvi.policy.line import Mark, State, dumps
from kvi.policy.schedule import Decision
from kvi.port import Flow, Port


def read_and_added_again(real: Any) -> Any:
    """After a lost answer an addition reads the total, and adds again."""

    async def add(
        flow: CounterFlow, scope: Scope, call: Call, amount: int, op: tuple[str, float] | None
    ) -> int:
        while True:
            try:
                total: int = await real(flow, scope, call, amount, op)
            except OutcomeUnknown:
                continue
            return total

    return add


def beside(real: Any) -> Any:
    """The record of an addition is put after it, not with it."""

    async def change(
        register: Register,
        scope: Scope,
        call: Call,
        seen: Seen,
        said: dict[str, Any],
        *,
        when: Sequence[Compare] = (),
        also: Sequence[Put | Delete] = (),
    ) -> bool:
        done: bool = await real(register, scope, call, seen, said, when=when)
        if done and also:
            await scope.executor.execute(TxnOp(Txn((), tuple(also))), call)
        return done

    return change


def sure(real: Any) -> Any:
    """What keeps one from settling a lost answer is told as if nothing had been sent."""

    async def settled(call: Call, attempt: Callable[[bool], Flow[Any]]) -> Any:
        doubt = False
        while True:
            try:
                found = await attempt(doubt)
            except OutcomeUnknown:
                doubt = True
            else:
                if found is not None:
                    return found

    return settled


def hopeful(real: Any) -> Any:
    """A block whose taking is in doubt is given out."""

    async def fetch(flow: SequenceFlow, scope: Scope, call: Call) -> int:
        seen = await flow._register.read(scope, call)
        try:
            number: int = await real(flow, scope, call)
        except OutcomeUnknown:
            return int(seen.said.get("next", 1))
        return number

    return fetch


def overwritten(real: Any) -> Any:
    """The next block is written without looking whether it is the next still."""

    async def change(
        register: Register, scope: Scope, call: Call, seen: Seen, said: dict[str, Any], **more: Any
    ) -> bool:
        await scope.executor.execute(TxnOp(Txn((), (Put(register.key, dumps(said)),))), call)
        return True

    return change


def unguarded(real: Any) -> Any:
    """The result is recorded whoever is in turn by now."""

    async def record(line: OnceLine, flow: LockFlow, call: Call, returned: object) -> bytes:
        assert isinstance(returned, bytes)
        put = Put(result_key(line.owner.place), returned)
        await flow.scope.executor.execute(TxnOp(Txn((), (put,))), call)
        return returned

    return record


def believing(real: Any) -> Any:
    """A recording that is refused has surely not been made, though an earlier one was in doubt."""

    async def record(line: OnceLine, flow: LockFlow, call: Call, returned: object) -> bytes:
        assert isinstance(returned, bytes)
        guard = flow.guard
        put = Put(result_key(line.owner.place), returned)
        txn = Txn((guard,), (put, *line.leaving(guard.key)))
        while True:
            try:
                done = await flow.scope.executor.execute(TxnOp(txn), call)
            except OutcomeUnknown:
                continue
            if not done.succeeded:
                raise LeaseLost("its turn was over")
            return returned

    return record


def going_on(real: Any) -> Any:
    """Whoever comes second goes on too."""

    def verdict(line: OnceLine, state: State, at: int, orphans: list[Mark]) -> str | None:
        real(line, state, at, orphans)
        return None

    return verdict


def unseen(real: Any) -> Any:
    """Whoever is in turn does it, without a look at the result."""

    def verdict(line: OnceLine, state: State, at: int, orphans: list[Mark]) -> str | None:
        state.others.clear()
        found: str | None = real(line, state, at, orphans)
        return found

    return verdict


def run_in_doubt(real: Any) -> Any:
    """A claim whose answer is lost counts as made."""

    async def attempted(flow: ScheduleFlow, port: Port, mark: str) -> Any:
        seen = await flow._last.read(flow._scope, Call(port, port.now() + flow._scope.timeout))
        try:
            return await real(flow, port, mark)
        except OutcomeUnknown:
            if not seen.revision or flow._again:
                raise
            return flow._after(float(seen.said["time"])), None

    return attempted


def not_asked_again(real: Any) -> Any:
    """Whoever comes to be in turn runs what was due when it came."""

    async def turn(flow: ScheduleFlow, port: Port, decision: Decision) -> Any:
        found = await real(flow, port, decision)
        return found if isinstance(found, float) else (decision.time, found[1])

    return turn


def anew(real: Any) -> Any:
    """Each contender sees what a lost one has left for the first time."""

    async def noticed(line: Line, scope: Scope, call: Call, state: State) -> list[Mark]:
        found: list[Mark] = await real(line, scope, call, state)
        scope.ledger.orphans.clear()
        return found

    return noticed


def rounded(real: Any) -> Any:
    """The time after one is the next multiple, as floats have it."""

    def times_of(when: Any) -> Any:
        return (lambda moment: (moment // when + 1) * when), when

    return times_of
