"""Watches on Consul: many feeds share few polls, each a thread that looks at one prefix.

*Theory.* A `Poll` asks for everything below its prefix with a blocking query, over and over: the
server answers as soon as something there may have changed, or after a while. Each answer is a
`Look`, and the differences to the look before (`kvi_consul.diff`) go to the feeds that span them.
A look is linearizable (``consistent``), so one that was asked for after another was answered shows
the same or a later state. All that follows rests on that.

*Beginning.* A new feed reads its own keys first: its *baseline*, which is also the initial state
that it delivers. Then it joins the poll that covers them:

=============  =====================================  ===========================================
state          what it means                          left by
=============  =====================================  ===========================================
``JOINING``    the feed has a baseline, and the       a look that was asked for after the
               poll's looks so far may be older or    baseline: the feed gets what differs
               newer                                  between the two, and is FOLLOWING
``FOLLOWING``  the poll's last look is what the       too much is pending, or the history was
               feed knows, but for what is pending    replaced: BEHIND
``BEHIND``     nothing is kept for the feed           its consumer asks: it reads a new baseline,
                                                      delivers it as RESYNC, and is JOINING
``FAILED``     the token may not look                 final; every poll of the feed raises it
=============  =====================================  ===========================================

A baseline that equals the poll's last look makes the feed FOLLOWING at once. Otherwise the poll's
query is ended early, and it looks without waiting. So nothing falls between baseline and changes,
nothing comes twice, and no clock or index decides it.

*Why nothing is lost.* Of a FOLLOWING feed holds: the poll's last look K shows, of the feed's keys,
what the feed was told, what is pending included. A look L is out between `Poll._aim`, which says
what it is compared with, and `Poll._apply`, which takes it over in place of K; meanwhile the lock
is free. K does not change while L is out: only `_apply` replaces it. What else may happen then:

=====================================  =========================================================
while L is out a feed                  then
=====================================  =========================================================
was FOLLOWING all the time             it is told each difference between K and L: `_Seen.see`
                                       keeps what some FOLLOWING feed spans, and `finish` all
                                       that is gone
was JOINING when L was asked for       L is later than its baseline: it is told the differences
                                       between the two, and is FOLLOWING
begins to be JOINING                   L may be older than its baseline: it has no part in L, and
                                       the next look, without waiting, is compared with it
begins to be FOLLOWING (`_newly`)      its baseline equals K, but L may be older than that, may
                                       not have looked at all its keys (an exact one), and
                                       entries that nobody followed then may have been dropped.
                                       If K and L show the same of its keys, it is FOLLOWING L as
                                       it did K. Else it has no part in L: it is JOINING, with
                                       what K shows of its keys
leaves, or is BEHIND                   nothing is kept for it
moves to another poll (`inherit`)      the poll is over, and L is dropped. The new one takes over
                                       K, with which its own first look is compared
=====================================  =========================================================

If L is dropped for a fault, K stays, and with it whoever follows. If L shows that the history was
replaced, all feeds are BEHIND, as a baseline may be of either history.

*Few polls.* There are at most `MOST_POLLS` of a handle, whatever the number of its watches. When a
feed's prefix is not covered, `kvi_consul.cover` chooses the prefixes anew; polls whose prefix is no
longer among them end, and others begin, which inherit feeds and looks from them. What the old ones
were about to hear is discarded: the first look of the new ones compares with the same last look. A
poll that some feeds have left chooses anew before its next look, so that a wide one becomes narrow.

*Threads.* One lock guards all state: polls, feeds, what is pending. A poll's thread is the only one
to look for it, and decides nothing without the lock; a poll that was taken from `_polls` is *over*,
and what its thread still hears is dropped. Consumers' threads read baselines. ``wake`` is called
outside of the lock. A thread that cannot be started is an `Unavailable` of who needs the poll, and
everything else stays as it was.

*Signals.* A handler may close the handle while its own thread is in here, so the lock is
re-entrant. `Watches.end` may thus come between any two steps of a critical section. It only sets
``_ended``, which nothing takes back, and stirs the polls; as `Watches.current` looks at it, every
poll is over then, also one that the interrupted section is about to make, whose thread ends at its
first step. The `close` of feeds may come in between as well: ``_polls`` is replaced as a whole and
never changed, and feeds are listed in one step. At worst a poll then goes on for nothing until the
handle is closed.

*Interrupts.* An exception such as `KeyboardInterrupt` may end a consumer's call anywhere. A batch
is noted in the feed (``_held``) in the same step that takes its events from where they were, and
forgotten in the last step before it is returned; if the call ended before, the next one returns it.
A feed is BEHIND until its RESYNC is noted and it has joined a poll; whatever an interrupted attempt
has left is undone by the next. Only an assignment counts as one step.

*Faults.* Anything that may pass (no connection, no leader, an answer that is none) is tried again
after a back-off, by a look without waiting. A dead connection shows by the end of the wait, which
the server bounds (`_WAIT`), or by TCP's keep-alive. An index that falls is followed by a look
without waiting.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from copy import copy
from itertools import chain, islice
from time import monotonic
from typing import Any, NamedTuple

from kvi.errors import KviError, Timeout, Unavailable
from kvi.feed import Batch, Feed, Wake, WatchSpec
from kvi.model import Event, EventType, KeyValue, Span
from kvi.policy.interest import Interests, only_key

from kvi_consul import diff, errors, wire
from kvi_consul.cover import ancestor, cover, covering
from kvi_consul.diff import Change, Look, Pending, Stamps
from kvi_consul.errors import Broken
from kvi_consul.flag import Flag
from kvi_consul.pages import Pages
from kvi_consul.transport import Call, Transport

MOST_POLLS = 4
_WAIT = 10.0  # seconds that a query waits for a change; a dead connection is noticed a bit later
_LONGEST_WAIT = 60.0
_GRACE = 3.0  # seconds that an answer may take beyond its wait
_FIRST_BACKOFF, _MOST_BACKOFF = 0.05, 1.0
_FIRST_PAUSE, _MOST_PAUSE = 0.002, 0.05  # after looks that found nothing
_QUIET = 0.1  # seconds; a look that waited longer was not one of many that found nothing
_BUSY = 0.002  # seconds; a look that takes longer is followed by a pause as long
_REST = 50  # how many times longer than it takes a look is to wait at least
_JOIN = 1.0  # seconds that closing waits for the polls' threads
_PAGE = 500  # events of the initial state in a batch

# What taking apart an answer raises if it is not what Consul says.
_BAD = (ValueError, KeyError, TypeError, AttributeError)

Find = Callable[[Span, float], Generator[dict[str, Any]]]


class Baseline:
    """The state that a feed starts from."""

    def __init__(self, items: Iterable[dict[str, Any]], *, keep: bool) -> None:
        self.stamps: Stamps = {}
        self.pages = Pages()
        self.revision = 0  # every change up to it is part of the baseline
        for kv in items:
            entry = wire.entry_of(kv)
            self.stamps[entry.key] = diff.stamp_of(kv)
            self.revision = max(entry.revision, self.revision)
            if keep:
                self.pages.add(entry)
        self.pages.finish()


class ConsulFeed(Feed):
    """The changes in one span; see the module."""

    def __init__(self, watches: Watches, spec: WatchSpec, wake: Wake, timeout: float) -> None:
        self._watches = watches
        self.span = spec.span
        self.prefix = ancestor(spec.span.common_prefix)
        self.wake = wake
        # Guarded by the lock of `watches`:
        self.pending = Pending()
        self.told = 0  # everything up to it is pending or was handed out
        self.behind = False
        self.error: KviError | None = None
        self.closed = False

        # The consumer's own:
        self._held: Batch | None = None  # taken, and not returned yet
        self._initial: _Initial | None = None  # what is left of the initial state

        baseline = watches.baseline(self.span, timeout, keep=spec.initial)
        if spec.initial:
            self._initial = _Initial(baseline)
        else:
            self.revision = baseline.revision
        try:
            watches.enter(self, baseline)
        except BaseException:
            watches.leave(self)
            raise

    def poll(self, timeout: float) -> Batch | None:
        """Return the next events."""
        with self._watches.lock:
            if self.error is not None:
                raise self.error
            behind = self.behind
            if not behind and self._held is None and self._initial is None and self.pending:
                batch, empty = Batch(self.pending.events(), self.told), Pending()
                self._held, self.pending = batch, empty
        if behind:
            self._resync(timeout)
        elif self._held is None and self._initial is not None:
            batch, left = self._initial.page()
            self._held, self._initial = batch, left
        # Between these steps there is no call, nor a jump back, where an interrupt could come.
        held, self._held = self._held, None
        return held

    def close(self) -> None:
        """End it."""
        self._watches.leave(self)

    def lose(self) -> None:
        """What is pending is dropped, and nothing kept until the consumer asks; under the lock."""
        self.behind = True
        self.pending = Pending()

    def _resync(self, timeout: float) -> None:
        self._held = self._initial = None
        baseline = self._watches.baseline(self.span, timeout, keep=True)
        snapshot = list(chain.from_iterable(baseline.pages.forward(None)))
        event = Event(EventType.RESYNC, "", None, baseline.revision, snapshot=snapshot)
        self._held = Batch((event,), baseline.revision)
        self._watches.enter(self, baseline)  # if it fails, the feed is BEHIND as before


class _Initial:
    """A baseline as events, from some entry on. It is never changed."""

    def __init__(
        self, baseline: Baseline, told: int = 0, entries: Iterator[KeyValue] | None = None
    ) -> None:
        self._baseline = baseline
        self._told = told  # entries that were
        self._entries = entries  # those behind them, for the first who asks

    def page(self) -> tuple[Batch, _Initial | None]:
        """Some events, of which the last have the revision, and what is left then."""
        # If it fails or is interrupted, whoever asks again reads them again.
        entries, self._entries = self._entries, None
        if entries is None:
            pages = self._baseline.pages.forward(None)
            entries = islice(chain.from_iterable(pages), self._told, None)
        put = EventType.PUT
        page = [Event(put, e.key, e.value, e.revision, None, True) for e in islice(entries, _PAGE)]
        told = self._told + len(page)
        if told >= self._baseline.pages.count:
            return Batch(page, self._baseline.revision), None
        return Batch(page, None), _Initial(self._baseline, told, entries)


class _Seen:
    """A poll's look, and what it means for the feeds."""

    def __init__(self, poll: Poll, aim: _Aim) -> None:
        self.look = Look(aim.known, aim.high)
        self.aim = aim
        self.index = 0
        self.changes: list[Change] = []
        self.late: dict[ConsulFeed, list[Change]] = {feed: [] for feed in aim.joining}
        self._poll = poll
        self._spans: Interests[ConsulFeed] = Interests()
        for feed in aim.joining:
            self._spans.add(feed.span, feed)

    def see(self, kv: dict[str, Any]) -> None:
        """The next entry. Its value is kept only if a feed is to have it."""
        key, stamp, joining = kv["Key"], diff.stamp_of(kv), self.aim.joining
        changed = self.look.see(key, stamp) and self._poll.followed(key)
        late = [feed for feed in self._joining(key) if joining[feed].get(key) != stamp]
        if not changed and not late:
            return
        change = Change(key, key in self.aim.known, diff.value_of(kv), stamp.modified)
        if changed:
            self.changes.append(change)
        for feed in late:
            self.late[feed].append(change._replace(existed=key in joining[feed]))

    def _joining(self, key: str) -> Iterable[ConsulFeed]:
        return self._spans.matching((key,)) if self.late else ()

    def finish(self, index: int) -> None:
        """After the last entry: what is gone, as of ``index``."""
        self.index = index
        now, joining = self.look.stamps, self.aim.joining
        gone = self.look.gone(index)
        self.changes += [Change(key, True, None, index) for key in gone]
        for feed, stamps in joining.items():
            self.late[feed] += [Change(k, True, None, index) for k in diff.missing(stamps, now)]


