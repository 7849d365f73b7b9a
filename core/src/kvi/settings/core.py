"""What live settings of both faces are: a model that is replaced, and never changed.

The flow (`kvi.flow.recipes.following`) brings the entries, always as of one moment. This makes a
model of them, and puts it in force by one assignment; so readers need no lock, and who has read
``current`` once has one consistent set.

============================  ===================================================================
what the flow brings          what becomes of it
============================  ===================================================================
entries as they were          it is known again that they are the truth: ``age`` begins anew
entries that make a model     it is in force; the snapshot is written; observers are told
entries that make none        what is in force stays; ``error`` says why; observers are told
an error                      what is in force stays, and grows older; ``error`` says why
============================  ===================================================================

*The beginning* needs a model: from the store, or, where that cannot be reached or makes none, from
the snapshot. Then the store is asked on, until it answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from os import PathLike
from typing import Generic, TypeVar

from pydantic import BaseModel

from kvi.errors import BadRecord, InvalidArgument, KviError, is_number, shown
from kvi.flow.recipes.following import FollowFlow, Seen
from kvi.flow.scope import Scope
from kvi.log import log
from kvi.mutex import Mutex
from kvi.settings import snapshot as snapshots
from kvi.settings.source import folder, made
from kvi.settings.tree import check_frozen

M = TypeVar("M", bound=BaseModel)

_REFRESH = 600.0  # seconds after which a snapshot is written anew, though nothing has changed


@dataclass(frozen=True, slots=True)
class SettingsChange(Generic[M]):
    """What observers of live settings are told.

    Attributes:
        before: what was in force.
        current: what is in force now: the same, if the change was refused, or if one that was
            refused has been taken back.
        error: why it was refused, or ``None``.

    """

    before: M
    current: M
    error: BadRecord | None = None


class LiveCore(Generic[M]):
    """The model in force, and what became of the last change. Safe for threads.

    Attributes:
        current: the model in force.
        error: why it is not what the store has now, or may not be.
        offline: it came from the snapshot.
        observers: are called with each `SettingsChange`, one at a time.

    """

    current: M

    def __init__(
        self,
        model: type[M],
        prefix: str,
        snapshot: str | PathLike[str] | None,
        interval: float,
    ) -> None:
        check_frozen(model)
        if not is_number(interval) or not 0 < interval < inf:
            raise InvalidArgument(
                f"interval= is a positive number of seconds, not {shown(interval)}"
            )
        self.prefix = folder(prefix)
        self.error: KviError | None = None
        self.offline = False
        self.observers: list[Callable[[SettingsChange[M]], object]] = []
        self._model = model
        self._interval = float(interval)
        self._place = None if snapshot is None else snapshots.check_place(snapshot)
        self._entries: Mapping[str, bytes] = {}  # of what is in force
        self._refused: tuple[Mapping[str, bytes], BadRecord] | None = None
        self._confirmed = -inf  # on the runtime's clock
        self._kept: snapshots.Kept | None = None  # in force while offline
        self._saving = Mutex()  # guards the file, and what follows
        self._saved = -inf  # when the snapshot was written, on the wall clock
        self._written: Mapping[str, bytes] = {}  # what is in it

    def over(self, scope: Scope) -> FollowFlow:
        """Follow the entries in a store; `begin` comes next.

        Raises `NotSupported`, and `InvalidKey` for a prefix that the store does not take.
        """
        self.flow = FollowFlow(scope, self.prefix, self._interval, self._take)
        return self.flow

    @property
    def age(self) -> float:
        """Seconds since what is in force was surely what the store had."""
        if self._kept is not None:
            return self._kept.age
        return max(0.0, self.flow.scope.runtime.now() - self._confirmed)

    def begin(self, seen: Seen | None, failure: KviError | None) -> None:
        """Put in force what was read, or the snapshot. Raises ``failure``, or `BadRecord`."""
        if seen is not None:
            try:
                self._adopt(seen, made(self._model, seen.entries))
                return
            except BadRecord as error:
                failure = error
                self._refused = (seen.entries, error)
        assert failure is not None  # else there is something to begin with
        failure.located("settings", self.prefix, self.flow.scope.uri)
        if self._place is None:
            raise failure
        try:
            kept = snapshots.load(self._place, self.prefix)
            self.current = made(self._model, kept.entries)
        except (OSError, BadRecord) as error:
            said = error.strerror if isinstance(error, OSError) else error.message
            failure.add_note(f"the snapshot {self._place} does not help: {said}")
            raise failure from failure.__cause__
        self._entries, self._kept = kept.entries, kept
        self.offline, self.error = True, failure
        log().warning(
            "settings of %s begin with a snapshot that is %.0f seconds old: %s",
            self.flow.scope.uri,
            kept.age,
            failure,
        )

    def save(self) -> None:
        """Write the snapshot, if what is in force is newer.

        What fails is logged, and tried again after the interval.
        """
        if self._place is None or self.offline:
            return
        with self._saving:
            now, entries = time.time(), self._entries
            if entries == self._written and now - self._saved < _REFRESH:
                return
            try:
                snapshots.save(self._place, self.prefix, entries, now - self.age)
            except OSError as error:
                said = error.strerror
                log().warning("the snapshot %s could not be written: %s", self._place, said)
            else:
                self._written, self._saved = entries, now

    def _take(self, seen: Seen | None, failure: KviError | None) -> None:
        """What the flow brings, on a thread for call-backs, one at a time."""
        if seen is None:
            if self._refused is None and failure is not None:
                self.error = failure.located("settings", self.prefix, self.flow.scope.uri)
            return
        if self._refused is not None and seen.entries == self._refused[0]:
            return
        before, mended = self.current, self._refused is not None
        if seen.entries == self._entries:
            self._adopt(seen, before)
        else:
            try:
                model = made(self._model, seen.entries)
            except BadRecord as error:
                error.located("settings", self.prefix, self.flow.scope.uri)
                self.error, self._refused = error, (seen.entries, error)
                log().warning("a change of settings was refused: %s", error)
                self._tell(SettingsChange(before, before, error))
                return
            self._adopt(seen, before if model == before else model)
        self.save()
        if mended or self.current is not before:
            self._tell(SettingsChange(before, self.current))

    def _adopt(self, seen: Seen, model: M) -> None:
        self._entries, self._confirmed = seen.entries, seen.asked
        self.current = model
        self.error = self._refused = self._kept = None
        self.offline = False

    def _tell(self, change: SettingsChange[M]) -> None:
        for observer in list(self.observers):
            if self.flow.ended:  # by one of them, perhaps
                return
            try:
                observer(change)
            except Exception:  # noqa: BLE001  (whatever a program's function raises)
                log().exception("an observer of settings failed; they go on")


class LiveFace(Generic[M]):
    """What live settings of either face tell of themselves; no store is asked."""

    _core: LiveCore[M]

    @property
    def error(self) -> KviError | None:
        """Why `current` is not what the store has now, or may not be; ``None``: it is.

        `BadRecord`: what is stored makes no model, and the last good one is kept. Anything else:
        the store could not be read, and is asked on.
        """
        return self._core.error

    @property
    def age(self) -> float:
        """Seconds since `current` was surely what the store had; by the wall clock if `offline`."""
        return self._core.age

    @property
    def offline(self) -> bool:
        """Whether `current` came from the snapshot, and nothing from the store since."""
        return self._core.offline
