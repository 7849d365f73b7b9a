"""The term of a lease: when it is alive, when it is renewed, what is final."""

from __future__ import annotations

import math
from dataclasses import replace

import kvi
import pytest
from kvi.policy.lease import LEAST_PATIENCE, MOST_PATIENCE, LeaseState, Term, check_ttl

ALIVE, LOST, ENDED = LeaseState.ALIVE, LeaseState.LOST, LeaseState.ENDED
LIMITS = replace(kvi.open("mem:").capabilities, lease_min_ttl=2, lease_max_ttl=100)


@pytest.mark.parametrize(
    ("now", "alive"), [(100, True), (105, True), (109.999, True), (110, False), (1e9, False)]
)
def test_alive_by_the_clock(now: float, alive: bool) -> None:
    """A lease is alive until its ttl has passed since the renewal was sent, unobserved too."""
    term = Term(10, sent=100)
    assert term.alive(now) is alive
    assert Term(10, sent=100).observe(now) is (ALIVE if alive else LOST)


def test_first_numbers() -> None:
    """It counts from the moment of sending; the first renewal is due at a third."""
    term = Term(9, sent=100)
    assert (term.ttl, term.deadline, term.due, term.state) == (9, 109, 103, ALIVE)


@pytest.mark.parametrize(
    ("sent", "now", "state", "deadline"),
    [
        (103, 104, ALIVE, 113),
        (103, 109.999, ALIVE, 113),  # an answer just in time
        (103, 110, LOST, 110),  # too late saves nothing, though the store has it still
        (103, 200, LOST, 110),
        (110, 111, LOST, 110),
        (99, 104, ALIVE, 110),  # overtaken by one that was sent later
    ],
)
def test_renewed(sent: float, now: float, state: LeaseState, deadline: float) -> None:
    """A renewal counts from when it was sent, if the lease still was alive at its answer."""
    term = Term(10, sent=100)
    assert term.renewed(10, sent, now) is state
    assert term.deadline == deadline
    assert term.due == deadline - 10 + 10 / 3
    assert term.alive(now) is (state is ALIVE)


@pytest.mark.parametrize("granted", [4, 30])
def test_renewed_with_another_ttl(granted: float) -> None:
    """Each renewal is good for what the store granted with it, and the next is due after it."""
    term = Term(10, sent=100)
    assert term.renewed(granted, sent=103, now=104) is ALIVE
    assert (term.ttl, term.deadline, term.due) == (granted, 103 + granted, 103 + granted / 3)


def test_renewed_for_less_than_it_took() -> None:
    """A renewal whose time was up before its answer was here is a loss."""
    assert Term(10, sent=100).renewed(1, sent=103, now=105) is LOST


@pytest.mark.parametrize(
    ("ttl", "now", "due"),
    [
        (30, 110, 111),  # after a second
        (3, 101, 101.3),  # after a tenth of a short ttl
        (30, 129.5, 130),  # not behind the deadline
        (30, 140, 140),  # at once, and found lost
    ],
)
def test_failed(ttl: float, now: float, due: float) -> None:
    """After a failure it is tried again soon, and looked at no later than at the deadline."""
    term = Term(ttl, sent=100)
    assert term.failed(now) is (ALIVE if now < 100 + ttl else LOST)
    assert term.due == pytest.approx(due)
    assert term.deadline == 100 + ttl


@pytest.mark.parametrize(("silent", "least"), [(False, 3), (True, 2)])
@pytest.mark.parametrize("ttl", [0.5, 3, 10, 60, 3600])
def test_more_tries_fit(ttl: float, silent: bool, least: int) -> None:
    """After a failure there is time for two more tries, or one if the store does not answer."""
    term = Term(ttl, sent=0)
    tries, now = 0, term.due
    while now < term.deadline:
        tries += 1
        now += term.patience(now) if silent else 0
        term.failed(now)
        now = max(now, term.due)
    assert tries >= least
    assert not term.alive(now)


@pytest.mark.parametrize(
    ("ttl", "now", "patience"),
    [
        (60, 0, MOST_PATIENCE),
        (1.5, 0, 0.5),  # a third
        (60, 59.6, 0.4),  # what is left
        (60, 60, LEAST_PATIENCE),
        (0.06, 0, LEAST_PATIENCE),
    ],
)
def test_patience(ttl: float, now: float, patience: float) -> None:
    """One renewal waits for a third of the ttl, a second, or what is left; and a little always."""
    assert Term(ttl, sent=0).patience(now) == pytest.approx(patience)


def in_state(state: LeaseState) -> Term:
    term = Term(10, sent=100)
    if state is LOST:
        term.gone()
    elif state is ENDED:
        assert term.end() is ALIVE
    assert term.state is state
    return term


@pytest.mark.parametrize("state", [LOST, ENDED])
def test_final(state: LeaseState) -> None:
    """Nothing brings back a lease that was lost or given up, whatever the store and clock say."""
    term = in_state(state)
    assert not term.alive(101)
    assert term.observe(101) is state
    assert term.renewed(10, sent=101, now=102) is state
    assert term.failed(103) is state
    term.gone()
    assert term.observe(1000) is state
    assert not term.alive(101)


@pytest.mark.parametrize("state", LeaseState)
def test_end(state: LeaseState) -> None:
    """Giving up tells what was before, and is possible in every state."""
    term = in_state(state)
    assert term.end() is state
    assert term.end() is ENDED


def test_end_after_an_unnoticed_loss() -> None:
    """Who gives up without looking at the clock is told what was known; nobody is told more."""
    term = Term(10, sent=100)
    assert term.end() is ALIVE
    assert term.observe(200) is ENDED


def test_what_was_false_stays_false() -> None:
    """Once somebody was told that the time is up, a renewal noted with an older clock is late."""
    term = Term(10, sent=100)
    assert not term.alive(110)
    assert term.renewed(10, sent=105, now=109.999) is LOST
    assert not term.alive(109)


@pytest.mark.parametrize(
    ("ttl", "granted"), [(2, 2), (0.1, 2), (1, 2), (2.5, 2.5), (100, 100), (1e-9, 2)]
)
def test_check_ttl(ttl: float, granted: float) -> None:
    """A ttl is raised to the store's minimum and else taken as it is, as a float."""
    checked = check_ttl(ttl, LIMITS)
    assert checked == granted
    assert type(checked) is float


@pytest.mark.parametrize(
    "ttl", [0, -1, 100.001, 10**400, math.nan, math.inf, -math.inf, "5", None, True, [1]]
)
def test_check_ttl_refuses(ttl: object) -> None:
    """What is no positive number of seconds, or above the maximum, is an InvalidArgument."""
    with pytest.raises(kvi.InvalidArgument):
        check_ttl(ttl, LIMITS)


def test_check_ttl_without_maximum() -> None:
    """Where there is no maximum, any finite ttl will do."""
    assert check_ttl(1e12, replace(LIMITS, lease_max_ttl=None)) == 1e12