def _within(span: Span, stamps: Stamps) -> Stamps:
    """Those of ``stamps`` whose keys are in ``span``."""
    key = only_key(span)
    if key is None:
        return {key: stamp for key, stamp in stamps.items() if key in span}
    return {key: stamps[key]} if key in stamps else {}


class _Aim(NamedTuple):
    """What a look is for: a poll's state at the moment before it is asked for."""

    exact: bool  # the one key that is the prefix, and nothing below it
    after: int | None  # wait for a change behind this index; None: do not wait
    known: Stamps
    high: int | None
    joining: dict[ConsulFeed, Stamps]


class Poll:
    """Looks at one prefix, in a thread of its own; its state is guarded by the watches' lock."""

    def __init__(self, watches: Watches, prefix: str) -> None:
        self.prefix = prefix
        self.members: dict[ConsulFeed, None] = {}  # each is in one of the two below
        self.following: Interests[ConsulFeed] = Interests()
        self.joining: dict[ConsulFeed, Stamps] = {}
        self.left = False  # feeds have left since the prefixes were chosen
        self._newly: set[ConsulFeed] = set()  # FOLLOWING only since the look that is out
        self._known: Stamps = {}  # the last look; replaced as a whole, never changed
        self._covered: tuple[str, ...] = ()  # prefixes below which it knows all keys
        self._exact = False  # the last look was at the key that is the prefix only
        self._high: int | None = None  # highest index of the looks
        self._index: int | None = None  # of the last look
        self._watches = watches
        self._call: Call | None = None
        self._waiting = False  # for a change, with ``_call``
        self._stirred = Flag()  # ends a pause

    # -- under the lock ---------------------------------------------------------------------------

    def feeds(self) -> list[ConsulFeed]:
        """All its feeds."""
        return list(self.members)  # one step, see the module about signals

    def admit(self, feed: ConsulFeed, stamps: Stamps) -> None:
        """A feed joins, with its baseline."""
        self.members[feed] = None
        knows = covering(self._covered, feed.prefix) is not None
        knows = knows or (self._exact and only_key(feed.span) == self.prefix)
        if knows and stamps == _within(feed.span, self._known):
            self.following.add(feed.span, feed)
            self._newly.add(feed)
            return
        self.joining[feed] = stamps
        self._stirred.set()
        if self._waiting and self._call is not None:
            self._call.end()

    def dismiss(self, feed: ConsulFeed) -> None:
        """A feed leaves."""
        self.left = True
        self.members.pop(feed, None)
        self._newly.discard(feed)
        if self.joining.pop(feed, None) is None:
            self.following.discard(feed.span, feed)

    def inherit(self, other: Poll) -> None:
        """Take over from another poll the feeds that this one covers, and what it knows of them."""
        inside = self.prefix
        for feed in other.feeds():
            if feed.prefix.startswith(inside):
                self.members[feed] = None
                stamps = other.joining.get(feed)
                if stamps is None:
                    self.following.add(feed.span, feed)
                else:
                    self.joining[feed] = stamps
        known = {k: s for k, s in other._known.items() if k.startswith(inside)}
        self._known = self._known | known
        self._covered += tuple(
            max(where, inside, key=len)
            for where in other._covered
            if where.startswith(inside) or inside.startswith(where)
        )

    def end(self) -> None:
        """It is over: its thread ends soon, and does nothing any more."""
        self._stirred.set()
        if self._call is not None:
            self._call.end()

    def _aim(self) -> tuple[_Aim, Call]:
        self._stirred.clear()
        self._newly.clear()
        exact = all(only_key(feed.span) == self.prefix for feed in self.feeds())
        same = exact == self._exact and (exact or self._covered == (self.prefix,))
        index = self._index if same and not self.joining else None
        self._call = call = Call()
        self._waiting = index is not None
        high = self._high if same else None
        return _Aim(exact, index, self._known, high, dict(self.joining)), call

    def _apply(self, seen: _Seen) -> list[ConsulFeed]:
        """Take a look over; the feeds to wake."""
        aim = seen.aim
        self._known, self._exact = seen.look.stamps, aim.exact
        self._covered = () if aim.exact else (self.prefix,)
        fell = aim.after is not None and seen.index < aim.after
        self._index = None if fell else seen.index
        rewound = seen.look.rewound
        self._high = seen.index if rewound else max(seen.index, aim.high or 0)
        touched: dict[ConsulFeed, None] = {}
        if rewound:
            for feed in self.feeds():
                self.dismiss(feed)
                feed.lose()
                touched[feed] = None
            return list(touched)
        joined = [feed for feed in seen.late if self.joining.get(feed) is aim.joining[feed]]
        for feed in self._newly:
            before = _within(feed.span, aim.known)
            if before != _within(feed.span, self._known):
                self.following.discard(feed.span, feed)
                self.joining[feed] = before
        for change in seen.changes:
            for feed in self.following.matching((change.key,)):
                feed.pending.add(change)
                touched[feed] = None
        for feed in joined:
            del self.joining[feed]
            self.following.add(feed.span, feed)
            for change in seen.late[feed]:
                feed.pending.add(change)
                touched[feed] = None
        for feed in touched:
            feed.told = max(feed.told, seen.index)
            if feed.pending.too_large:
                self.dismiss(feed)
                feed.lose()
        return list(touched)

    # -- in its thread ----------------------------------------------------------------------------

    def followed(self, key: str) -> bool:
        """Whether a feed that follows spans ``key``."""
        with self._watches.lock:
            return bool(self.following.matching((key,)))

    def run(self) -> None:
        """Look until the poll is over."""
        watches = self._watches
        woken: list[ConsulFeed] = []
        try:
            woken = self._run()
        except KviError as error:
            woken = watches.fail(self, error)
        except Exception as error:  # noqa: BLE001  (a watch never goes quiet, whatever happens)
            failed = KviError(f"the watch failed: {type(error).__name__}: {error}")
            failed.__cause__ = error
            woken = watches.fail(self, failed)
        for feed in woken:
            feed.wake()

    def _run(self) -> list[ConsulFeed]:
        watches = self._watches
        failures = fruitless = 0
        cost = 0.0  # seconds that the last look took, without the wait
        while True:
            with watches.lock:
                if self.left:
                    with suppress(Unavailable):  # the prefixes stay as they are until next time
                        watches.choose()
                if not watches.current(self):
                    return []
                aim, call = self._aim()
            asked = monotonic()
            seen = error = None
            try:
                seen, cost = watches.look(self, aim, call, cost, failures)
            except (Unavailable, Timeout) as failed:
                error = failed
            with watches.lock:
                self._call = None
                if not watches.current(self):
                    return []
                woken = self._apply(seen) if seen is not None else []
                watches.drop_if_empty(self)
            if error is not None:
                with watches.lock:
                    self._index = None
                if call.ended:
                    continue
                watches.report(error)
                failures += 1
                most = min(_FIRST_BACKOFF * 2**failures, _MOST_BACKOFF)
                self._stirred.wait(random.uniform(_FIRST_BACKOFF, most))  # noqa: S311
                continue
            failures = 0
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
        self,
        transport: Transport,
        query: str,
        find: Find,
        report: Callable[[KviError], None],
    ) -> None:
        """``query``: what every path is to end with; ``find`` reads the entries of a span.

        ``report`` is told of every look that failed.
        """
        self.report = report
        self._transport = transport
        self._query = query
        self._find = find
        self._reset()

    def _reset(self) -> None:
        self.lock = threading.RLock()  # see the module about signals
        # None of their prefixes covers another; replaced as a whole, never changed.
        self._polls: dict[str, Poll] = {}
        self._threads: list[threading.Thread] = []
        self._ended = False

    def watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        """Begin to watch."""
        return ConsulFeed(self, spec, wake, timeout)

    def end(self) -> None:
        """End all polls."""
        with self.lock:
            self._ended = True
            for poll in self._polls.values():
                poll.end()

    def join(self) -> None:
        """Wait, not for long, until the threads of all polls are gone."""
        deadline = monotonic() + _JOIN
        for thread in self._threads:
            if thread is not threading.current_thread():  # which may run a finalizer that closes
                thread.join(max(deadline - monotonic(), 0.0))

    def forked(self) -> None:
        """In a child: forget the parent's polls."""
        self._reset()

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

        Raises `Unavailable` if no thread can look for it; the feed is as it was then.
        """
        with self.lock:
            if feed.closed:
                return
            if self._ended:
                raise Unavailable("the handle was closed")
            polls = self._polls
            where = covering(polls, feed.prefix)
            if where is None:
                polls = self.choose(feed.prefix)
                where = covering(polls, feed.prefix)
                assert where is not None  # it was chosen so
            elif feed.behind:
                polls[where].dismiss(feed)  # should an attempt before have been interrupted
            feed.pending, feed.told = Pending(), baseline.revision
            polls[where].admit(feed, baseline.stamps)
            feed.behind = False

    def leave(self, feed: ConsulFeed) -> None:
        """A feed is closed."""
        with self.lock:
            feed.closed = True
            feed.pending = Pending()
            polls = self._polls
            where = covering(polls, feed.prefix)
            if where is not None and not self._ended:
                polls[where].dismiss(feed)
                self.drop_if_empty(polls[where])

    # -- for polls; all but `look` and `fail` under the lock --------------------------------------

    def current(self, poll: Poll) -> bool:
        """Whether a poll is not over."""
        return not self._ended and self._polls.get(poll.prefix) is poll

    def drop_if_empty(self, poll: Poll) -> None:
        """End a poll that no feed needs."""
        if not poll.members:
            self._polls = {w: other for w, other in self._polls.items() if other is not poll}
            poll.end()

    def choose(self, newcomer: str | None = None) -> dict[str, Poll]:
        """Choose the prefixes of the polls anew, for all feeds and a newcomer's prefix.

        Returns what `_polls` is then. Raises `Unavailable` if a thread cannot be started; all is
        as it was then.
        """
        before = self._polls
        prefixes = {feed.prefix for poll in before.values() for feed in poll.feeds()}
        if newcomer is not None:
            prefixes.add(newcomer)
        wanted = cover(prefixes, MOST_POLLS)
        chosen = {where: before.get(where) or Poll(self, where) for where in wanted}
        new = [poll for where, poll in chosen.items() if where not in before]
        over = [poll for where, poll in before.items() if where not in chosen]
        for poll in new:
            self._start(poll)  # what it does first is to wait for the lock, and see if it is chosen
        for poll in new:
            for other in over:
                poll.inherit(other)
        self._polls = chosen
        for poll in chosen.values():
            poll.left = False
        for poll in over:
            poll.end()
        return chosen

    def _start(self, poll: Poll) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=poll.run, name="kvi-consul-watch", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(
                f"no thread could be started for the watch ({error}); let others end, and try again"
            ) from error
        self._threads.append(thread)

    def fail(self, poll: Poll, error: KviError) -> list[ConsulFeed]:
        """End the feeds of a poll with an error; they are to be woken."""
        with self.lock:
            if not self.current(poll):
                return []
            self._polls = {w: other for w, other in self._polls.items() if other is not poll}
            feeds = poll.feeds()
            for feed in feeds:
                feed.error = copy(error)  # each gets a place of its own
            return feeds

    def look(
        self, poll: Poll, aim: _Aim, call: Call, cost: float, failures: int
    ) -> tuple[_Seen, float]:
        """Look once; also the seconds that it took, without the wait."""
        patience = _GRACE * 2 ** min(failures, 4)
        target = f"/v1/kv/{poll.prefix}?{'' if aim.exact else 'recurse&'}{self._query}"
        if aim.after is not None:
            # What looks cost while nothing happens is bounded, as they may be large.
            wait = min(max(_WAIT, cost * _REST), _LONGEST_WAIT)
            patience += wait * 17 / 16
            target += f"&index={aim.after}&wait={wait * 1000:.0f}ms"
        transport = self._transport
        head = transport.head("GET", target)
        seen, parser = _Seen(poll, aim), wire.Parser()
        try:
            with transport.stream(head, b"", patience, read_only=True, call=call) as stream:
                began = monotonic()
                if stream.status not in (200, 404) or b"x-consul-index" not in stream.headers:
                    text = stream.read().decode(errors="replace")
                    if transport.token is not None:
                        text = text.replace(transport.token, "***")
                    status = 404 if stream.status == 200 else stream.status
                    raise errors.of_status(status, text, write=False)
                if stream.status == 200:
                    for piece in stream:
                        for kv in parser.feed(piece):
                            seen.see(kv)
                    parser.end()
                else:
                    stream.read()  # nothing has this prefix
                # An index below 1 would be a question without a wait.
                seen.finish(max(int(stream.headers[b"x-consul-index"]), 1))
                return seen, monotonic() - began
        except Broken as broken:
            raise errors.of_broken(broken, transport.where, write=False) from broken.__cause__
        except (wire.NotAList, *_BAD) as error:
            raise errors.of_nonsense(transport.where, write=False) from error
