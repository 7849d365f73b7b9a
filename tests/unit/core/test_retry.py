"""When operations are tried again: the policy as a table, and the middleware that follows it."""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import kvi
import pytest
from kvi.call import Call
from kvi.coroutine import run
from kvi.driver.threads import ThreadPort
from kvi.middleware.retry import Retrying
from kvi.model import Get, KeyValue, RangeResult, Txn
from kvi.ops import GetOp, GrantOp, Op, PutOp, RangeOp, TxnOp
from kvi.policy.retry import UNSAID, Effect, RetryPolicy

from tests.support.faulty import Faulty, kvi_over
from tests.support.waiting import until

T = TypeVar("T")
AT_ONCE = RetryPolicy(min_wait=0, max_wait=0, factor=0)
_numbers = itertools.count()

PASSING = [kvi.Unavailable("x"), kvi.Timeout("x"), kvi.Contention("x")]
FINAL = [
    kvi.Unavailable("x", passing=False),
    kvi.InvalidArgument("x"),
    kvi.InvalidKey("x"),
    kvi.ValueTooLarge("x"),
    kvi.NotSupported("x"),
    kvi.AuthenticationFailed("x"),
    kvi.PermissionDenied("x"),
    kvi.Compacted("x"),
    kvi.LeaseLost("x"),
    kvi.Closed("x"),
    kvi.KviError("x"),
]
WRITES = {
    "store": lambda store: store.store("k", "v"),
    "delete": lambda store: store.delete("k"),
    "delete_range": lambda store: store.delete_range(prefix="k"),
    "txn": lambda store: store.txn(then=[kvi.Put("k", "v")]),
}
DECIDING = {
    "tas": lambda store: store.tas("k", None, "v"),
    "cas": lambda store: store.cas("k", 0, "v"),
    "transaction": lambda store: store.transaction("k", "=", "1", "k", "2", "k", "3"),
    "txn": lambda store: store.txn([kvi.Key("k").absent], [kvi.Put("k", "v")]),
}
READS = {
    "get": lambda store: store.get("k"),
    "range": lambda store: list(store.range()),
    "count": lambda store: store.count(),
    "txn": lambda store: store.txn([kvi.Key("k").absent], [Get("k")], [Get("l")]),
    "watch": lambda store: store.watch("k").cancel(),
}


@pytest.fixture
def inner() -> Iterator[Faulty]:
    with Faulty(kvi.open(f"mem:retry-{next(_numbers)}")) as store:
        yield store


def retrying(store: kvi.Kvi, policy: RetryPolicy) -> kvi.Kvi:
    return kvi_over(store, lambda inner, at: Retrying(inner, policy, store.uri, lambda: at.closed))


def names(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, call, id=name) for name, call in table.items()]


# -- the policy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("error", PASSING, ids=lambda e: type(e).__name__)
def test_what_passes_and_did_not_apply_is_tried_again(effect: Effect, error: kvi.KviError) -> None:
    """Whatever it is; except for the question whether the store answers now."""
    pause = AT_ONCE.decide(error, effect, attempt=1, left=1)
    assert (pause is None) == (effect is Effect.ASKING)


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("error", FINAL, ids=lambda e: type(e).__name__)
def test_what_will_not_pass_is_raised(effect: Effect, error: kvi.KviError) -> None:
    """Nothing that the caller, or somebody else, has to mend is tried again."""
    for policy in (AT_ONCE, RetryPolicy(idempotent=True)):
        assert policy.decide(error, effect, attempt=1, left=100) is None


@pytest.mark.parametrize(
    ("effect", "idempotent", "again"),
    [
        (Effect.REPEATABLE, False, True),
        (Effect.REPEATABLE, True, True),
        (Effect.WRITE, False, False),
        (Effect.WRITE, True, True),
        (Effect.DECIDING, False, False),
        (Effect.DECIDING, True, False),
        (Effect.ASKING, True, False),
    ],
)
def test_unknown_fate(effect: Effect, idempotent: bool, again: bool) -> None:
    """Only what may be done twice is; never what decides by what it finds."""
    policy = RetryPolicy(idempotent=idempotent)
    pause = policy.decide(kvi.OutcomeUnknown("x"), effect, attempt=1, left=100)
    assert (pause is not None) is again


