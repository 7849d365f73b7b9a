"""Operations as values: what the way to the store may know of them, and pages that fail."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import kvi
import pytest
from kvi import observers, ops
from kvi.feed import Batch, WatchSpec
from kvi.hookspecs import ObservedOperation, hookimpl
from kvi.middleware.namespace import Prefixed, inward, outward
from kvi.model import (
    Claim,
    Delete,
    Event,
    EventType,
    Get,
    Grant,
    Key,
    KeyValue,
    LeaseInfo,
    Put,
    RangeResult,
    Scan,
    Span,
    Txn,
    TxnResult,
)
from kvi.ops import Op, PageOp, TxnOp
from kvi.policy.retry import Effect

from tests.support.backends import Smallest, opened
from tests.support.waiting import until

PREFIX = "view/"


def nothing() -> None:
    """Wake nobody."""


CLAIM = Claim("jobs/1", 7, Key("jobs/1").revision == 7, "jobs/0", 9)
SCAN = Scan(Span("a", "c"), 5, True, True, 7)
PAGE = PageOp(RangeResult(1, lambda: ()), SCAN)
INNER_PAGE = ops.InnerPageOp(PAGE, Span("a", "c"))
FEED: Any = object()

# Of each operation: one, and the same below the prefix; the same one, if it has no keys of its own.
OPS: dict[type[Op[Any]], tuple[Op[Any], Op[Any]]] = {
    ops.GetOp: (ops.GetOp("k", 5), ops.GetOp("view/k", 5)),
    ops.HistoryOp: (ops.HistoryOp("k", 3), ops.HistoryOp("view/k", 3)),
    ops.PutOp: (ops.PutOp("k", b"v", 3), ops.PutOp("view/k", b"v", 3)),
    ops.DeleteOp: (ops.DeleteOp("k"), ops.DeleteOp("view/k")),
    ops.CountOp: (ops.CountOp(Span("a", "c")), ops.CountOp(Span("view/a", "view/c"))),
    ops.DeleteRangeOp: (
        ops.DeleteRangeOp(Span.of_prefix("a")),
        ops.DeleteRangeOp(Span("view/a", "view/b", "view/a")),
    ),
    ops.RangeOp: (
        ops.RangeOp(SCAN),
        ops.RangeOp(Scan(Span("view/a", "view/c"), 5, True, True, 7)),
    ),
    ops.TxnOp: (
        TxnOp(Txn((Key("a").absent,), (Put("b", b"v", 3), Delete("c")), (Get("d"),), "tas")),
        TxnOp(
            Txn(
                (Key("view/a").absent,),
                (Put("view/b", b"v", 3), Delete("view/c")),
                (Get("view/d"),),
                "tas",
            )
        ),
    ),
    ops.WatchOp: (
        ops.WatchOp(WatchSpec(Span("a", "c"), 5, True), nothing),
        ops.WatchOp(WatchSpec(Span("view/a", "view/c"), 5, True), nothing),
    ),
    ops.ClaimOp: (ops.ClaimOp("jobs", 3), ops.ClaimOp("view/jobs", 3)),
    ops.ReleaseOp: (
        ops.ReleaseOp(CLAIM),
        ops.ReleaseOp(
            Claim("view/jobs/1", 7, Key("view/jobs/1").revision == 7, "view/jobs/0", 9),
        ),
    ),
    ops.PageOp: (PAGE, ops.InnerPageOp(PAGE, Span("view/a", "view/c"))),
    ops.InnerPageOp: (
        INNER_PAGE,
        ops.InnerPageOp(INNER_PAGE, Span("view/a", "view/c")),
    ),
    ops.PollOp: (ops.PollOp(FEED), ops.PollOp(FEED)),
    ops.GrantOp: (ops.GrantOp(60), ops.GrantOp(60)),
    ops.RenewOp: (ops.RenewOp(3), ops.RenewOp(3)),
    ops.LeasesOp: (
        ops.LeasesOp((3,), Span.of_prefix("a")),
        ops.LeasesOp((3,), Span("view/a", "view/b", "view/a")),
    ),
    ops.RevokeOp: (ops.RevokeOp(3), ops.RevokeOp(3)),
    ops.PingOp: (ops.PingOp(), ops.PingOp()),
}
KEYLESS = (
    ops.PollOp,
    ops.GrantOp,
    ops.RenewOp,
    ops.RevokeOp,
    ops.PingOp,
)


def content(op: Op[Any]) -> Any:
    """What an operation holds, to be compared."""
    names = [name for kind in type(op).__mro__ for name in getattr(kind, "__slots__", ())]
    return type(op), op.name, op.key, {name: getattr(op, name, None) for name in names}


def test_every_operation_is_here() -> None:
    """Whoever adds an operation says here what a namespace makes of it."""
    every = {
        one
        for _, one in inspect.getmembers(ops, inspect.isclass)
        if issubclass(one, Op) and one is not Op and not one.__name__.startswith("_")
    }
    assert every == OPS.keys()


@pytest.mark.parametrize("kind", OPS, ids=lambda kind: kind.__name__)
def test_inward(kind: type[Op[Any]]) -> None:
    """Each key and bound gets the prefix, and all else stays."""
    op, wanted = OPS[kind]
    inner = inward(op, PREFIX)
    assert content(inner) == content(wanted)
    if kind in KEYLESS:
        assert inner is op
    else:
        assert inner.key == PREFIX + (op.key or "")
        assert inner.effect is op.effect


class _Untold(Smallest):
    """The first look at leases fails."""

    def __init__(self, store: kvi.Kvi) -> None:
        super().__init__(store)
        self.looks = 0

    def _leases(
        self, ids: Collection[int] | None, span: Span | None, timeout: float
    ) -> list[LeaseInfo]:
        self.looks += 1
        if self.looks == 1:
            raise kvi.Unavailable("this time")
        return self.inner._leases(ids, span, timeout)


class _Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, str]] = []

    @hookimpl
    def kvi_operation(self, operation: ObservedOperation) -> None:
        """Remember it."""
        self.told.append((operation.name, operation.attempts, operation.outcome))


def test_leases_through_all_that_stands_before_a_store() -> None:
    """A look is tried again as a read, observed, and shows that the store is alive."""
    primitives, notes = _Untold(kvi.open("mem:leases-of-a-view")), _Notes()
    with opened(primitives) as store, store.lease(60) as lease:
        store.store("view/k", "v", lease=lease)
        store.store("k", "v", lease=lease)
        backend = kvi.Backend(store, "view")
        observers.register(notes)
        try:
            (found,) = backend._do(ops.LeasesOp(None, Span()), None)
        finally:
            observers.unregister(notes)
        assert (found.id, found.keys) == (lease.id, ["k"])
        assert notes.told == [("leases", 2, "ok")]
        assert backend.alive


def test_backend_that_tells_of_no_leases() -> None:
    """The smallest one says that it does not."""
    with (
        opened(Smallest(kvi.open("mem:"))) as store,
        pytest.raises(kvi.NotSupported, match="which leases there are"),
    ):
        store._do(ops.LeasesOp(None, None), None)


def test_leases_without_their_keys() -> None:
    """Whoever does not ask for keys asks for none in a namespace either."""
    op = ops.LeasesOp(None, None)
    assert inward(op, PREFIX) is op


@pytest.mark.parametrize(
    ("span", "inner"),
    [
        (Span("", None), Span("view/\0", "view0", "view/")),
        (Span("a", None), Span("view/a", "view0")),
        (Span("", "a"), Span("view/\0", "view/a")),
        (Span.of_prefix("a"), Span("view/a", "view/b", "view/a")),
        (Span.of_prefix(""), Span("view/\0", "view0", "view/")),
    ],
)
def test_open_bounds_end_with_the_namespace(span: Span, inner: Span) -> None:
    """No span reaches outside of it; its own mark, ``view/``, is no key of it."""
    op = inward(ops.CountOp(span), PREFIX)
    assert isinstance(op, ops.CountOp)
    assert op.span == inner


ENTRY, SHOWN = KeyValue("view/k", b"v", 2, 1, 3, 4), KeyValue("k", b"v", 2, 1, 3, 4)
EVENT = Event(EventType.PUT, "view/k", b"v", 2, ENTRY, False)
RESYNC = Event(EventType.RESYNC, "", None, 9, None, False, [ENTRY])
RESULTS: list[tuple[Any, Any]] = [
    (ENTRY, SHOWN),
    (None, None),
    (True, True),
    (7, 7),
    (Grant(3, 60.0), Grant(3, 60.0)),
    ([EVENT], [Event(EventType.PUT, "k", b"v", 2, SHOWN, False)]),
    ([], []),
    (TxnResult(True, 2, (ENTRY, 2, True, None)), TxnResult(True, 2, (SHOWN, 2, True, None))),
    (
        Batch([EVENT, RESYNC], 9),
        Batch(
            [
                Event(EventType.PUT, "k", b"v", 2, SHOWN, False),
                Event(EventType.RESYNC, "", None, 9, None, False, [SHOWN]),
            ],
            9,
        ),
    ),
    (
        Claim("view/jobs/1", 7, Key("view/jobs/1").revision == 7, "view/jobs/0", 9),
        CLAIM,
    ),
    ([], []),
    (
        [LeaseInfo(3, 60.0, None, ["view/a", "view/b"]), LeaseInfo(4, 60.0, 5.0, None)],
        [LeaseInfo(3, 60.0, None, ["a", "b"]), LeaseInfo(4, 60.0, 5.0, None)],
    ),
    (
        Claim("view/jobs/1", 7, Key("view/jobs/1").revision == 7, None, 9),
        CLAIM._replace(ahead=None),
    ),
]


@pytest.mark.parametrize(("result", "shown"), RESULTS, ids=lambda one: type(one).__name__)
def test_outward(result: Any, shown: Any) -> None:
    """Each key of a result loses the prefix, and all else stays."""
    out = outward(result, len(PREFIX))
    if isinstance(result, Batch):
        assert (out.events, out.revision) == (shown.events, shown.revision)
    else:
        assert out == shown


def test_outward_of_a_range() -> None:
    """Page by page, when it is read; pages of a view are not shortened again."""
    read: list[int] = []

    def pages() -> Iterator[Iterable[KeyValue]]:
        for number in (1, 2):
            read.append(number)
            yield [ENTRY]

    found = outward(RangeResult(5, pages), len(PREFIX))
    assert not read
    assert (found.revision, list(found)) == (5, [SHOWN, SHOWN])
    assert outward([SHOWN], len(PREFIX)) == [SHOWN]


def test_lost_keys_are_lost_for_views_of_views() -> None:
    """Two namespaces, one in the other, are two prefixes."""
    with kvi.open("mem:views-of-views") as store:
        view = store.namespace("a").namespace("b")
        assert isinstance(view._scope.executor, Prefixed)
        view.store("k", "v")
        assert [entry.key for entry in store.range()] == ["a/b/k"]
        assert [entry.key for entry in view.range()] == ["k"]


# -- what doing it twice means --------------------------------------------------------------------

EFFECTS: dict[Effect, tuple[type[Op[Any]], ...]] = {
    Effect.READ: (
        ops.GetOp,
        ops.HistoryOp,
        ops.CountOp,
        ops.RangeOp,
        ops.PageOp,
        ops.InnerPageOp,
        ops.WatchOp,
        ops.LeasesOp,
    ),
    Effect.WRITE: (ops.PutOp, ops.DeleteOp, ops.DeleteRangeOp),
    Effect.DECIDING: (ops.TxnOp, ops.ReleaseOp),
    Effect.REPEATABLE: (ops.GrantOp, ops.RenewOp, ops.RevokeOp, ops.ClaimOp),
    Effect.ASKING: (ops.PingOp, ops.PollOp),
}


def test_effects() -> None:
    """Each operation has one."""
    assert {kind: op.effect for kind, (op, _) in OPS.items()} == {
        kind: effect for effect, kinds in EFFECTS.items() for kind in kinds
    }


# -- pages ----------------------------------------------------------------------------------------


def entries(text: str) -> list[KeyValue]:
    return [KeyValue(key, key.encode(), 1, 1) for key in text]


def paged(*pages: Callable[[], str], reverse: bool = False) -> PageOp:
    """The pages of a range, each made when it is read."""

    def read() -> Iterator[Iterable[KeyValue]]:
        for page in pages:
            yield entries(page())

    return PageOp(RangeResult(1, read), Scan(Span("", None), None, reverse))


def take(op: PageOp) -> str | None:
    page = op.run(None, 1)  # type: ignore[arg-type]  # it has its range
    return None if page is None else "".join(entry.key for entry in page)


def once(page: Callable[[], str]) -> Callable[[], str]:
    """A page that cannot be had the first time."""
    failures = [kvi.Unavailable("this page")]

    def make() -> str:
        if failures:
            raise failures.pop()
        return page()

    return make


def test_pages_in_order() -> None:
    """One at a time, then none; an empty page is none. The first came with the range: no name."""
    op = paged(lambda: "ab", lambda: "", lambda: "cd")
    assert op.name == ""
    assert take(op) == "ab"
    assert op.name == "range_page"
    assert op.open
    assert take(op) == "cd"
    assert take(op) is None
    assert not op.open


@pytest.mark.parametrize("reverse", [False, True])
def test_after_a_failure(reverse: bool) -> None:
    """The pass over the pages begins anew, and what was read is skipped: whole pages and parts."""
    pages = ["fe", "dc", "ba"] if reverse else ["ab", "cd", "ef"]
    op = paged(lambda: pages[0], once(lambda: pages[1]), once(lambda: pages[2]), reverse=reverse)
    assert take(op) == pages[0]
    with pytest.raises(kvi.Unavailable):
        take(op)
    assert not op.open
    assert take(op) == pages[1]
    with pytest.raises(kvi.Unavailable):
        take(op)
    pages[:] = ["fedcb", "a", ""] if reverse else ["abcde", "f", ""]
    assert take(op) == ("b" if reverse else "e")
    assert take(op) == ("a" if reverse else "f")
    assert take(op) is None


def test_left_early() -> None:
    """What a pass holds is let go of when it is closed, and the next one begins behind it."""
    closed: list[int] = []

    def read() -> Iterator[Iterable[KeyValue]]:
        try:
            yield entries("ab")
            yield entries("cd")
        finally:
            closed.append(1)

    op = PageOp(RangeResult(1, read), Scan(Span("", None)))
    assert take(op) == "ab"
    op.close()
    assert closed == [1]
    assert not op.open
    assert take(op) == "cd"
    op.close()
    op.close()
    assert closed == [1, 1]


def test_range_that_is_left_early() -> None:
    """What the pass holds is freed soon, on a thread of kvi's."""
    closed: list[bool] = []

    class Holding(Smallest):
        def _range(self, scan: Scan, timeout: float) -> RangeResult:
            def pages() -> Iterator[list[KeyValue]]:
                try:
                    yield entries("a")
                    yield entries("b")
                finally:
                    closed.append(threading.current_thread() is threading.main_thread())

            return RangeResult(1, pages)

    with opened(Holding(kvi.open("mem:"))) as store:
        for entry in store.range():
            assert entry.key == "a"
            break
        until(lambda: closed)
    assert closed == [False]
