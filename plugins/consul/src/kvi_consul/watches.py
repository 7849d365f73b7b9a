"""Watches on Consul: each has a blocking query of its own, or shares one where there are many.

*Theory.* A `Query` is a thread that asks for its target, a key or a prefix (`kvi_consul.cover`),
over and over: the server answers as soon as something there may have changed, or after a while.
Each answer is a `Snapshot`, and what differs from the snapshot before goes to the feeds whose keys
it concerns. Answers are linearizable (``consistent``), so what was asked for after another read was
answered shows the same or a later state. All that follows rests on that.

*A feed.* It reads its own keys first: its *baseline*, which is also the initial state that it
delivers. Then it joins the query that covers them:

=============  =====================================  ===========================================
state          what it means                          left by
=============  =====================================  ===========================================
``joining``    the feed has something else than the   a snapshot that was asked for after it
               query's last snapshot, or it may be    joined: it is told what differs from what
               older than that: its baseline, what    it has (or all of it, as a RESYNC, if it
               it knew in another query, or nothing   has nothing), and is *following*
*following*    the query's last snapshot is what it   too much is pending, or the history was
               was told, what is pending included     replaced: *behind*
*behind*       nothing is kept for it                 its consumer asks: it is joining, with
                                                      nothing
*failed*       the token may not look                 final; every poll of the feed raises it
=============  =====================================  ===========================================

*Why nothing is lost.* A snapshot is out between `Query.ask`, which says what it is compared with,
and `Query.take`, which puts it in place of the last one. A feed that joins meanwhile has no part in
it, as it may be older than the feed's baseline. If that baseline is what the last snapshot shows,
whatever comes after ends the wait, so the feed counts as following; but if the snapshot that is out
shows anything else of its keys, it is joining all the same, with what it has. Who is joining ends
the wait, or a query without a wait follows. If a snapshot is dropped for a fault, the last one
stays, and with it whoever follows. If it shows that the history was replaced, all feeds are behind,
as a baseline may be of either history.

*Few queries.* There are at most as many as the handle's option ``connections`` says, whatever the
number of its watches. When a feed's target is not covered, or feeds have left, targets are chosen
anew. Queries whose target is no longer among them are over: their feeds join the others, with what
they were told, and what they were about to hear is dropped.

*Threads.* One lock guards all of it, and nothing waits under it. A query's thread decides nothing
without the lock, and ends once its query is over. Consumers' threads read baselines. ``wake`` is
called outside of the lock. A thread that cannot be started is an `Unavailable` of who needs the
query, and everything else stays as it was.

*Faults.* Anything that may pass (no connection, no leader, an answer that is none) is tried again
after a back-off, by a query without a wait. So is a token that is not known, until that was said
for a while: a server that has just begun to lead may say so. Certificates may be renewed, on either
side, however long that takes. A dead connection shows by the end of the wait, which the server
bounds (`_WAIT`), or by TCP's keep-alive. An index that falls is followed by a query without a wait.
"""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from copy import copy
from itertools import chain, islice
from time import monotonic
from typing import Any

from kvi.errors import AuthenticationFailed, KviError, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import Event, EventType, Span
from kvi.policy.interest import Interests

from kvi_consul import diff, errors, wire
from kvi_consul.cover import ONE, cover, covering, target_of
from kvi_consul.diff import Pending, Snapshot, Stamps, within
from kvi_consul.errors import Broken
from kvi_consul.pages import Pages
from kvi_consul.transport import Call, Transport

_WAIT = 10.0  # seconds that a query waits for a change; a dead connection is noticed a bit later
_LONGEST_WAIT = 60.0
_GRACE = 3.0  # seconds that an answer, or its next piece, may take beyond its wait
_FIRST_BACKOFF, _MOST_BACKOFF = 0.05, 1.0
_FIRST_PAUSE, _MOST_PAUSE = 0.002, 0.05  # after answers that told nobody anything
_QUIET = 0.1  # seconds; an answer that took longer was not one of many that told nothing
_BUSY = 0.002  # seconds; an answer that takes longer is followed by a pause as long
_REST = 50  # how many times longer than an answer takes a query is to wait at least
_DOUBT = 2.0  # seconds for which "the token is not known" must be said to be believed
_JOIN = 1.0  # seconds that closing waits for the queries' threads
_PAGE = 500  # events of the initial state in a batch

