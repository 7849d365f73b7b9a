"""`Counter` and `Sequence`: numbers that are shared; see `kvi.flow.recipes.counter`."""

from __future__ import annotations

from kvi.aio.face import AsyncFace
from kvi.aio.recipes.recipe import ask
from kvi.errors import KviError
from kvi.flow.recipes.counter import CounterFlow, SequenceFlow, check_amount
from kvi.flow.recipes.state import Named
from kvi.policy.line import check_count


class Counter(Named):
    """A total that many processes add to; as `kvi.recipes.Counter`."""

    def __init__(self, store: AsyncFace, name: str) -> None:
        self._store = store
        try:
            self._flow = CounterFlow(store._scope, name)
        except KviError as error:
            raise store._placed(error, "counter", name)
        super().__init__(self._flow.owner, store.uri)

    async def value(self, *, timeout: float | None = None) -> int:
        """The total. Linearizable."""
        return await ask(self._store, self.name, "value", timeout, self._flow.value)

    async def add(
        self, n: int = 1, *, op: str | None = None, keep: float = 3600, timeout: float | None = None
    ) -> int:
        """Add ``n``; returns the total after it. See `kvi.recipes.Counter.add`."""
        flow, store = self._flow, self._store
        try:
            amount = check_amount(n)
            named = None if op is None else flow.check_op(op, keep, store.capabilities)
        except KviError as error:
            raise store._placed(error, "add", self.name)
        return await ask(store, self.name, "add", timeout, flow.add, amount, named)


class Sequence(Named):
    """Unique numbers, from 1, growing for each caller; as `kvi.recipes.Sequence`."""

    def __init__(self, store: AsyncFace, name: str, *, block: int = 1) -> None:
        self._store = store
        try:
            self._flow = SequenceFlow(store._scope, name, check_count("block", block))
        except KviError as error:
            raise store._placed(error, "sequence", name)
        super().__init__(self._flow.owner, store.uri)

    async def next(self, *, timeout: float | None = None) -> int:
        """The next number."""
        try:
            self._store._enter()
        except KviError as error:
            raise self._store._placed(error, "next", self.name)
        number = self._flow.take()
        if number is None:
            number = await ask(self._store, self.name, "next", timeout, self._flow.fetch)
        return number
