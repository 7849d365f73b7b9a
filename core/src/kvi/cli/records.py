"""The lines of an export, JSON Lines in UTF-8; decided here without I/O.

::

    {"format": "kvi-export", "version": 1, "store": "sqlite:app.db", "prefix": "", "leased": true}
    {"key": "greeting", "value": "hello"}
    {"key": "picture", "value_base64": "/9j/4A=="}
    {"key": "member/ada", "value": "here", "lease": 7587}
    {"end": true, "entries": 3}

Keys are in order. A value that is no UTF-8 text stands as base64. A line with ``lease`` was leased,
and is there only if it was asked for. The last line says that the export is whole.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from kvi.cli.output import json_line, value_members
from kvi.errors import InvalidArgument, is_whole
from kvi.model import KeyValue

FORMAT, VERSION = "kvi-export", 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that holds an entry."""

    key: str
    value: bytes
    leased: bool


@dataclass(frozen=True, slots=True)
class Header:
    """The first line."""

    store: str
    prefix: str
    leased: bool


@dataclass(frozen=True, slots=True)
class End:
    """The last line, and how many entries stand before it."""

    entries: int


def header(store: str, prefix: str, leased: bool) -> str:
    """The first line of an export."""
    made = {"format": FORMAT, "version": VERSION, "store": store, "prefix": prefix}
    return json_line({**made, "leased": leased})


def line(entry: KeyValue) -> str:
    """The line of an entry."""
    made: dict[str, Any] = {"key": entry.key, **value_members(entry.value or b"")}
    if entry.lease is not None:
        made["lease"] = entry.lease
    return json_line(made)


def end(entries: int) -> str:
    """The last line of an export."""
    return json_line({"end": True, "entries": entries})


def parse(text: bytes) -> Header | Entry | End:
    """What a line says; raises `InvalidArgument`, without the number of the line."""
    try:
        found = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument("not a JSON object")
    if "format" in found:
        if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
            raise InvalidArgument(f"not a {FORMAT} of version {VERSION}")
        return Header(
            str(found.get("store", "")), str(found.get("prefix", "")), bool(found.get("leased"))
        )
    if found.get("end") is True:
        entries = found.get("entries")
        if not is_whole(entries):
            raise InvalidArgument('"entries" is not a number')
        return End(entries)
    key = found.get("key")
    if not isinstance(key, str) or not key:
        raise InvalidArgument('"key" is missing, or not text')
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f'"key" is not Unicode: {error}') from None
    text_, coded = found.get("value"), found.get("value_base64")
    if isinstance(text_, str) and coded is None:
        try:
            return Entry(key, text_.encode(), "lease" in found)
        except UnicodeEncodeError as error:
            raise InvalidArgument(f'"value" is not Unicode: {error}') from None
    if isinstance(coded, str) and text_ is None:
        try:
            return Entry(key, base64.b64decode(coded, validate=True), "lease" in found)
        except (binascii.Error, ValueError) as error:
            raise InvalidArgument(f'"value_base64" is not base64: {error}') from None
    raise InvalidArgument('neither "value" nor "value_base64" is there as text')