def test_waits_are_those_of_the_origin() -> None:
    """100 ms + 1.2·e^attempt ms, at most 5 s; the first attempt waits for nothing."""
    policy = RetryPolicy()
    assert policy.wait(0) == 0
    for attempt in range(1, 8):
        assert policy.wait(attempt, 0.5) >= 0.1
        middle = 0.1 + 0.0012 * math.exp(attempt)
        low, high = policy.wait(attempt, 0), policy.wait(attempt, 1)
        assert low == pytest.approx(max(0.1, middle * 0.8))
        assert high == pytest.approx(middle * 1.2)
    waits = [policy.wait(attempt) for attempt in range(1, 12)]
    assert waits == sorted(waits)


@pytest.mark.parametrize("attempt", [1, 5, 8, 9, 20, 1000, 10**9])
def test_waits_are_spread_and_bounded(attempt: int) -> None:
    """Jitter is ±20 %, never cancelled by the bounds, and never outside of them."""
    policy = RetryPolicy()
    low, high = policy.wait(attempt, 0), policy.wait(attempt, 1)
    assert 0.1 <= low < high <= 5
    assert policy.wait(attempt, 0.5) == pytest.approx((low + high) / 2)


def test_a_wait_never_outlives_the_deadline() -> None:
    """If there is no time for another try, the error is raised at once."""
    policy = RetryPolicy()

    def decide(left: float) -> float | None:
        return policy.decide(kvi.Timeout("x"), Effect.READ, attempt=1, left=left, chance=0)

    assert decide(0.1) is None
    assert decide(0.101) == 0.1
    assert decide(-1) is None


def test_number_of_attempts() -> None:
    """``max_attempts`` counts all tries."""
    policy = RetryPolicy(max_attempts=3)
    error = kvi.Timeout("x")
    found = [policy.decide(error, Effect.READ, attempt=n, left=9) is None for n in (1, 2, 3, 4)]
    assert found == [False, False, True, True]


@pytest.mark.parametrize(
    "values",
    [
        {"min_wait": -1},
        {"max_wait": math.nan},
        {"factor": math.inf},
        {"factor": True},
        {"jitter": 1.1},
        {"jitter": "0.2"},
        {"min_wait": 6},
        {"max_attempts": 0},
        {"max_attempts": 1.5},
        {"max_attempts": True},
    ],
)
def test_values_out_of_range(values: dict[str, Any]) -> None:
    """They are named, with what is allowed."""
    with pytest.raises(kvi.InvalidArgument, match=next(iter(values)) + "|max_wait"):
        RetryPolicy(**values)


def test_errors_say_whether_they_pass() -> None:
    """``passing`` is part of an error, also after pickling."""
    for error in (*PASSING, *FINAL, kvi.OutcomeUnknown("x")):
        again = pickle.loads(pickle.dumps(error))
        assert again.passing is error.passing
        assert (again.passing, type(again)) == (error in PASSING, type(error))


def test_effect_of_transactions() -> None:
    """Reading is a read, with or without conditions; writing under conditions decides."""
    absent, get, put = kvi.Key("k").absent, kvi.Get("k"), kvi.Put("k", b"")
    assert TxnOp(Txn((absent,), (get,), (get,))).effect is Effect.READ
    assert TxnOp(Txn((), (get, put), ())).effect is Effect.WRITE
    assert TxnOp(Txn((absent,), (), (put,))).effect is Effect.DECIDING


