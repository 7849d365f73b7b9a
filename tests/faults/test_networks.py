"""Clients at work while the network between them and a real server misbehaves.

The faults that the conformance suite has no word for: it kills, pauses and cuts off the server.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from kvi.conformance.faults.ordeal import TIMEOUT, Ordeal, run
from kvi.conformance.faults.record import Fate, check_state, check_told
from kvi.conformance.proxy import ProxiedProcess

from tests.servers import ConsulServer, EtcdServer
from tests.support.stalls import Stalls, watched
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IN_TIME = 1.0  # seconds beyond its time-out that a call may take
WAKES = 3  # how often a call waits for its turn: for a connection, an answer, and to be told
LATE = 1.5 * TIMEOUT  # seconds that each piece of an answer comes late


class Blackhole(ProxiedProcess):
    """Nothing comes through, and nothing is refused."""

    def isolate(self) -> None:
        """Begin."""
        self.proxy.stall()

    def rejoin(self) -> None:
        """End: what was underway arrives."""
        self.proxy.flow()


class HalfOpen(ProxiedProcess):
    """The connections are dead and nobody has said so; new ones work."""

    def isolate(self) -> None:
        """Begin."""
        self.proxy.abandon()

    def rejoin(self) -> None:
        """There is no end to it: the old connections stay dead."""


class Slow(ProxiedProcess):
    """Every answer comes after the time-out."""

    def isolate(self) -> None:
        """Begin."""
        self.proxy.delay = LATE

    def rejoin(self) -> None:
        """End."""
        self.proxy.delay = 0.0


class Torn(ProxiedProcess):
    """The connection breaks in the middle of an answer."""

    def cut(self) -> None:
        """Do so once, with the next answer."""
        self.proxy.cut_amid_an_answer()
        until(lambda: not self.proxy.is_to_cut)


FAULTS: dict[str, tuple[type[ProxiedProcess], str]] = {
    "blackholed": (Blackhole, "isolate"),
    "half-open": (HalfOpen, "isolate"),
    "delayed": (Slow, "isolate"),
    "cut-amid-an-answer": (Torn, "cut"),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((server, *FAULTS[fault]), id=f"{name}-{fault}", marks=[mark])
        for name, server, mark in (
            ("etcd", EtcdServer, pytest.mark.etcd),
            ("consul", ConsulServer, pytest.mark.consul),
        )
        for fault in FAULTS
    ],
)
def ordeal(request: pytest.FixtureRequest) -> Iterator[tuple[Ordeal, Stalls]]:
    """What clients and watches were told through one fault, and how busy the machine was."""
    process, proxied, fault = request.param
    with proxied(process()) as server:
        with watched() as stalls:
            ordeal = run(server, fault)
        yield ordeal, stalls


def test_through_the_fault(
    ordeal: tuple[Ordeal, Stalls],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Calls end in time with the truth, nothing acknowledged is lost, and the handle goes on.

    In time is the time-out and a second; and as long as the machine stood still meanwhile, each of
    the few times that a call has to be woken.
    """
    told, stalls = ordeal
    clients = told.clients
    with capsys.disabled():
        fates = Counter(write.fate.name.lower() for write in clients.writes)
        print(
            f"\n{request.node.callspec.id}: {dict(fates)}, the slowest call took "
            f"{clients.slowest:.2f} s of {TIMEOUT:g}",
            file=sys.stderr,
        )
    assert not clients.lies
    assert not clients.doubts
    assert clients.slowest < TIMEOUT + IN_TIME + WAKES * stalls.longest
    check_state(told.state, clients.writes, Fate.ACKNOWLEDGED)
    check_state(told.state, clients.writes, Fate.DENIED)
    revisions = [write.revision or math.nan for write in clients.writes if write.revision]
    assert len(set(revisions)) == len(revisions)
    for events in (told.unread, told.called):
        check_told(events, clients.writes, history=told.keeps_history)
