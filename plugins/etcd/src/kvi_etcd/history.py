"""The history of a key: a watch from the first revision that is still there, up to the present.

etcd keeps its history by revision, and finds the changes of one key by looking through all of it,
which it does for watches alone. Where the history begins is told by the server, when a watch from
its very beginning is refused. Where it ends:

=========================  =======================================================================
what is there at present   all was told
=========================  =======================================================================
an entry                   with the change that made it
no entry                   once two *probes* in turn have brought nothing: there may be no change
                           at all, or a deletion may be followed by others
=========================  =======================================================================

*A probe* is another watch on the same stream, of all keys from the present revision on, which has a
change. The server looks into the past for all watches that want it at once, in passes, a thousand
revisions for each, and tells what it finds in any order. So what a first probe is told of was found
in a pass that came to the key as well, and what a second one is told of is told after all of that.
(Beside 512 watches that catch up, a pass takes some of them; then it may have missed the key.)

Who may not watch all keys has no probe. Then what came within `QUIET` is taken for all.
"""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic

from kvi.errors import Compacted, PermissionDenied, Timeout
from kvi.feed import Batch
from kvi.model import Event, Span

from kvi_etcd import wire_pb2 as pb
from kvi_etcd.driver import Connection
from kvi_etcd.watches import Changes, Watches

QUIET = 1.0  # seconds; a pass is every 0.1
_AGAIN = 0.05


def read_history(
    connection: Connection, watches: Watches, key: str, limit: int | None, timeout: float
) -> list[Event]:
    """The last changes of ``key``, newest first; ``watches`` have no others.

    Raises errors of kvi; what it has begun ends with ``watches``.
    """
    deadline = monotonic() + timeout
    request = pb.RangeRequest(key=key.encode())
    seen = 1  # the revision of the empty store
    while True:
        answer = connection.call("range", request, _left(deadline), write=False)
        made = answer.kvs[0].mod_revision if answer.kvs else None
        present = answer.header.revision
        if (made or present) <= seen:
            return []
        look = _Look(watches, key, seen, limit, deadline)
        try:
            if made is not None:
                while look.told < made:
                    look.wait()
            elif gone := look.settle(present):
                seen = max(seen, gone)
                continue
        except Compacted:
            if look.changes.compacted <= seen:  # restored to an older state
                raise
            seen = look.changes.compacted
        else:
            return list(reversed(look.found))
        finally:
            look.changes.close()


class _Look:
    """The watch, and what it has told."""

    def __init__(
        self, watches: Watches, key: str, seen: int, limit: int | None, deadline: float
    ) -> None:
        self._watches = watches
        self._deadline = deadline
        self._news = threading.Event()
        self.found: deque[Event] = deque(maxlen=limit)
        self.told = seen
        span = Span(key, key + "\0")
        self.changes = watches.look_back(span, seen, self._news.set, _left(deadline))

    def wait(self, longest: float = _AGAIN) -> bool:
        """Take what is there, or wait for it; whether there was anything."""
        batch = self._poll(self.changes, self._news, longest)
        if batch is None:
            return False
        self.found.extend(batch.events)
        self.told = batch.revision or self.told
        return True

    def settle(self, present: int) -> int:
        """Wait until there is nothing more up to revision ``present``, which has changes; 0 then.

        If that is gone meanwhile: the first revision that is not.
        """
        quiet = False
        while not quiet:
            began, told = self.changes.number, self.told
            try:
                if gone := self._probe(present) or self._probe(present):
                    return gone
            except PermissionDenied:
                self._be_quiet()
                return 0
            while self.wait(0):
                pass
            quiet = self.told == told and self.changes.number == began
        return 0

    def _probe(self, present: int) -> int:
        news = threading.Event()
        probe = self._watches.look_back(Span(), present - 1, news.set, _left(self._deadline))
        try:
            while self._poll(probe, news, _AGAIN) is None:  # (its events may be no events of kvi)
                pass
        except Compacted:
            if not probe.compacted:  # restored to an older state
                raise
            return probe.compacted
        finally:
            probe.close()
        return 0

    def _poll(self, changes: Changes, news: threading.Event, longest: float) -> Batch | None:
        """What is there, or nothing, after a while."""
        news.clear()
        self._watches.ensure_open()
        batch = changes.poll(_left(self._deadline))
        if batch is None:
            news.wait(min(longest, _left(self._deadline)))
        return batch

    def _be_quiet(self) -> None:
        since = monotonic()
        while monotonic() - since < QUIET:
            if self.wait():
                since = monotonic()


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise Timeout("the time was up before etcd had told the history")
    return left
