"""`LiveSettings`: an immutable model that follows the store, for threads."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from os import PathLike
from typing import Self, TypeVar

from pydantic import BaseModel

from kvi.errors import InvalidArgument, KviError, shown
from kvi.flow.recipes.following import Seen
from kvi.flow.scope import PASSING
from kvi.settings.core import LiveCore, LiveFace, SettingsChange
from kvi.sync.kvi import Kvi
from kvi.sync.opening import open as open_store

M = TypeVar("M", bound=BaseModel)


class LiveSettings(LiveFace[M]):
    """The settings below ``prefix/`` as a model, which is replaced when they change.

    ``model`` is an immutable (``frozen``) class of pydantic, or of pydantic-settings: then its own
    sources, such as the environment, go before the store. `kvi.settings.tree` says what keys and
    values mean. ``store`` is a handle, which stays yours, a view or a `kvi.Backend`, or a URI,
    whose store is closed together with this.

    ``snapshot`` is a file for what was last good (mode 0600). It is used where the store cannot be
    reached at the beginning, or has settings then that make no model. ``interval`` (seconds) is
    how often all is read even if no change was told; it bounds `age` while the store answers.

    Safe for threads; `current` can be read at any moment, and asks nobody. It lasts until `close`,
    the end of its ``with`` block, or the handle; one that is dropped ends, too.

    Raises what reading and watching raise, within the store's time-out, if there is no snapshot
    that helps; `BadRecord` for settings that make no model, with pydantic's error as its cause;
    `InvalidArgument` for a model that is not immutable, and other values out of range;
    `NotSupported` where ranges are not of one moment.
    """

    def __init__(
        self,
        model: type[M],
        store: Kvi | str,
        prefix: str = "",
        *,
        snapshot: str | PathLike[str] | None = None,
        interval: float = 30.0,
    ) -> None:
        if not isinstance(store, Kvi | str):
            raise InvalidArgument(f"settings come from a handle or a URI, not {shown(store)}")
        core = self._core = LiveCore(model, prefix, snapshot, interval)
        self._store = store if isinstance(store, Kvi) else open_store(store)
        self._owned = not isinstance(store, Kvi)
        try:
            self._begin(core)
        except BaseException as error:
            if isinstance(error, KviError):  # before the store is closed: that is not why
                error = self._store._placed(error, "settings", core.prefix)
            if self._owned:
                self._store.close()
            raise error

    def _begin(self, core: LiveCore[M]) -> None:
        store = self._store
        store._ensure_open()
        flow = core.over(store._scope)
        weakref.finalize(self, store._runtime.post, flow.end).atexit = False
        seen: Seen | None = None
        failure: KviError | None = None
        try:
            try:
                seen = store._drive(flow.look, undo=lambda _: flow.end(), away=True)
            except PASSING as error:
                store._ensure_open()
                failure = error
            core.begin(seen, failure)
        except BaseException:
            store._runtime.post(flow.end)
            raise
        core.save()
        flow.go(at_once=seen is None)

    @property
    def current(self) -> M:
        """The settings in force. Read it once for what belongs together."""
        return self._core.current

    def on_change(self, fn: Callable[[SettingsChange[M]], object]) -> None:
        """Call ``fn(change)`` for each change from now on, in order, on a thread of kvi.

        Also for one that was refused. What it raises is logged.
        """
        self._core.observers.append(fn)

    def close(self) -> None:
        """Follow the store no more; `current` stays. Again, it does nothing."""
        store, flow = self._store, self._core.flow
        if not store.closed:
            flow.quiet = True  # from here on nothing more is told
            store._runtime.post(flow.end)
            if self._owned:
                store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        # settings may be secrets
        core, name = self._core, type(self.current).__name__
        state = " offline" if core.offline else ""
        return f"<LiveSettings {name} of {core.prefix!r}{state} {self._store.uri}>"
