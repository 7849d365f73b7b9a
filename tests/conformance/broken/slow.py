"""A store that keeps the contract, and answers now and then too late: it is told *unknown*."""

from __future__ import annotations

import random
import time
from typing import Any

from kvi.errors import OutcomeUnknown, Timeout
from kvi.model import Delete, Put, Txn, TxnResult

from tests.conformance.broken.correct import Correct

READS = ("_get", "_range", "_count", "_ping", "_watch", "_lease_renew", "_get_history")
WRITES = ("_delete_range", "_lease_grant", "_lease_revoke")

LATE = 0.03
"""The part of all calls that are not answered in time."""

PATIENCE = 0.3
"""Seconds after which it is told at the latest, so that tests of it are short."""


class Slow(Correct):
    """Calls that come to no answer say so, once their time is up, or `PATIENCE`."""

    scheme = "slow"
    in_place = frozenset()

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        super().__init__(uri, name, timeout=timeout)
        self._random = random.Random(self.notes.setdefault("opened", 0))
        self.notes["opened"] += 1
        for name in READS:
            setattr(self, name, self._late(getattr(self, name), writes=False))
        for name in WRITES:
            setattr(self, name, self._late(getattr(self, name), writes=True))

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        writes = any(isinstance(op, Put | Delete) for op in (*txn.then, *txn.otherwise))
        answered: TxnResult = self._late(super()._txn, writes=writes)(txn, timeout)
        return answered

    def _late(self, call: Any, *, writes: bool) -> Any:
        def late(*args: Any) -> Any:
            if self._random.random() > LATE:
                return call(*args)
            end = time.monotonic() + min(args[-1], PATIENCE)
            if not writes:
                time.sleep(end - time.monotonic())
                raise Timeout("the answer is late")
            if self._random.random() > 0.5:
                call(*args)
            time.sleep(max(0.0, end - time.monotonic()))
            raise OutcomeUnknown("the answer is late")

        return late
