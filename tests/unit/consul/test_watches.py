"""Watches step by step: every order of what a poll, its feeds and the server do, without threads.

The server is a model (`Server`), a poll's look is taken in the steps in which its thread takes it
(`Step`), and the test says which comes next.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from functools import partial
from itertools import count
from types import FrameType
from typing import Any, cast

import kvi
import pytest
from kvi.errors import KviError, Unavailable
from kvi.feed import Batch, WatchSpec
from kvi.model import EventType, Span
from kvi.policy.interest import only_key
from kvi_consul import diff, watches
from kvi_consul.flag import Flag
from kvi_consul.transport import Call, Transport
from kvi_consul.watches import ConsulFeed, Poll, Watches, _Aim, _Seen


def nothing() -> None:
    """For feeds that are asked without having been woken."""


def key(name: str) -> Span:
    """The span of one key."""
    return Span(name, name + "\0")


class Server:
    """The keys of a store, and when those of a prefix changed last."""

    def __init__(self) -> None:
        self.index = 10
        self.kv: dict[str, dict[str, Any]] = {}
        self.changed: dict[str, int] = {}  # the last change of each key, also a deletion

    def put(self, name: str) -> None:
        """Store something new."""
        self.index += 1
        self.changed[name] = self.index
        created = self.kv[name]["CreateIndex"] if name in self.kv else self.index
        self.kv[name] = {
            "Key": name,
            "Value": "eA==",
            "Flags": self.index,
            "CreateIndex": created,
            "ModifyIndex": self.index,
        }

    def delete(self, name: str) -> None:
        """Delete a key if it is there."""
        if self.kv.pop(name, None) is not None:
            self.index += 1
            self.changed[name] = self.index

    def find(self, span: Span, timeout: float) -> Generator[dict[str, Any]]:
        """The entries of a span now."""
        yield from [kv for name, kv in sorted(self.kv.items()) if name in span]


class Step:
    """A look that is out: `answer` is the server's moment, `see` and `finish` come later."""

    def __init__(self, server: Server, poll: Poll) -> None:
        self.poll = poll
        self._server = server
        self.aim: _Aim
        self.call: Call
        self.aim, self.call = poll._aim()
        self.seen = _Seen(poll, self.aim)
        self.left: Iterator[dict[str, Any]] | None = None  # entries that are yet to be seen
        self._index = 0

    def _spans(self, name: str) -> bool:
        prefix = self.poll.prefix
        return name == prefix if self.aim.exact else name.startswith(prefix)

    @property
    def index(self) -> int:
        """What the server says for the prefix."""
        return max((i for name, i in self._server.changed.items() if self._spans(name)), default=1)

    def answer(self) -> bool:
        """The server answers from its present state, unless there is nothing to end the wait."""
        if self.aim.after is not None and self.index <= self.aim.after:
            return False
        entries = [kv for name, kv in sorted(self._server.kv.items()) if self._spans(name)]
        self.left, self._index = iter(entries), self.index
        return True

    def see(self, number: int | None = None) -> None:
        """The next entries come in."""
        assert self.left is not None
        for kv in self.left:
            self.seen.see(kv)
            if number is not None:
                number -= 1
                if not number:
                    return

    def finish(self) -> None:
        """All of it comes in, and is taken over."""
        self.see()
        self.seen.finish(self._index)
        self.poll._call = None
        self.poll._apply(self.seen)

    def whole(self) -> bool:
        """All of it at once, if the server answers."""
        if self.call.ended or not self.answer():
            self.poll._call = None
            return False
        self.finish()
        return True


