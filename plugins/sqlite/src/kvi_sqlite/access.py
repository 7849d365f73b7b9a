"""Reads and writes that see nothing expired: `kvi_sqlite.leases` says why that is looked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kvi.clock import now
from kvi.errors import OutcomeUnknown, Unavailable

from kvi_sqlite import leases
from kvi_sqlite.connection import Connection, Pool
from kvi_sqlite.leases import Expired

T = TypeVar("T")


class Access:
    """The way to the file for what may meet leases. Safe for threads."""

    def __init__(self, pool: Pool, history: int) -> None:
        self._pool = pool
        self._history = history

    def read(self, work: Callable[[Connection, float], T], deadline: float) -> T:
        """Run ``work(connection, moment)``; it raises `Expired` for leases that end by ``moment``.

        Otherwise as `Pool.read`.
        """
        read = self._pool.read
        return self.unexpired(
            lambda moment: read(lambda connection: work(connection, moment), deadline), deadline
        )

    def unexpired(self, read: Callable[[float], T], deadline: float) -> T:
        """Run ``read(moment)``, and again after a sweep if it raises `Expired`."""
        moment = now()
        while True:
            try:
                return read(moment)
            except Expired:
                # Not asked anew: where leases end all the time, no read would come to an end.
                moment = self.sweep(deadline)

    def write(
        self,
        work: Callable[[Connection], tuple[T, bool]],
        deadline: float,
        *,
        small: bool = False,
    ) -> T:
        """Run ``work`` as `Pool.write` does; it sweeps by itself, or raises `Expired`."""
        while True:
            try:
                return self._pool.write(work, deadline, small=small)
            except Expired:
                self.sweep(deadline)

    def sweep(self, deadline: float) -> float:
        """End the leases that have expired; returns up to which moment.

        What goes wrong was surely not what the caller wants to do: no `OutcomeUnknown`.
        """

        def work(connection: Connection) -> tuple[tuple[int, float], bool]:
            moment = now()
            ended = leases.sweep(connection, self._history, moment)
            return (ended, moment), ended > 0

        try:
            while True:
                ended, moment = self._pool.write(work, deadline)
                if ended < leases.BATCH:
                    return moment
        except OutcomeUnknown as error:
            raise Unavailable(error.message) from error
