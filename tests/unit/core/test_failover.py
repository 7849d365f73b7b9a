"""Where a call goes on that failed at an endpoint: the table, row by row."""

from __future__ import annotations

import pytest
from kvi.policy.failover import LOGINS, SILENCE, Failover, Happened, Step

H = Happened


def table(
    endpoints: int = 2,
    *,
    write: bool = True,
    login: bool = False,
    timeout: float = 6.0,
    sent: bool = False,
) -> Failover:
    """A call that begins at 0."""
    return Failover(
        endpoints, write=write, login=login, timeout=timeout, deadline=timeout, sent=sent
    )


@pytest.mark.parametrize(
    ("happened", "write", "sent", "others", "last"),
    [
        (H.UNREACHED, True, True, Step.NEXT, Step.UNSENT),
        (H.REFUSED, True, True, Step.NEXT, Step.UNSENT),
        (H.SILENT, True, False, Step.NEXT, Step.UNSENT),
        (H.SILENT, False, True, Step.NEXT, Step.UNSENT),
        (H.SILENT, True, True, Step.UNKNOWN, Step.UNKNOWN),
        (H.LOST, True, False, Step.NEXT, Step.UNSENT),
        (H.LOST, True, True, Step.UNKNOWN, Step.UNKNOWN),
        (H.LOGIN_REFUSED, True, False, Step.NEXT, Step.FINAL),
        (H.LOGIN_WAITING, True, False, Step.UNSENT, Step.UNSENT),
        (H.FINAL, True, True, Step.FINAL, Step.FINAL),
    ],
)
def test_rows(happened: H, write: bool, sent: bool, others: Step, last: Step) -> None:
    """Each row: with another endpoint to go to, and without."""
    assert table(2, write=write, sent=sent).decide(happened, 1).step is others
    assert table(1, write=write, sent=sent).decide(happened, 1).step is last


def test_once_around() -> None:
    """Every endpoint is tried once, and no one after the time is up."""
    calls = table(3)
    steps = [calls.decide(H.UNREACHED, 1).step for _ in range(3)]
    assert steps == [Step.NEXT, Step.NEXT, Step.UNSENT]
    assert table(3).decide(H.UNREACHED, 6).step is Step.UNSENT


def test_silence_replaces_the_channel() -> None:
    """At one endpoint as at several; a call without patience proves nothing."""
    for endpoints in (1, 2):
        for sent in (True, False):
            assert table(endpoints, sent=sent).decide(H.SILENT, 1).replace
    hasty = table(2, timeout=0.1, sent=True).decide(H.SILENT, 0.1)
    assert (hasty.step, hasty.replace, hasty.leave) == (Step.UNKNOWN, False, False)
    hasty = table(2, timeout=0.1, write=False, sent=True).decide(H.SILENT, 0.1)
    assert (hasty.step, hasty.replace, hasty.leave) == (Step.UNSENT, False, False)


def test_each_endpoint_has_its_own_logins() -> None:
    """A login that ended is made anew, for each endpoint; without credentials it is final."""
    calls = table(2, login=True)
    steps = [calls.decide(H.LOGIN_ENDED, 1).step for _ in range(2 * LOGINS + 2)]
    here = [Step.LOGIN] * LOGINS
    assert steps == [*here, Step.NEXT, *here, Step.FINAL]
    assert table(2).decide(H.LOGIN_ENDED, 1).step is Step.FINAL


def test_users_that_change_are_no_verdict() -> None:
    """While users are added, the login is made anew until the time is up, then it may pass."""
    calls = table(1, login=True)
    assert {calls.decide(H.LOGIN_OLD, n / 100).step for n in range(500)} == {Step.LOGIN}
    assert calls.decide(H.LOGIN_OLD, 6).step is Step.UNSENT


def test_time() -> None:
    """A question has its share at each endpoint; a write all that is left; the last one too."""
    calls = table(3, timeout=3)
    assert (calls.share(0), calls.time(0), calls.rest(1)) == (1, 3, 2)
    assert table(2, timeout=60).share(0) == SILENCE
    assert table(2, write=False, timeout=60).time(0) == SILENCE
    calls.decide(H.UNREACHED, 0)
    calls.decide(H.UNREACHED, 0)
    assert calls.share(0) == 3
    assert table(2, timeout=0.1).share(0) == 0.1
