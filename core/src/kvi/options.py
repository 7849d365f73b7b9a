"""Typed options of ``open``: declared by core and plugins, given in the URI or as keywords."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvi.errors import InvalidArgument, InvalidOption, shown
from kvi.uri import StoreUri

__all__ = ["Option"]

MAX_SECONDS = 31_536_000.0  # a year: no wait is longer, and no clock or C time type overflows
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

Kind = Literal["text", "seconds", "integer", "flag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option that a backend takes.

    Attributes:
        name: as written in the URI and as keyword.
        kind: ``"text"``; ``"seconds"`` (a number above 0, at most a year); ``"integer"``;
            ``"flag"`` (true or false).
        default: the value if it is not given.
        help: what it does, in a short sentence.
        choices: for text, the values allowed; any if empty.
        minimum: for an integer, the smallest value allowed.
        maximum: for an integer, the largest value allowed.
        secret: never shown; only ``***`` appears in ``repr``, logs and errors.

    """

    name: str
    kind: Kind
    help: str
    default: str | float | int | bool | None = None
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    secret: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        match self.kind:
            case "seconds":
                return f"a number of seconds above 0, at most {MAX_SECONDS:.0f}"
            case "integer":
                low = "" if self.minimum is None else f" from {self.minimum}"
                high = "" if self.maximum is None else f" to {self.maximum}"
                return f"a whole number{low}{high}"
            case "flag":
                return "true or false"
            case _:
                return f"one of {', '.join(self.choices)}" if self.choices else "text, not empty"

    def check(self, given: object) -> str | float | int | bool:
        """Return ``given``, text from a URI or a Python value, as the option's type."""
        value = self._convert(given)
        if value is None:
            what = "this" if self.secret else shown(given)
            raise InvalidOption(f"option {self.name!r} is {self.allowed}; not {what}")
        return value

    def _convert(self, given: object) -> str | float | int | bool | None:
        match self.kind:
            case "seconds":
                return _seconds(given)
            case "integer":
                return self._integer(given)
            case "flag":
                if isinstance(given, bool):
                    return given
                word = given.lower() if isinstance(given, str) else None
                return True if word in _TRUE else False if word in _FALSE else None
            case _:
                if not isinstance(given, str) or not given or not _is_utf8(given):
                    return None
                return given if not self.choices or given in self.choices else None

    def _integer(self, given: object) -> int | None:
        if isinstance(given, bool) or not isinstance(given, (int, str)):
            return None
        try:
            number = int(given)
        except ValueError:
            return None
        below = self.minimum is not None and number < self.minimum
        above = self.maximum is not None and number > self.maximum
        return None if below or above else number


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _seconds(given: object) -> float | None:
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        return None
    try:
        seconds = float(given)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS else None


def check_timeout(timeout: object) -> float:
    """Return a call's ``timeout=`` in seconds; raises `InvalidArgument` naming the range."""
    seconds = None if isinstance(timeout, str) else _seconds(timeout)
    if seconds is None:
        raise InvalidArgument(
            f"timeout= is a number of seconds above 0, at most {MAX_SECONDS:.0f}, "
            f"not {shown(timeout)}"
        )
    return seconds


COMMON = (
    Option(
        name="timeout",
        kind="seconds",
        default=5.0,
        help="bounds every call that does not give its own, in seconds",
    ),
    Option(name="namespace", kind="text", help="puts NAMESPACE/ before every key"),
    Option(
        name="retry",
        kind="text",
        default="on",
        choices=("on", "off"),
        help="whether operations that failed are tried again; as keyword also a RetryPolicy",
    ),
    Option(
        name="read_only",
        kind="flag",
        default=False,
        help="whether everything that could write is refused",
    ),
)


def resolve(
    declared: Iterable[Option], uri: StoreUri, keywords: Mapping[str, object]
) -> dict[str, Any]:
    """The value of every declared option, from the URI, the keywords or its default."""
    options = {option.name: option for option in declared}
    given: dict[str, object] = dict(uri.query)
    for name, value in keywords.items():
        if value is None:  # as if it were not given
            continue
        if name in given:
            raise InvalidOption(f"option {name!r} is given in the URI and as keyword; keep one")
        given[name] = value
    for name in [*given, *keywords]:
        if name not in options:
            import difflib  # costs more than an open, and is needed for a mistake only

            near = difflib.get_close_matches(name, options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidOption(
                f"unknown option {name!r} for {uri.backend}: the options are "
                f"{', '.join(sorted(options))}{hint}"
            )
    return {
        name: option.check(given[name]) if name in given else option.default
        for name, option in options.items()
    }