# -- the middleware -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "call"), names(READS))
@pytest.mark.parametrize("error", PASSING, ids=lambda e: type(e).__name__)
def test_reads_are_tried_again(inner: Faulty, name: str, call: Any, error: kvi.KviError) -> None:
    """On any fault that may pass, as often as it takes."""
    inner.fails(name, *[error] * 5)
    call(retrying(inner, AT_ONCE))
    assert inner.times(name) == 6


@pytest.mark.parametrize(("name", "call"), [*names(WRITES), *names(DECIDING)])
def test_writes_are_tried_again_if_they_did_not_apply(inner: Faulty, name: str, call: Any) -> None:
    """Surely not applied, and the cause passes."""
    inner.fails(name, kvi.Unavailable("x"), kvi.Timeout("x"))
    call(retrying(inner, AT_ONCE))
    assert inner.times(name) == 3


@pytest.mark.parametrize(("name", "call"), [*names(WRITES), *names(DECIDING)])
def test_unknown_writes_are_not(inner: Faulty, name: str, call: Any) -> None:
    """A write whose fate is unknown is sent once."""
    inner.loses(name, kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.OutcomeUnknown, match="lost"):
        call(retrying(inner, AT_ONCE))
    assert inner.times(name) == 1


@pytest.mark.parametrize(("name", "call"), names(WRITES))
def test_idempotent_writes_are(inner: Faulty, name: str, call: Any) -> None:
    """Unless the caller said that it may be done twice."""
    inner.loses(name, kvi.OutcomeUnknown("lost"))
    call(retrying(inner, RetryPolicy(min_wait=0, factor=0, idempotent=True)))
    assert inner.times(name) == 2


@pytest.mark.parametrize("error", UNSAID, ids=lambda error: error.__name__)
def test_what_may_have_applied_stays_unknown(inner: Faulty, error: type[kvi.KviError]) -> None:
    """Another try that fails for sure says nothing of the one whose answer was lost."""
    inner.loses("store", kvi.OutcomeUnknown("lost"))
    inner.fails("store", None, *[error("later")] * 3)
    twice = RetryPolicy(min_wait=0, factor=0, idempotent=True, max_attempts=2)
    with pytest.raises(kvi.OutcomeUnknown, match="lost"):
        retrying(inner, twice).store("k", "v")
    assert inner.times("store") == 2
    assert inner.get("k") is not None


def test_what_later_tries_know_counts(inner: Faulty) -> None:
    """An answer of the store itself is an answer."""
    inner.loses("store", kvi.OutcomeUnknown("lost"))
    inner.fails("store", None, kvi.LeaseLost("ended"))
    with pytest.raises(kvi.LeaseLost, match="ended"):
        retrying(inner, RetryPolicy(min_wait=0, factor=0, idempotent=True)).store("k", "v")


@pytest.mark.parametrize(("name", "call"), names(DECIDING))
def test_what_decides_is_never_done_twice(inner: Faulty, name: str, call: Any) -> None:
    """The second would find the work of the first, and tell an untruth."""
    inner.loses(name, kvi.OutcomeUnknown("lost"))
    with pytest.raises(kvi.OutcomeUnknown):
        call(retrying(inner, RetryPolicy(min_wait=0, factor=0, idempotent=True)))


def test_last_error_is_raised_at_the_deadline(inner: Faulty) -> None:
    """All tries share the one time-out, and the last error is the one that is told."""
    inner.fails("get", *[kvi.Timeout(f"no {n}") for n in range(1000)])
    policy = RetryPolicy(min_wait=0.01, max_wait=0.01)
    with pytest.raises(kvi.Timeout) as caught:
        retrying(inner, policy).get("k", timeout=0.2)
    tries = inner.times("get")
    assert 1 < tries <= 20
    assert caught.value.message == f"no {tries - 1}"
    allowed = [seconds for _, _, seconds in inner.calls]
    assert allowed == sorted(allowed, reverse=True)
    assert 0.1 < allowed[0] <= 0.2
    # A busy machine may stand still just before the last; the store itself is not asked then.
    assert all(seconds > 0 for seconds in allowed[:-1])


