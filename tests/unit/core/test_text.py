"""Keys and spans: order, prefixes, limits."""

from __future__ import annotations

import itertools

import kvi
import pytest
from kvi.model import Span
from kvi.text import check_key, prefix_end

TEXTS = ["", "\0", "a", "a\0", "a/", "a0", "b", "\x7f", "\x80", "\ud7ff", "\ue000", "\U0010ffff"]


@pytest.mark.parametrize("prefix", [*TEXTS, "a\U0010ffff", "\U0010ffff\U0010ffff", "x\ud7ff"])
def test_prefix_end(prefix: str) -> None:
    """[prefix, end) holds exactly the keys that start with the prefix, in the order of bytes."""
    span = Span.of_prefix(prefix)
    stems = [*TEXTS, prefix]
    for text in {a + b for a, b in itertools.product(stems, stems)} - {""}:
        assert (text in span) is text.startswith(prefix), text
        end = prefix_end(prefix)
        inside = prefix.encode() <= text.encode() and (end is None or text.encode() < end.encode())
        assert inside is text.startswith(prefix), text


@pytest.mark.parametrize(
    ("start", "end", "empty"),
    [
        ("", None, False),
        ("", "", True),
        ("", "\0", True),
        ("", "\0\0", False),
        ("a", "a", True),
        ("b", "a", True),
        ("a", "a\0", False),
    ],
)
def test_empty_spans(start: str, end: str | None, empty: bool) -> None:
    """A span is empty if no key fits; the smallest key is a single NUL."""
    assert Span(start, end).empty is empty


@pytest.mark.parametrize(
    ("span", "prefix"),
    [
        (Span(), ""),
        (Span("ab", "ac"), "a"),
        (Span("ab", "ab\0"), "ab"),
        (Span("a"), ""),
        (Span.of_prefix("a/"), "a/"),
        (Span("x", "y"), ""),
    ],
)
def test_common_prefix(span: Span, prefix: str) -> None:
    """Every key of a span starts with its common prefix."""
    assert span.common_prefix == prefix


def test_key_length_counts_bytes() -> None:
    """max_key is in UTF-8 bytes, not characters."""
    assert check_key("ü" * 5, 10) == "ü" * 5
    with pytest.raises(kvi.InvalidKey, match="12 bytes, the store takes at most 10"):
        check_key("ü" * 6, 10)
