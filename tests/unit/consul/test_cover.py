"""Which targets are asked for, for which watches."""

from __future__ import annotations

import random

import pytest
from kvi.model import Span
from kvi_consul import wire
from kvi_consul.cover import ONE, ancestor, cover, covering, target_of


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
    """Consul cleans paths, so its longest ancestor that it leaves alone is asked for."""
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
        # single keys: nothing below them is theirs
        (["a!", "ab!", "a/b!"], ["a!", "a/b!", "ab!"]),
        (["a", "ab!", "a/b!", "b!"], ["a", "b!"]),
        (["a/1!", "a/2!", "b!", "b/1!"], ["a/", "b!", "b/1!"]),
        (["a/", "a/1!", "a/2!", "a/3!", "b!", "c!"], ["a/", "b!", "c!"]),
        (["", "b", "c", "d"], [""]),
        (["a/.b", "a/..c", "b", "c"], ["a/", "b", "c"]),
    ],
)
def test_prefixes_that_have_most_in_common_share(prefixes: list[str], chosen: list[str]) -> None:
    """With three queries, those whose common ancestor is longest share one."""
    assert cover(prefixes, 3) == chosen
    assert cover(reversed(prefixes), 3) == chosen


def test_everything_is_covered_once() -> None:
    """Whatever the targets: few of them, each below exactly one."""
    rnd = random.Random(1)
    for _ in range(500):
        prefixes = [
            target_of(rnd.choice((Span.of_prefix(name), Span(name, name + "\0"))))
            for name in (
                "".join(rnd.choices("ab/.é", (6, 6, 3, 2, 1), k=rnd.randrange(9)))
                for _ in range(rnd.randrange(1, 30))
            )
        ]
        most = rnd.randrange(1, 6)
        chosen = cover(prefixes, most)
        assert 1 <= len(chosen) <= most
        assert all(wire.path_of(path.removesuffix(ONE)) is not None for path in chosen)
        for prefix in prefixes:
            assert sum(prefix.startswith(path) for path in chosen) == 1
            assert prefix.startswith(str(covering(chosen, prefix)))
        assert cover(chosen, most) == chosen


def test_many_single_keys_share_queries() -> None:
    """A thousand keys of one folder need one query for that folder."""
    assert cover((f"w/{n:04}!" for n in range(1000)), 4) == ["w/0"]
