"""Forks and gRPC: keep a fork away from channels that are being made, connected or closed.

A fork while another thread is at one of these crashes the child inside gRPC, and now and then
breaks the parent's new connection. (gRPC's own fork handlers give up when they meet such a thread.)
Calls over channels that stand are no trouble. So a fork first waits, for at most `PATIENCE`, until
no thread is at one of these, and those that come meanwhile wait until the fork is over. A thread
that is at one of these already, or forks itself, never waits: a part of it may be kept apart once
more, and a signal handler may come at any point.

The handlers must be registered after gRPC's, for the last registered runs first before a fork.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

import grpc  # noqa: F401  (registers its handlers)

PATIENCE = 1.0  # seconds: a call that connects to a dead server must not hold a fork for long


class ForkGate:
    """A context manager around what a fork must not interrupt; many threads may be inside.

    Re-entrant, also for signal handlers.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._close, after_in_parent=self._open, after_in_child=self._reset
            )

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._inside: dict[int, int] = {}  # thread → how many times
        self._forking: int | None = None  # the thread that forks

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._forking not in (None, me) and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        me = threading.get_ident()
        with self._changed:
            left = self._inside.get(me, 1) - 1  # a child has forgotten where its parent was
            if left:
                self._inside[me] = left
            else:
                self._inside.pop(me, None)
                self._changed.notify_all()

    def _close(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._forking not in (None, me):  # another thread's fork
                self._changed.wait()
            self._forking = me
            self._changed.wait_for(lambda: not self._inside.keys() - {me}, PATIENCE)

    def _open(self) -> None:
        with self._changed:
            self._forking = None
            self._changed.notify_all()
