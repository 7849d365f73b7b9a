"""Feeds: how a backend hands changes to a watch.

*Pulled, not pushed.* A feed is asked for the next batch when its consumer wants one, and holds a
cursor meanwhile. Where the store itself keeps the history, a consumer that never reads costs a
number, and no buffer at all; where changes arrive unasked, the feed bounds what it keeps. The other
direction carries no data: the backend calls ``wake`` when a poll would find something.

::

    store ── commit ──► wake() ─────────────► watch: marked, its reader or a dispatcher woken
    store ◄── poll ──── feed ◄── poll(timeout) ── watch ──► event by event to its consumer

What a backend promises:

* When ``_watch`` returns, every change after that moment will come through the feed.
* A `Batch` holds whole revisions, in order, each change once (where ``watch_history``; elsewhere
  per key ever newer states, and always the last).
* After `Feed.poll` has returned ``None``, ``wake`` is called once there may be something. It may be
  called too often, from any thread, under any lock of the backend: it never calls back, blocks or
  raises.
* A feed survives lost connections by itself. What it cannot bridge, because the history is gone, it
  turns into one `RESYNC` event.
* `Feed.poll` is called by one thread at a time, `Feed.close` at any moment, by any thread.

A store with history needs to know no more than how to read it: see `kvi.backend.history`. One that
can only be asked for its present state: see `kvi.backend.polling`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvi.model import Event, Span

__all__ = ["Batch", "Feed", "Wake", "WatchSpec"]

Wake = Callable[[], None]


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """What is to be watched: checked arguments of `Kvi.watch`, for a backend.

    Attributes:
        span: which keys; never empty.
        start: the first revision to tell of, at least 1; ``None``: from now on. Given only where
            ``watch_history``, and never together with ``initial``.
        initial: deliver the present state first.

    """

    span: Span
    start: int | None = None
    initial: bool = False


class Batch(NamedTuple):
    """Some events of a feed.

    Attributes:
        events: in the order they are to be delivered; may be empty.
        revision: everything up to this revision has been told once these events are delivered;
            ``None`` if there is no such promise (yet), as within the initial state.

    """

    events: Sequence[Event]
    revision: int | None


class Feed(ABC):
    """The source of one watch's events; see the module for what it promises.

    Attributes:
        revision: the revision that the feed starts behind, or ``None`` if that is only known
            after the initial state.
        interval: seconds after which it is polled again although nothing woke it; for stores that
            tell of no changes.

    """

    revision: int | None = None
    interval: float | None = None

    @abstractmethod
    def poll(self, timeout: float) -> Batch | None:
        """Return the next events, or ``None`` if there are none now.

        May ask the store, for at most ``timeout`` seconds. Raises `Unavailable` or `Timeout` for
        what will pass: it is called again later, and nothing is lost. Any other `KviError` ends
        the watch.
        """

    @abstractmethod
    def close(self) -> None:
        """End it, without blocking; ``wake`` may still be called. Closing again does nothing."""
