"""The counter and the sequence: numbers that many processes share.

*Counter.* One register (`kvi.flow.recipes.register`) with the total. An addition that has a name
(``op``) leaves a record of it, put by the very transaction that changes the total: whoever sends it
again finds the record, and adds nothing. If the answer is lost, the addition looks again: the
record tells whether it applied; if it has not, the next try is for the total as it was, so that of
both at most one can apply. Whatever keeps it from looking, the fate stays unknown. Records are kept
by leases that nobody renews, shared by the additions of a while: each has at least ``keep`` seconds
left when a record is put under it, by the store's clock, whoever closes what.

*Sequence.* One register with the next number. A caller takes a block of numbers, and gives them
out. A block whose taking is in doubt is never used: the next one begins behind it, or is the same
if it was not taken.

====================  =============================================================================
key                   what it is
====================  =============================================================================
``.kvi/total``        the counter's register
``.kvi.op/OP``        an addition that was counted: how much, and the total after it
``.kvi/next``         the sequence's register
====================  =============================================================================
"""

from __future__ import annotations

from kvi.call import Call
from kvi.capabilities import Capabilities
from kvi.errors import InvalidArgument, LeaseLost, OutcomeUnknown, is_whole, shown
from kvi.flow.recipes.job import lasting
from kvi.flow.recipes.register import Register, settled
from kvi.flow.recipes.state import Owner
from kvi.flow.scope import Scope
from kvi.model import Key, KeyValue, Put
from kvi.mutex import Mutex
from kvi.policy.lease import check_ttl
from kvi.policy.line import check_recipe, dumps, record
from kvi.text import check_key

_SHARE = 1.25  # of ``keep``: how long the lease of a record lives, so that others may share it


def check_amount(amount: object) -> int:
    """Return a whole number. Raises `InvalidArgument`."""
    if not is_whole(amount) or abs(amount) >= 2**63:
        raise InvalidArgument(f"n= is a whole number, not {shown(amount)}")
    return amount


class CounterFlow:
    """One counter. Safe for threads."""

    def __init__(self, scope: Scope, name: str) -> None:
        self.owner = Owner("counter", check_recipe(name, scope.capabilities), {})
        place = self.owner.place
        self._register = Register(f"{place.root}total", "counter_add", total=int)
        self._records = place.aside("op")
        self._leases: dict[float, tuple[int, float]] = {}  # by ``keep``: the lease, and until when

    def check_op(self, op: object, keep: object, limits: Capabilities) -> tuple[str, float]:
        """The name of an addition, and how long it is known, in seconds."""
        longest = None if limits.max_key is None else limits.max_key - len(self._records.encode())
        return check_key(op, longest), check_ttl(keep, limits)

    async def value(self, scope: Scope, call: Call) -> int:
        """The total."""
        await self.owner.ensure(scope, call, looks=True)
        return int((await self._register.read(scope, call)).said.get("total", 0))

    async def add(self, scope: Scope, call: Call, amount: int, op: tuple[str, float] | None) -> int:
        """Add; the total after it."""
        await self.owner.ensure(scope, call)
        if op is None:
            while True:
                seen = await self._register.read(scope, call)
                total = int(seen.said.get("total", 0)) + amount
                if await self._register.change(scope, call, seen, {"total": total}):
                    return total
        name, keep = op
        key = f"{self._records}{name}"

        async def attempt(_: bool) -> int | None:
            seen = await self._register.read(scope, call, key)
            counted = seen.others[0]
            if counted is not None:
                return self._counted(counted, name, amount)
            total = int(seen.said.get("total", 0)) + amount
            said = dumps({"n": amount, "total": total})
            lease = await self._lease(scope, call, keep)
            when, also = [Key(key).absent], [Put(key, said, lease)]
            try:
                done = await self._register.change(
                    scope, call, seen, {"total": total}, when=when, also=also
                )
            except LeaseLost:
                self._leases.pop(keep, None)
                return None
            return total if done else None

        return await settled(call, attempt)

    def _counted(self, counted: KeyValue, name: str, amount: int) -> int:
        said = record(counted, n=int, total=int)
        if said["n"] != amount:
            raise InvalidArgument(
                f"the addition {name!r} was counted with n={said['n']}, not {amount}; "
                "give each addition an op= of its own"
            )
        return int(said["total"])

    async def _lease(self, scope: Scope, call: Call, keep: float) -> int:
        lease, until = self._leases.get(keep, (0, 0.0))
        now = call.port.now()
        if until < now + keep:
            longest = scope.capabilities.lease_max_ttl
            wanted = keep * _SHARE if longest is None else min(keep * _SHARE, longest)
            granted = await lasting(scope, call, wanted)
            lease = granted.id
            for old in [one for one, (_, end) in list(self._leases.items()) if end < now]:
                self._leases.pop(old, None)
            self._leases[keep] = lease, granted.term.deadline
        return lease


class SequenceFlow:
    """One sequence, and the block of it that is given out. Safe for threads."""

    def __init__(self, scope: Scope, name: str, block: int) -> None:
        self.owner = Owner("sequence", check_recipe(name, scope.capabilities), {})
        self._register = Register(f"{self.owner.place.root}next", "sequence_next", next=int)
        self._size = block
        self._lock = Mutex()  # guards the two
        self._next = self._end = 0

    def take(self) -> int | None:
        """The next number of the block; ``None`` if it is used up."""
        with self._lock:
            if self._next >= self._end:
                return None
            self._next += 1
            return self._next - 1

    async def fetch(self, scope: Scope, call: Call) -> int:
        """Take another block; its first number. The rest is for `take`."""
        await self.owner.ensure(scope, call)
        while True:
            seen = await self._register.read(scope, call)
            first = int(seen.said.get("next", 1))
            try:
                done = await self._register.change(scope, call, seen, {"next": first + self._size})
            except OutcomeUnknown:
                if call.port.now() >= call.deadline:
                    raise
                continue  # if it was taken, nobody gets it
            if done:
                break
        with self._lock:
            if first + 1 > self._next:  # else a later block is there: numbers only grow
                self._next, self._end = first + 1, first + self._size
        return first
