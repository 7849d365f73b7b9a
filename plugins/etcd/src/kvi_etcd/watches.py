"""All watches of a handle on one stream: the threads and the lock around `kvi_etcd.hub`.

*Threads.* A *reader* takes the answers of the stream and gives them to the hub, which puts them
into the watches' buffers; it never waits for a consumer. Consumers take them out in `Changes.poll`
and decode them there. gRPC has two more threads, one that sends and one that receives. All of them
end with the last watch.

*One lock* guards the hub and which run there is. Nothing waits under it: requests are queued, and
what a stream does not send is asked for again on the next one.

*A run* is one life of the reader and of a hub, from the first watch to the end of the last. It is
told to end by its event, and ``_run`` is another one then; the next watch starts a new run, and
never waits for an old one, whose hub has no watches any more and so has nothing left to say.

gRPC's keepalive ends a stream whose connection is dead, the server ends one that has no leader. The
handle moves to its next endpoint then, but not for a stream that was ended here. A stream that
gets no thread is tried again as one that was lost; a reader that gets none fails the opening alone.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable

from kvi.errors import AuthenticationFailed, Compacted, KviError, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake
from kvi.model import Event, Span

from kvi_etcd import hub, wire
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.channel import Stream
from kvi_etcd.cursor import Chunk, Cursor
from kvi_etcd.driver import Connection
from kvi_etcd.errors import FutureRevision
from kvi_etcd.hub import Hub, LogIn, LookBack, MoveOn, Send, Verify, Watch

LOGIN_TIMEOUT = 5.0
BACKOFF_MIN, BACKOFF_MAX = 0.05, 1.0

_log = logging.getLogger("kvi")


class _Run:
    """One life of the reader; see the module's theory."""

    __slots__ = ("ended", "hub", "stream")

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.ended = threading.Event()
        self.stream: Stream | None = None

    def end(self) -> None:
        """Let the reader come to its end; called once it is not the present run any more."""
        self.ended.set()
        stream = self.stream
        if stream is not None:
            stream.end()


