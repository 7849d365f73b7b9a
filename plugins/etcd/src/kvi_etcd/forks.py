"""Forks and gRPC: keep a fork away from channels that are being made, connected or closed.

A fork while another thread is at one of these crashes the child inside gRPC, and now and then
breaks the parent's new connection. (gRPC's own fork handlers give up when they meet such a thread.)
Calls over channels that stand are no trouble. So a fork first waits, for at most `PATIENCE`, until
no thread is at one of these, and those that come meanwhile wait until the fork is over.

The handlers must be registered after gRPC's, for the last registered runs first before a fork.

`grpc.aio` has a poller of its own for the whole process, and does not survive a fork: whatever a
child does with it ends the child. So one whose parent had used it does not (`Awaiting`), and has
its calls done on threads. Before gRPC `SINCE` such a child could not even do that: there nobody
uses `grpc.aio`.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

import grpc

SINCE = 1, 80
PATIENCE = 1.0  # seconds: a call that connects to a dead server must not hold a fork for long


class Awaiting:
    """Whether this process may use `grpc.aio`."""

    def __init__(self, version: str = grpc.__version__) -> None:
        self._begun = False
        self._possible = tuple(map(int, version.split(".")[:2])) >= SINCE
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_child)

    def begin(self) -> bool:
        """It is about to be used, if it may be; whether it may."""
        self._begun = self._begun or self._possible
        return self._possible

    def _in_child(self) -> None:
        self._possible = self._possible and not self._begun


class ForkGate:
    """A context manager around what a fork must not interrupt; many threads may be inside.

    A thread that is inside does not enter again.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._close, after_in_parent=self._open, after_in_child=self._reset
            )

    def _reset(self) -> None:
        self._door = threading.Lock()  # held during a fork; passed through at once otherwise
        self._lock = threading.Lock()
        self._inside = 0
        self._empty = threading.Event()
        self._empty.set()
        self._forking: int | None = None  # the thread that holds the door

    def __enter__(self) -> None:
        with self._door, self._lock:
            self._inside += 1
            self._empty.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside = max(0, self._inside - 1)  # a child has forgotten where its parent was
            if not self._inside:
                self._empty.set()

    def _close(self) -> None:
        # not for ever: a fork on a thread that is at the door would wait for itself
        if self._door.acquire(timeout=PATIENCE):
            self._forking = threading.get_ident()
            self._empty.wait(PATIENCE)

    def _open(self) -> None:
        if self._forking == threading.get_ident():
            self._forking = None
            self._door.release()
