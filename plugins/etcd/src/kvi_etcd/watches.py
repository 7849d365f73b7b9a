"""All watches of a handle on one stream: who runs, who waits for whom.

*Threads.* A *reader* takes the answers of the stream and puts them into the watches' buffers; it
never waits for a consumer. Consumers take them out in `Changes.poll` and decode them there. gRPC
has two more threads, one that sends and one that receives. All of them end with the last watch.

*One lock* guards everything here. Nothing waits under it: requests are queued, and what a stream
does not send is asked for again on the next one.

*A watch* is in one of these states:

============  =====================================================  ===========================
state         guarantee                                              left by
============  =====================================================  ===========================
``WANTED``    nothing runs at the server; the cursor knows from      the reader's next stream, or
              where                                                  room among those asked for:
                                                                     ASKED
``ASKED``     a create was sent on this stream, under an id that     its answer: RUNNING, ENDED;
              no other watch has or had                              behind already: WANTED
``RUNNING``   the server sends all changes behind the cursor         see below
``FULL``      the server sends nothing any more; the buffer is at    the buffer is drained: WANTED
              its bound
``ENDED``     final: closed, or ``error`` says why                   —
============  =====================================================  ===========================

The end of the stream, for whatever reason, makes ASKED and RUNNING watches WANTED: each goes on at
its cursor, on the next stream, and finds nothing missing and nothing twice (`kvi_etcd.cursor`).
gRPC's keepalive ends a stream whose connection is dead, the server ends one that has no leader.

*Creates* are answered in the order in which they were sent, and a refused one may be answered
without its id. So the oldest is meant, always; ``_asked`` keeps the order, also of those that were
closed meanwhile. Answers to ids that are not known any more are those of watches closed or full.

*Logins.* A stream keeps its token to its end, and a token that has run out looks like a missing
permission. So with a user in the URI, the first refusal of a watch ends the stream, and only one
under a new token is believed.

*Large answers.* etcd cuts an answer into fragments if asked to, in a time that grows with the
square of the number of changes in a fragment: seconds, where they are small. So it is asked to only
on the stream that follows one that broke for an answer of more than `transport.MAX_PAGE` bytes.

*A run* is one life of the reader, from the first watch to the end of the last. It is told to end
by ``_run`` being another one; the next watch then starts a new run, and never waits for an old one.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections import deque

from kvi.errors import Compacted, KviError, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake
from kvi.model import Event, Span

from kvi_etcd import wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.cursor import Chunk, Cursor, Meaning, fits, meaning
from kvi_etcd.errors import AnswerTooLarge, FutureRevision, refusal
from kvi_etcd.transport import Connection, Stream

WINDOW = 64  # creates under way: enough to hide the round trip when thousands are to be resumed
BATCH = 1000  # events that a poll stops at
LOGIN_TIMEOUT = 5.0
BACKOFF_MIN, BACKOFF_MAX = 0.05, 1.0


class State(enum.Enum):
    """Of a watch; see the module's table."""

    WANTED = enum.auto()
    ASKED = enum.auto()
    RUNNING = enum.auto()
    FULL = enum.auto()
    ENDED = enum.auto()


class Changes(Feed):
    """The changes of one span, from one revision on; `Watches` does the work, under its lock."""

    __slots__ = (
        "ahead",
        "buffer",
        "cursor",
        "doubted",
        "error",
        "events",
        "heard",
        "high",
        "id",
        "idle",
        "low",
        "opened",
        "revision",
        "state",
        "wake",
        "watches",
        "weight",
    )

    def __init__(
        self, watches: Watches, span: Span, seen: int, wake: Wake, *, ahead: bool, future: bool
    ) -> None:
        self.watches = watches
        self.low, self.high = wire.key_range(span)
        self.wake = wake
        self.revision = seen
        self.cursor = Cursor(seen, future=future)
        self.ahead = ahead  # the next create asks for the future
        self.state = State.WANTED
        self.id = 0
        self.heard = 0  # answers on the stream when it was asked for
        self.doubted = False  # a refusal was not believed yet
        self.error: KviError | None = None
        self.opened: threading.Event | None = threading.Event()
        self.idle = True  # its consumer found nothing and must be woken
        self.buffer: deque[Chunk] = deque()
        self.events = self.weight = 0  # in the buffer

    def poll(self, timeout: float) -> Batch | None:
        """Return what has arrived; never waits."""
        chunks = self.watches.take(self)
        if chunks is None:
            return None
        events: list[Event] = []
        for chunk in chunks:
            events += wire.events(chunk.changes)
        return Batch(events, chunks[-1].revision)

    def close(self) -> None:
        """End it."""
        self.watches.discard(self)


