"""Watches step by step: every order of what a query, its feeds and the server do, without threads.

The server is a model (`Server`), a query is taken in the steps in which its thread takes it
(`Step`), and the test says which comes next.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import kvi
import pytest
from kvi.errors import AuthenticationFailed, KviError, Unavailable
from kvi.feed import WatchSpec
from kvi.model import EventType, Span
from kvi_consul import watches
from kvi_consul.cover import ONE
from kvi_consul.diff import Snapshot
from kvi_consul.transport import Call, Transport
from kvi_consul.watches import ConsulFeed, Query, Watches

from tests.support.waiting import until


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
    """A query that is out: `answer` is the server's moment, `see` and `finish` come later."""

    def __init__(self, server: Server, query: Query) -> None:
        self.query = query
        self._server = server
        self.shown: Snapshot[ConsulFeed]
        self.call: Call
        self.shown, self.after, self.call = query.ask()
        self.left: Iterator[dict[str, Any]] | None = None  # entries that are yet to be seen
        self.index = 0

    def _spans(self, name: str) -> bool:
        target = self.query.target
        return name + ONE == target if target.endswith(ONE) else name.startswith(target)

    def answer(self) -> bool:
        """The server answers from its present state, unless there is nothing to end the wait."""
        server = self._server
        index = max((i for name, i in server.changed.items() if self._spans(name)), default=1)
        if self.after is not None and index <= self.after:
            return False
        entries = [kv for name, kv in sorted(server.kv.items()) if self._spans(name)]
        self.left, self.index = iter(entries), index
        return True

    def see(self, number: int | None = None) -> None:
        """The next entries come in."""
        assert self.left is not None
        for kv in self.left:
            self.shown.see(kv)
            if number is not None:
                number -= 1
                if not number:
                    return

    def finish(self) -> None:
        """All of it comes in, and is taken over."""
        self.see()
        self.shown.finish(self.index)
        self.query.take(self.shown, self.after)

    def whole(self) -> bool:
        """All of it at once, if the server answers."""
        if self.call.ended:
            self.query.fault()
        elif self.answer():
            self.finish()
            return True
        return False


MOST = 4
FEW = cast("Transport", SimpleNamespace(connections=MOST, where="a model"))


class Bench:
    """Watches on a `Server`, whose queries have no threads but `settle` and the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Watches, "_start", nothing_of)
        self.server = Server()
        self.failed: list[kvi.KviError] = []
        self.watches = Watches(FEW, "", self.server.find, self.failed.append)

    def feed(self, span: Span, *, initial: bool = False) -> ConsulFeed:
        """A feed, which joins at once."""
        return ConsulFeed(self.watches, WatchSpec(span, initial=initial), nothing, 5)

    def of(self, feed: ConsulFeed) -> Query:
        """The query of a feed."""
        assert feed.query is not None
        return feed.query

    @property
    def query(self) -> Query:
        """The only query."""
        (query,) = self.watches.queries.values()
        return query

    def step(self, query: Query) -> Step | None:
        """What a query's thread does before it asks, unless the query is over."""
        if query.left:
            self.watches.choose()
        return Step(self.server, query) if self.watches.current(query) else None

    def out(self, query: Query | None = None) -> Step:
        """A query that is out; the only one unless it is given."""
        step = self.step(self.query if query is None else query)
        assert step is not None
        return step

    def settle(self) -> None:
        """Let all queries go on until there is nothing that they would not wait for."""
        for _ in range(20):
            before = self.watches.queries
            steps = [self.step(query) for query in list(before.values())]
            if self.watches.queries is not before:
                continue  # other targets were chosen
            answered = [step.whole() for step in steps if step is not None]
            if not any(answered) and not any(query.joining for query in before.values()):
                return
        raise AssertionError("the queries go on without end")


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
        """Join a query, some time after the baseline was read."""
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
def test_a_feed_that_comes_while_a_query_is_out_misses_nothing(
    bench: Bench, when: str, change: str
) -> None:
    """What that query shows is told to it, also if nobody followed the key when it was seen."""
    server = bench.server
    for name in "abz":
        server.put(name)
    for name in "bcdefgh":  # so many that they share a query for everything
        bench.feed(key(name))
    bench.settle()
    assert bench.query.target == ""
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


def test_a_query_that_is_older_than_a_baseline_tells_nothing(bench: Bench) -> None:
    """A key that came and went before the watch began is no news, though a query out shows it."""
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


