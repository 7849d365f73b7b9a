"""Who calls, where it counts which thread holds something."""

from __future__ import annotations

from threading import local


class _Thread(local):
    """A thread. Its ident would not do: once it has ended another gets that."""

    def __init__(self) -> None:
        self.me = object()


_thread = _Thread()


def me() -> object:
    """The thread that calls; no other one is ever the same."""
    return _thread.me
