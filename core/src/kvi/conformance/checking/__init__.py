"""Judges of recorded histories: pure functions of what clients and watches saw.

`history` records what concurrent clients did; `linearizability`, `watching` and `locking` say
whether a store that keeps the contract can have answered so.
"""

from kvi.conformance.checking.history import (
    Call,
    Cas,
    Operation,
    Outcome,
    Range,
    Result,
    Tas,
    render,
)
from kvi.conformance.checking.linearizability import (
    Budget,
    Judgement,
    Verdict,
    by_revision,
    by_search,
)
from kvi.conformance.checking.locking import Holding, lock_fault
from kvi.conformance.checking.watching import watch_fault

__all__ = [
    "Budget",
    "Call",
    "Cas",
    "Holding",
    "Judgement",
    "Operation",
    "Outcome",
    "Range",
    "Result",
    "Tas",
    "Verdict",
    "by_revision",
    "by_search",
    "lock_fault",
    "render",
    "watch_fault",
]