class Bench:
    """Watches on a `Server`, whose polls have no threads but `settle` and the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Watches, "_start", nothing_of)
        self.server = Server()
        self.failed: list[kvi.KviError] = []
        self.watches = Watches(cast("Transport", None), "", self.server.find, self.failed.append)

    def feed(self, span: Span, *, initial: bool = False) -> ConsulFeed:
        """A feed, which joins at once."""
        return ConsulFeed(self.watches, WatchSpec(span, initial=initial), nothing, 5)

    @property
    def poll(self) -> Poll:
        """The only poll."""
        (poll,) = self.watches._polls.values()
        return poll

    def look(self, poll: Poll) -> Step | None:
        """What a poll's thread does before it asks, unless the poll is over."""
        if poll.left:
            self.watches.choose()
        return Step(self.server, poll) if self.watches.current(poll) else None

    def out(self) -> Step:
        """A look of the only poll."""
        step = self.look(self.poll)
        assert step is not None
        return step

    def settle(self) -> None:
        """Let all polls look until there is nothing that they would not wait for."""
        for _ in range(20):
            before = self.watches._polls
            steps = [self.look(poll) for poll in before.values()]
            if self.watches._polls is not before:
                continue  # other prefixes were chosen
            answered = [step.whole() for step in steps if step is not None]
            if not any(answered) and not any(poll.joining for poll in before.values()):
                return
        raise AssertionError("the polls look without end")