def test_single_keys_and_prefixes_have_queries_of_their_own(bench: Bench) -> None:
    """A key's query is for nothing below it; one that a watched prefix covers needs none."""
    for name in ("k", "k1", "k/1"):
        bench.feed(key(name))
    assert set(bench.watches.queries) == {"k!", "k1!", "k/1!"}
    wide = bench.feed(Span.of_prefix("k/"))
    assert set(bench.watches.queries) == {"k!", "k1!", "k/"}
    wide.close()
    bench.settle()
    assert set(bench.watches.queries) == {"k!", "k1!", "k/1!"}
    bench.settle()


def test_queries_are_bounded(bench: Bench) -> None:
    """However many keys are watched: those that have most in common share, the others do not."""
    for name in ("alone", "apart", "far/off", "w/1", "w/2", "w/3"):
        bench.feed(key(name))
    assert set(bench.watches.queries) == {"alone!", "apart!", "far/off!", "w/"}
    for number in range(100):
        bench.feed(key(f"{number}"))
    assert len(bench.watches.queries) <= MOST


def test_a_replaced_history_is_told_to_who_comes_meanwhile(bench: Bench) -> None:
    """Its baseline may be of either history, so it starts over, whatever its state."""
    bench.server.put("k")
    bench.server.put("l")
    feeds = [bench.feed(Span.of_prefix(""))]
    bench.settle()
    step = bench.out()
    feeds += [bench.feed(Span.of_prefix("k"))]
    bench.server.put("l")
    feeds += [bench.feed(Span.of_prefix("l"))]
    assert bench.query.joining
    bench.server.kv.clear()
    bench.server.index = 3
    bench.server.put("new")
    bench.server.changed = {"new": 4, "k": 1 << 20}  # the wait ends in any case
    assert step.answer()
    step.index = 4
    step.finish()
    assert [feed.behind for feed in feeds] == [True] * 3
    bench.server.changed = {"new": 4}
    assert [feed.poll(0) for feed in feeds] == [None] * 3  # the query asks, not they
    bench.settle()
    assert [[kind for kind, _, _ in told(feed)] for feed in feeds] == [[RESYNC]] * 3
    bench.server.put("k")
    bench.settle()
    assert [len(told(feed)) for feed in feeds] == [1, 1, 0]


def test_a_history_replaced_between_baseline_and_query_is_told(bench: Bench) -> None:
    """The first snapshot of a query shows a state older than the baseline: start over."""
    for _ in range(5):
        bench.server.put("k")
    feed = bench.feed(key("k"))
    bench.server.index = 3
    bench.server.put("k")
    bench.settle()
    assert told(feed) == []
    bench.settle()
    assert [kind for kind, _, _ in told(feed)] == [RESYNC]
    bench.server.put("k")
    bench.settle()
    assert told(feed) == [(PUT, "k", bench.server.index)]


def test_a_deletion_at_an_index_that_fell_is_told_as_later(bench: Bench) -> None:
    """Consul may tell the deletion of a tree at an older index; events of a key stay in order."""
    bench.server.put("k")
    feed = bench.feed(Span.of_prefix("k"), initial=True)
    (batch,) = (feed.poll(1),)
    assert batch is not None
    bench.server.kv.clear()
    bench.server.changed = {"k": 2}
    bench.settle()
    (deleted,) = told(feed)
    assert deleted[:2] == (DELETE, "k")
    assert batch.revision is not None
    assert deleted[2] > batch.revision