def test_each_retry_is_logged(inner: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    """As a warning, with the key, the error and the attempt; never with the value."""
    inner.fails("store", kvi.Unavailable("first"), kvi.Unavailable("second"))
    with caplog.at_level(logging.WARNING, logger="kvi"):
        retrying(inner, AT_ONCE).store("the key", "the value")
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    told = [r.getMessage() for r in caplog.records]
    for number, (text, error) in enumerate(zip(told, ("first", "second"), strict=True), 1):
        assert "'the key'" in text
        assert error in text
        assert f"(try {number})" in text
        assert "the value" not in text


def test_only_the_outermost_policy_counts(inner: Faulty) -> None:
    """Two policies, also with wrappers between them, try as often as the outer one says."""
    three = RetryPolicy(min_wait=0, factor=0, max_attempts=3)
    store = retrying(retrying(inner, AT_ONCE).namespace("n"), three)
    inner.fails("get", *[kvi.Unavailable("x")] * 100)
    with pytest.raises(kvi.Unavailable):
        store.get("k")
    assert inner.times("get") == 3
    inner.fails("store", *[kvi.Unavailable("x")] * 100)
    with pytest.raises(kvi.Unavailable):
        store.store("k", "v")
    assert inner.times("store") == 3


def test_a_call_tells_what_became_of_it(inner: Faulty) -> None:
    """How often the store was asked, and whether an answer was lost on the way."""
    executor = retrying(inner, AT_ONCE)._scope.executor

    def done(op: Op[Any], *, decided: bool = False) -> Call:
        port = ThreadPort()
        call = Call(port, port.now() + 5, decided=decided)
        with suppress(kvi.KviError):
            run(executor.execute(op, call))
        assert call.decided is decided
        return call

    inner.fails("get", kvi.Timeout("x"), kvi.Timeout("x"))
    call = done(GetOp("k"))
    assert (call.attempts, call.doubt) == (3, False)
    inner.loses("lease_grant", kvi.OutcomeUnknown("x"))
    inner.fails("lease_grant", None, kvi.Timeout("x"))
    call = done(GrantOp(60))
    assert (call.attempts, call.doubt) == (3, True)
    inner.fails("get", kvi.Timeout("x"))
    call = done(GetOp("k"), decided=True)
    assert call.attempts == 1
    assert inner.times("get") == 4


def test_no_time_left(inner: Faulty) -> None:
    """A call whose time is up sends nothing."""
    port = ThreadPort()
    with pytest.raises(kvi.Timeout, match="before the store was asked"):
        run(inner._scope.executor.execute(PutOp("k", b"", None), Call(port, port.now())))
    assert inner.get("k") is None


@pytest.mark.parametrize("below", [False, True])
def test_closing_wakes_who_waits_for_the_next_try(inner: Faulty, below: bool) -> None:
    """A call between two tries ends with `Closed` at once, also if what it is over is closed."""
    store = retrying(inner, RetryPolicy(min_wait=60, max_wait=60))
    inner.fails("get", *[kvi.Unavailable("x")] * 9)
    ended: list[BaseException] = []

    def call() -> None:
        try:
            store.get("k", timeout=1000)
        except kvi.KviError as error:
            ended.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: inner.times("get") == 1)
    (inner if below else store).close()
    thread.join(20)
    assert not thread.is_alive()
    assert [type(error) for error in ended] == [kvi.Closed]


# -- pages ----------------------------------------------------------------------------------------