# What taking apart an answer raises if it is not what Consul says.
_BAD = (ValueError, KeyError, TypeError, AttributeError)

Find = Callable[[Span, float], Generator[dict[str, Any]]]


class Baseline:
    """The state that a feed starts from."""

    def __init__(self, items: Iterable[dict[str, Any]], *, keep: bool) -> None:
        self.stamps: Stamps = {}
        self.revision = 0  # every change up to it is part of the baseline
        self._pages = Pages()
        for kv in items:
            entry = wire.entry_of(kv)
            self.stamps[entry.key] = diff.stamp_of(kv)
            self.revision = max(entry.revision, self.revision)
            if keep:
                self._pages.add(entry)
        self._pages.finish()

    def batches(self) -> Iterator[Batch]:
        """The initial state as events, of which the last have the revision."""
        entries, left = chain.from_iterable(self._pages.read()), self._pages.count
        put, revision = EventType.PUT, self.revision
        while left > _PAGE:
            left -= _PAGE
            some = islice(entries, _PAGE)
            yield Batch([Event(put, e.key, e.value, e.revision, None, True) for e in some], None)
        yield Batch([Event(put, e.key, e.value, e.revision, None, True) for e in entries], revision)


class ConsulFeed(Feed):
    """The changes in one span; see the module."""

    def __init__(self, watches: Watches, spec: WatchSpec, wake: Wake, timeout: float) -> None:
        self._watches = watches
        self.span = spec.span
        self.target = target_of(spec.span)
        self.wake = wake
        # Guarded by the lock of `watches`:
        self.query: Query | None = None
        self.pending = Pending()
        self.resync: Batch | None = None  # comes before what is pending
        self.told = 0  # everything up to it is pending or was handed out
        self.behind = False
        self.error: KviError | None = None

        baseline = watches.baseline(self.span, timeout, keep=spec.initial)
        self._initial = baseline.batches() if spec.initial else iter(())  # the consumer's own
        if not spec.initial:
            self.revision = baseline.revision
        watches.enter(self, baseline)

    def poll(self, timeout: float) -> Batch | None:
        """Return the next events; what has to be asked for is asked by the query, not here."""
        with self._watches.lock:
            if self.error is not None:
                raise self.error
            if self.behind and self.query is not None:
                self.behind, self._initial = False, iter(())
                self.query.admit(self, None)
        batch = next(self._initial, None)
        if batch is not None:
            return batch
        with self._watches.lock:
            batch, self.resync = self.resync, None
            if batch is None and self.pending:
                batch, self.pending = Batch(self.pending.events(), self.told), Pending()
        return batch

    def close(self) -> None:
        """End it."""
        self._watches.leave(self)

    def lose(self) -> None:
        """What is pending is dropped, and nothing kept until the consumer asks; under the lock."""
        self.behind, self.resync, self.pending = True, None, Pending()


