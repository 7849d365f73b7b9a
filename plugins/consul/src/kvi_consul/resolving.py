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


class _LookUp:
    """A question to the resolver, and who waits for the answer."""

    def __init__(self, host: str, port: int) -> None:
        self._where = host, port
        self.waiting: list[threading.Event] = []
        self.found: list[Address] | OSError | None = None

    def run(self) -> None:
        found: list[Address] | OSError
        try:
            found = _ask(*self._where, 0)
        except OSError as error:
            found = error
        with _shared.lock:
            self.found = found
            _shared.under_way.pop(self._where, None)
            for event in self.waiting:
                event.set()


class _Shared:
    """The look-ups of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way: dict[tuple[str, int], _LookUp] = {}

    def join(self, host: str, port: int, event: threading.Event) -> _LookUp:
        """Wait with others for the look-up of ``host``, which begins if it has not yet."""
        with self.lock:
            look_up = self.under_way.get((host, port))
            if look_up is None:
                look_up = _LookUp(host, port)
                thread = threading.Thread(
                    target=look_up.run, name="kvi-consul-resolve", daemon=True
                )
                try:
                    thread.start()  # what it does last waits for the lock
                except RuntimeError as error:  # of the system's limits
                    cause = OSError(f"the host name cannot be resolved: {error}")
                    raise Broken(sent=False) from cause
                self.under_way[host, port] = look_up
            look_up.waiting.append(event)
            return look_up

    def leave(self, look_up: _LookUp, event: threading.Event) -> list[Address] | OSError | None:
        """Wait no longer; what was found, if it was."""
        with self.lock:
            look_up.waiting.remove(event)
            return look_up.found


_shared = _Shared()
if hasattr(os, "register_at_fork"):  # a child has no threads that would answer
    os.register_at_fork(after_in_child=_shared.__init__)  # type: ignore[misc]


def resolve(host: str, port: int, event: threading.Event, deadline: float) -> list[Address]:
    """The addresses of ``host``. Raises `Broken`, also when ``event`` is set by somebody else."""
    with contextlib.suppress(socket.gaierror):
        return _ask(host, port, socket.AI_NUMERICHOST)
    look_up = _shared.join(host, port, event)
    event.wait(min(max(deadline - monotonic(), 0.0), _LONGEST_WAIT))
    found = _shared.leave(look_up, event)
    if found is None:
        raise Broken(sent=False) from TimeoutError("the host name was not resolved in time")
    if isinstance(found, OSError):
        raise Broken(sent=False) from found
    return found


def _ask(host: str, port: int, flags: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, kind, protocol, where) for family, kind, protocol, _, where in found]