def nothing_of(*_: object) -> None:
    """A thread that is not started."""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Watches without threads."""
    return Bench(monkeypatch)


def told(feed: ConsulFeed) -> list[tuple[EventType, str, int]]:
    """What a feed has to tell now."""
    found = []
    while (batch := feed.poll(1)) is not None:
        found += [(event.type, event.key, event.revision) for event in batch.events]
    return found


PUT, DELETE, RESYNC = EventType.PUT, EventType.DELETE, EventType.RESYNC


class Consumer:
    """What a feed tells, checked against what was there when it began."""

    def __init__(self, bench: Bench, span: Span, *, initial: bool) -> None:
        self.span = span
        began = {kv["Key"]: kv["ModifyIndex"] for kv in bench.server.find(span, 1)}
        self._baseline = bench.watches.baseline(span, 1, keep=initial)
        self.state = {} if initial else began
        self._feed = ConsulFeed.__new__(ConsulFeed)
        self._spec = WatchSpec(span, initial=initial)
        self._began = bench.server.index
        self.closed = False

    def enter(self, bench: Bench) -> None:
        """Join a poll, some time after the baseline was read."""
        real, baseline = bench.watches.baseline, self._baseline

        def read(*_: object, **__: object) -> watches.Baseline:
            return baseline

        bench.watches.baseline = read  # type: ignore[method-assign]
        try:
            self._feed.__init__(bench.watches, self._spec, nothing, 5)  # type: ignore[misc]
        finally:
            bench.watches.baseline = real  # type: ignore[method-assign]

    def read(self) -> None:
        """Take what there is."""
        while (batch := self._feed.poll(1)) is not None:
            for event in batch.events:
                assert event.type is not RESYNC
                assert event.key in self.span
                if not event.initial:
                    assert event.revision > self._began, "older than the watch"
                    assert event.revision > self.state.get(event.key, 0), "twice, or older"
                if event.type is PUT:
                    self.state[event.key] = event.revision
                else:
                    assert self.state.pop(event.key, None) is not None, "was not there"

    def close(self) -> None:
        """End it."""
        self.closed = True
        self._feed.close()


@pytest.mark.parametrize("change", ["changed", "deleted"])
@pytest.mark.parametrize("when", ["asked", "answered", "seen"])
def test_a_feed_that_comes_while_a_look_is_out_misses_nothing(
    bench: Bench, when: str, change: str
) -> None:
    """What that look shows is told to it, also if nobody followed the key when it was seen."""
    server = bench.server
    for name in "abz":
        server.put(name)
    for name in "bcdefgh":  # so many that they share a look at everything
        bench.feed(key(name))
    bench.settle()
    step = bench.out()
    late = Consumer(bench, key("a"), initial=False)
    if change == "changed":
        server.put("a")
    else:
        server.delete("a")
    if when == "asked":
        late.enter(bench)
    assert step.answer()
    if when == "answered":
        late.enter(bench)
    step.see()
    if when == "seen":
        late.enter(bench)
    step.finish()
    bench.settle()
    late.read()
    assert late.state == {kv["Key"]: kv["ModifyIndex"] for kv in server.find(key("a"), 1)}
    server.put("a")
    bench.settle()
    late.read()
    assert late.state == {"a": server.index}


def test_a_look_that_is_older_than_a_baseline_tells_nothing(bench: Bench) -> None:
    """A key that came and went before the watch began is no news, though a look out shows it."""
    bench.feed(Span.of_prefix(""))
    bench.settle()
    step = bench.out()
    bench.server.put("k")
    assert step.answer()
    bench.server.delete("k")
    feed = bench.feed(Span.of_prefix(""))
    step.finish()
    bench.settle()
    assert told(feed) == []
    bench.server.put("k")
    bench.settle()
    assert told(feed) == [(PUT, "k", bench.server.index)]


def test_a_look_at_one_key_tells_nothing_of_those_below(bench: Bench) -> None:
    """Who comes while only one key is looked at is not told that the others are gone."""
    for name in ("k", "k/1", "k/2"):
        bench.server.put(name)
    bench.feed(key("k"))
    below = bench.feed(Span.of_prefix("k"))
    bench.settle()
    below.close()
    step = bench.out()
    assert step.aim.exact
    assert step.answer()
    feeds = [bench.feed(Span.of_prefix("k")), bench.feed(Span.of_prefix("k/3"))]
    step.finish()
    bench.settle()
    assert [told(feed) for feed in feeds] == [[], []]
    bench.server.put("k/3")
    bench.settle()
    assert [told(feed) for feed in feeds] == [[(PUT, "k/3", bench.server.index)]] * 2


def test_a_replaced_history_is_told_to_who_comes_meanwhile(bench: Bench) -> None:
    """Its baseline may be of either history, so it starts over, whatever its state."""
    bench.server.put("k")
    bench.server.put("l")
    feeds = [bench.feed(Span.of_prefix(""))]
    bench.settle()
    step = bench.out()
    feeds += [bench.feed(Span.of_prefix("k"))]
    older = bench.watches.baseline(Span.of_prefix("l"), 5, keep=False)
    bench.server.put("l")
    feeds += [bench.feed(Span.of_prefix("l"))]
    assert bench.poll.joining
    bench.server.kv.clear()
    bench.server.index = 3
    bench.server.put("new")
    bench.server.changed = {"new": 4, "k": 1 << 20}  # the wait ends in any case
    assert step.answer()
    step._index = 4
    step.finish()
    assert older.stamps
    assert [feed.behind for feed in feeds] == [True] * 3
    bench.server.changed = {"new": 4}
    assert [[kind for kind, _, _ in told(feed)] for feed in feeds] == [[RESYNC]] * 3
    bench.settle()
    bench.server.put("k")
    bench.settle()
    assert [len(told(feed)) for feed in feeds] == [1, 1, 0]


@pytest.mark.parametrize("seed", range(300))
def test_any_order_of_looks_and_feeds(bench: Bench, seed: int) -> None:
    """In the end each feed has told the present state: nothing lost, twice, or older."""
    rnd, server = random.Random(seed), bench.server
    names = [f"{tree}{n}" for tree in ("a/", "b/", "c/", "d/", "e/") for n in ("", "1", "2")]
    spans = [
        *map(key, names),
        *(Span.of_prefix(name) for name in ("a/", "b/", "c/1", "")),
        Span("a/1", "b/2"),
        Span.of_prefix("a/"),
    ]
    spans = rnd.sample(spans, rnd.choice((2, 4, len(spans))))
    consumers: list[Consumer] = []
    coming: list[Consumer] = []
    steps: list[Step] = []

    def looked(step: Step) -> None:
        steps.remove(step)
        step.poll._call = None

    for _ in range(rnd.choice((30, 150))):
        steps = [s for s in steps if bench.watches.current(s.poll)]
        match rnd.randrange(9):
            case 0 | 1:
                server.put(rnd.choice(names))
            case 2:
                server.delete(rnd.choice(names))
            case 3:
                coming.append(Consumer(bench, rnd.choice(spans), initial=rnd.random() < 0.5))
            case 4 if coming:
                consumer = coming.pop(rnd.randrange(len(coming)))
                consumer.enter(bench)
                consumers.append(consumer)
            case 5 if consumers:
                consumer = rnd.choice(consumers)
                if rnd.random() < 0.2:
                    consumers.remove(consumer)
                    consumer.close()
                else:
                    consumer.read()
            case 6:
                busy = {id(step.poll) for step in steps}
                idle = [p for p in bench.watches._polls.values() if id(p) not in busy]
                if idle:
                    poll = rnd.choice(idle)
                    step = bench.look(poll)
                    if step is not None:
                        steps.append(step)
            case 7 | 8 if steps:
                step = rnd.choice(steps)
                if step.left is None:
                    if step.call.ended or rnd.random() < 0.1:
                        looked(step)  # a fault
                        step.poll._index = None
                    else:
                        step.answer()
                elif rnd.random() < 0.5:
                    step.see(1)
                else:
                    step.finish()
                    bench.watches.drop_if_empty(step.poll)
                    steps.remove(step)
    for step in list(steps):
        if bench.watches.current(step.poll) and step.left is not None:
            step.finish()
        looked(step)
    for consumer in coming:
        consumer.enter(bench)
    bench.settle()
    for consumer in (*consumers, *coming):
        consumer.read()
        now = {kv["Key"]: kv["ModifyIndex"] for kv in server.find(consumer.span, 1)}
        assert consumer.state == now
        consumer.close()
    assert not bench.watches._polls


# -- threads that cannot be started ----------------------------------------------------------------


class NoThreads:
    """While it is in force, threads of watches cannot be started, but for the first ``spare``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spare: int = 0) -> None:
        self.over = False
        real = threading.Thread.start
        left = iter(range(spare))

        def start(thread: threading.Thread) -> None:
            if thread.name == "kvi-consul-watch" and not self.over and next(left, None) is None:
                raise RuntimeError("can't start new thread")
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