class Query:
    """Asks for one target, in a thread of its own; its state is guarded by the watches' lock."""

    def __init__(self, watches: Watches, target: str) -> None:
        self.target = target
        self.feeds: dict[ConsulFeed, None] = {}  # those in neither of the next two are behind
        self.following: Interests[ConsulFeed] = Interests()
        self.joining: dict[ConsulFeed, Stamps | None] = {}
        self._newly: set[ConsulFeed] = set()  # following only since the query that is out
        self.left = False  # feeds have left since the targets were chosen
        self.known: Stamps = {}  # the last snapshot; replaced as a whole, never changed
        self._high: int | None = None  # highest index of the snapshots, if there is one
        self._index: int | None = None  # to wait behind; ``None``: do not wait
        self._watches = watches
        self._call = Call()  # the query that is out, or was
        self._waiting = False  # for a change, with ``_call``
        self._stirred = threading.Event()  # ends a pause

    # -- under the lock ---------------------------------------------------------------------------

    def admit(self, feed: ConsulFeed, stamps: Stamps | None) -> None:
        """A feed joins, with what it was told; ``None``: with nothing."""
        feed.query, self.feeds[feed] = self, None
        if self._high is not None and stamps == within(feed.span, self.known):
            self.following.add(feed.span, feed)
            self._newly.add(feed)
            return
        self.joining[feed] = stamps
        self._stirred.set()
        if self._waiting:
            self._call.end()

    def dismiss(self, feed: ConsulFeed) -> None:
        """Nothing is told to a feed any more, and nothing kept for it."""
        self.joining.pop(feed, None)
        self._newly.discard(feed)
        self.following.discard(feed.span, feed)

    def told(self, feed: ConsulFeed) -> Stamps | None:
        """What a feed that is not behind has been told."""
        return self.joining[feed] if feed in self.joining else within(feed.span, self.known)

    def end(self) -> None:
        """It is over: its thread ends soon, and does nothing any more."""
        self._stirred.set()
        self._call.end()

    def ask(self) -> tuple[Snapshot[ConsulFeed], int | None, Call]:
        """What to ask for: an empty snapshot, the index to wait behind, and the call to use."""
        self._stirred.clear()
        self._newly.clear()
        index = None if self.joining else self._index
        self._call, self._waiting = Call(), index is not None
        joining = {feed: (feed.span, stamps) for feed, stamps in self.joining.items()}
        return Snapshot(self.known, self._high, joining, self._followed), index, self._call

    def fault(self) -> None:
        """What was asked for did not come."""
        self._index, self._waiting = None, False

    def take(self, shown: Snapshot[ConsulFeed], after: int | None) -> list[ConsulFeed]:
        """A snapshot has come; the feeds to wake."""
        fell = after is not None and shown.index < after
        self._index, self._waiting = None if fell else shown.index, False
        self._high = shown.index if shown.rewound else max(shown.index, self._high or 0)
        for feed in self._newly:
            told = self.told(feed)
            if told != within(feed.span, shown.stamps):
                self.following.discard(feed.span, feed)
                self.joining[feed] = told
        touched: dict[ConsulFeed, None] = {}
        lost: list[ConsulFeed] = []
        for change in shown.changes:
            for feed in self.following.matching((change.key,)):
                feed.pending.add(change)
                touched[feed] = None
        for feed, changes in shown.late.items():
            if feed in self.feeds:  # it has not left meanwhile
                self.dismiss(feed)
                self.following.add(feed.span, feed)
                high = feed.told
                for change in changes:
                    if change.value is None:  # Consul may tell an index that is too low
                        change = change._replace(revision=max(change.revision, high + 1))
                    elif change.revision <= high:  # the history was replaced before it joined
                        lost.append(feed)
                    feed.pending.add(change)
                    feed.told = max(feed.told, change.revision)
                    touched[feed] = None
        for feed in touched:
            feed.told = max(feed.told, shown.index)
            if feed.pending.too_large:
                lost.append(feed)
        asked = [feed for feed in shown.whole if feed in self.feeds and not feed.behind]
        for feed in [feed for feed in self.feeds if not feed.behind] if shown.rewound else lost:
            self.dismiss(feed)
            feed.lose()
            touched[feed] = None
        self.known = shown.stamps
        for feed in asked:
            self.dismiss(feed)
            self.following.add(feed.span, feed)
            event = Event(EventType.RESYNC, "", None, shown.index, snapshot=shown.whole[feed])
            feed.behind, feed.resync = False, Batch((event,), shown.index)
            feed.told = shown.index
            touched[feed] = None
        return list(touched)

    # -- in its thread ----------------------------------------------------------------------------

    def _followed(self, key: str) -> bool:
        with self._watches.lock:
            return bool(self.following.matching((key,)))

    def run(self) -> None:
        """Ask until the query is over."""
        watches = self._watches
        woken: list[ConsulFeed] = []
        try:
            self._run()
        except KviError as error:
            woken = watches.fail(self, error)
        except Exception as error:  # noqa: BLE001  (a watch never goes quiet, whatever happens)
            failed = KviError(f"the watch failed: {type(error).__name__}: {error}")
            failed.__cause__ = error
            woken = watches.fail(self, failed)
        for feed in woken:
            feed.wake()

    def _run(self) -> None:
        watches = self._watches
        failures = fruitless = 0
        refused: float | None = None  # since when the token is not known
        cost = 0.0  # seconds that the last answer took, without the wait
        while True:
            with watches.lock:
                if self.left:
                    with suppress(Unavailable):  # the targets stay as they are until next time
                        watches.choose()
                if not watches.current(self):
                    return
                shown, after, call = self.ask()
            asked = monotonic()
            error: KviError | None = None
            woken: list[ConsulFeed] = []
            try:
                cost = watches.look(self, shown, after, call, cost, failures)
            except (Unavailable, Timeout) as failed:
                error, refused = failed, None
            except AuthenticationFailed as failed:
                error = failed
                if isinstance(failed.__cause__, ssl.SSLError):
                    refused = None
                else:
                    refused = asked if refused is None else refused
                    if monotonic() - refused >= _DOUBT:
                        raise
            with watches.lock:
                if not watches.current(self):
                    return
                if error is None:
                    woken = self.take(shown, after)
                else:
                    self.fault()
            if error is not None:
                if not call.ended:
                    watches.report(error)
                    failures += 1
                    most = min(_FIRST_BACKOFF * 2**failures, _MOST_BACKOFF)
                    self._stirred.wait(random.uniform(_FIRST_BACKOFF, most))  # noqa: S311
                continue
            failures, refused = 0, None
            for feed in woken:
                feed.wake()
            fruitless = 0 if woken or monotonic() - asked > _QUIET else min(fruitless + 1, 10)
            pause = min(_FIRST_PAUSE * 2**fruitless, _MOST_PAUSE) if fruitless > 1 else 0.0
            if cost > _BUSY:
                pause = max(pause, min(cost, _MOST_BACKOFF))
            if pause:
                self._stirred.wait(pause)


