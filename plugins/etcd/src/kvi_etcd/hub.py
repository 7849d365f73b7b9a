"""The watches of one stream, as a table: what an answer, or the end of the stream, is to lead to.

Pure: no threads, no I/O, no clock. Each method says what is to be done, as a list of actions, and
`kvi_etcd.watches` does it. Not safe for threads; whoever calls holds a lock.

*A watch* is in one of these states:

============  =====================================================  ===========================
state         guarantee                                              left by
============  =====================================================  ===========================
``WANTED``    nothing runs at the server; the cursor knows from      the next stream, or room among
              where                                                  those asked for: ASKED
``ASKED``     a create was sent on this stream, under an id that     its answer: RUNNING, ENDED;
              no other watch has or had                              behind already: WANTED
``RUNNING``   the server sends all changes behind the cursor         see below
``FULL``      the server sends nothing any more; the buffer is at    the buffer is drained: WANTED
              its bound
``ENDED``     final: closed, or ``error`` says why                   —
============  =====================================================  ===========================

The end of the stream, for whatever reason, makes ASKED and RUNNING watches WANTED: each goes on at
its cursor, on the next stream, and finds nothing missing and nothing twice (`kvi_etcd.cursor`).

*Creates* are answered in the order in which they were sent, and a refused one may be answered
without its id. So the oldest is meant, always; ``_asked`` keeps the order, also of those that were
closed meanwhile. Answers to ids that are not known any more are those of watches closed or full.

*Logins.* A stream keeps its token to its end, and a token that has run out, or that a restarted
server does not know, looks like a missing permission. So with a user in the URI, a refusal is no
verdict: a read of the same keys gives it, which is refused for what it is, and logs in anew by
itself. If they may be read, the token was to blame, and the next stream has another one. If that is
refused as well, the endpoint is.

*Endpoints.* What one endpoint does is its own fault: the next stream is tried at the next endpoint,
for as long as it takes. Only credentials that every endpoint has refused, `REFUSALS` times over and
with no other fault in between, end the watches.

*Another history.* Restored from a backup, etcd begins a cluster with an id of its own, and may be
beyond a watch's revision again before that resumes. So a watch that begins anew in another cluster
has lost its history; only one that has seen nothing yet has nothing to lose. A store that has the
old id (which comes of its members and a word) but has gone back, is found by its revision: see
`kvi_etcd.cursor`. Or by its *term*: that begins anew with a restore, and otherwise only grows. A
member may tell an older one, which it has come to know; not so a linearizable read.

*Large answers.* etcd cuts an answer into fragments if asked to, in a time that grows with the
square of the number of changes in a fragment: seconds, where they are small. So it is asked to only
on the stream that follows one that broke for an answer of more than `client.MAX_PAGE` bytes.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kvi.errors import Compacted, KviError, Unavailable

from kvi_etcd import wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.cursor import Chunk, Cursor, Meaning, fits, meaning
from kvi_etcd.errors import PROXY, AnswerTooLarge, login_refused, refusal

WINDOW = 64  # creates under way: enough to hide the round trip when thousands are to be resumed
BATCH = 1000  # events that a consumer is given at once
REFUSALS = 3  # of the credentials, by every endpoint
SILENCE = 0.5  # seconds without an answer to a create, before a stream is taken for dead


class State(enum.Enum):
    """Of a watch; see the module's table."""

    WANTED = enum.auto()
    ASKED = enum.auto()
    RUNNING = enum.auto()
    FULL = enum.auto()
    ENDED = enum.auto()


class Watch:
    """One watch. The table alone changes it.

    Attributes:
        wake: what whoever waits for it is woken by; never called here.
        error: why it has ended.
        compacted: the revision whose compaction ended it, or 0.
        events: how many are in the buffer, and `weight` what they weigh.

    """

    __slots__ = (
        "ahead",
        "asked",
        "buffer",
        "cluster",
        "compacted",
        "cursor",
        "error",
        "events",
        "first",
        "heard",
        "high",
        "id",
        "idle",
        "low",
        "state",
        "wake",
        "weight",
    )

    def __init__(
        self, keys: tuple[bytes, bytes], cursor: Cursor, wake: Callable[[], None], *, ahead: bool
    ) -> None:
        """``ahead``: the cursor is where the store is, or further."""
        self.low, self.high = keys
        self.cursor = cursor
        self.wake = wake
        self.ahead = ahead  # the next create asks for the future
        self.state = State.WANTED
        self.cluster = 0  # that it began in
        self.first = 0  # the number of the stream that it began on
        self.id = 0
        self.asked = 0.0  # when
        self.heard = 0  # answers on the stream at that time
        self.error: KviError | None = None
        self.compacted = 0
        self.idle = True  # its consumer found nothing and must be woken
        self.buffer: deque[Chunk] = deque()
        self.events = self.weight = 0


class Send(NamedTuple):
    """Send this on the stream, in this order."""

    request: pb.WatchRequest


class Wake(NamedTuple):
    """Wake whoever waits for this watch: it began, has something, or has ended."""

    watch: Watch


