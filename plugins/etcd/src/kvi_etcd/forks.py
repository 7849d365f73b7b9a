"""Forks and gRPC: no thread of kvi is inside gRPC while the process forks.

gRPC makes itself ready for a fork only if no thread is at work in it. Otherwise it leaves its state
as it is: children hang or are aborted, and with older releases the parent dies as well. So kvi's
own threads keep out of it during a fork:

===================  =============================================================================
a call              the fork waits for its end; one that comes meanwhile waits for the fork
a channel           as a call, while it is made or closed
a stream of watches  is ended; the watches go on over a new one, from where they were
===================  =============================================================================

The fork waits for at most `PATIENCE`. Who made the call is named by a key: a thread by its own
number, so that an interrupt on its way out is forgotten at its next call.

The handlers must be registered after gRPC's, for the last registered runs first before a fork.

*asyncio.* `grpc.aio` has a poller, a thread that is always inside gRPC, for as long as the process
lives. A fork beside it ends about one child in six, whatever the child does, and gRPC has no
remedy. So it is used only by who has asked for it (the option ``grpc_aio``); a fork then says what
is wrong, and a child that lives is not let near it again.
"""

from __future__ import annotations

import _thread
import os
import threading
import time
import warnings
from types import TracebackType
from typing import Protocol
from weakref import WeakSet

import grpc  # noqa: F401  (registers its handlers)
from kvi.late import ForkLock

PATIENCE = 1.0  # seconds: a call to a dead server must not hold a fork for long

_STEP = 0.0005  # seconds between two looks


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


class Ended(Protocol):
    """What a fork ends: a stream of answers."""

    def end_for_fork(self) -> None:
        """End it; does not wait."""

    def gone(self, seconds: float) -> bool:
        """Wait until gRPC has let go of it; whether it has."""


class ForkGate:
    """A context manager around what a fork must not interrupt; many threads may be inside.

    A thread that is inside may enter again, but the inner block's end is the outer one's too.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._close, after_in_parent=self._tell, after_in_child=self._reset
            )
        # Passed through at once. A fork takes it first, and gives it back last.
        self._door = ForkLock(PATIENCE)

    def _reset(self) -> None:
        self._inside: set[object] = set()
        self._streams: WeakSet[Ended] = WeakSet()
        self._interrupted = False

    def enter(self, key: object) -> None:
        """Come in under this key, to be left under it; waits for a fork that is under way."""
        if threading.get_ident() in self._inside:
            self._inside.add(key)  # the fork waits for this thread already
            return
        with self._door.lock:
            self._inside.add(key)

    def leave(self, key: object) -> None:
        """Go; does nothing for who is not inside, as a child that has forgotten its parent's."""
        self._inside.discard(key)

    def __enter__(self) -> None:
        self.enter(threading.get_ident())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave(threading.get_ident())

    def keep(self, stream: Ended) -> None:
        """Let forks end ``stream``, which was begun inside."""
        self._streams.add(stream)

    def _close(self) -> None:
        """Before a fork, which has the door."""
        deadline = time.monotonic() + PATIENCE
        failure: BaseException | None = None
        for step in (self._let_out, self._end_streams, self._let_go):
            try:
                step(deadline)
            except BaseException as error:  # noqa: BLE001  (of a signal's handler)
                failure, deadline = error, 0.0  # not for long any more
        if isinstance(failure, KeyboardInterrupt):
            self._interrupted = True  # Python would lose it here
        elif failure is not None:
            raise failure

    def _let_out(self, deadline: float) -> None:
        while self._inside and time.monotonic() < deadline:
            time.sleep(_STEP)

    def _end_streams(self, deadline: float) -> None:
        for stream in list(self._streams):
            stream.end_for_fork()

    def _let_go(self, deadline: float) -> None:
        for stream in list(self._streams):
            stream.gone(max(0.0, deadline - time.monotonic()))

    def _tell(self) -> None:
        """After a fork, in the parent: let the main thread have its Ctrl-C."""
        if self._interrupted:
            self._interrupted = False
            _thread.interrupt_main()


gate = ForkGate()
