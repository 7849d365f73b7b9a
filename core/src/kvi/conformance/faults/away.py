"""What the rules under faults share: how a fault is brought about, and what may come of a call."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import isfunction
from typing import Any, NamedTuple, TypeVar, cast

import pytest

import kvi
from kvi.conformance.rules import Rules
from kvi.conformance.server import Server
from kvi.conformance.waiting import until, untimed

Result = TypeVar("Result")

PASSING = (kvi.Unavailable, kvi.Timeout, kvi.OutcomeUnknown)
"""What a fault is told as. The first two say of a write that it has not applied, and never will."""

CALL = 0.5
"""The time-out, in seconds, of a call that meets a fault."""

MARGIN = 5.0
"""Seconds that a call may take beyond its time-out, on a machine that is busy with other things."""

LONG = 30.0
"""The time-out of a handle whose calls must go by their own."""

BACK = 60.0
"""Seconds within which all is as before, once a fault has ended."""

ENDS = {"kill": "start", "stop": "start", "pause": "resume", "isolate": "rejoin"}
"""The faults that last, and what ends each."""

AWAY = ("down", "pause", "isolate")
"""The ways to be away that a single call can meet; see `kind_of`."""


METHODS = frozenset(name for name, each in vars(Server).items() if isfunction(each))
"""What the suite may ask a server to do or suffer."""

_TROUBLES = pytest.StashKey[dict[int, tuple[Server, list[str]]]]()


class Noting:
    """A `Server` as the author made it, that writes down when one of its methods raises.

    After that nobody knows how the server is. What the tests then find says nothing of the store.
    """

    def __init__(self, server: Server, trouble: list[str]) -> None:
        self._server = server
        self._trouble = trouble

    def __getattr__(self, name: str) -> Any:
        given = getattr(self._server, name)
        if name not in METHODS:
            return given

        def noting(*args: object) -> object:
            try:
                return given(*args)
            except (Exception, pytest.fail.Exception) as error:
                told = f"{type(error).__name__}: {error}"
                self._trouble.append(f"the fixture's {name}() failed: {told}")
                raise

        return noting


class Faulty(Rules):
    """The fixtures of the rules under faults."""

    @pytest.fixture
    def noted(self, request: pytest.FixtureRequest, kvi_server: Server) -> Server:
        """The author's server; once a method of it has failed, the test ends at once."""
        troubles = request.session.stash.setdefault(_TROUBLES, {})
        _, trouble = troubles.setdefault(id(kvi_server), (kvi_server, []))
        if trouble:
            pytest.fail(trouble[0], pytrace=False)
        return cast(Server, Noting(kvi_server, trouble))

    @pytest.fixture
    def server(self, noted: Server) -> Server:
        """The author's server, its store empty."""
        with kvi.open(untimed(noted.uri), timeout=LONG) as handle:
            eventually(lambda: handle.delete_range(prefix=""))
        return noted

    @pytest.fixture
    def place(self) -> str:
        """A namespace of this test alone; see `new_place`."""
        return new_place()

    @pytest.fixture
    def store(self, server: Server, place: str) -> Iterator[kvi.Kvi]:
        """The empty store, by the way that can be cut."""
        with opened(server.uri, place) as view:
            yield view


def new_place() -> str:
    """The name of a namespace that was never used.

    A write of unknown fate may still apply, and a server that was away does so when nobody expects
    it any more: it must not turn up among the keys of another test.
    """
    return f"faults-{secrets.token_hex(6)}"


@contextmanager
def opened(uri: str, place: str, *, timeout: float = LONG) -> Iterator[kvi.Kvi]:
    """A view of the namespace ``place``, through a handle of its own."""
    with kvi.open(untimed(uri), timeout=timeout) as handle:
        yield handle.namespace(place)


def need(server: Server, *names: str) -> None:
    """Leave the test, saying so, if the server does not offer all of this."""
    if missing := [name for name in names if not server.offers(name)]:
        pytest.skip(f"the server of this fixture offers no {' and no '.join(missing)}")


def need_fault(server: Server, fault: str) -> None:
    """Leave the test, saying so, if the server cannot suffer this, or does not survive it."""
    need(server, fault, *([ENDS[fault]] if fault in ENDS else []))
    if fault == "kill":
        with kvi.open(server.uri) as handle:
            if not handle.capabilities.durable:
                pytest.skip("the capabilities of this store say that it is not durable")


def kind_of(server: Server, fault: str) -> str:
    """The fault that makes the server so; a server that is down was stopped, or else killed."""
    if fault == "down":
        fault = "stop" if server.offers("stop") else "kill"
    need_fault(server, fault)
    return fault


@contextmanager
def away(server: Server, fault: str) -> Iterator[None]:
    """Keep the server away for the block."""
    getattr(server, fault)()
    try:
        yield
    finally:
        getattr(server, ENDS[fault])()


def strike(server: Server, fault: str, met: Callable[[], object]) -> None:
    """Bring a fault about; one that lasts ends once ``met()`` is true."""
    if fault not in ENDS:
        getattr(server, fault)()
        return
    with away(server, fault):
        until(met, within=BACK)


def eventually(call: Callable[[], Result]) -> Result:
    """The result of a call that may be repeated, as soon as the store serves again."""
    deadline = time.monotonic() + BACK
    while True:
        try:
            return call()
        except PASSING:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Outcome(NamedTuple):
    """How a call ended, and after how many seconds."""

    result: object
    error: BaseException | None
    seconds: float

    @property
    def applied(self) -> bool | None:
        """Of a write: whether it has applied; ``None``: unknown."""
        if isinstance(self.error, kvi.OutcomeUnknown):
            return None
        return self.error is None


def at_once(calls: Mapping[str, Callable[[], object]]) -> dict[str, Outcome]:
    """Make all these calls side by side, each on a thread of its own."""
    outcomes: dict[str, Outcome] = {}

    def run(name: str, call: Callable[[], object]) -> None:
        begin = time.monotonic()
        result: object = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as caught:  # noqa: BLE001  (the test looks at it)
            error = caught
        outcomes[name] = Outcome(result, error, time.monotonic() - begin)

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in calls.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LONG + MARGIN
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert outcomes.keys() == calls.keys(), "a call did not end"
    return outcomes