class Silent(Watches):
    """Watches whose polls look, and never get an answer."""

    def __init__(self, server: Server) -> None:
        super().__init__(cast("Transport", None), "", server.find, lambda _: None)
        self.looks: list[Poll] = []

    def look(self, poll: Poll, aim: _Aim, call: Call, *_: object) -> tuple[_Seen, float]:
        """Wait until the call is ended."""
        self.looks.append(poll)
        ended = Flag()
        call.use(cast("Any", _Ended(ended)))
        assert ended.wait(20)
        raise Unavailable("ended")


class _Ended:
    """A connection that tells when it is aborted."""

    def __init__(self, flag: Flag) -> None:
        self.abort, self.reusable = flag.set, False


def test_a_watch_without_a_thread_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves nothing behind: the next one begins anew, and the handle can be closed."""
    made = Silent(Server())
    lack = NoThreads(monkeypatch)
    with pytest.raises(Unavailable, match="can't start new thread"):
        made.watch(WatchSpec(key("k")), nothing, 5)
    assert made._polls == {}
    lack.over = True
    feed = made.watch(WatchSpec(key("k")), nothing, 5)
    (poll,) = made._polls.values()
    assert poll.feeds() == [feed]
    made.end()
    made.join()
    assert not any(thread.is_alive() for thread in made._threads)


def test_polls_stay_as_they_are_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If new prefixes cannot all be looked at, the old ones are, and their feeds stay."""
    made = Silent(Server())
    feeds = [
        made.watch(WatchSpec(Span.of_prefix(name)), nothing, 5)
        for name in ("a/1", "a/2", "b/1", "c/1")
    ]
    before = made._polls
    lack = NoThreads(monkeypatch)
    with pytest.raises(Unavailable):
        made.watch(WatchSpec(Span.of_prefix("b/2")), nothing, 5)  # "b/1" would become "b/"
    assert made._polls is before
    assert {feed for poll in before.values() for feed in poll.feeds()} == set(feeds)
    lack.over = True
    feeds.append(made.watch(WatchSpec(Span.of_prefix("b/2")), nothing, 5))
    assert {feed for poll in made._polls.values() for feed in poll.feeds()} == set(feeds)
    # a poll that would become narrower stays wide
    lack.over = False
    feeds[4].close()
    (wide,) = (poll for poll in made._polls.values() if poll.left)
    with pytest.raises(Unavailable):
        made.choose()
    assert made.current(wide)
    made.end()
    made.join()
    assert not any(thread.is_alive() for thread in made._threads)


