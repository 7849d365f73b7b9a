"""`Schedule`: each time runs once among all processes; see `kvi.flow.recipes.schedule`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from kvi.call import Call
from kvi.errors import KviError
from kvi.flow.lock import LockFlow
from kvi.flow.recipes.schedule import ScheduleFlow
from kvi.flow.recipes.state import Named
from kvi.log import log
from kvi.policy.schedule import Missed
from kvi.recipes.recipe import ask
from kvi.sync.face import Face


class Schedule(Named):
    """Something that runs at its times, each time once among all processes.

    ``when`` is a number of seconds (its multiples since the epoch) or a cron line in UTC, such as
    ``"30 4 * * *"`` (extra ``kvi-core[cron]``). ``missed`` says what becomes of times that came
    while no process ran: ``"last"``: the latest runs; ``"all"``: each; ``"skip"``: none that is
    more than ``ttl`` late. A time is claimed before it runs, so who crashes then has it not run;
    with ``at_least_once`` it is recorded afterwards, so who crashes has it run again, by another,
    once ``ttl`` (seconds) has passed. Clocks of machines may differ: a fast one runs things early,
    and nothing runs twice.

    All three settings are stored by the first who uses the name, and must be the same for all.
    ``name`` is relative to the store, which may be a view or a `kvi.Backend`. Safe for threads; run
    one object in one of them.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for other bad values, `NotSupported` for a
    cron line without its library; using it raises `InvalidArgument` if the name is another
    recipe's, or has other settings.
    """

    def __init__(
        self,
        store: Face,
        name: str,
        when: float | str,
        *,
        missed: Missed = "last",
        at_least_once: bool = False,
        ttl: float = 10,
    ) -> None:
        self._store = store
        try:
            self._flow = ScheduleFlow(store._scope, name, when, missed, at_least_once, ttl)
        except KviError as error:
            raise store._placed(error, "schedule", name)
        super().__init__(self._flow.owner, store.uri)

    def run(self, fn: Callable[[datetime], object]) -> None:
        """Call ``fn(time)`` for each time that is this process's, until `close`.

        ``time`` is in UTC. What ``fn`` raises is logged, and the time counts as run. Nothing is
        missed before the first run of any process. A store that cannot be reached is waited for.

        Raises `Closed` when the handle is closed, and what a call to the store raises that does
        not pass.
        """
        store, flow = self._store, self._flow
        while not flow.closed:
            try:
                store._ensure_open()
                found = store._drive(flow.next, undo=_give_up, away=True)
            except KviError as error:
                raise store._placed(error, "run", self.name)
            if found is None:
                return
            time, lock = found
            try:
                self._call(fn, time)
                if lock is not None:
                    self._record(time, lock)
            finally:
                if lock is not None:
                    store._runtime.post(lock.let_go)

    def close(self) -> None:
        """Let `run` come to its end, once what runs now has. Again, it does nothing."""
        self._flow.close()

    def last(self, *, timeout: float | None = None) -> datetime | None:
        """The last time that was run; ``None`` before the first."""
        found = ask(self._store, self.name, "last", timeout, self._flow.last)
        return None if found is None else datetime.fromtimestamp(found, UTC)

    def next_time(self, *, timeout: float | None = None) -> datetime:
        """The time that comes next; one in the past is due, and waits for a process."""
        found = ask(self._store, self.name, "next_time", timeout, self._flow.upcoming)
        return datetime.fromtimestamp(found, UTC)

    def _call(self, fn: Callable[[datetime], object], time: float) -> None:
        try:
            fn(datetime.fromtimestamp(time, UTC))
        except Exception:  # noqa: BLE001  (whatever the program's function raises)
            log().exception("a run of the schedule %r failed", self.name)

    def _record(self, time: float, lock: LockFlow) -> None:
        async def record(_: object, call: Call) -> None:
            await self._flow.record(call, time, lock)

        try:
            ask(self._store, self.name, "run", None, record)
        except KviError as error:
            self._store._ensure_open()
            log().warning("a run of the schedule %r was not recorded: %s", self.name, error)


def _give_up(found: tuple[float, LockFlow | None] | None) -> None:
    """Nobody is there to run it: let another do so, where that can be."""
    if found is not None and found[1] is not None:
        found[1].let_go()
