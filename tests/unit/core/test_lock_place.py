"""Where a claim stands in the queue for a lock."""

from __future__ import annotations

import math
from dataclasses import replace

import kvi
import pytest
from kvi.model import Claim, KeyValue
from kvi.policy.lock import (
    LONGEST_SUFFIX,
    check_lock,
    check_wait,
    place,
    queue_key,
    queue_span,
    single_key,
)

LIMITS = kvi.open("mem:").capabilities
OWN = 0xABC  # the lease of the claim, whose key was created at revision 50


def entry(key: str, created: int, lease: int | None, revision: int | None = None) -> KeyValue:
    return KeyValue(key, None, created if revision is None else revision, created, 1, lease)


@pytest.mark.parametrize(
    ("entries", "ahead"),
    [
        pytest.param([], None, id="nobody else, and the own key not in the list"),
        pytest.param([entry("l/abc", 50, OWN)], None, id="only oneself"),
        pytest.param([entry("l/1", 40, 1), entry("l/abc", 50, OWN)], "l/1", id="one before"),
        pytest.param([entry("l/abc", 50, OWN), entry("l/d", 60, 13)], None, id="one behind"),
        pytest.param(
            [entry("l/1", 30, 1), entry("l/2", 49, 2), entry("l/3", 40, 3), entry("l/4", 51, 4)],
            "l/2",
            id="the last of those before, whatever the order of keys",
        ),
        pytest.param([entry("l/1", 40, 1, revision=99)], "l/1", id="written again, still before"),
        pytest.param([entry("l/1", 40, None)], None, id="data without a lease"),
        pytest.param([entry("l/1", 40, 2)], None, id="data with another's lease"),
        pytest.param([entry("l/01", 40, 1)], None, id="zeros before the number"),
        pytest.param([entry("l/FF", 40, 255)], None, id="capital letters"),
        pytest.param([entry("l/a", 40, 10)], "l/a", id="hexadecimal"),
        pytest.param([entry("l/1/2", 40, 2)], None, id="a lock below"),
        pytest.param([entry("l/b/b", 40, 11)], None, id="a lock below, named like a lease"),
        pytest.param([entry("k/1", 40, 1)], None, id="another lock"),
        pytest.param([entry("l/1", 50, 1)], None, id="created by the same transaction"),
    ],
)
def test_place(entries: list[KeyValue], ahead: str | None) -> None:
    """Ahead is the contender with the largest create revision below one's own, or nobody."""
    claim = place("l", OWN, 50, entries, 70)
    guard = kvi.Key("l/abc").create_revision == 50
    assert claim == Claim("l/abc", 50, guard, ahead, 70)


@pytest.mark.parametrize("lease", [1, 0x9F, 2**63 - 1, 2**64, 2**128 - 1])
@pytest.mark.parametrize("name", ["l", "a/b", "/", "ü€😀", "x\n"])
def test_own_key_is_in_the_span(name: str, lease: int) -> None:
    """Every contender's key is listed, and its suffix is never longer than was reckoned with."""
    key = queue_key(name, lease)
    assert key in queue_span(name)
    assert len(key) - len(name) <= LONGEST_SUFFIX
    assert len(single_key(name)) - len(name) <= LONGEST_SUFFIX


@pytest.mark.parametrize("other", ["k", "l0", "l/", "ll", "l\0"])
def test_other_locks_are_out_of_the_span(other: str) -> None:
    """The contenders for a name beside this one are not listed."""
    assert queue_key(other, OWN) not in queue_span("l")
    assert single_key(other) not in queue_span("l")


@pytest.mark.parametrize("name", ["l", "a/b", " ", "x" * 4063])
def test_check_lock(name: str) -> None:
    """Every key is a name of a lock, as long as there is room for what a lock adds."""
    assert check_lock(name, replace(LIMITS, max_key=4096)) == name
    assert check_lock("x" * 10_000, LIMITS)


@pytest.mark.parametrize("name", ["", None, 5, b"l", "\ud800", "x" * 4064, "ü" * 2032])
def test_check_lock_refuses(name: object) -> None:
    """What is no key, or too long with what a lock adds, is an InvalidKey."""
    with pytest.raises(kvi.InvalidKey):
        check_lock(name, replace(LIMITS, max_key=4096))


@pytest.mark.parametrize(
    ("timeout", "wait"),
    [(None, None), (math.inf, None), (10**400, None), (0, 0.0), (5, 5.0), (0.25, 0.25)],
)
def test_check_wait(timeout: float | None, wait: float | None) -> None:
    """A time to wait is seconds from 0 on; without end is None or infinity."""
    assert check_wait(timeout) == wait


@pytest.mark.parametrize("timeout", [-1, -0.001, -math.inf, math.nan, "5", True, [1]])
def test_check_wait_refuses(timeout: object) -> None:
    """What is negative, or no number, is an InvalidArgument."""
    with pytest.raises(kvi.InvalidArgument, match="timeout="):
        check_wait(timeout)