class _Run:
    """One life of the reader."""

    __slots__ = ("ended", "fragment", "stream")

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.fragment = False
        self.stream: Stream | None = None

    def end(self) -> None:
        """Let the reader come to its end; called once it is not the present run any more."""
        self.ended.set()
        stream = self.stream
        if stream is not None:
            stream.end()


class _Anew(Exception):
    """The stream is to be opened again at once, under a new login."""


class Watches:
    """The watches of one handle. Safe for threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._all: set[Changes] = set()
        self._wanted: dict[Changes, None] = {}  # in order
        self._asked: deque[Changes] = deque()
        self._by_id: dict[int, Changes] = {}  # ASKED and RUNNING
        self._last_id = 0
        self._total = 0  # weight of all buffers
        self._heard = 0  # answers on the present stream
        self._doubtful: Changes | None = None  # told by a server that seems to be behind it
        self._trouble: KviError | None = None  # why there is no stream, or the last one ended
        self._run: _Run | None = None
        self._threads: list[threading.Thread] = []
        self._closed = False

    # -- for whoever watches ----------------------------------------------------------------------

    def open(self, span: Span, start: int | None, wake: Wake, timeout: float) -> Changes:
        """Watch ``span`` from revision ``start`` on, or from now; returns once the server knows.

        Raises `Compacted`, `PermissionDenied`, `AuthenticationFailed`, or `Unavailable` and
        `Timeout`, after which nothing is left behind.
        """
        deadline = time.monotonic() + timeout
        seen, present = self._place(span, start, timeout)
        watch = Changes(self, span, seen, wake, ahead=seen >= present, future=seen > present)
        opened = watch.opened
        assert opened is not None
        with self._lock:
            if self._closed:
                raise Unavailable("the connection is closed")
            self._all.add(watch)
            self._want(watch)
        if opened.wait(max(0.0, deadline - time.monotonic())):
            if watch.error is not None:
                raise watch.error
            watch.opened = None
            return watch
        with self._lock:
            # A stream that has been silent since is taken for dead, before gRPC finds out.
            silent = watch.state is State.ASKED and watch.heard == self._heard
            stream = self._run.stream if silent and self._run is not None else None
            trouble = self._trouble
        self.discard(watch)
        if stream is not None:
            stream.end()
        if trouble is not None:
            raise Unavailable(f"the watch could not begin in time: {trouble.message}") from trouble
        raise Timeout("etcd did not begin the watch in time")

    def _place(self, span: Span, start: int | None, timeout: float) -> tuple[int, int]:
        """The revision to begin behind, and that of the store, at the most, at this moment."""
        low, _ = wire.key_range(span)
        # revision 1 is that of the empty store, and 0 would mean the latest
        at = 0 if start is None else max(start - 1, 1)
        request = pb.RangeRequest(key=low, count_only=True, revision=at)
        try:
            answer = self._connection.call("range", request, timeout, write=False)
        except Compacted as error:
            raise Compacted(
                f"etcd has compacted its history, and revision {start} is gone from it; "
                "read the present state and watch from there"
            ) from error
        except FutureRevision:
            return at, at - 1
        present = int(answer.header.revision)
        return at or present, present

    def take(self, watch: Changes) -> list[Chunk] | None:
        """What ``watch`` has kept, about `BATCH` events of it; ``None`` if nothing."""
        with self._lock:
            buffer = watch.buffer
            if not buffer:
                if watch.error is not None and not self._closed:
                    raise watch.error
                watch.idle = True
                return None
            chunks = []
            events = 0
            while buffer and events < BATCH:
                chunk = buffer.popleft()
                chunks.append(chunk)
                events += len(chunk.changes)
                watch.weight -= chunk.weight
                self._total -= chunk.weight
            watch.events -= events
            if not buffer and watch.state is State.FULL:
                self._want(watch)
            return chunks

    def discard(self, watch: Changes) -> None:
        """End ``watch``, and the stream if it was the last."""
        with self._lock:
            self._total -= watch.weight
            watch.buffer.clear()
            watch.events = watch.weight = 0
            self._leave_server(watch)
            watch.state = State.ENDED
            self._all.discard(watch)
            run = None if self._all else self._retire()
        if run is not None:
            run.end()

    # -- for the handle ---------------------------------------------------------------------------

    def close(self) -> None:
        """End all watches and the stream, without waiting for the threads."""
        with self._lock:
            self._closed = True
            run = self._retire()
            watches, self._all = self._all, set()
            self._wanted.clear()
            for watch in watches:
                watch.state = State.ENDED
                if watch.opened is not None and watch.error is None:
                    watch.error = Unavailable("the connection is closed")
                    watch.opened.set()
        if run is not None:
            run.end()

    def join(self, timeout: float) -> None:
        """After `close`: wait until the readers have ended."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def abandon(self) -> object:
        """In a forked child: let go of the parent's stream; returns it, never to be freed."""
        self._lock = threading.Lock()
        abandoned = self._run, self._threads
        self._run, self._threads, self._closed = None, [], True
        self._all, self._wanted, self._by_id = set(), {}, {}
        return abandoned

    # -- under the lock ---------------------------------------------------------------------------

    def _want(self, watch: Changes) -> None:
        watch.state = State.WANTED
        self._wanted[watch] = None
        if self._run is None:
            self._run = run = _Run()
            thread = threading.Thread(
                target=self._read, args=(run,), name="kvi-etcd-watches", daemon=True
            )
            self._threads = [old for old in self._threads if old.is_alive()]
            self._threads.append(thread)
            thread.start()
        else:
            self._ask(self._run)

    def _retire(self) -> _Run | None:
        """Have no run any more; what its stream still says is not heard."""
        run, self._run = self._run, None
        self._asked.clear()
        self._by_id.clear()
        self._trouble = None
        return run

    def _ask(self, run: _Run) -> None:
        """Send creates for those wanted, as many as the window allows."""
        stream = run.stream
        while stream is not None and self._wanted and len(self._asked) < WINDOW:
            watch = next(iter(self._wanted))
            del self._wanted[watch]
            self._last_id += 1
            watch.id = self._last_id
            watch.state = State.ASKED
            watch.heard = self._heard
            self._asked.append(watch)
            self._by_id[watch.id] = watch
            start = watch.cursor.start(ahead=watch.ahead)
            watch.ahead = False
            stream.send(
                wire.create_request(watch.id, watch.low, watch.high, start, fragment=run.fragment)
            )

    def _leave_server(self, watch: Changes) -> None:
        """Let the server forget ``watch``, whatever it knows of it."""
        self._wanted.pop(watch, None)
        if watch.state in (State.ASKED, State.RUNNING):
            self._by_id.pop(watch.id, None)
            if self._run is not None and self._run.stream is not None:
                self._run.stream.send(wire.cancel_request(watch.id))

    def _fail(self, watch: Changes, error: KviError) -> None:
        """End ``watch`` by ``error``, which its consumer meets behind what is kept."""
        self._by_id.pop(watch.id, None)
        self._wanted.pop(watch, None)
        self._all.discard(watch)
        watch.state = State.ENDED
        watch.error = error
        if watch.opened is not None:
            watch.opened.set()
        self._rouse(watch)

    def _fail_all(self, error: KviError) -> None:
        for watch in list(self._all):
            own = type(error)(error.message)  # each is told where it happened
            own.__cause__ = error.__cause__
            self._fail(watch, own)

    def _rouse(self, watch: Changes) -> None:
        if watch.idle:
            watch.idle = False
            watch.wake()

    # -- the reader -------------------------------------------------------------------------------

    def _read(self, run: _Run) -> None:
        try:
            self._stay_connected(run)
        except Exception as error:  # noqa: BLE001  (no watch may go quiet, whatever is wrong here)
            failure = KviError(f"the reader of the watches failed: {error!r}")
            failure.__cause__ = error
            with self._lock:
                if run is self._run:
                    self._retire()
                    self._fail_all(failure)

    def _stay_connected(self, run: _Run) -> None:
        delay = BACKOFF_MIN
        while not run.ended.is_set():
            stream: Stream | None = None
            wait = True
            fragment = False
            try:
                stream = self._connection.stream(LOGIN_TIMEOUT)
                if self._begin(run, stream):
                    stream.first()
                for answer, size in stream.answers():
                    delay = BACKOFF_MIN
                    self._hear(run, stream, answer, size)
                    if self._doubtful is not None:
                        self._look_back(run, self._doubtful)
            except _Anew:
                wait = False
            except AnswerTooLarge:
                wait, fragment = False, True
            except KviError as error:
                self._miss(run, error)
                if stream is not None:
                    self._connection.leave(stream)
            finally:
                self._lose(run)
                if stream is not None:
                    stream.end()
            run.fragment = fragment
            if wait:
                run.ended.wait(delay * random.uniform(0.8, 1.2))  # noqa: S311
                delay = min(delay * 2, BACKOFF_MAX)

    def _begin(self, run: _Run, stream: Stream) -> bool:
        """Take ``stream`` into use; whether something was asked, so that an answer will come."""
        with self._lock:
            if run is not self._run:
                stream.end()
                return False
            run.stream = stream
            self._heard = 0
            self._ask(run)
            return bool(self._asked)

    def _miss(self, run: _Run, error: KviError) -> None:
        """There is no stream, because of ``error``: what will not pass ends the watches."""
        with self._lock:
            if run is self._run:
                self._trouble = error
                if not isinstance(error, (Unavailable, Timeout)):
                    self._fail_all(error)

    def _lose(self, run: _Run) -> None:
        """The stream is gone: all that it carried is wanted again."""
        with self._lock:
            run.stream = None
            if run is not self._run:
                return
            self._asked.clear()
            self._by_id.clear()
            for watch in self._all:
                if watch.state in (State.ASKED, State.RUNNING):
                    watch.state = State.WANTED
                    self._wanted[watch] = None
            if not self._all:
                self._retire()
                run.ended.set()

    def _hear(self, run: _Run, stream: Stream, answer: pb.WatchResponse, size: int) -> None:
        with self._lock:
            if run is not self._run:
                return
            self._heard += 1
            said = meaning(answer)
            if said is Meaning.CREATED or said is Meaning.REFUSED:
                self._answered(stream, answer, refused=said is Meaning.REFUSED)
                self._ask(run)
                return
            watch = self._by_id.get(answer.watch_id)
            if watch is None:
                return
            if said is Meaning.CHANGES:
                self._keep(watch, answer, size)
            elif said is Meaning.COMPACTED:
                self._fail(watch, Compacted("etcd has compacted the history that is to come next"))
            else:
                raise refusal(answer.cancel_reason)

    def _look_back(self, run: _Run, doubtful: Changes) -> None:
        """Ask whether the store has gone back, or only the member that serves the stream lags."""
        request = pb.RangeRequest(key=doubtful.low, count_only=True)
        answer = self._connection.call("range", request, LOGIN_TIMEOUT, write=False)
        with self._lock:
            self._doubtful = None
            if run is not self._run:
                return
            for watch in list(self._all):
                if answer.header.revision < watch.cursor.proven:
                    if watch.state in (State.ASKED, State.RUNNING):
                        self._leave_server(watch)
                    gone = "etcd has gone back to an older revision: its data was restored"
                    self._fail(watch, Compacted(gone))

    def _answered(self, stream: Stream, answer: pb.WatchResponse, *, refused: bool) -> None:
        """The oldest create has been answered."""
        if not self._asked:
            raise Unavailable("etcd answered what was not asked")
        watch = self._asked.popleft()
        if watch.state is not State.ASKED:  # closed meanwhile
            return
        if refused:
            error = refusal(answer.cancel_reason)
            if isinstance(error, Unavailable):
                raise error
            if not watch.doubted and self._connection.renew_login(stream):
                watch.doubted = True
                raise _Anew
            self._fail(watch, error)
        elif answer.watch_id != watch.id:
            raise Unavailable("etcd answered the creates out of order")
        elif watch.cursor.behind(answer.header.revision):
            self._leave_server(watch)
            self._want(watch)
        else:
            self._trouble = None
            if answer.header.revision < watch.cursor.proven:
                self._doubtful = watch
            watch.state = State.RUNNING
            watch.doubted = False
            if watch.opened is not None:
                watch.opened.set()

    def _keep(self, watch: Changes, answer: pb.WatchResponse, size: int) -> None:
        events = watch.events + len(answer.events)
        if not fits(len(watch.buffer), events, watch.weight + size, self._total + size):
            self._leave_server(watch)
            watch.state = State.FULL
            return
        chunk = watch.cursor.take(answer, size)
        if chunk is not None:
            watch.buffer.append(chunk)
            watch.events += len(chunk.changes)
            watch.weight += chunk.weight
            self._total += chunk.weight
            self._rouse(watch)
