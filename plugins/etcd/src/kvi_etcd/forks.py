"""Forks and gRPC: keep a fork away from channels that are being made, connected or closed.

A fork while another thread is at one of these crashes the child inside gRPC, and now and then
breaks the parent's new connection. (gRPC's own fork handlers give up when they meet such a thread.)
Calls over channels that stand are no trouble. So a fork first waits, for at most `PATIENCE`, until
no thread is at one of these, and those that come meanwhile wait until the fork is over.

The handlers must be registered after gRPC's, for the last registered runs first before a fork.

*asyncio.* `grpc.aio` has a poller, a thread that is always inside gRPC, for as long as the process
lives. A fork beside it ends about one child in six, whatever the child does, and gRPC has no
remedy. So it is used only by who has asked for it (the option ``grpc_aio``); a fork then says what
is wrong, and a child that lives is not let near it again.
"""

from __future__ import annotations

import os
import threading
import warnings
from types import TracebackType

import grpc  # noqa: F401  (registers its handlers)

PATIENCE = 1.0  # seconds: a call that connects to a dead server must not hold a fork for long


class _Awaiting:
    """Whether this process has used `grpc.aio`, or is a child of one."""

    begun = False
    inherited = False


def begin_awaiting() -> bool:
    """Use `grpc.aio` from now on; whether this process may."""
    if _Awaiting.inherited:
        return False
    if not _Awaiting.begun:
        _Awaiting.begun = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_warn, after_in_child=_inherit)
    return True


def _warn() -> None:
    if not _Awaiting.inherited:
        warnings.warn(
            "this process uses etcd with grpc_aio=yes, and gRPC may end its forked children; "
            "start them by spawn or forkserver, or leave the option out",
            RuntimeWarning,
            stacklevel=2,
        )


def _inherit() -> None:
    _Awaiting.inherited = True


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
