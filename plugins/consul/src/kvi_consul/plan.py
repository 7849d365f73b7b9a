"""Transactions planned for Consul, which cannot compare values. Pure; no I/O, clock or threads.

*Theory.* Consul applies up to 64 operations atomically, and refuses all of them if one fails. An
operation can fail on the state of its key (``check-index``, ``check-not-exists``,
``check-session``, ``cas``, ``get`` of a missing key), and all that fail are named. So a branch is
sent with operations that fail unless the state is the one that the plan was made for; if it was
another, the plan is made anew. What was applied is then exactly what was decided, at one moment.

Compares that one operation can express (the key is absent, exists, has this revision or lease) are
sent with the branch ``then`` at once: one round trip if they hold, and if not, the refusal itself
proves it. Other compares are decided on what an atomic read found, and the branch is sent on the
condition that their keys have not changed since.

===========  ==================================  ================================================
state        sends                               after the answer
===========  ==================================  ================================================
DIRECT       compares as checks, and ``then``    applied: done. A compare failed: done if
                                                 ``otherwise`` is empty, else READ
READ         gets of the compared keys           decide; done if the branch only gets what was
                                                 read, else COMMIT
COMMIT       checks that the compared keys are   applied: done. A check failed: READ
             unchanged, and the branch
LOOK         gets of keys that sessions (may)    back to DIRECT or COMMIT
             hold
===========  ==================================  ================================================

In every state a key that is read or deleted without a compare is first believed to be there
(``get``); if it is not, the refusal says so, and the next plan believes it absent
(``check-not-exists``). Beliefs cost a round trip when wrong, never an untrue answer.

A delete is two operations, ``get`` (or a check that implies it) and ``delete``, because a
``delete`` or ``delete-cas`` of a missing key succeeds and would not tell who deleted it. A put
without a lease on a key that a session holds must end that hold. A branch of several writes, which
must have one revision, is preceded by a LOOK at the keys that it makes permanent, and unlocks those
that a session holds as it writes them. A single write saves the look: the answer shows the session
(`Plan.held`), and the caller frees the key in a second transaction. So it does where a session
came between the look and the write.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kvi.errors import InvalidArgument, KviError
from kvi.model import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Operation,
    Operator,
    Put,
    Target,
    Txn,
    TxnResult,
)
from kvi.policy.txn import choose

from kvi_consul import wire
from kvi_consul.errors import Refusal, of_refusal
from kvi_consul.wire import Op

Answers = list[KeyValue | None]  # by position of the operation; None: it answers nothing
Outcome = Callable[[Answers], KeyValue | int | bool | None]


class Role(enum.Enum):
    """What the refusal of an operation says."""

    COMPARE = "a compare does not hold, or its key changed"
    HERE = "the key is not there"
    GONE = "the key is there"
    FREE = "the session that was to be unlocked does not hold the key"
    WRITE = "the write cannot be"


class Hidden(Exception):
    """The answer lacks results: the token may not read them."""


class Held(NamedTuple):
    """A key that was to become permanent and that a session still holds.

    Attributes:
        position: of the operation that wrote it.
        op: that operation.
        written: what it wrote: the revision, and the session as lease.

    """

    position: int
    op: Op
    written: KeyValue


class Plan:
    """The operations for one branch under some conditions, and how to read their answer."""

    def __init__(self, succeeded: bool) -> None:
        self.succeeded = succeeded
        self.ops: list[Op] = []
        self._roles: list[Role] = []
        self._outcomes: list[Outcome] = []

    @property
    def writes(self) -> bool:
        """Whether its answer may leave open what happened."""
        return any(op.writes for op in self.ops)

    def add(self, op: Op, role: Role) -> int:
        """Append an operation; its position."""
        self.ops.append(op)
        self._roles.append(role)
        return len(self.ops) - 1

    def yields(self, outcome: Outcome) -> None:
        """The next operation of the branch results in this."""
        self._outcomes.append(outcome)

    def role(self, position: int) -> Role:
        """What it means that the operation at ``position`` was refused."""
        return self._roles[position]

    def answers(self, results: Sequence[dict[str, Any]]) -> Answers:
        """The entries of an answer by position. Raises `Hidden` if some are missing."""
        loud = [position for position, op in enumerate(self.ops) if op.answers]
        if len(loud) != len(results):
            raise Hidden
        answers: Answers = [None] * len(self.ops)
        for position, result in zip(loud, results, strict=True):
            answers[position] = wire.entry_of(result)
        return answers

    def held(self, answers: Answers) -> list[Held]:
        """The keys to free after all."""
        return [
            Held(position, op, answer)
            for position, (op, answer) in enumerate(zip(self.ops, answers, strict=True))
            if op.verb in ("set", "cas") and answer is not None and answer.lease is not None
        ]

    def result(self, answers: Answers) -> TxnResult:
        """What the transaction did.

        Its revision is that of its last write: a key freed afterwards was written once more.
        """
        written = [
            answer.revision
            for op, answer in zip(self.ops, answers, strict=True)
            if op.writes and answer is not None
        ]
        return TxnResult(
            self.succeeded,
            max(written, default=None),
            tuple(outcome(answers) for outcome in self._outcomes),
        )


class Planner:
    """Runs one transaction by questions and answers: the table of the module as an object.

    Send ``plan.ops``; give the answer to `applied` or `refused`; either returns the result, or
    ``None`` after having made the next plan. ``conflicts`` counts the times that others were
    quicker, for the caller's back-off.
    """

    def __init__(self, txn: Txn, draw: Callable[[], int]) -> None:
        """``draw`` gives the Flags of a write, new ones for each."""
        self._txn = txn
        self._draw = draw
        self._here: dict[str, bool] = {}  # beliefs
        self._holders: dict[str, str] = {}  # sessions that stood in the way of a lock
        self._look: set[str] = set()
        self._looked: set[str] = set()
        self._known: dict[str, KeyValue | None] = {}
        self._conditions = _direct(txn.when)
        self._succeeded, self._branch = True, txn.then
        self.conflicts = 0
        self.delayed: KviError | None = None
        self._prepare()

    @property
    def plan(self) -> Plan:
        """What to send next."""
        return self._plan

    def drafts(self) -> list[Plan]:
        """Plans as the branches will need them, as far as that is known before anything is sent."""
        return [
            _Composer(self._here, {}, {}, self._draw).compose(True, branch, {})
            for branch in (self._txn.then, self._txn.otherwise)
            if not all(isinstance(op, Get) for op in branch)
        ]

    def _prepare(self) -> None:
        if self._conditions is not None:
            fresh = self._to_free() - self._looked
            self._look |= fresh
            self._looked |= fresh
        if self._conditions is None:
            self._plan = self._gets(self._to_read())
        elif self._look:
            self._plan = self._gets(sorted(self._look))
        else:
            self._plan = _Composer(self._here, self._holders, self._known, self._draw).compose(
                self._succeeded, self._branch, self._conditions
            )

    def _to_free(self) -> set[str]:
        """The keys that several writes at once make permanent, unless what holds them is known."""
        if sum(not isinstance(op, Get) for op in self._branch) < 2:
            return set()
        puts = {op.key for op in self._branch if isinstance(op, Put) and op.lease is None}
        return puts - self._known.keys()

    def _gets(self, keys: Iterable[str]) -> Plan:
        composer = _Composer(self._here, {}, {}, self._draw)
        return composer.compose(True, [Get(key) for key in keys], {})

    def _to_read(self) -> list[str]:
        """The compared keys, and what a branch that only reads will want, if there is room."""
        compared = dict.fromkeys(compare.key for compare in self._txn.when)
        keys = dict(compared)
        for branch in (self._txn.then, self._txn.otherwise):
            if all(isinstance(op, Get) for op in branch):
                keys.update(dict.fromkeys(op.key for op in branch))
        return list(keys if len(keys) <= wire.MAX_OPS else compared)

    def applied(self, answers: Answers) -> TxnResult | None:
        """The plan was applied, with these `Plan.answers`."""
        result = self._plan.result(answers)
        if self._conditions is None:
            done = self._decide(dict(zip(self._to_read(), result.results, strict=True)))
            if done is not None:
                return done
        elif self._look:
            for key, entry in zip(sorted(self._look), result.results, strict=True):
                if isinstance(entry, KeyValue) and entry.lease is not None:
                    self._holders[key] = wire.session_of(entry.lease)
                else:
                    self._holders.pop(key, None)
            self._look = set()
        else:
            return result
        self._prepare()
        return None

    def _decide(self, found: Mapping[str, object]) -> TxnResult | None:
        known = {
            key: entry if isinstance(entry, KeyValue) else None for key, entry in found.items()
        }
        self._succeeded, self._branch = choose(self._txn, known.get)
        if all(isinstance(op, Get) and op.key in known for op in self._branch):
            return TxnResult(self._succeeded, None, tuple(known[op.key] for op in self._branch))
        compared = {compare.key for compare in self._txn.when}
        self._known = {key: known[key] for key in compared}
        self._conditions = {key: _unchanged(key, known[key]) for key in compared}
        return None

    def refused(self, refusals: Sequence[tuple[int, Refusal, str]]) -> TxnResult | None:
        """The plan was refused for these operations: ``(position, refusal, text)``.

        Raises what trying again cannot mend.
        """
        self.delayed = None
        failed = {self._plan.role(position) for position, _, _ in refusals}
        expected = True  # false once others must have been at it since the transaction began
        for position, refusal, text in refusals:
            if refusal in (Refusal.DENIED, Refusal.OTHER):
                raise of_refusal(refusal, text)
            if refusal is Refusal.SESSION and Role.COMPARE not in failed:
                raise of_refusal(refusal, text)
            role, key = self._plan.role(position), self._plan.ops[position].key
            if role is Role.HERE or role is Role.GONE:
                expected &= key not in self._here
                self._here[key] = role is Role.GONE
                if role is Role.HERE and key in self._look:  # and so nothing holds it
                    self._look.discard(key)
                    self._holders.pop(key, None)
            elif refusal is Refusal.HELD:
                expected &= key not in self._holders
                self._look.add(key)
            elif refusal is Refusal.DELAY:
                self.delayed = of_refusal(refusal, text)
                expected = False
            else:
                self._holders.pop(key, None)
                expected &= role is Role.COMPARE and not self._known
        self.conflicts += not expected
        if Role.COMPARE in failed:
            if not self._known and not self._txn.otherwise:
                return TxnResult(False, None)
            self._conditions, self._known, self._look = None, {}, set()
        self._prepare()
        return None


def _direct(when: Sequence[Compare]) -> dict[str, Op] | None:
    """The compares as one check for each key, or ``None`` if that cannot say it."""
    checks = {compare.key: _check(compare) for compare in when}
    if len(checks) < len(when):
        return None
    found = {key: check for key, check in checks.items() if check is not None}
    return found if len(found) == len(checks) else None


def _check(compare: Compare) -> Op | None:
    target, operator, operand = compare.target, compare.operator, compare.operand
    assert isinstance(operand, int) or target is Target.VALUE  # Key made it so
    if target in (Target.REVISION, Target.CREATE_REVISION) and operand == 0:
        if operator is Operator.EQUAL:
            return Op("check-not-exists", compare.key)
        if operator in (Operator.GREATER, Operator.NOT_EQUAL):
            return Op("get", compare.key)
    elif operator is Operator.EQUAL and isinstance(operand, int) and operand > 0:
        if target is Target.REVISION and operand < 1 << 64:
            return Op("check-index", compare.key, revision=operand)
        if target is Target.LEASE:
            return Op("check-session", compare.key, session=wire.session_of(operand))
    return None


def _unchanged(key: str, entry: KeyValue | None) -> Op:
    if entry is None:
        return Op("check-not-exists", key)
    return Op("check-index", key, revision=entry.revision)


class _Composer:
    """Writes one branch down as Consul's operations."""

    def __init__(
        self,
        here: Mapping[str, bool],
        holders: Mapping[str, str],
        known: Mapping[str, KeyValue | None],
        draw: Callable[[], int],
    ) -> None:
        self._here = here
        self._holders = holders
        self._known = known  # what the conditions guarantee, beyond what they say
        self._draw = draw
        self._states: dict[str, Outcome] = {}  # what a Get would give at this point
        self._exists: dict[str, bool] = {}  # as far as an operation before made sure
        self._conditions: Mapping[str, Op] = {}

    def compose(
        self, succeeded: bool, branch: Sequence[Operation], conditions: Mapping[str, Op]
    ) -> Plan:
        self._plan = plan = Plan(succeeded)
        self._conditions = conditions
        merged = {op.key for op in branch if isinstance(op, Put) and self._as_cas(op) is not None}
        for key, check in conditions.items():
            absent = check.verb == "check-not-exists"
            self._exists[key] = not absent
            if key in self._known:
                self._states[key] = _always(self._known[key])
            elif absent:
                self._states[key] = _always(None)
            if key not in merged:
                position = plan.add(check, Role.COMPARE)
                if check.verb == "get":
                    self._states[key] = _answer(position)
        for op in branch:
            match op:
                case Get():
                    plan.yields(self._get(op.key))
                case Delete():
                    plan.yields(self._delete(op.key))
                case Put():
                    plan.yields(self._put(op))
        # The capabilities leave room for all but this: taking over the keys of other leases costs
        # an operation more for each.
        if len(plan.ops) > wire.MAX_OPS:
            raise InvalidArgument(
                f"the transaction needs {len(plan.ops)} of Consul's operations, which takes "
                f"{wire.MAX_OPS} at once, to take its keys over from other leases; split it"
            )
        return plan

    def _get(self, key: str) -> Outcome:
        if key not in self._states:
            self._make_sure(key)
        if key not in self._states:  # it is there by a check that does not tell its value
            self._states[key] = _answer(self._plan.add(Op("get", key), Role.HERE))
        return self._states[key]

    def _make_sure(self, key: str) -> bool:
        """Whether the key exists, by the word of an operation that fails if it is otherwise."""
        if key not in self._exists:
            self._exists[key] = self._here.get(key, True)
            if self._exists[key]:
                self._states[key] = _answer(self._plan.add(Op("get", key), Role.HERE))
            else:
                self._states[key] = _always(None)
                self._plan.add(Op("check-not-exists", key), Role.GONE)
        return self._exists[key]

    def _delete(self, key: str) -> Outcome:
        there = self._make_sure(key)
        if there:
            self._plan.add(Op("delete", key), Role.WRITE)
        self._states[key] = _always(None)
        return _always(there)

    def _put(self, op: Put) -> Outcome:
        key, value, flags = op.key, op.value, self._draw()
        assert isinstance(value, bytes)  # checked arguments
        known = self._known.get(key)
        holder = self._holders.get(key)
        if key in self._known:
            lease = None if known is None else known.lease
            holder = None if lease is None else wire.session_of(lease)
        if op.lease is None and holder is not None:
            position = self._plan.add(
                Op("unlock", key, value, session=holder, flags=flags), Role.FREE
            )
        elif op.lease is None:
            cas = self._as_cas(op, flags)
            put = cas or Op("set", key, value, flags=flags)
            position = self._plan.add(put, Role.WRITE if cas is None else Role.COMPARE)
        else:
            assert isinstance(op.lease, int)  # checked arguments
            session = wire.session_of(op.lease)
            if holder is not None and holder != session:
                # Its value is overwritten by the next operation, and nobody sees it before.
                self._plan.add(Op("unlock", key, b"", session=holder), Role.FREE)
            position = self._plan.add(
                Op("lock", key, value, session=session, flags=flags), Role.WRITE
            )
        self._states[key] = _written(position, value)
        return _revision(position)

    def _as_cas(self, op: Put, flags: int | None = None) -> Op | None:
        """Put and condition in one operation, where Consul can say it."""
        check, known = self._conditions.get(op.key), self._known.get(op.key)
        if op.lease is not None or check is None or op.key in self._holders:
            return None
        if known is not None and known.lease is not None:
            return None
        if check.verb not in ("check-not-exists", "check-index"):
            return None
        assert isinstance(op.value, bytes)  # checked arguments
        return Op("cas", op.key, op.value, revision=check.revision or 0, flags=flags)


def _always(value: KeyValue | bool | None) -> Outcome:
    return lambda answers: value


def _answer(position: int) -> Outcome:
    return lambda answers: answers[position]


def _written(position: int, value: bytes) -> Outcome:
    def entry(answers: Answers) -> KeyValue | None:
        answer = answers[position]
        return None if answer is None else answer._replace(value=value)

    return entry


def _revision(position: int) -> Outcome:
    def revision(answers: Answers) -> int | None:
        answer = answers[position]
        return None if answer is None else answer.revision

    return revision
