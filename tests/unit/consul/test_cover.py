"""Which prefixes are polled for which watches."""

from __future__ import annotations

import random

import pytest
from kvi_consul import wire
from kvi_consul.cover import ancestor, cover, covering


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("", ""),
        ("a/b", "a/b"),
        ("a/", "a/"),
        ("a//b", "a/"),
        ("/a", ""),
        ("a/../b", "a/"),
        ("a/.", "a/"),
        ("a/..", "a/"),
        ("a/..x", "a/..x"),
        ("a/.lock", "a/.lock"),
        (".", ""),
        ("a.b..", "a.b.."),
        ("a.\0", "a"),
        ("ns/é", "ns/"),
        ("a b", "a"),
        ("a%41", "a"),
    ],
)
def test_the_longest_path_that_stays_what_it_is(prefix: str, path: str) -> None:
    """Consul cleans paths, so a prefix is polled by its longest ancestor that it leaves alone."""
    assert ancestor(prefix) == path


@pytest.mark.parametrize(
    ("prefixes", "chosen"),
    [
        ([], []),
        (["a"], ["a"]),
        (["a", "a"], ["a"]),
        (["a", "a/b", "a/c"], ["a"]),
        (["a/1", "b/1", "c/1"], ["a/1", "b/1", "c/1"]),
        (["a/1", "a/2", "b/1", "c/1"], ["a/", "b/1", "c/1"]),
        (["a/x/1", "a/x/2", "b/1", "a/y/1", "c/1"], ["a/", "b/1", "c/1"]),
        (["a/x/1", "a/x/2", "b/1", "c/1"], ["a/x/", "b/1", "c/1"]),
        (["a", "b", "c", "d"], [""]),
        (["", "b", "c", "d"], [""]),
        (["a/.b", "a/..c", "b", "c"], ["a/", "b", "c"]),
    ],
)
def test_prefixes_that_have_most_in_common_share(prefixes: list[str], chosen: list[str]) -> None:
    """With three polls, those whose common ancestor is longest share one."""
    assert cover(prefixes, 3) == chosen
    assert cover(reversed(prefixes), 3) == chosen


def test_everything_is_covered_once() -> None:
    """Whatever the prefixes: few paths, each prefix below exactly one of them."""
    rnd = random.Random(1)
    for _ in range(500):
        prefixes = [
            ancestor("".join(rnd.choices("ab/.é", (6, 6, 3, 2, 1), k=rnd.randrange(9))))
            for _ in range(rnd.randrange(1, 30))
        ]
        most = rnd.randrange(1, 6)
        chosen = cover(prefixes, most)
        assert 1 <= len(chosen) <= most
        assert all(wire.path_of(path) == path for path in chosen)
        for prefix in prefixes:
            assert sum(prefix.startswith(path) for path in chosen) == 1
            assert prefix.startswith(str(covering(chosen, prefix)))
        assert cover(chosen, most) == chosen


def test_single_keys_end_up_in_one_poll() -> None:
    """A thousand keys of one folder need one poll of that folder."""
    assert cover((f"w/{n:04}" for n in range(1000)), 4) == ["w/0"]