class Watches:
    """The watches of one handle."""

    def __init__(
        self, transport: Transport, query: str, find: Find, report: Callable[[KviError], None]
    ) -> None:
        """``query``: what every path is to end with; ``find`` reads the entries of a span.

        ``report`` is told of every query that failed.
        """
        self.report = report
        self._transport = transport
        self._query = query
        self._find = find
        self._most = transport.connections
        self.reset()

    def reset(self) -> None:
        """Begin, or in a child begin anew: forget the parent's queries."""
        self.lock = threading.Lock()
        self.queries: dict[str, Query] = {}  # by target; none covers another
        self._threads: list[threading.Thread] = []
        self._ended = False

    def end(self) -> None:
        """End all queries."""
        with self.lock:
            self._ended = True
            for query in self.queries.values():
                query.end()

    def join(self) -> None:
        """Wait, not for long, until the threads of all queries are gone."""
        deadline = monotonic() + _JOIN
        for thread in self._threads:
            if thread is not threading.current_thread():  # which may run a finalizer that closes
                thread.join(max(deadline - monotonic(), 0.0))

    # -- for feeds --------------------------------------------------------------------------------

    def baseline(self, span: Span, timeout: float, *, keep: bool) -> Baseline:
        """Read the present state of ``span``; its entries are kept if ``keep``."""
        try:
            with closing(self._find(span, timeout)) as items:
                return Baseline(items, keep=keep)
        except _BAD as error:
            raise errors.of_nonsense(self._transport.where, write=False) from error

    def enter(self, feed: ConsulFeed, baseline: Baseline) -> None:
        """Let a feed follow what changes from its baseline on.

        Raises `Unavailable` if no thread can ask for it.
        """
        with self.lock:
            if self._ended:
                raise Unavailable("the handle was closed")
            if covering(self.queries, feed.target) is None:
                self.choose(feed.target)
            feed.told = baseline.revision
            self._covering(feed).admit(feed, baseline.stamps)

    def leave(self, feed: ConsulFeed) -> None:
        """A feed is closed."""
        with self.lock:
            feed.lose()
            query, feed.query = feed.query, None
            if query is None or not self.current(query):
                return
            query.dismiss(feed)
            del query.feeds[feed]
            query.left = True
            if not query.feeds:
                del self.queries[query.target]
                query.end()

    def _covering(self, feed: ConsulFeed) -> Query:
        target = covering(self.queries, feed.target)
        assert target is not None  # targets are chosen so
        return self.queries[target]

    # -- for queries; all but `look` and `fail` under the lock ------------------------------------

    def current(self, query: Query) -> bool:
        """Whether a query is not over."""
        return not self._ended and self.queries.get(query.target) is query

    def choose(self, newcomer: str | None = None) -> None:
        """Choose the targets anew, for all feeds and a newcomer's target.

        Raises `Unavailable` if a thread cannot be started; all is as it was then.
        """
        before = self.queries
        targets = {feed.target for query in before.values() for feed in query.feeds}
        wanted = cover(targets if newcomer is None else {*targets, newcomer}, self._most)
        chosen = {target: before.get(target) or Query(self, target) for target in wanted}
        for target, query in chosen.items():
            if target not in before:
                self._start(query)  # what it does first waits for the lock, to see if it is chosen
        self.queries = chosen
        for query in chosen.values():
            query.left = False
        for target, query in before.items():
            if target not in chosen:
                for feed in query.feeds:
                    other = self._covering(feed)
                    if feed.behind:
                        feed.query, other.feeds[feed] = other, None
                    else:
                        other.admit(feed, query.told(feed))
                query.end()

    def _start(self, query: Query) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=query.run, name="kvi-consul-watch", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(
                f"no thread could be started for the watch ({error}); let others end, and try again"
            ) from error
        self._threads.append(thread)

    def fail(self, query: Query, error: KviError) -> list[ConsulFeed]:
        """End the feeds of a query with an error; they are to be woken."""
        with self.lock:
            if not self.current(query):
                return []
            del self.queries[query.target]
            for feed in query.feeds:
                feed.error = copy(error)  # each is raised at a place of its own
            return list(query.feeds)

    def look(
        self,
        query: Query,
        shown: Snapshot[ConsulFeed],
        after: int | None,
        call: Call,
        cost: float,
        failures: int,
    ) -> float:
        """Ask once, and fill the snapshot; the seconds that it took, without the wait."""
        target, patience = query.target, _GRACE * 2 ** min(failures, 4)
        path = f"{target[:-1]}?" if target.endswith(ONE) else f"{target}?recurse&"
        path = f"/v1/kv/{path}{self._query}"
        wait = 0.0
        if after is not None:
            # What queries cost while nothing happens is bounded, as answers may be large.
            wait = min(max(_WAIT, cost * _REST), _LONGEST_WAIT)
            path += f"&index={after}&wait={wait * 1000:.0f}ms"
        transport, parser = self._transport, wire.Parser()
        deadline = monotonic() + patience + wait * 17 / 16
        head = transport.head("GET", path)
        try:
            with transport.begin(head, b"", deadline, read_only=True, call=call) as exchange:
                began = monotonic()
                status, headers = exchange.status, exchange.headers
                if status not in (200, 404) or b"x-consul-index" not in headers:
                    text = exchange.read().decode(errors="replace")
                    if transport.token is not None:
                        text = text.replace(transport.token, "***")
                    raise errors.of_status(404 if status == 200 else status, text, write=False)
                for piece in exchange.pieces(patience):
                    for kv in parser.feed(piece) if status == 200 else ():  # 404: there is nothing
                        shown.see(kv)
                if status == 200:
                    parser.end()
                # An index below 1 would be a question without a wait.
                shown.finish(max(int(headers[b"x-consul-index"]), 1))
                return monotonic() - began
        except Broken as broken:
            raise errors.of_broken(broken, transport.where, write=False) from broken.__cause__
        except (wire.NotAList, *_BAD) as error:
            raise errors.of_nonsense(transport.where, write=False) from error
