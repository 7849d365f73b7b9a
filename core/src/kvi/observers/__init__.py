"""Observe every operation of every `kvi.Backend` of this process, for metrics, traces or logs.

An observer is a pluggy plugin with the hook `kvi_operation`::

    from kvi.hookspecs import ObservedOperation, hookimpl

    class SlowOperations:
        @hookimpl
        def kvi_operation(self, operation: ObservedOperation) -> None:
            if operation.duration > 1:
                print(operation.name, operation.key, operation.outcome)

    kvi.observers.register(SlowOperations())

A distribution can bring one that is there wherever it is installed, through an entry point of the
group ``kvi.observers`` that names the plugin (an object, or a module with the hook)::

    [project.entry-points."kvi.observers"]
    acme = "acme_metrics.kvi:observer"

Those are loaded when the first `kvi.Backend` is made. Two come with kvi, each with an extra of
``kvi-core``: `kvi.observers.opentelemetry` and `kvi.observers.prometheus`.

What an observer raises is logged as a warning, once with its traceback, and harms nobody. Safe for
threads.
"""

from __future__ import annotations

import os

import pluggy

from kvi import hookspecs
from kvi.errors import InvalidArgument
from kvi.hookspecs import PROJECT, ObservedOperation
from kvi.log import log
from kvi.mutex import Mutex

__all__ = ["GROUP", "register", "unregister"]

GROUP = "kvi.observers"

_lock = Mutex()
_loaded = False


def _renew_lock() -> None:
    global _lock
    _lock = Mutex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class _Observer:
    """One plugin. Each has a manager of its own, so that one that raises stops no other."""

    def __init__(self, plugin: object) -> None:
        self.plugin = plugin
        self._told = False
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin)
        manager.check_pending()
        self.hook = manager.hook.kvi_operation

    def tell(self, operation: ObservedOperation) -> None:
        try:
            self.hook(operation=operation)
        except Exception as error:  # noqa: BLE001  (what it raises harms nobody)
            log().warning(
                "the observer %r failed on %s: %r",
                self.plugin,
                operation.name,
                error,
                exc_info=not self._told,
            )
            self._told = True


active: tuple[_Observer, ...] = ()
"""Who observes now; replaced, never changed."""


def register(plugin: object) -> None:
    """Let ``plugin`` observe from now on; again, it does nothing.

    Raises `InvalidArgument` if it has no hook `kvi_operation`, or one that pluggy refuses.
    """
    global active
    with _lock:
        if any(observer.plugin is plugin for observer in active):
            return
        try:
            observer = _Observer(plugin)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise InvalidArgument(f"{plugin!r} cannot observe: {error}") from error
        if not observer.hook.get_hookimpls():
            raise InvalidArgument(
                f"{plugin!r} has no hook kvi_operation; mark a method of that name with "
                "kvi.hookspecs.hookimpl"
            )
        active = (*active, observer)


def unregister(plugin: object) -> None:
    """Let ``plugin`` observe no more; one that does not is no error."""
    global active
    with _lock:
        active = tuple(observer for observer in active if observer.plugin is not plugin)


def load_installed() -> None:
    """Register what installed distributions bring; once in a process. Not for programs."""
    global _loaded
    with _lock:
        first, _loaded = not _loaded, True
    if not first:
        return
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        try:
            register(entry.load())
        except Exception as error:  # noqa: BLE001  (the program must run without it)
            log().warning(
                "the observer %r of %s cannot be used: %r", entry.name, entry.value, error
            )
