"""Codecs: values of a program as the bytes of a store, and back.

A codec decides without I/O and keeps no state, so that threads may share one. ``encode`` raises
`InvalidArgument` for what is no value of its kind, ``decode`` `BadRecord` for bytes that are none;
whoever calls them adds the key. pydantic's models have `kvi.loader.pydantic.PydanticCodec`.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, Generic, Protocol, TypeVar

from kvi.errors import BadRecord, InvalidArgument, shown
from kvi.text import check_value

__all__ = ["BytesCodec", "Codec", "JsonCodec", "ProtobufCodec", "TextCodec"]

V = TypeVar("V")


class Codec(Protocol[V]):
    """What turns values into bytes and back; any object with these two methods is one."""

    def encode(self, value: V) -> bytes:
        """The bytes to store. Raises `InvalidArgument` for what cannot be stored."""
        raise NotImplementedError

    def decode(self, data: bytes) -> V:
        """The value that these bytes stand for. Raises `BadRecord` if they stand for none."""
        raise NotImplementedError


class BytesCodec:
    """Bytes as they are."""

    def encode(self, value: bytes) -> bytes:
        """The same bytes. Raises `InvalidArgument` for anything but bytes."""
        if isinstance(value, str):  # type: ignore[unreachable]
            raise InvalidArgument("BytesCodec stores bytes, not str; TextCodec stores text")
        return check_value(value, None)

    def decode(self, data: bytes) -> bytes:
        """The same bytes."""
        return data

    def __repr__(self) -> str:
        return "BytesCodec()"


class TextCodec:
    """Text, as UTF-8."""

    def encode(self, value: str) -> bytes:
        """The text as UTF-8. Raises `InvalidArgument` for what is no text, or has no UTF-8."""
        if not isinstance(value, str):
            raise InvalidArgument(f"TextCodec stores str, not {type(value).__name__}")
        return check_value(value, None)

    def decode(self, data: bytes) -> str:
        """The text. Raises `BadRecord` if the bytes are not UTF-8."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise BadRecord(f"this is not UTF-8: {error}") from error

    def __repr__(self) -> str:
        return "TextCodec()"


class JsonCodec:
    """What JSON can say: ``None``, booleans, numbers, text, and lists and dicts of these.

    Equal values give equal bytes: members are sorted, nothing is indented. ``NaN`` and infinities,
    which are not JSON (RFC 8259, section 6), are refused both ways. As JSON has neither, tuples
    come back as lists, and keys of dicts as text.
    """

    def encode(self, value: Any) -> bytes:
        """The value as JSON in UTF-8. Raises `InvalidArgument` for what JSON cannot say."""
        try:
            text = json.dumps(
                value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
            )
            return text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"JSON cannot say {shown(value)}: {error}") from error

    def decode(self, data: bytes) -> Any:
        """The value. Raises `BadRecord` if the bytes are not JSON in UTF-8."""
        try:
            return json.loads(data.decode(), parse_constant=_refused, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"this is not JSON: {error}") from error

    def __repr__(self) -> str:
        return "JsonCodec()"


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:20]} is too large for a float")
    return number


class _Message(Protocol):
    """What a codec needs of a protobuf message."""

    # Positional, so that every generated class fits.
    def ParseFromString(self, data: bytes, /) -> int:  # noqa: N802  (protobuf's name)
        raise NotImplementedError

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802
        raise NotImplementedError


M = TypeVar("M", bound=_Message)


class ProtobufCodec(Generic[M]):
    """Protocol buffer messages of one type, in the wire format.

    ``message`` is the generated class. The store never says of what type a record is, and bytes of
    another type may parse as this one: give each type a path of its own. Members that the class
    does not know are kept when a record is written back.
    """

    def __init__(self, message: type[M]) -> None:
        if not (isinstance(message, type) and hasattr(message, "ParseFromString")):
            raise InvalidArgument(
                f"ProtobufCodec takes a generated message class, not {shown(message)}"
            )
        from google.protobuf.message import DecodeError  # the class has imported it

        self._message = message
        self._bad = (DecodeError, UnicodeDecodeError)

    def encode(self, value: M) -> bytes:
        """The message on the wire. Raises `InvalidArgument` for another type, or what it misses."""
        if not isinstance(value, self._message):
            raise InvalidArgument(f"{self!r} stores no {type(value).__name__}")
        from google.protobuf.message import EncodeError

        try:
            return value.SerializeToString(deterministic=True)
        except EncodeError as error:
            raise InvalidArgument(f"{self!r} cannot store this message: {error}") from error

    def decode(self, data: bytes) -> M:
        """The message. Raises `BadRecord` if the bytes are none."""
        message = self._message()
        try:
            message.ParseFromString(data)
        except self._bad as error:
            raise BadRecord(f"this is no {self._message.__name__}: {error}") from error
        return message

    def __repr__(self) -> str:
        return f"ProtobufCodec({self._message.__name__})"
