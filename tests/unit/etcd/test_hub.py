"""The table of watches: what answers, refusals and broken streams lead to."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from kvi.errors import (
    AuthenticationFailed,
    Compacted,
    KviError,
    PermissionDenied,
    Unavailable,
)
from kvi_etcd import cursor, hub
from kvi_etcd import wire_pb2 as pb
from kvi_etcd.cursor import Cursor
from kvi_etcd.errors import AnswerTooLarge, translate
from kvi_etcd.hub import Action, Hub, LogIn, LookBack, MoveOn, Send, State, Verify, Wake, Watch


def nothing() -> None:
    """What nobody calls."""


def a_watch(seen: int = 5, *, ahead: bool = True) -> Watch:
    """A watch of one key."""
    return Watch((b"k", b"k\0"), Cursor(seen), nothing, ahead=ahead)


def creates(actions: list[Action]) -> list[int]:
    """The ids that are asked for."""
    sent = [action.request for action in actions if isinstance(action, Send)]
    return [each.create_request.watch_id for each in sent if each.HasField("create_request")]


def cancels(actions: list[Action]) -> list[int]:
    """The ids that are given back."""
    sent = [action.request for action in actions if isinstance(action, Send)]
    return [each.cancel_request.watch_id for each in sent if each.HasField("cancel_request")]


def woken(actions: list[Action]) -> list[Watch]:
    """Those that are told."""
    return [action.watch for action in actions if isinstance(action, Wake)]


def created(number: int, at: int = 5, *, cluster: int = 1, term: int = 1) -> pb.WatchResponse:
    """A create was done, at a revision of the store."""
    header = pb.ResponseHeader(revision=at, cluster_id=cluster, raft_term=term)
    return pb.WatchResponse(created=True, watch_id=number, header=header)


def refused(reason: str) -> pb.WatchResponse:
    """A create was not done; etcd 3.5.1 leaves the id out then."""
    return pb.WatchResponse(created=True, canceled=True, cancel_reason=reason)


def changes(number: int, *revisions: int) -> pb.WatchResponse:
    """Changes of one watch."""
    return pb.WatchResponse(
        watch_id=number,
        header=pb.ResponseHeader(revision=max(revisions)),
        events=[pb.Event(kv=pb.KeyValue(key=b"k", mod_revision=each)) for each in revisions],
    )


class Refused(grpc.RpcError):  # type: ignore[misc]
    """An endpoint's word about the credentials."""

    def code(self) -> grpc.StatusCode:
        """Of gRPC."""
        return grpc.StatusCode.INVALID_ARGUMENT

    def details(self) -> str:
        """As etcd writes them."""
        return "etcdserver: authentication failed, invalid user ID or password"


def login_refused() -> KviError:
    """The error of kvi for it."""
    cause = Refused()
    error = translate(cause, write=False)
    error.__cause__ = cause
    return error


def running(number: int = 1, *, login: bool = False, endpoints: int = 1) -> tuple[Hub, list[Watch]]:
    """A table with a stream, on which some watches run, with ids from 1 on."""
    table = Hub(endpoints, login=login)
    watches = [a_watch() for _ in range(number)]
    table.on_stream(0.0)
    for place, watch in enumerate(watches, 1):
        assert creates(table.open(watch, 0.0)) == [place]
        assert woken(table.on_answer(created(place), 1, 0.0)) == [watch]
        assert watch.state is State.RUNNING
    return table, watches


# -- opening --------------------------------------------------------------------------------------


def test_wanted_until_there_is_a_stream() -> None:
    """What is opened without a stream is asked for on the next one, and only so many at once."""
    table = Hub(1, login=False)
    watches = [a_watch() for _ in range(hub.WINDOW + 2)]
    assert all(table.open(watch, 0.0) == [] for watch in watches)
    assert creates(table.on_stream(0.0)) == list(range(1, hub.WINDOW + 1))
    assert watches[0].state is State.ASKED
    assert watches[-1].state is State.WANTED
    assert creates(table.on_answer(created(1), 1, 0.0)) == [hub.WINDOW + 1]
    assert creates(table.on_answer(created(2), 1, 0.0)) == [hub.WINDOW + 2]