def test_a_resync_without_a_thread_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed stays BEHIND until it is looked for."""
    feed = bench.feed(key("k"))
    bench.settle()
    bench.poll.dismiss(feed)
    feed.lose()
    bench.watches.drop_if_empty(bench.poll)

    def fails(*_: object) -> None:
        raise Unavailable("no thread")

    with monkeypatch.context() as patched:
        patched.setattr(Watches, "_start", fails)
        for _ in range(2):
            with pytest.raises(Unavailable):
                feed.poll(1)
            assert feed.behind
    assert [kind for kind, _, _ in told(feed)] == [RESYNC]
    bench.settle()
    bench.server.put("k")
    bench.settle()
    assert told(feed) == [(PUT, "k", bench.server.index)]


# -- interrupts and signals ------------------------------------------------------------------------

_FILES = (watches.__file__, diff.__file__)


def at_line(number: int, action: Any, call: Any) -> bool:
    """Run ``call()`` with ``action()`` before its ``number``-th line; whether it has so many.

    Lines of this plugin's watches only, and of what else they run no line.
    """
    left = count(number, -1)
    done: list[bool] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in _FILES:
            return None
        # The last step of `poll` and its return are two lines, between which nothing can come.
        last = frame.f_code.co_name == "poll" and frame.f_locals.get("held") is not None
        if event == "line" and not last and not done and not next(left):
            done.append(True)
            action()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return bool(done)


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def hear(feed: ConsulFeed, batches: list[Batch | None]) -> bool:
    """Poll once; whether there was something."""
    batches += [feed.poll(1)]
    return batches[-1] is not None


def begin(bench: Bench, feeds: list[ConsulFeed]) -> None:
    """Watch another key."""
    feeds += [bench.feed(key("k"))]


def test_an_interrupted_poll_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever an interrupt comes, its events are told by the next one, once, and in order."""
    monkeypatch.setattr(watches, "_PAGE", 2)
    server = bench.server
    for number in range(5):
        server.put(f"k{number}")
    for number in count(1):
        feed = bench.feed(Span.of_prefix(""), initial=True)
        bench.settle()
        batches: list[Batch | None] = []
        reached = []
        for stage in ("initial", "initial", "initial", "change", "resync", "after"):
            if stage in ("change", "after"):
                server.put("k1")
                bench.settle()
            if stage == "resync":
                server.put("k2")
                bench.poll.dismiss(feed)
                feed.lose()
            try:
                reached.append(at_line(number, interrupt, partial(hear, feed, batches)))
            except KeyboardInterrupt:
                reached.append(True)
                if stage == "resync":  # which may have joined a poll already
                    server.put("k3")
                    bench.settle()
                hear(feed, batches)
        bench.settle()
        while hear(feed, batches):
            pass
        events = [event for batch in batches if batch is not None for event in batch.events]
        assert [(e.type, e.key) for e in events if e.initial] == [(PUT, f"k{n}") for n in range(5)]
        assert [e.type for e in events if not e.initial].count(RESYNC) == 1
        state: dict[str, int] = {}
        for event in events:
            if event.type is RESYNC:
                assert event.snapshot is not None
                state = {entry.key: entry.revision for entry in event.snapshot}
            else:
                assert event.revision > state.get(event.key, 0), "twice"
                state[event.key] = event.revision
        assert state == {kv["Key"]: kv["ModifyIndex"] for kv in server.kv.values()}
        assert sum(feed in poll.feeds() for poll in bench.watches._polls.values()) == 1
        feed.close()
        assert not bench.watches._polls
        if not any(reached):
            assert number > 20
            return


