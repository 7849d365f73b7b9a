"""What other tools write of a store: recognised by its beginning, and read entry by entry.

::

    [{"key": "a", "flags": 0, "value": "MQ=="}, ...]                     consul kv export
    {"header": {...}, "kvs": [{"key": "YQ==", "value": "MQ==", "lease": 7587, ...}, ...],
     "more": true, "count": 5}                                           etcdctl get -w json

Both are one JSON document of any size, with or without white space: it is decoded piece by piece,
and one entry is in memory. Values are base64, and of etcd the keys too; a value that is empty may
be absent or null. The gateway of etcd, ``/v3/kv/range``, writes the same with its numbers as text.
Members of an entry that are not named here are passed over.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from kvi.cli.records import Entry
from kvi.errors import InvalidArgument

_LARGEST = 64 * 2**20  # characters of an entry; more is no entry of any store
_SPACE = re.compile(r"[ \t\n\r]*")
_OBJECT = re.compile(rb'\{\s*"(?:header|kvs|count|more)"\s*:')
_OBJECT_BEGUN = re.compile(rb'(?:\{\s*(?:"\w{0,6}"?\s*)?)?')


class Format(Enum):
    """What an input is."""

    LINES = "kvi export"
    CONSUL = "consul kv export"
    ETCD = "etcdctl get -w json"


def recognised(beginning: bytes) -> Format | None:
    """What begins so; ``None`` if more must be seen. What is nothing else is taken for lines."""
    text = beginning.lstrip()
    if text.startswith(b"["):
        return Format.CONSUL
    if _OBJECT.match(text):
        return Format.ETCD
    return None if _OBJECT_BEGUN.fullmatch(text) else Format.LINES


class NoValues(InvalidArgument):
    """None of the entries has a value."""


class Entries:
    """The entries of an input.

    Iterating raises `InvalidArgument`, which names the entry, for what is no such input, and for
    one that is not whole.

    Args:
        kind: what the input is.
        read: gives the next bytes, none at its end.
        empty_values: also if no entry has a value, as etcdctl writes with ``--keys-only``.

    Attributes:
        number: of the entry that is read, from 1 on.

    """

    def __init__(
        self, kind: Format, read: Callable[[], bytes], *, empty_values: bool = False
    ) -> None:
        self._kind = kind
        self._text = _Text(read)
        self._empty_values = empty_values
        self.number = 0

    def __iter__(self) -> Iterator[Entry]:
        if self._kind is Format.CONSUL:
            yield from self._array(_of_consul)
        else:
            yield from self._object()
        if left := self._text.peek():
            raise InvalidArgument(f"{left!r} stands behind its end")

    def _array(self, parse: Callable[[dict[str, Any]], Entry]) -> Iterator[Entry]:
        text = self._text
        text.take("[")
        if text.has("]"):
            return
        while True:
            self.number += 1
            try:
                found = text.value()
                if not isinstance(found, dict):
                    raise InvalidArgument("not a JSON object")
                entry = parse(found)
            except InvalidArgument as error:
                raise InvalidArgument(f"entry {self.number:,}: {error.message}") from None
            yield entry
            if text.has("]"):
                return
            self._comma()

    def _object(self) -> Iterator[Entry]:
        text, found = self._text, dict[str, Any]()
        text.take("{")
        while True:
            name = text.value()
            text.take(":")
            if name == "kvs" and text.peek() == "[":
                yield from self._with_values()
            elif name in ("header", "kvs", "more", "count"):
                found[name] = text.value()
            else:
                raise InvalidArgument(f"{name!r} is nothing that `{Format.ETCD.value}` writes")
            if text.has("}"):
                break
            self._comma()
        count = _number(found.get("count", self.number))
        if found.get("more") or count != self.number:
            raise InvalidArgument(
                f"it has {self.number:,} of {count} entries: it was cut short, as by --limit"
            )

    def _with_values(self) -> Iterator[Entry]:
        """The entries; those without a value once another has one, or at the end if that may be."""
        held: list[tuple[int, Entry]] | None = [] if not self._empty_values else None
        for entry in self._array(_of_etcd):
            if held is not None and not entry.value:
                held.append((self.number, entry))
                continue
            if held:
                yield from self._released(held)
            held = None
            yield entry
        if held:
            raise NoValues("no entry has a value, as with --keys-only")

    def _released(self, held: list[tuple[int, Entry]]) -> Iterator[Entry]:
        now = self.number
        for number, entry in held:
            self.number = number
            yield entry
        self.number = now

    def _comma(self) -> None:
        if not self._text.peek():
            after = f"behind entry {self.number:,}" if self.number else "before its first entry"
            raise InvalidArgument(f"it was cut short {after}")
        self._text.take(",")


def _of_consul(found: dict[str, Any]) -> Entry:
    key = found.get("key")
    if not isinstance(key, str) or not key:
        raise InvalidArgument('"key" is missing, or not text')
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f'"key" is not Unicode: {error}') from None
    return Entry(key, _decoded(found, "value", key), leased=False)


def _of_etcd(found: dict[str, Any]) -> Entry:
    raw = _decoded(found, "key")
    try:
        key = raw.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f'"key" is not UTF-8: {raw!r}') from None
    if not key:
        raise InvalidArgument('"key" is missing, or empty')
    return Entry(key, _decoded(found, "value", key), leased=_number(found.get("lease")) != 0)


def _decoded(found: dict[str, Any], member: str, key: str | None = None) -> bytes:
    coded, of = found.get(member), "" if key is None else f" of {key!r}"
    if coded is None:
        return b""
    if not isinstance(coded, str):
        raise InvalidArgument(f'"{member}"{of} is not text')
    try:
        return base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f'"{member}"{of} is not base64: {error}') from None


_DIGITS = 40  # more than any number of theirs has


def _number(found: object) -> int:
    """A number, also one that stands as text; 0 if it is absent."""
    if found is None:
        return 0
    if isinstance(found, int):
        return found
    if isinstance(found, str) and found.isdecimal() and len(found) <= _DIGITS:
        return int(found)
    raise InvalidArgument(f"not a number: {found!r}")


class _Text:
    """JSON that is decoded value by value, from as many bytes as the next value needs."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        # What is not UTF-8 is found where it stands: in a key, or in no string at all.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None  # it matches nothing, too
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def has(self, char: str) -> bool:
        """Whether this character is next; then it is taken."""
        found = self.peek() == char
        self._at += found
        return found

    def take(self, char: str) -> None:
        """Take this character."""
        if not self.has(char):
            there = repr(self.peek()) if self.peek() else "the end"
            raise InvalidArgument(f"not JSON: {there} stands where {char!r} belongs")

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            start = self._at
            try:
                found, end = self._json.raw_decode(self._text, start)
            except RecursionError:
                raise InvalidArgument("not JSON: it is nested too deeply") from None
            except ValueError as error:
                size = len(self._text) - start
                if size > _LARGEST or not self._more(size):
                    told = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise InvalidArgument(f"not JSON, or cut short: {told}") from None
            else:
                # A number that ends with what was read may have further digits.
                if end < len(self._text) or not self._more(1):
                    self._at += end - start
                    return found

    def _more(self, size: int) -> bool:
        """Read on, at least ``size`` characters if there are so many: whether there were any."""
        parts, got = [self._text[self._at :]], 0
        self._at = 0
        while got < size and not self._ended:
            data = self._read()
            self._ended = not data
            parts.append(self._decoder.decode(data, final=self._ended))
            got += len(parts[-1])
        self._text = "".join(parts)
        return got > 0