@pytest.mark.parametrize("moved", [False, True])
def test_who_lags_is_told_all_by_the_query(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """It costs the query a look of its own, once it is asked for; also if targets change."""
    monkeypatch.setattr("kvi_consul.diff.MOST_PENDING", 1000)
    slow, quick = bench.feed(Span.of_prefix("w/")), bench.feed(Span.of_prefix("w/"))
    bench.settle()
    for number in range(6):
        bench.server.put(f"w/{number}")
        bench.settle()
        assert len(told(quick)) == 1
    assert slow.behind
    if moved:
        bench.feed(Span.of_prefix("w"))
        bench.settle()
    assert slow.poll(0) is None
    bench.server.put("w/0")
    bench.settle()
    batch = slow.poll(0)
    assert batch is not None
    (event,) = batch.events
    assert event.type is RESYNC
    assert event.snapshot is not None
    assert [entry.key for entry in event.snapshot] == [f"w/{number}" for number in range(6)]
    assert batch.revision == bench.server.index
    bench.server.put("w/3")
    bench.settle()
    assert told(slow) == [(PUT, "w/3", bench.server.index)]


@pytest.mark.parametrize("seed", range(300))
def test_any_order_of_queries_and_feeds(bench: Bench, seed: int) -> None:
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

    for _ in range(rnd.choice((30, 150))):
        steps = [s for s in steps if bench.watches.current(s.query)]
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
                busy = {id(step.query) for step in steps}
                idle = [q for q in bench.watches.queries.values() if id(q) not in busy]
                if idle and (step := bench.step(rnd.choice(idle))) is not None:
                    steps.append(step)
            case 7 | 8 if steps:
                step = rnd.choice(steps)
                if step.left is None:
                    if step.call.ended or rnd.random() < 0.1:
                        steps.remove(step)
                        step.query.fault()
                    else:
                        step.answer()
                elif rnd.random() < 0.5:
                    step.see(1)
                else:
                    step.finish()
                    steps.remove(step)
    for step in steps:
        if bench.watches.current(step.query):
            if step.left is not None:
                step.finish()
            else:
                step.query.fault()
    for consumer in coming:
        consumer.enter(bench)
    bench.settle()
    for consumer in (*consumers, *coming):
        consumer.read()
        now = {kv["Key"]: kv["ModifyIndex"] for kv in server.find(consumer.span, 1)}
        assert consumer.state == now
        consumer.close()
    assert not bench.watches.queries


# -- threads ---------------------------------------------------------------------------------------


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
    """Watches whose queries get no answer, or are refused as long as ``refusals`` last."""

    def __init__(self, server: Server, refusals: int = 0) -> None:
        super().__init__(FEW, "", server.find, lambda _: None)
        self.asked = 0
        self._refusals = refusals

    def look(self, query: Query, shown: Any, after: Any, call: Call, *_: object) -> float:
        """Wait until the call is ended."""
        self.asked += 1
        if self.asked <= self._refusals:
            raise AuthenticationFailed("ACL not found")
        ended = threading.Event()
        call.use(cast("Any", SimpleNamespace(abort=ended.set)))
        assert ended.wait(20)
        raise Unavailable("ended")

    def feed(self, span: Span) -> ConsulFeed:
        """A feed, which joins at once."""
        return ConsulFeed(self, WatchSpec(span), nothing, 5)

    def over(self) -> bool:
        """End it all; whether all threads did."""
        self.end()
        self.join()
        return not any(thread.is_alive() for thread in self._threads)


def test_a_watch_without_a_thread_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves nothing behind: the next one begins anew, and the handle can be closed."""
    made = Silent(Server())
    lack = NoThreads(monkeypatch)
    with pytest.raises(Unavailable, match="can't start new thread"):
        made.feed(key("k"))
    assert made.queries == {}
    lack.over = True
    feed = made.feed(key("k"))
    (query,) = made.queries.values()
    assert list(query.feeds) == [feed]
    assert made.over()


def test_queries_stay_as_they_are_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If new targets cannot all be asked for, the old ones are, and their feeds stay."""
    made = Silent(Server())
    feeds = [made.feed(Span.of_prefix(name)) for name in ("a/1", "b/1", "c/1", "d/1")]
    before = made.queries
    lack = NoThreads(monkeypatch)
    with pytest.raises(Unavailable):
        made.feed(Span.of_prefix("b/2"))  # "b/1" would become "b/"
    assert made.queries is before
    assert {feed for query in before.values() for feed in query.feeds} == set(feeds)
    lack.over = True
    feeds.append(made.feed(Span.of_prefix("b/2")))
    assert {feed for query in made.queries.values() for feed in query.feeds} == set(feeds)
    # a query that would become narrower stays wide
    lack.over = False
    feeds[4].close()
    (wide,) = (query for query in made.queries.values() if query.left)
    with pytest.raises(Unavailable):
        made.choose()
    assert made.current(wide)
    assert made.over()


def test_a_token_is_unknown_only_if_it_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has just begun to lead may say so once; said again and again it is believed."""
    made = Silent(Server(), refusals=3)
    feed = made.feed(key("k"))
    until(lambda: made.asked > 3)
    assert feed.poll(0) is None
    assert made.over()
    monkeypatch.setattr(watches, "_DOUBT", 0.3)
    made = Silent(Server(), refusals=1 << 30)
    feed = made.feed(key("k"))
    until(lambda: feed.error is not None)
    assert isinstance(feed.error, AuthenticationFailed)
    assert made.over()


def test_errors_are_final(bench: Bench) -> None:
    """A feed that failed says so, whatever it had yet to tell."""
    feed = bench.feed(key("k"))
    bench.settle()
    bench.server.put("k")
    bench.settle()
    bench.watches.fail(bench.query, KviError("over"))
    for _ in range(2):
        with pytest.raises(KviError, match="over"):
            feed.poll(1)
    feed.close()