def test_an_interrupted_beginning_leaves_nothing_behind(bench: Bench) -> None:
    """Who got no feed has none to close, so no poll looks for it."""
    for number in count(1):
        feeds: list[ConsulFeed] = []
        try:
            reached = at_line(number, interrupt, partial(begin, bench, feeds))
        except KeyboardInterrupt:
            reached = True
        for feed in feeds:
            feed.close()
        assert not any(poll.feeds() for poll in bench.watches._polls.values())
        if not reached:
            assert number > 20
            return


def test_closing_in_the_middle_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle closed by a signal handler ends all polls, wherever it has interrupted its thread.

    The interrupted call goes on, or is told that the handle is closed.
    """
    server = Server()
    for number in count(1):
        made = Silent(server)
        feeds = [
            made.watch(WatchSpec(Span.of_prefix(name), initial=True), nothing, 5)
            for name in ("a/1", "a/2", "b/1")
        ]

        def work(made: Silent = made, feeds: list[Any] = feeds) -> None:
            feeds[0].poll(1)
            for name in ("b/2", "c/1", "a/", "a/1"):
                feeds += [made.watch(WatchSpec(Span.of_prefix(name)), nothing, 5)]
            for feed in feeds:
                feed.close()

        def close(made: Silent = made, feeds: list[Any] = feeds) -> None:
            for feed in list(feeds):
                feed.close()
            made.end()

        try:
            reached = at_line(number, close, work)
        except Unavailable:
            reached = True
        made.end()
        made.join()
        for thread in made._threads:
            thread.join(5)
            assert not thread.is_alive()
        assert not any(made.current(poll) for poll in made._polls.values())
        if not reached:
            assert number > 100
            return


def test_a_flag_raised_by_a_signal_handler() -> None:
    """It wakes the thread that it interrupted in its wait, and those that wait elsewhere."""
    flag = Flag()
    other = threading.Thread(target=flag.wait, args=(20,))
    other.start()
    assert not flag.wait(0)
    before = signal.signal(signal.SIGALRM, lambda *_: flag.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert flag.wait(20)
    finally:
        signal.signal(signal.SIGALRM, before)
    other.join(5)
    assert not other.is_alive()
    assert flag.is_set()
    flag.set()
    assert flag.wait(0)
    flag.clear()
    assert not flag.wait(0)


def test_a_call_ended_while_it_is_being_ended() -> None:
    """As by a signal handler: the call that was interrupted goes on."""
    call = Call()
    again: list[int] = []

    class Connection:
        reusable = True

        def abort(self) -> None:
            if not again:
                again.append(1)
                call.end()

    call.use(cast("Any", Connection()))
    call.end()
    assert again
    assert call.ended


def test_errors_are_final(bench: Bench) -> None:
    """A feed that failed says so, whatever it had yet to tell."""
    feed = bench.feed(key("k"))
    bench.settle()
    bench.server.put("k")
    bench.settle()
    bench.watches.fail(bench.poll, KviError("over"))
    for _ in range(2):
        with pytest.raises(KviError, match="over"):
            feed.poll(1)
    assert only_key(feed.span) == "k"
    feed.close()