class Paged(Faulty):
    """Ranges in pages of two; some pages fail."""

    failing: Sequence[int] = ()  # numbers of the pages that fail, by the order of reading

    async def execute(self, op: Op[T], call: Call) -> T:
        """Cut the result of a range."""
        found: Any = await super().execute(op, call)
        if not isinstance(op, RangeOp):
            return found  # type: ignore[no-any-return]
        entries, read = list(found), itertools.count()

        def pages() -> Iterator[list[KeyValue]]:
            for start in range(0, len(entries), 2):
                if start and next(read) in self.failing:
                    raise kvi.Unavailable("this page")
                yield entries[start : start + 2]

        paged: Any = RangeResult(found.revision, pages)
        return paged  # type: ignore[no-any-return]


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_are_read_again(reverse: bool) -> None:
    """A range goes on behind what was handed out: nothing is missing, nothing comes twice."""
    with Paged(kvi.open(f"mem:pages-{next(_numbers)}")) as inner:
        keys = [f"k{n}" for n in range(9)] + ["ü", "\U0001f511"]
        for key in keys:
            inner.store(key, key)
        inner.failing = [0, 1, 3, 8]
        found = retrying(inner, AT_ONCE).range(reverse=reverse)
        wanted = sorted(keys, key=lambda key: key.encode(), reverse=reverse)
        assert [entry.key for entry in found] == wanted
        assert inner.times("range") == 1


def test_a_page_that_stays_away_is_raised() -> None:
    """Each page has the time-out of the call, with all its tries."""
    with Paged(kvi.open(f"mem:pages-{next(_numbers)}")) as inner:
        for n in range(5):
            inner.store(f"k{n}", "")
        inner.failing = list(range(10_000))
        policy = RetryPolicy(min_wait=0.01, max_wait=0.01)
        entries = iter(retrying(inner, policy).range(timeout=0.1))
        assert [next(entries).key for _ in range(2)] == ["k0", "k1"]
        with pytest.raises(kvi.Unavailable, match="this page"):
            next(entries)


def test_a_later_page_has_as_many_tries() -> None:
    """What was handed out before, and is only passed over again, is no progress."""
    with Paged(kvi.open(f"mem:pages-{next(_numbers)}")) as inner:
        for n in range(5):
            inner.store(f"k{n}", "")
        inner.failing = list(range(1, 10_000))  # the second page comes once, the third never
        three = RetryPolicy(min_wait=0, factor=0, max_attempts=3)
        entries = iter(retrying(inner, three).range(timeout=1000))
        assert [next(entries).key for _ in range(4)] == ["k0", "k1", "k2", "k3"]
        with pytest.raises(kvi.Unavailable, match="this page"):
            next(entries)


# -- open -----------------------------------------------------------------------------------------


def is_retrying(store: kvi.Kvi) -> bool:
    return isinstance(store._scope.executor, Retrying)


def test_open_applies_the_policy(tmp_path: Any) -> None:
    """By default, unless it is turned off, or nothing there can pass."""
    uri = f"sqlite:{tmp_path}/a.db"
    cases: list[tuple[dict[str, object], bool]] = [
        ({}, True),
        ({"retry": "on"}, True),
        ({"retry": RetryPolicy(min_wait=0)}, True),
        ({"retry": None}, False),
        ({"retry": "off"}, False),
    ]
    for options, wanted in cases:
        with kvi.open(uri, **options) as store:
            assert is_retrying(store) is wanted, options
    with kvi.open(f"{uri}?retry=off") as store:
        assert not is_retrying(store)
    with kvi.open("mem:") as store:
        assert not is_retrying(store)
    with kvi.open("mem:", retry=AT_ONCE) as store:
        assert isinstance(store._scope.executor, Retrying)
        assert store._scope.executor._policy is AT_ONCE


@pytest.mark.parametrize(
    ("query", "options"),
    [("?retry=off", {"retry": None}), ("?retry=never", {}), ("", {"retry": 3})],
)
def test_bad_policies(query: str, options: dict[str, Any], tmp_path: Any) -> None:
    """They are refused like any other option."""
    with pytest.raises(kvi.InvalidOption, match="'retry'"):
        kvi.open(f"sqlite:{tmp_path}/a.db{query}", **options)