class Changes(Feed):
    """The changes of one span, from one revision on; `Watches` does the work, under its lock."""

    __slots__ = ("_run", "_warned", "_watch", "_watches", "revision")

    def __init__(self, watches: Watches, run: _Run, watch: Watch, seen: int) -> None:
        self._watches = watches
        self._run = run
        self._watch = watch
        self._warned = False
        self.revision = seen

    def poll(self, timeout: float) -> Batch | None:
        """Return what has arrived; never waits."""
        chunks = self._watches.take(self._run, self._watch)
        if not chunks:
            return None
        events: list[Event] = []
        for chunk in chunks:
            events += wire.events(chunk.changes, self._skip)
        return Batch(events, chunks[-1].revision)

    def close(self) -> None:
        """End it."""
        self._watches.discard(self._run, self._watch)

    @property
    def number(self) -> int:
        """Another one each time that the server is asked to begin."""
        return self._watch.id

    @property
    def compacted(self) -> int:
        """After `Compacted`: the first revision that is not gone, as far as the server told."""
        return self._watch.compacted

    def _skip(self, key: bytes) -> None:
        """A change of a ``key`` of another program: no event of kvi can tell of it."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "a watch leaves out the changes of keys that are not UTF-8; the first is %r", key
            )


class Watches:
    """The watches of one handle. Safe for threads."""

    def __init__(self, connection: Connection, report: Callable[[KviError], None]) -> None:
        """``report`` is told of every stream that was lost, or could not be had."""
        self._connection = connection
        self._report = report
        self._lock = threading.Lock()
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
        cursor = Cursor(seen, future=seen > present)
        return self._open(span, cursor, wake, deadline, ahead=seen >= present)

    def look_back(self, span: Span, seen: int, wake: Wake, timeout: float) -> Changes:
        """Watch ``span`` from behind ``seen``, which is in the past, or gone.

        If it is gone, the changes raise `Compacted`, and tell what is. Otherwise as `open`.
        """
        return self._open(span, Cursor(seen), wake, time.monotonic() + timeout, ahead=False)

    def _open(
        self, span: Span, cursor: Cursor, wake: Wake, deadline: float, *, ahead: bool
    ) -> Changes:
        seen, begun = cursor.seen, threading.Event()
        watch = Watch(wire.key_range(span), cursor, begun.set, ahead=ahead)
        run = self._enter(watch)
        begun.wait(max(0.0, deadline - time.monotonic()))
        with self._lock:
            # That its past is gone may be known already, or soon: the changes tell it, either way.
            if begun.is_set() and (watch.error is None or watch.compacted):
                watch.wake = wake
                if watch.buffer or watch.error is not None:
                    wake()
                return Changes(self, run, watch, seen)
            stream = run.stream if run.hub.silent(watch, time.monotonic()) else None
            trouble = run.hub.trouble
        self.discard(run, watch)
        if watch.error is not None:
            raise watch.error
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

    def _enter(self, watch: Watch) -> _Run:
        """Add ``watch`` to the run, or to a new one if there is none."""
        with self._lock:
            if self._closed:
                raise Unavailable("the connection is closed")
            run = self._run or self._begin_run()
            self._do(run, run.hub.open(watch, time.monotonic()))
            return run

    def _begin_run(self) -> _Run:
        run = _Run(Hub(self._connection.places, login=self._connection.logs_in))
        thread = threading.Thread(
            target=self._read, args=(run,), name="kvi-etcd-watches", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started for the watches: {error}") from error
        self._run = run
        self._threads = [*(old for old in self._threads if old.is_alive()), thread]
        return run

    def take(self, run: _Run, watch: Watch) -> list[Chunk]:
        """What ``watch`` has kept, about `hub.BATCH` events of it."""
        with self._lock:
            chunks, actions = run.hub.take(watch, time.monotonic())
            self._do(run, actions)
            if not chunks and watch.error is not None and not self._closed:
                raise watch.error
            return chunks

    def ensure_open(self) -> None:
        """Raise `Unavailable` once these are closed: what is kept then tells nothing more."""
        if self._closed:
            raise Unavailable("the handle is closed")

    def discard(self, run: _Run, watch: Watch) -> None:
        """End ``watch``, and the stream if it was the last."""
        with self._lock:
            if run is self._run:
                self._do(run, run.hub.discard(watch))
                self._retire_if_empty(run)

    # -- for the handle ---------------------------------------------------------------------------

    def close(self) -> None:
        """End all watches and the stream, without waiting for the threads."""
        with self._lock:
            self._closed = True
            run = self._run
            if run is not None:
                self._do(run, run.hub.fail(run.hub.watches, Unavailable("the handle is closed")))
                self._retire_if_empty(run)

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
        return abandoned

    # -- under the lock ---------------------------------------------------------------------------

    def _do(self, run: _Run, actions: Iterable[hub.Action]) -> hub.Action | None:
        """Do what needs no waiting; returns what the reader is to do afterwards, if anything.

        Nothing is done for a run that is over, or in a child whose parent has it.
        """
        rest: hub.Action | None = None
        if run is not self._run:
            return rest
        for action in actions:
            if isinstance(action, Send):
                assert run.stream is not None
                run.stream.send(action.request)
            elif isinstance(action, hub.Wake):
                action.watch.wake()
            else:
                rest = action
        return rest

    def _retire_if_empty(self, run: _Run) -> None:
        if run is self._run and not run.hub.watches:
            self._run = None
            run.end()

    # -- the reader -------------------------------------------------------------------------------

    def _read(self, run: _Run) -> None:
        try:
            self._stay_connected(run)
        except Exception as error:  # noqa: BLE001  (no watch may go quiet, whatever is wrong here)
            failure = KviError(f"the reader of the watches failed: {error!r}")
            failure.__cause__ = error
            with self._lock:
                self._do(run, run.hub.fail(run.hub.watches, failure))
                self._retire_if_empty(run)

    def _stay_connected(self, run: _Run) -> None:
        delay = BACKOFF_MIN
        while not run.ended.is_set():
            stream: Stream | None = None
            lost: KviError | None = None
            try:
                stream = self._connection.stream(LOGIN_TIMEOUT)
                if self._begin(run, stream):
                    self._connection.take(stream)
                for answer, size in stream.answers():
                    delay = BACKOFF_MIN
                    if not self._hear(run, stream, answer, size):
                        break
            except KviError as error:
                lost = error
            finally:
                if stream is not None:
                    stream.leave()
            if stream is not None and stream.forked:
                lost = None
            if self._lose(run, stream, lost):
                run.ended.wait(delay * random.uniform(0.8, 1.2))  # noqa: S311
                delay = min(delay * 2, BACKOFF_MAX)

    def _begin(self, run: _Run, stream: Stream) -> bool:
        """Take ``stream`` into use; whether something was asked, so that an answer will come."""
        with self._lock:
            if run is not self._run:
                stream.end()
                return False
            run.stream = stream
            actions = run.hub.on_stream(time.monotonic())
            self._do(run, actions)
            return bool(actions)

    def _hear(self, run: _Run, stream: Stream, answer: pb.WatchResponse, size: int) -> bool:
        """Whether to go on with ``stream``."""
        with self._lock:
            rest = self._do(run, run.hub.on_answer(answer, size, time.monotonic()))
        if isinstance(rest, LookBack | Verify):
            rest = self._look(run, rest)
        if isinstance(rest, MoveOn):
            raise rest.error
        if isinstance(rest, LogIn):
            self._connection.renew_login(stream)
            return False
        return True

    def _look(self, run: _Run, what: LookBack | Verify) -> hub.Action | None:
        """Ask the store, and tell the hub."""
        end = what.watch.high if isinstance(what, Verify) else b""
        request = pb.RangeRequest(key=what.watch.low, range_end=end, count_only=True)
        refused: KviError | None = None
        header = pb.ResponseHeader()
        try:
            answer = self._connection.call("range", request, LOGIN_TIMEOUT, write=False)
            header = answer.header
        except (Unavailable, Timeout, AuthenticationFailed):
            raise  # nothing about these keys
        except KviError as error:
            refused = error
        with self._lock:
            if isinstance(what, Verify):
                return self._do(run, run.hub.on_verified(what.watch, refused, time.monotonic()))
            if refused is not None:
                return self._do(run, run.hub.fail([what.watch], refused))
            told = run.hub.on_looked_back(what, header.revision, header.raft_term)
            return self._do(run, told)

    def _lose(self, run: _Run, stream: Stream | None, error: KviError | None) -> bool:
        """The stream is gone; whether its endpoint is to blame, so that the next one may wait.

        It is not once the run is another's: then the stream was ended here.
        """
        with self._lock:
            run.stream = None
            if run is not self._run:
                return False
            rest = self._do(run, run.hub.on_stream_lost(error))
            self._retire_if_empty(run)
        if not isinstance(rest, MoveOn):
            return False
        self._report(rest.error)
        if stream is not None:
            self._connection.leave(stream)
        return True