class LookBack(NamedTuple):
    """Ask the store for its revision: it has gone back, or the member of the stream lags.

    Attributes:
        watch: the one to ask with the keys of; a refusal is for it alone.
        proven: the watches that are there before the question, and what the store had reached.
        term: that of the store, at least.

    """

    watch: Watch
    proven: list[tuple[Watch, int]]
    term: int


class Verify(NamedTuple):
    """Read the keys of ``watch``, which was refused, to see whether that is for its keys."""

    watch: Watch


class LogIn(NamedTuple):
    """End the stream, log in anew, and open the next one at once."""


class MoveOn(NamedTuple):
    """End the stream, because of this; the next one is for the next endpoint."""

    error: KviError


Action = Send | Wake | LookBack | Verify | LogIn | MoveOn


class Hub:
    """The table, from its first watch to the end of its last.

    Attributes:
        watches: those that have not ended, in the order in which they were opened.
        weight: of all buffers.
        trouble: why there is no stream, or why the last one ended.

    """

    def __init__(self, endpoints: int, *, login: bool) -> None:
        """``login``: there are credentials to log in with."""
        self.watches: dict[Watch, None] = {}
        self.weight = 0
        self.trouble: KviError | None = None
        self._wanted: OrderedDict[Watch, None] = OrderedDict()
        self._asked: deque[Watch] = deque()
        self._by_id: dict[int, Watch] = {}  # ASKED and RUNNING
        self._last_id = 0
        self._streaming = False
        self._streams = 0  # so far
        self._term = 0  # the latest that was told
        self._answers = 0  # on the present stream
        self._fragment = False
        self._login = login
        self._anew = False  # a login was asked for, and nothing began since
        self._refusals = 0  # of the credentials, one after the other
        self._most_refusals = REFUSALS * endpoints

    # -- for whoever watches ----------------------------------------------------------------------

    def open(self, watch: Watch, now: float) -> list[Action]:
        """A new watch."""
        self.watches[watch] = None
        return self._want(watch, now)

    def take(self, watch: Watch, now: float) -> tuple[list[Chunk], list[Action]]:
        """Take what ``watch`` has kept, about `BATCH` events of it; nothing: it is idle."""
        buffer, chunks = watch.buffer, list[Chunk]()
        events = weight = 0
        while buffer and events < BATCH:
            chunk = buffer.popleft()
            chunks.append(chunk)
            events += len(chunk.changes)
            weight += chunk.weight
        watch.idle = not chunks
        watch.events -= events
        watch.weight -= weight
        self.weight -= weight
        again = not buffer and watch.state is State.FULL
        return chunks, self._want(watch, now) if again else []

    def discard(self, watch: Watch) -> list[Action]:
        """``watch`` is closed."""
        self.weight -= watch.weight
        watch.weight = watch.events = 0
        watch.buffer.clear()
        return self._end(watch)

    def fail(self, watches: Iterable[Watch], error: KviError) -> list[Action]:
        """End ``watches`` by ``error``, which their consumers meet behind what is kept."""
        actions: list[Action] = []
        for watch in list(watches):
            if watch in self.watches:
                own = type(error)(error.message)  # each is told where it happened
                own.__cause__ = error.__cause__
                actions += self._end(watch)
                watch.error = own
                actions += self._rouse(watch)
        return actions

    def silent(self, watch: Watch, now: float) -> bool:
        """Whether the stream may be taken for dead, before gRPC finds out.

        It has said nothing since the create of ``watch``, and had the time.
        """
        return (
            watch.state is State.ASKED
            and watch.heard == self._answers
            and now - watch.asked >= SILENCE
        )

    # -- for whoever has the stream ---------------------------------------------------------------

    def on_stream(self, now: float) -> list[Action]:
        """There is a stream; an answer will come on it if anything is to be sent."""
        self._streaming = True
        self._streams += 1
        self._answers = self._refusals = 0
        return self._ask(now)

    def on_stream_lost(self, error: KviError | None) -> list[Action]:
        """The stream is gone, or could not be had, because of ``error``, or because we ended it."""
        self._streaming = False
        self._asked.clear()
        self._by_id.clear()
        for watch in self.watches:
            if watch.state in (State.ASKED, State.RUNNING):
                watch.state = State.WANTED
                self._wanted[watch] = None
        self._fragment = isinstance(error, AnswerTooLarge)
        if error is None or self._fragment:
            return []
        self.trouble = error
        self._refusals = self._refusals + 1 if login_refused(error) else 0
        if self._refusals < self._most_refusals:
            return [MoveOn(error)]
        return [*self.fail(self.watches, error), MoveOn(error)]

    def on_answer(self, answer: pb.WatchResponse, size: int, now: float) -> list[Action]:
        """The server said ``answer``, in ``size`` bytes."""
        self._answers += 1
        said = meaning(answer)
        if said is Meaning.CREATED or said is Meaning.REFUSED:
            return self._answered(answer, now, refused=said is Meaning.REFUSED)
        watch = self._by_id.get(answer.watch_id)
        if watch is None:
            return []
        if said is Meaning.CHANGES:
            self._term = max(self._term, answer.header.raft_term)
            return self._keep(watch, answer, size)
        if said is Meaning.CANCELLED:
            return [MoveOn(refusal(answer.cancel_reason))]
        del self._by_id[watch.id]  # the server has forgotten it
        watch.compacted = answer.compact_revision
        return self.fail([watch], Compacted("etcd has compacted the history that is to come next"))

    def on_looked_back(self, look: LookBack, revision: int, term: int) -> list[Action]:
        """The store is at ``revision`` in ``term``, or was when it was asked."""
        lost = [watch for watch, proven in look.proven if revision < proven]
        if term < look.term:
            self._term = term
            lost = [each for each, seen in look.proven if seen and 0 < each.first < self._streams]
        return self.fail(lost, _restored())

    def on_verified(self, watch: Watch, error: KviError | None, now: float) -> list[Action]:
        """Reading the keys of ``watch`` was refused by ``error``, or is allowed."""
        if watch.state is not State.ASKED:  # closed meanwhile
            return self._ask(now)
        if error is not None:
            return self._deny(watch, error, now)
        self._anew = not self._anew
        if self._anew:
            return [LogIn()]
        return [MoveOn(Unavailable("etcd refuses to watch keys that this user may read"))]

    # -- steps ------------------------------------------------------------------------------------

    def _want(self, watch: Watch, now: float) -> list[Action]:
        watch.state = State.WANTED
        self._wanted[watch] = None
        return self._ask(now)

    def _ask(self, now: float) -> list[Action]:
        """Creates for those wanted, as many as the window allows."""
        actions: list[Action] = []
        while self._streaming and self._wanted and len(self._asked) < WINDOW:
            watch, _ = self._wanted.popitem(last=False)
            self._last_id += 1
            watch.id = self._last_id
            watch.state = State.ASKED
            watch.asked, watch.heard = now, self._answers
            self._asked.append(watch)
            self._by_id[watch.id] = watch
            start = watch.cursor.start(ahead=watch.ahead)
            watch.ahead = False
            request = wire.create_request(
                watch.id, watch.low, watch.high, start, fragment=self._fragment
            )
            actions.append(Send(request))
        return actions

    def _leave(self, watch: Watch) -> list[Action]:
        """Let the server forget ``watch``, if it knows of it."""
        self._wanted.pop(watch, None)
        if self._by_id.get(watch.id) is not watch:
            return []
        del self._by_id[watch.id]
        return [Send(wire.cancel_request(watch.id))]

    def _end(self, watch: Watch) -> list[Action]:
        actions = self._leave(watch)
        watch.state = State.ENDED
        self.watches.pop(watch, None)
        return actions

    def _rouse(self, watch: Watch) -> list[Action]:
        if not watch.idle:
            return []
        watch.idle = False
        return [Wake(watch)]

    def _answered(self, answer: pb.WatchResponse, now: float, *, refused: bool) -> list[Action]:
        """The oldest create has been answered."""
        if not self._asked:
            return [MoveOn(Unavailable("etcd answered what was not asked"))]
        watch = self._asked.popleft()
        if watch.state is not State.ASKED:  # closed meanwhile
            return self._ask(now)
        if refused:
            return self._refused(watch, refusal(answer.cancel_reason), now)
        if answer.watch_id != watch.id:
            return [MoveOn(Unavailable(PROXY, passing=False))]
        cluster = answer.header.cluster_id
        if watch.cluster and cluster not in (0, watch.cluster) and watch.cursor.proven:
            return [*self.fail([watch], _restored()), *self._ask(now)]
        watch.cluster = cluster
        watch.first = watch.first or self._streams
        if watch.cursor.behind(answer.header.revision):
            return [*self._leave(watch), *self._want(watch, now)]
        self.trouble, self._anew = None, False
        watch.state = State.RUNNING
        actions: list[Action] = [Wake(watch), *self._ask(now)]
        older, self._term = self._term, max(self._term, answer.header.raft_term)
        if answer.header.revision < watch.cursor.proven or 0 < answer.header.raft_term < older:
            proven = [(each, each.cursor.proven) for each in self.watches]
            actions.append(LookBack(watch, proven, self._term))
        return actions

    def _refused(self, watch: Watch, error: KviError, now: float) -> list[Action]:
        if isinstance(error, Unavailable):
            return [MoveOn(error)]
        if self._login:
            return [Verify(watch)]
        return self._deny(watch, error, now)

    def _deny(self, watch: Watch, error: KviError, now: float) -> list[Action]:
        del self._by_id[watch.id]  # the server knows nothing of it
        return [*self.fail([watch], error), *self._ask(now)]

    def _keep(self, watch: Watch, answer: pb.WatchResponse, size: int) -> list[Action]:
        events = watch.events + len(answer.events)
        if not fits(len(watch.buffer), events, watch.weight + size, self.weight + size):
            watch.state = State.FULL
            return self._leave(watch)
        chunk = watch.cursor.take(answer, size)
        if chunk is None:
            return []
        watch.buffer.append(chunk)
        watch.events += len(chunk.changes)
        watch.weight += chunk.weight
        self.weight += chunk.weight
        return self._rouse(watch)


def _restored() -> Compacted:
    return Compacted("etcd has gone back to an older state: its data was restored")
