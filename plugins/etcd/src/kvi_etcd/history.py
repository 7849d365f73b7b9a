"""The history of a key: a watch from the first revision that is still there, up to the present.

etcd keeps its history by revision, and finds the changes of one key by looking through all of it,
which it does for watches alone. The watch has a stream of its own: only then does it tell its
progress, whatever other watches wait for.

=========================  =======================================================================
what is there at present   the history is complete
=========================  =======================================================================
an entry                   with the change that made it
no entry                   with a report of progress: there may be no change at all, or a deletion
                           may be followed by others
=========================  =======================================================================

Where the history begins is told by the server, when a watch from its very beginning is refused.
"""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic

from kvi.errors import Compacted, Timeout
from kvi.model import Event, Span

from kvi_etcd import wire_pb2 as pb
from kvi_etcd.driver import Connection
from kvi_etcd.watches import Watches

# Seconds. The server looks for watches in the past every 0.1; of the versions that tell a progress
# that is none (`Watches.ask_progress`), this leaves them the time for two.
SETTLED = 0.25
AGAIN = 0.05


def read_history(
    connection: Connection, watches: Watches, key: str, limit: int | None, timeout: float
) -> list[Event]:
    """The last changes of ``key``, newest first; ``watches`` have no others.

    Raises errors of kvi; what it has begun ends with ``watches``.
    """
    deadline = monotonic() + timeout
    request = pb.RangeRequest(key=key.encode())
    answer = connection.call("range", request, timeout, write=False)
    made = answer.kvs[0].mod_revision if answer.kvs else None
    seen = 1  # the revision of the empty store
    while made is None or made > seen:
        news = threading.Event()
        changes = watches.look_back(Span(key, key + "\0"), seen, news.set, _left(deadline))
        found: deque[Event] = deque(maxlen=limit)
        quiet, told = monotonic(), seen  # since when nothing came
        try:
            while told < (made or answer.header.revision):
                news.clear()
                batch = changes.poll(_left(deadline))
                if batch is not None:
                    quiet = monotonic()  # a thousand revisions are told at a time
                    found.extend(batch.events)
                    told = batch.revision or told
                    continue
                if made is None and monotonic() - quiet >= SETTLED:
                    watches.ask_progress(changes, SETTLED)
                news.wait(min(AGAIN, _left(deadline)))
        except Compacted:
            if changes.compacted <= seen:  # restored to an older state
                raise
            seen = changes.compacted
        else:
            return list(reversed(found))
        finally:
            changes.close()
    return []


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise Timeout("the time was up before etcd had told the history")
    return left