def test_asked_too_late_is_asked_again() -> None:
    """If the store has moved since, the watch starts again, at what it has seen."""
    table = Hub(1, login=False)
    watch = a_watch(seen=5)
    table.on_stream(0.0)
    (first,) = table.open(watch, 0.0)
    assert isinstance(first, Send)
    assert first.request.create_request.start_revision == 6
    actions = table.on_answer(created(1, at=7), 1, 0.0)
    assert cancels(actions) == [1]
    assert creates(actions) == [2]
    assert isinstance(actions[-1], Send)
    assert actions[-1].request.create_request.start_revision == 5
    assert woken(actions) == []


def test_closed_before_its_answer() -> None:
    """The answer to it is not taken for another's."""
    table = Hub(1, login=False)
    closed, other = a_watch(), a_watch()
    table.on_stream(0.0)
    table.open(closed, 0.0)
    table.open(other, 0.0)
    assert cancels(table.discard(closed)) == [1]
    assert table.on_answer(created(1), 1, 0.0) == []
    assert woken(table.on_answer(created(2), 1, 0.0)) == [other]


@pytest.mark.parametrize(
    "confused", [lambda table: created(7), lambda table: (table._asked.clear(), created(1))[1]]
)
def test_a_server_that_confuses_creates(confused: Callable[[Hub], pb.WatchResponse]) -> None:
    """It is left, and the watch goes on elsewhere."""
    table = Hub(1, login=False)
    watch = a_watch()
    table.on_stream(0.0)
    table.open(watch, 0.0)
    (action,) = table.on_answer(confused(table), 1, 0.0)
    assert isinstance(action, MoveOn)
    table.on_stream_lost(action.error)
    assert creates(table.on_stream(0.0)) == [2]


def test_silent_stream() -> None:
    """Only one that had the time to answer, and said nothing to anybody."""
    table, _ = running()
    watch = a_watch()
    table.open(watch, 10.0)
    assert not table.silent(watch, 10.0 + hub.SILENCE / 2)
    assert table.silent(watch, 10.0 + hub.SILENCE)
    table.on_answer(changes(1, 6), 1, 10.1)
    assert not table.silent(watch, 10.0 + hub.SILENCE)


# -- changes --------------------------------------------------------------------------------------


def test_changes_wake_once() -> None:
    """A consumer is woken when it has found nothing, and not again before that."""
    table, (watch,) = running()
    assert woken(table.on_answer(changes(1, 6), 10, 0.0)) == [watch]
    assert table.on_answer(changes(1, 7, 8), 10, 0.0) == []
    chunks, actions = table.take(watch, 0.0)
    assert [chunk.revision for chunk in chunks] == [6, 8]
    assert actions == []
    assert (watch.events, watch.weight, table.weight) == (0, 0, 0)
    assert table.on_answer(changes(1, 9), 10, 0.0) == [], "it has not found nothing yet"
    assert len(table.take(watch, 0.0)[0]) == 1
    assert table.take(watch, 0.0) == ([], [])
    assert woken(table.on_answer(changes(1, 10), 10, 0.0)) == [watch]


