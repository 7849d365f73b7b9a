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
gRPC's keepalive ends a stream whose connection is dead, the server ends one that has no leader. The
handle moves to its next endpoint then, but not for a stream that was ended here.

*Creates* are answered in the order in which they were sent, and a refused one may be answered
without its id. So the oldest is meant, always; ``_asked`` keeps the order, also of those that were
closed meanwhile. Answers to ids that are not known any more are those of watches closed or full.

*Logins.* A stream keeps its token to its end, and a token that has run out looks like a missing
permission. So with a user in the URI, a refusal is believed within `BELIEVED` seconds of a login
that was made for it; the first one at another time ends the stream, and asks for that login. So
however many watches are refused, one login gives the verdict on all.

*Endpoints.* What one endpoint does is its own fault: the next stream is tried at the next endpoint,
for as long as it takes. Only credentials that every endpoint has refused, `REFUSALS` times over and
with no other fault in between, end the watches. A stream that gets no
thread is tried again as one that was lost; a reader that gets none fails the opening alone.

*Large answers.* etcd cuts an answer into fragments if asked to, in a time that grows with the
square of the number of changes in a fragment: seconds, where they are small. So it is asked to only
on the stream that follows one that broke for an answer of more than `client.MAX_PAGE` bytes.

*A run* is one life of the reader, from the first watch to the end of the last. It is told to end
by ``_run`` being another one; the next watch then starts a new run, and never waits for an old one.
"""

from __future__ import annotations

import enum
import logging
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice

from kvi.errors import AuthenticationFailed, Compacted, KviError, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake
from kvi.model import Event, Span

from kvi_etcd import wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.channel import Stream
from kvi_etcd.cursor import Chunk, Cursor, Meaning, fits, meaning
from kvi_etcd.driver import Connection
from kvi_etcd.errors import AnswerTooLarge, FutureRevision, login_refused, refusal

WINDOW = 64  # creates under way: enough to hide the round trip when thousands are to be resumed
BATCH = 1000  # events that a poll stops at
LOGIN_TIMEOUT = 5.0
REFUSALS = 3  # of the credentials, by every endpoint
BELIEVED = 1.0  # seconds after a login: tokens live longer
SILENCE = 0.5  # seconds without an answer to a create, before a stream is taken for dead
BACKOFF_MIN, BACKOFF_MAX = 0.05, 1.0

_log = logging.getLogger("kvi")


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
        "asked",
        "buffer",
        "cursor",
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
        "warned",
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
        self.asked = 0.0  # when, by the monotonic clock
        self.heard = 0  # answers on the stream at that time
        self.error: KviError | None = None
        self.opened: threading.Event | None = threading.Event()  # set once it has begun or failed
        self.idle = True  # its consumer found nothing and must be woken
        self.buffer: deque[Chunk] = deque()
        self.events = self.weight = 0  # in the buffer
        self.warned = False

    def poll(self, timeout: float) -> Batch | None:
        """Return what has arrived; never waits.

        What cannot be decoded stays for the next call.
        """
        chunks = self.watches.first(self)
        if chunks is None:
            return None
        events: list[Event] = []
        for chunk in chunks:
            events += wire.events(chunk.changes, self._skip)
        self.watches.drop(self, chunks)
        return Batch(events, chunks[-1].revision)

    def close(self) -> None:
        """End it."""
        self.watches.discard(self)

    def _skip(self, key: bytes) -> None:
        """A change of a ``key`` of another program: no event of kvi can tell of it."""
        if not self.warned:
            self.warned = True
            _log.warning(
                "a watch leaves out the changes of keys that are not UTF-8; the first is %r", key
            )


class _Run:
    """One life of the reader."""

    __slots__ = ("anew", "believed", "ended", "fragment", "refusals", "stream")

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.fragment = False
        self.stream: Stream | None = None
        self.anew = False  # a refusal asked for a login
        self.believed = 0.0  # until when refusals are, by the monotonic clock
        self.refusals = 0  # of the credentials, one after the other

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

    def __init__(self, connection: Connection, report: Callable[[KviError], None]) -> None:
        """``report`` is told of every stream that was lost, or could not be had."""
        self._connection = connection
        self._report = report
        self._lock = threading.Lock()
        self._all: set[Changes] = set()
        self._wanted: OrderedDict[Changes, None] = OrderedDict()
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
        try:
            self._enter(watch)
            if opened.wait(max(0.0, deadline - time.monotonic())):
                if watch.error is not None:
                    raise watch.error
                watch.opened = None
                return watch
        except BaseException:
            self.discard(watch)
            raise
        with self._lock:
            # A stream that has been silent since is taken for dead, before gRPC finds out.
            silent = (
                watch.state is State.ASKED
                and watch.heard == self._heard
                and time.monotonic() - watch.asked >= SILENCE
            )
            run = self._run
            stream = run.stream if silent and run is not None else None
            trouble = self._trouble
        self.discard(watch)
        if stream is not None:
            # Not left to the reader: if this was the last watch, it does not look at it any more.
            self._connection.leave(stream)
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

    def _enter(self, watch: Changes) -> None:
        """Add ``watch``, and begin a run if there is none."""
        with self._lock:
            if self._closed:
                raise Unavailable("the connection is closed")
            self._all.add(watch)
            self._want(watch)
            if self._run is None:
                self._begin_run()

    def first(self, watch: Changes) -> list[Chunk] | None:
        """What ``watch`` has kept, about `BATCH` events of it; ``None`` if nothing.

        It stays kept, until it is given to `drop`.
        """
        with self._lock:
            chunks = list(islice(watch.buffer, BATCH))
            if not chunks:
                if watch.error is not None and not self._closed:
                    raise watch.error
                watch.idle = True
                return None
        events = 0
        for number, chunk in enumerate(chunks, 1):
            events += len(chunk.changes)
            if events >= BATCH:
                del chunks[number:]
                break
        return chunks

    def drop(self, watch: Changes, chunks: list[Chunk]) -> None:
        """Keep ``chunks`` no longer, which `first` gave; does nothing if ``watch`` was closed."""
        events = sum(len(chunk.changes) for chunk in chunks)
        weight = sum(chunk.weight for chunk in chunks)
        with self._lock:
            buffer = watch.buffer
            if not buffer:
                return
            for _ in chunks:
                buffer.popleft()
            watch.events -= events
            watch.weight -= weight
            self._total -= weight
            if not buffer and watch.state is State.FULL:
                self._want(watch)

    def discard(self, watch: Changes) -> None:
        """End ``watch``, and the stream if it was the last."""
        with self._lock:
            weight, watch.weight, watch.events = watch.weight, 0, 0
            self._total -= weight
            watch.buffer = deque()
            self._leave_server(watch)
            watch.state = State.ENDED
            self._all.discard(watch)
            if not self._all:
                self._retire(end=True)

    # -- for the handle ---------------------------------------------------------------------------

    def close(self) -> None:
        """End all watches and the stream, without waiting for the threads."""
        with self._lock:
            self._closed = True
            self._retire(end=True)
            watches, self._all = self._all, set()
            self._wanted = OrderedDict()
            for watch in watches:
                watch.state = State.ENDED
                opened = watch.opened
                if opened is not None and watch.error is None:
                    watch.error = Unavailable("the connection is closed")
                    opened.set()

    def join(self, timeout: float) -> None:
        """After `close`: wait until the readers have ended, unless they cannot before we go on."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def abandon(self) -> object:
        """In a forked child: let go of the parent's stream; returns it, never to be freed."""
        self._lock = threading.Lock()
        abandoned = self._run, self._threads
        self._run, self._threads, self._closed = None, [], True
        self._all, self._wanted, self._by_id = set(), OrderedDict(), {}
        return abandoned

    # -- under the lock ---------------------------------------------------------------------------

    def _want(self, watch: Changes) -> None:
        watch.state = State.WANTED
        self._wanted[watch] = None
        run = self._run
        if run is not None:
            self._ask(run)

    def _begin_run(self) -> None:
        """Begin one; if it fails, whoever called ends it with the watch that it was for."""
        self._run = run = _Run()
        thread = threading.Thread(
            target=self._read, args=(run,), name="kvi-etcd-watches", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            self._run = None
            raise Unavailable(f"no thread can be started for the watches: {error}") from error
        self._threads = [*(old for old in self._threads if old.is_alive()), thread]

    def _retire(self, *, end: bool = False) -> None:
        """Have no run any more, nor hear its stream; ``end`` tells its reader."""
        run, self._run = self._run, None
        self._asked, self._by_id = deque(), {}
        self._trouble = self._doubtful = None
        if end and run is not None:
            run.end()

    def _ask(self, run: _Run) -> None:
        """Send creates for those wanted, as many as the window allows."""
        stream = run.stream
        while stream is not None and len(self._asked) < WINDOW:
            if not self._wanted:
                return
            watch, _ = self._wanted.popitem(last=False)
            self._last_id += 1
            watch.id = self._last_id
            watch.state = State.ASKED
            watch.asked = time.monotonic()
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
            stream = None if self._run is None else self._run.stream
            if stream is not None:
                stream.send(wire.cancel_request(watch.id))

    def _fail(self, watch: Changes, error: KviError) -> None:
        """End ``watch`` by ``error``, which its consumer meets behind what is kept."""
        self._by_id.pop(watch.id, None)
        self._wanted.pop(watch, None)
        self._all.discard(watch)
        watch.state = State.ENDED
        watch.error = error
        opened = watch.opened
        if opened is not None:
            opened.set()
        self._rouse(watch)

    def _fail_those(self, watches: Iterable[Changes], error: KviError) -> None:
        for watch in watches:
            if watch in self._all:
                own = type(error)(error.message)  # each is told where it happened
                own.__cause__ = error.__cause__
                self._leave_server(watch)
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
                    self._fail_those(list(self._all), failure)

    def _stay_connected(self, run: _Run) -> None:
        delay = BACKOFF_MIN
        while not run.ended.is_set():
            stream: Stream | None = None
            wait = True
            fragment = False
            try:
                stream = self._connection.stream(LOGIN_TIMEOUT)
                run.refusals = 0
                if self._begin(run, stream):
                    self._connection.take(stream)
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
                if self._miss(run, error):
                    self._report(error)
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
            if run.anew:
                run.anew, run.believed = False, time.monotonic() + BELIEVED
            self._heard = 0
            self._ask(run)
            return bool(self._asked)

    def _miss(self, run: _Run, error: KviError) -> bool:
        """There is no stream, because of ``error``: what will not pass ends the watches.

        Returns whether the endpoint is to blame. It is not once the run is another's: then the
        stream was ended here.
        """
        with self._lock:
            if run is not self._run:
                return False
            self._trouble = error
            run.refusals = run.refusals + 1 if login_refused(error) else 0
            if run.refusals >= REFUSALS * self._connection.places:
                self._fail_those(list(self._all), error)
            return True

    def _lose(self, run: _Run) -> None:
        """The stream is gone: all that it carried is wanted again."""
        with self._lock:
            run.stream = None
            if run is not self._run:
                return
            self._asked.clear()
            self._by_id.clear()
            self._doubtful = None
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
                self._answered(run, stream, answer, refused=said is Meaning.REFUSED)
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
        """Ask whether the store has gone back, or only the member that serves the stream lags.

        The answer is for all watches that were there before the question. A refusal is for the
        doubtful one alone, for it was its key that was asked for.
        """
        with self._lock:
            before = [(watch, watch.cursor.proven) for watch in self._all]
        request = pb.RangeRequest(key=doubtful.low, count_only=True)
        error: KviError
        try:
            answer = self._connection.call("range", request, LOGIN_TIMEOUT, write=False)
        except (Unavailable, Timeout, AuthenticationFailed):
            raise  # nothing about this key
        except KviError as refused:
            error, failed = refused, [doubtful]
        else:
            error = Compacted("etcd has gone back to an older revision: its data was restored")
            failed = [watch for watch, proven in before if answer.header.revision < proven]
        with self._lock:
            if run is self._run:
                self._doubtful = None
                self._fail_those(failed, error)

    def _answered(
        self, run: _Run, stream: Stream, answer: pb.WatchResponse, *, refused: bool
    ) -> None:
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
            if time.monotonic() >= run.believed and self._connection.renew_login(stream):
                run.anew = True
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
            opened = watch.opened
            if opened is not None:
                opened.set()

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
