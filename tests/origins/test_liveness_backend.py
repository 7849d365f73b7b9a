"""The liveness-monitored backend that kvi replaces (VOLTHA's, VOL-2099), row by row."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import kvi
import pytest
from kvi.conformance.server_process import free_ports
from kvi.flow.supervision import SIZE
from kvi.sync.backend import Backend, LivenessChannel

from tests.support.faulty import Faulty

PREFIX = "service/voltha"
INTERVAL = 30.0


@pytest.fixture
def backend(uri: str) -> Iterator[Backend]:
    """The backend over it, with the origin's prefix."""
    with Backend(uri, PREFIX) as backend:
        yield backend
        backend.delete_range(prefix="")


@pytest.fixture(params=["sqlite", "etcd", "consul"])
def dead(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of each kind that is not there."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/no/folder/store.db"
    return f"{request.param}://127.0.0.1:{free_ports(1)[0]}"


def drain(channel: LivenessChannel) -> list[bool]:
    """All that waits in the channel."""
    return [channel.get(0) for _ in range(len(channel))]


def test_unknown_store_type_is_an_error() -> None:
    """A store type that nobody has installed is refused, by name."""
    with pytest.raises(kvi.UnknownBackend, match="unknown"):
        Backend("unknown://127.0.0.1:2379", PREFIX)


def test_operations_work_below_the_prefix(backend: Backend, uri: str) -> None:
    """Put, Get, List and Delete see what is below it, and nothing beside it."""
    with kvi.open(uri) as whole:
        whole.store("service/other/k", "not mine")
        backend.store("k", "v")
        found = whole.get(f"{PREFIX}/k")
        assert found is not None
        assert found.text == "v"
        assert [entry.key for entry in backend.list()] == ["k"]
        assert backend.delete("k") is True
        assert whole.get(f"{PREFIX}/k") is None
        whole.delete("service/other/k")


def test_get_of_a_parent_does_not_return_children(backend: Backend) -> None:
    """`List` does."""
    backend.store("devices/1", "one")
    backend.store("devices/2", "two")
    assert backend.get("devices") is None
    assert [entry.text for entry in backend.list("devices")] == ["one", "two"]


def test_overwriting_works(backend: Backend) -> None:
    """The last value is there, once."""
    backend.store("k", "1")
    backend.store("k", "2")
    assert [entry.text for entry in backend.list()] == ["2"]


def test_deleting_an_absent_key_is_silent(backend: Backend) -> None:
    """No error."""
    assert backend.delete("nothing") is False


def test_dead_address(dead: str) -> None:
    """Every call fails and the state stays not-alive."""
    with Backend(dead, PREFIX, timeout=0.5) as backend:
        channel = backend.enable_liveness_channel()
        for call in (
            lambda: backend.list("devices"),
            lambda: backend.get("k"),
            lambda: backend.store("k", "v"),
            lambda: backend.delete("k"),
            lambda: backend.watch("k"),
        ):
            with pytest.raises((kvi.Unavailable, kvi.Timeout)):
                call()
            assert not backend.alive
        assert backend.perform_liveness_check(0.5) is False
        assert drain(channel) == [False]


def test_not_alive_at_the_start(backend: Backend) -> None:
    """Until an operation proves otherwise; and no channel before one asks for it."""
    assert backend.alive is False
    backend.get("k")
    assert backend.alive is True


def test_numbers(backend: Backend) -> None:
    """The interval is 30 seconds and the channel holds 10, unless told otherwise."""
    assert backend._monitored._state.interval == INTERVAL
    assert SIZE == 10


@pytest.mark.parametrize("checked", [False, True])
def test_first_item_of_the_channel(backend: Backend, checked: bool) -> None:
    """The present state: false before the first check, true after a good one."""
    if checked:
        assert backend.perform_liveness_check(5) is True
    assert drain(backend.enable_liveness_channel()) == [checked]


def test_changed_state_is_posted_and_unchanged_is_not(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change at once, the same state only after the interval."""
    time = [1000.0]
    monkeypatch.setattr(backend._monitored, "_now", lambda: time[0])
    channel = backend.enable_liveness_channel()
    backend.perform_liveness_check()
    backend.perform_liveness_check()
    assert drain(channel) == [False, True]
    time[0] += INTERVAL - 0.001
    backend.perform_liveness_check()
    assert drain(channel) == []
    time[0] += 0.001
    backend.perform_liveness_check()
    assert drain(channel) == [True]


def test_creating_a_watch_leaves_the_state_and_a_put_delivers_one_event(backend: Backend) -> None:
    """On every store: one change, one event."""
    with backend.watch("k") as watch:
        assert not backend.alive
        backend.store("k", "v")
        event = watch.next(20)
        assert (event.type, event.key, event.value) == (kvi.EventType.PUT, "k", b"v")
        with pytest.raises(kvi.Timeout):
            watch.next(0)


@pytest.mark.parametrize(
    ("error", "alive"),
    [
        (None, True),  # none
        (kvi.PermissionDenied("x"), True),  # permission denied
        (kvi.LeaseLost("x"), True),  # failed precondition
        (kvi.Contention("x"), True),  # the same
        (kvi.Compacted("x"), True),  # the same
        (kvi.Timeout("x"), False),  # deadline exceeded, of the caller or the server
        (kvi.Unavailable("x"), False),  # unavailable
        (kvi.Unavailable("the file is damaged", passing=False), False),  # data loss
        (kvi.OutcomeUnknown("x"), False),  # of a write: unavailable, or deadline exceeded
    ],
)
def test_error_classes(error: kvi.KviError | None, alive: bool) -> None:
    """What an operation ended with says whether the store is alive."""
    with Faulty(kvi.open(f"mem:{secrets.token_hex(8)}")) as scripted:
        backend = Backend(scripted, PREFIX, retry=None)
        assert backend.perform_liveness_check()
        scripted.fails("get", error)
        with nullcontext() if error is None else pytest.raises(type(error)):
            backend.get("k")
        assert backend.alive is alive


def test_cancelled_invalid_and_missing_leave_it(backend: Backend) -> None:
    """A cancelled call, an invalid argument and a key that is not found."""
    backend.get("nothing")
    assert backend.alive
    with pytest.raises(kvi.InvalidKey):
        backend.get("")
    assert backend.alive
    with backend.watch("k") as watch:
        watch.cancel()
        with pytest.raises(kvi.Closed):
            watch.next()
    assert backend.alive


def test_full_channel_never_blocks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads for an hour of posts at every second; the newest ten are there."""
    time = [1000.0]
    monkeypatch.setattr(backend._monitored, "_now", lambda: time[0])
    monkeypatch.setattr(backend._monitored._state, "interval", 1.0)
    channel = backend.enable_liveness_channel()
    with Faulty(kvi.open(f"mem:{secrets.token_hex(8)}")) as quick:
        monkeypatch.setattr(backend._monitored, "_inner", quick)
        for _ in range(3600):
            time[0] += 1
            backend.get("k")
    assert drain(channel) == [True] * 10
