"""`Counter` and `Sequence`: numbers that are shared; see `kvi.flow.recipes.counter`."""

from __future__ import annotations

from kvi.errors import KviError
from kvi.flow.recipes.counter import CounterFlow, SequenceFlow, check_amount
from kvi.flow.recipes.state import Named
from kvi.policy.line import check_count
from kvi.recipes.recipe import ask
from kvi.sync.face import Face


class Counter(Named):
    """A total that many processes add to; it begins at 0.

    ``name`` is relative to the store, which may be a view or a `kvi.Backend`. Safe for threads.

    Raises `InvalidKey` for a bad name; using it raises `InvalidArgument` if the name is another
    recipe's.
    """

    def __init__(self, store: Face, name: str) -> None:
        self._store = store
        try:
            self._flow = CounterFlow(store._scope, name)
        except KviError as error:
            raise store._placed(error, "counter", name)
        super().__init__(self._flow.owner, store.uri)

    def value(self, *, timeout: float | None = None) -> int:
        """The total. Linearizable."""
        return ask(self._store, self.name, "value", timeout, self._flow.value)

    def add(
        self, n: int = 1, *, op: str | None = None, keep: float = 3600, timeout: float | None = None
    ) -> int:
        """Add ``n``, which may be negative; returns the total after it.

        With ``op``, a name of the caller's for this very addition, it is counted exactly once,
        however often it is sent, by whichever process; sent again, it returns what it returned
        then. It is known by that name for at least ``keep`` seconds, within the bounds of the
        store's leases (``capabilities.lease_max_ttl``), also after `Kvi.close`. Where a store may
        end leases early (``capabilities.lock_delay_factor``), it may be forgotten earlier.

        Raises `InvalidArgument` for an ``op`` that was counted with another ``n``, and for values
        out of range. Without ``op``, a lost answer is `OutcomeUnknown`, as of any write; with it
        only if the time is up before that is settled.
        """
        flow, store = self._flow, self._store
        try:
            amount = check_amount(n)
            named = None if op is None else flow.check_op(op, keep, store.capabilities)
        except KviError as error:
            raise store._placed(error, "add", self.name)
        return ask(store, self.name, "add", timeout, flow.add, amount, named)


class Sequence(Named):
    """Unique numbers, from 1: never given out twice, and growing for each caller.

    Gaps are allowed: numbers that were taken and not used are lost. ``block`` is how many are taken
    from the store at once; larger ones save calls, and make larger gaps. Each object has its own.
    ``name`` is relative to the store, which may be a view or a `kvi.Backend`. Safe for threads.

    Raises `InvalidKey` for a bad name, `InvalidArgument` for a block that is no whole number from
    1; using it raises `InvalidArgument` if the name is another recipe's.
    """

    def __init__(self, store: Face, name: str, *, block: int = 1) -> None:
        self._store = store
        try:
            self._flow = SequenceFlow(store._scope, name, check_count("block", block))
        except KviError as error:
            raise store._placed(error, "sequence", name)
        super().__init__(self._flow.owner, store.uri)

    def next(self, *, timeout: float | None = None) -> int:
        """The next number."""
        number = None if self._store.closed else self._flow.take()
        if number is None:
            number = ask(self._store, self.name, "next", timeout, self._flow.fetch)
        return number
