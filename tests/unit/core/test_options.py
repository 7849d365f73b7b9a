"""Options: typed, checked, from the URI or from keywords."""

from __future__ import annotations

from typing import Any

import kvi
import pytest
from kvi.options import COMMON, Option, check_timeout, resolve
from kvi.uri import StoreUri

DECLARED = (
    *COMMON,
    Option(name="size", kind="integer", default=3, minimum=1, maximum=9, help=""),
    Option(name="sync", kind="flag", default=True, help=""),
    Option(name="mode", kind="text", choices=("fast", "safe"), help=""),
    Option(name="pin", kind="text", secret=True, help=""),
)


def given(query: str, **keywords: object) -> dict[str, Any]:
    return resolve(DECLARED, StoreUri.parse(f"x:{query}"), keywords)


def test_defaults() -> None:
    """Every declared option has a value, its default if it is not given."""
    assert given("") == {
        "timeout": 5.0,
        "namespace": None,
        "retry": "on",
        "read_only": False,
        "size": 3,
        "sync": True,
        "mode": None,
        "pin": None,
    }


def test_typed() -> None:
    """Text of the URI becomes the option's type; keywords may have it already."""
    values = given("?timeout=2.5&size=9&sync=off", mode="fast")
    assert values["timeout"] == 2.5
    assert values["size"] == 9
    assert values["sync"] is False
    assert values["mode"] == "fast"
    assert given("", sync=False, size=1, timeout=None)["timeout"] == 5.0


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("?size=0", "'size' is a whole number from 1 to 9"),
        ("?size=ten", "whole number"),
        ("?size=", "whole number"),
        ("?sync=perhaps", "true or false"),
        ("?mode=medium", "one of fast, safe"),
        ("?timeout=nan", "number of seconds"),
        ("?timeout=1e99", "number of seconds"),
        ("?namespace=", "'namespace'"),
        ("?sise=3", "did you mean 'size'"),
        ("?zzz=3", "the options are mode, namespace, pin, read_only, retry, size, sync, timeout"),
    ],
)
def test_bad(query: str, text: str) -> None:
    """An unknown option or a bad value names the option and what is allowed."""
    with pytest.raises(kvi.InvalidOption, match=text):
        given(query)


def test_secret_values_are_not_quoted() -> None:
    """The error about a secret option does not show its value."""
    with pytest.raises(kvi.InvalidOption) as caught:
        given("", pin=4711)
    assert "4711" not in str(caught.value)


def test_given_twice() -> None:
    """An option in the URI and as keyword is refused: neither wins in silence."""
    with pytest.raises(kvi.InvalidOption, match="keep one"):
        given("?size=3", size=4)


def test_unknown_keyword_without_value() -> None:
    """A keyword that no one declares is an error even if it is None."""
    with pytest.raises(kvi.InvalidOption, match="unknown option 'nonsense'"):
        given("", nonsense=None)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True, None, 1e9])
def test_bad_timeout(timeout: object) -> None:
    """A call's timeout is a finite positive number of seconds, at most a year."""
    with pytest.raises(kvi.InvalidArgument, match="timeout"):
        check_timeout(timeout)
