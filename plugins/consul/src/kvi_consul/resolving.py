"""Addresses of a host name, by a deadline, from a resolver that knows none.

The system's resolver can neither be interrupted nor told how long to take, so a look-up has a
thread of its own, and who waits for it may leave. One look-up for a host is under way at a time,
shared by all who want it, in all handles: a resolver that hangs holds one thread, however often it
is asked. Nothing is kept beyond that; who comes later asks anew, and finds a host that has moved.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from time import monotonic

from kvi_consul.errors import Broken

Address = tuple[int, int, int, object]  # family, kind, protocol, and where

_LONGEST_WAIT = 1e6  # seconds


class _LookUp(threading.Thread):
    """A question to the resolver."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="kvi-consul-resolve", daemon=True)
        self._where = host, port
        self.waiting: list[threading.Event] = []  # set once it is answered
        self.answer: list[Address] | OSError | None = None

    def run(self) -> None:
        answer: list[Address] | OSError
        try:
            answer = _ask(*self._where, 0)
        except OSError as error:
            answer = error
        with _under_way.lock:
            self.answer = answer
            _under_way.pop(self._where, None)
            for event in self.waiting:
                event.set()


class _UnderWay(dict[tuple[str, int], _LookUp]):
    """The look-ups of this process that have no answer yet."""

    def __init__(self) -> None:
        self.clear()
        self.lock = threading.Lock()


_under_way = _UnderWay()
if hasattr(os, "register_at_fork"):  # a child has no threads that would answer
    os.register_at_fork(after_in_child=_under_way.__init__)  # type: ignore[misc]


def resolve(host: str, port: int, event: threading.Event, deadline: float) -> list[Address]:
    """The addresses of ``host``. Raises `Broken`, also when ``event`` is set by somebody else."""
    with contextlib.suppress(socket.gaierror):
        return _ask(host, port, socket.AI_NUMERICHOST)
    with _under_way.lock:
        look_up = _under_way.get((host, port))
        if look_up is None:
            look_up = _LookUp(host, port)
            try:
                look_up.start()
            except RuntimeError as error:  # of the system's limits
                cause = OSError(f"the host name cannot be resolved: {error}")
                raise Broken(sent=False) from cause
            _under_way[host, port] = look_up
        look_up.waiting.append(event)
    event.wait(min(max(deadline - monotonic(), 0.0), _LONGEST_WAIT))
    with _under_way.lock:
        look_up.waiting.remove(event)
        answer = look_up.answer
    if answer is None:
        raise Broken(sent=False) from TimeoutError("the host name was not resolved in time")
    if isinstance(answer, OSError):
        raise Broken(sent=False) from answer
    return answer


def _ask(host: str, port: int, flags: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, kind, protocol, where) for family, kind, protocol, _, where in found]
