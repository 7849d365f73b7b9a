"""The index from keys to those who are interested in them."""

from __future__ import annotations

import random

import pytest
from kvi.model import Span
from kvi.policy.interest import Interests, only_key


@pytest.mark.parametrize(
    ("span", "key"),
    [
        (Span("a", "a\0"), "a"),
        (Span("a\0", "a\0\0"), "a\0"),
        (Span("a", "b"), None),
        (Span("a", "a\0\0"), None),
        (Span("a"), None),
        (Span(), None),
        (Span("", "\0"), None),
        (Span.of_prefix("a"), None),
    ],
)
def test_only_key(span: Span, key: str | None) -> None:
    """A span of a single key is known as such, and no other is."""
    assert only_key(span) == key


def test_matching() -> None:
    """Those are found whose span holds at least one of the keys, each once."""
    interests: Interests[str] = Interests()
    assert not interests
    spans = {
        "key": Span("b", "b\0"),
        "same key": Span("b", "b\0"),
        "prefix": Span.of_prefix("a"),
        "all": Span(),
        "bounds": Span("b", "d"),
        "nothing": Span("x", "x"),
    }
    for item, span in spans.items():
        interests.add(span, item)
    assert interests
    assert len(interests) == 6
    assert set(interests) == set(spans)
    assert interests.matching(["b"]) == {"key", "same key", "all", "bounds"}
    assert interests.matching(["ab", "zz"]) == {"prefix", "all"}
    assert interests.matching(["zz", "ab", "b", "a"]) == set(spans) - {"nothing"}
    assert interests.matching([]) == set()


def test_discard() -> None:
    """Who is forgotten is found no more, and nothing of it stays; again, it does nothing."""
    interests: Interests[int] = Interests()
    spans = [Span("a", "a\0"), Span("a", "a\0"), Span.of_prefix("a"), Span()]
    for item, span in enumerate(spans):
        interests.add(span, item)
    for item, span in enumerate(spans):
        interests.discard(span, item)
        interests.discard(span, item)
        assert interests.matching(["a"]) == set(range(item + 1, 4))
        assert len(interests) == 3 - item
    assert not interests
    assert not list(interests)
    assert not interests._keys


def test_any_keys_and_spans() -> None:
    """Whatever spans and keys there are, those are found that a plain search finds."""
    chance = random.Random(7)
    texts = ["", "a", "a\0", "ab", "b", "b/", "c", "\U0010ffff"]
    for _ in range(300):
        interests: Interests[int] = Interests()
        spans = {}
        for item in range(chance.randrange(6)):
            low = chance.choice(texts)
            span = Span(low, chance.choice([None, low + "\0", *texts]))
            spans[item] = span
            interests.add(span, item)
        keys = chance.sample(texts[1:], chance.randrange(4))
        plain = {item for item, span in spans.items() if any(key in span for key in keys)}
        assert interests.matching(keys) == plain