def test_full_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server forgets a watch whose buffer is full; once it is drained, it is asked again."""
    monkeypatch.setattr(cursor, "MAX_EVENTS", 3)
    table, (watch,) = running()
    table.on_answer(changes(1, 6, 7, 8), 10, 0.0)
    assert cancels(table.on_answer(changes(1, 9), 10, 0.0)) == [1]
    assert watch.state is State.FULL
    assert table.on_answer(changes(1, 10), 10, 0.0) == []
    assert table.on_answer(pb.WatchResponse(watch_id=1, canceled=True), 1, 0.0) == []
    _, actions = table.take(watch, 0.0)
    (again,) = actions
    assert isinstance(again, Send)
    assert again.request.create_request.start_revision == 8, "nothing is left out"


def test_discard_takes_its_weight_along() -> None:
    """What a closed watch had kept counts no more, nor does it twice."""
    table, (watch,) = running()
    table.on_answer(changes(1, 6), 10, 0.0)
    assert table.weight > 0
    assert cancels(table.discard(watch)) == [1]
    assert table.weight == 0
    assert table.take(watch, 0.0) == ([], [])
    assert table.discard(watch) == []
    assert not table.watches


# -- streams that end -----------------------------------------------------------------------------


def test_all_go_on_with_the_next_stream() -> None:
    """Each at its cursor; nobody is told, for nobody has lost anything."""
    table, _ = running(3)
    table.on_answer(changes(2, 6), 10, 0.0)
    fault = Unavailable("cut")
    assert table.on_stream_lost(fault) == [MoveOn(fault)]
    actions = table.on_stream(0.0)
    sent = [action.request.create_request for action in actions if isinstance(action, Send)]
    assert [(each.watch_id, each.start_revision) for each in sent] == [(4, 5), (5, 6), (6, 5)]


def test_too_large_an_answer_is_asked_for_in_fragments() -> None:
    """On the next stream only, which follows at once and at the same endpoint."""
    table, _ = running()
    for error, fragment in ((AnswerTooLarge("big"), True), (None, False)):
        assert table.on_stream_lost(error) == []
        (send,) = table.on_stream(0.0)
        assert isinstance(send, Send)
        assert send.request.create_request.fragment is fragment


@pytest.mark.parametrize(
    "fault",
    [Unavailable("no thread"), AuthenticationFailed("bad certificate"), KviError("an alert")],
)
def test_faults_of_endpoints_end_no_watch(fault: KviError) -> None:
    """Whatever they say, and however often."""
    table, (watch,) = running(endpoints=2)
    for _ in range(100):
        assert table.on_stream_lost(fault) == [MoveOn(fault)]
    assert watch.state is State.WANTED


def test_credentials_refused_by_all() -> None:
    """Every endpoint, again and again, with nothing else in between: that ends the watches."""
    table, watches = running(2, endpoints=2)
    most = 2 * hub.REFUSALS
    for _ in range(3):
        for _ in range(most - 1):
            assert woken(table.on_stream_lost(login_refused())) == []
        table.on_stream_lost(Unavailable("another fault"))
    for _ in range(most - 1):
        table.on_stream_lost(login_refused())
    assert woken(table.on_stream_lost(login_refused())) == watches
    assert all(isinstance(watch.error, AuthenticationFailed) for watch in watches)
    assert not table.watches


# -- verdicts -------------------------------------------------------------------------------------


def test_right_taken_away_from_many() -> None:
    """Each of five hundred that are refused is read for the verdict, and nobody logs in for it."""
    table, watches = running(500, login=True)
    table.on_stream_lost(Unavailable("cut"))
    pending, told = len(creates(table.on_stream(100.0))), 0
    while pending:
        (verify,) = table.on_answer(refused("permission denied"), 1, 100.2)
        assert isinstance(verify, Verify)
        actions = table.on_verified(verify.watch, PermissionDenied("no"), 100.2)
        pending += len(creates(actions)) - 1
        told += len(woken(actions))
    assert told == 500
    assert all(isinstance(watch.error, PermissionDenied) for watch in watches)


def test_old_token() -> None:
    """One login brings all back; an endpoint that refuses its own token is left, not stormed."""
    table, watches = running(100, login=True)

    def refuse() -> list[Action]:
        """What an endpoint's refusal leads to, of keys that may be read."""
        table.on_stream(1.0)
        (verify,) = table.on_answer(refused("permission denied"), 1, 1.0)
        assert isinstance(verify, Verify)
        return table.on_verified(verify.watch, None, 1.0)

    for _ in range(2):
        table.on_stream_lost(Unavailable("cut"))
        assert refuse() == [LogIn()]
        assert table.on_stream_lost(None) == []
        (action,) = refuse()
        assert isinstance(action, MoveOn)
        table.on_stream_lost(action.error)
    begun = sum(
        len(woken(table.on_answer(created(each), 1, 1.0))) for each in creates(table.on_stream(1.0))
    )
    assert begun == hub.WINDOW
    assert not any(watch.error for watch in watches)


def test_closed_while_it_is_verified() -> None:
    """Nothing is told to a watch that is gone, and there is room for the next."""
    table, (watch,) = running(1, login=True)
    table.on_stream_lost(Unavailable("cut"))
    table.on_stream(1.0)
    assert table.on_answer(refused("permission denied"), 1, 1.0) == [Verify(watch)]
    table.discard(watch)
    assert table.on_verified(watch, PermissionDenied("no"), 1.0) == []
    assert watch.error is None


def test_refused_without_a_user() -> None:
    """There is no login that could help."""
    table, (other,) = running()
    watch = a_watch()
    table.open(watch, 0.0)
    assert woken(table.on_answer(refused("permission denied"), 1, 0.0)) == [watch]
    assert isinstance(watch.error, PermissionDenied)
    assert other.state is State.RUNNING


def test_a_refusal_that_passes_is_the_endpoints() -> None:
    """What is no verdict about the program's rights is one about the endpoint."""
    table, (watch,) = running()
    table.open(a_watch(), 0.0)
    (action,) = table.on_answer(refused("etcdserver: no leader"), 1, 0.0)
    assert isinstance(action, MoveOn)
    (action,) = table.on_answer(pb.WatchResponse(watch_id=1, canceled=True), 1, 0.0)
    assert isinstance(action, MoveOn)
    assert watch.error is None


def test_compacted() -> None:
    """History that is gone ends the watch, behind what it has kept; no cancel is sent."""
    table, (watch,) = running()
    table.on_answer(changes(1, 6), 10, 0.0)
    gone = pb.WatchResponse(watch_id=1, canceled=True, compact_revision=9)
    assert cancels(table.on_answer(gone, 1, 0.0)) == []
    assert isinstance(watch.error, Compacted)
    assert watch.compacted == 9
    assert len(table.take(watch, 0.0)[0]) == 1


def test_a_store_that_went_back() -> None:
    """A member that answers below what was proven leads to a question; its answer to a verdict."""
    table, (first, second) = running(2)
    table.on_answer(changes(1, 9), 10, 0.0)
    table.on_stream_lost(Unavailable("cut"))
    table.on_stream(0.0)
    look = table.on_answer(created(3, at=6), 1, 0.0)[-1]
    assert isinstance(look, LookBack)
    assert look.watch is first
    later = a_watch(seen=20)
    table.open(later, 0.0)
    assert table.on_looked_back(look, 9, 1) == [], "only the member lags"
    assert cancels(table.on_looked_back(look, 6, 1)) == [3]
    assert isinstance(first.error, Compacted)
    assert second.error is None, "it has not seen what is gone"
    assert later.error is None, "it was not there before the question"


def test_a_term_that_went_back() -> None:
    """A member that tells an older term leads to a question too; who began before has lost all."""
    table, (first, second) = running(2)
    future = Watch((b"k", b"k\0"), Cursor(100, future=True), nothing, ahead=True)
    table.open(future, 0.0)
    table.on_answer(created(3, term=4), 1, 0.0)
    table.on_stream_lost(Unavailable("cut"))
    table.on_stream(0.0)
    later = a_watch(seen=50)
    table.open(later, 0.0)
    look = table.on_answer(created(4, at=50, term=3), 1, 0.0)[-1]
    assert isinstance(look, LookBack)
    assert look.term == 4
    assert table.on_looked_back(look, 50, 4) == [], "only the member lags"
    assert woken(table.on_looked_back(look, 50, 3)) == [first, second]
    assert isinstance(first.error, Compacted)
    assert future.error is None, "it has seen nothing yet"
    assert later.error is None, "it has not begun before"
    table.on_answer(created(5, at=50, term=3), 1, 0.0)
    table.on_answer(created(6, at=50, term=3), 1, 0.0)
    assert woken(table.on_answer(created(7, at=50, term=3), 1, 0.0)) == [later]


def test_another_cluster() -> None:
    """A watch that begins anew in another one has lost its history, wherever that is by now."""
    table, (watch,) = running()
    table.on_stream_lost(Unavailable("cut"))
    future = Watch((b"k", b"k\0"), Cursor(100, future=True), nothing, ahead=True)
    table.open(future, 0.0)
    table.on_stream(0.0)
    actions = table.on_answer(created(2, at=50, cluster=2), 1, 0.0)
    assert (woken(actions), cancels(actions)) == ([watch], [2])
    assert isinstance(watch.error, Compacted)
    assert woken(table.on_answer(created(3, at=50, cluster=2), 1, 0.0)) == [future]
    table.on_stream_lost(Unavailable("cut"))
    table.on_stream(0.0)
    assert woken(table.on_answer(created(4, at=50, cluster=3), 1, 0.0)) == [future]
    assert future.error is None
