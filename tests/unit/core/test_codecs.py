"""Codecs: values as bytes and back, and what is refused on either way."""

from __future__ import annotations

import math
import pickle
from typing import Any

import kvi
import pydantic
import pytest
from kvi.loader.pydantic import PydanticCodec

from docs.examples.device_agent.device_pb2 import Flow, Meter, Pool


class Limit(pydantic.BaseModel):
    """A model with an alias and a bound."""

    rate: int = pydantic.Field(ge=0, alias="r")
    note: str = ""


class Share(pydantic.BaseModel):
    """A model whose numbers JSON may lack."""

    part: float


ROUND_TRIPS: list[tuple[Any, Any]] = [
    (kvi.BytesCodec(), b""),
    (kvi.BytesCodec(), b"\0\xff"),
    (kvi.TextCodec(), ""),
    (kvi.TextCodec(), "größer \0 🙂"),
    (kvi.JsonCodec(), None),
    (kvi.JsonCodec(), {"b": [1, 2.5, True, None], "a": "ü", "": {}}),
    (kvi.ProtobufCodec(Flow), Flow(id=7, meter=3)),
    (kvi.ProtobufCodec(Flow), Flow()),
    (PydanticCodec(Limit), Limit(r=5, note="é")),
]


@pytest.mark.parametrize(("codec", "value"), ROUND_TRIPS, ids=repr)
def test_round_trip(codec: kvi.loader.Codec[Any], value: Any) -> None:
    """What is decoded equals what was encoded, and equal values have equal bytes."""
    data = codec.encode(value)
    assert type(data) is bytes
    assert codec.decode(data) == value
    assert codec.encode(codec.decode(data)) == data


def test_json_is_one_text_for_equal_values() -> None:
    """The order of members does not matter, so that compares of values work."""
    codec = kvi.JsonCodec()
    assert codec.encode({"a": 1, "b": 2}) == codec.encode({"b": 2, "a": 1}) == b'{"a":1,"b":2}'
    assert codec.encode("ü") == '"ü"'.encode()


REFUSED: list[tuple[Any, Any, str]] = [
    (kvi.BytesCodec(), "text", "TextCodec"),
    (kvi.BytesCodec(), 5, "int"),
    (kvi.TextCodec(), b"bytes", "bytes"),
    (kvi.TextCodec(), "\ud800", "surrogate"),
    (kvi.JsonCodec(), object(), "JSON cannot say"),
    (kvi.JsonCodec(), math.nan, "JSON cannot say"),
    (kvi.JsonCodec(), "\ud800", "JSON cannot say"),
    (kvi.JsonCodec(), {1: 1, "a": 2}, "JSON cannot say"),
    (kvi.ProtobufCodec(Flow), Meter(id=1), r"ProtobufCodec\(Flow\) stores no Meter"),
    (kvi.ProtobufCodec(Flow), None, "stores no NoneType"),
    (PydanticCodec(Limit), {"rate": 1}, "stores no dict"),
    (PydanticCodec(Limit), Limit.model_construct(rate=1, note="\ud800"), "cannot store"),
    (PydanticCodec(Limit), Limit.model_construct(rate=-1), "cannot store this model: r: Input"),
    (PydanticCodec(Share), Share(part=math.inf), "cannot store this model: part: Input"),
]


@pytest.mark.parametrize(("codec", "value", "text"), REFUSED)
def test_refused_values(codec: kvi.loader.Codec[Any], value: Any, text: str) -> None:
    """What is no value of the codec is an `InvalidArgument` that says so."""
    with pytest.raises(kvi.InvalidArgument, match=text):
        codec.encode(value)


deep = b"[" * 100_000

BAD: list[tuple[Any, bytes]] = [
    (kvi.TextCodec(), b"\xff"),
    (kvi.JsonCodec(), b""),
    (kvi.JsonCodec(), b"{"),
    (kvi.JsonCodec(), b"NaN"),
    (kvi.JsonCodec(), b"-Infinity"),
    (kvi.JsonCodec(), b"\xff"),
    (kvi.JsonCodec(), b"1e999"),
    (kvi.JsonCodec(), deep),
    (kvi.ProtobufCodec(Flow), b"\xff"),
    (kvi.ProtobufCodec(Pool), b"\x0a\x05ab"),
    (PydanticCodec(Limit), b"{}"),
    (PydanticCodec(Limit), b'{"r": -1}'),
    (PydanticCodec(Limit), b"["),
]


@pytest.mark.parametrize(("codec", "data"), BAD, ids=lambda one: repr(one)[:30])
def test_bad_records(codec: kvi.loader.Codec[Any], data: bytes) -> None:
    """Bytes that are no value are a `BadRecord`, with its cause."""
    with pytest.raises(kvi.BadRecord) as caught:
        codec.decode(data)
    assert caught.value.__cause__ is not None


def test_pydantic_tells_where_and_not_what() -> None:
    """The text names the member that is wrong, and does not show what is stored."""
    with pytest.raises(kvi.BadRecord, match="no Limit: r: Input should be") as caught:
        PydanticCodec(Limit).decode(b'{"r": "s3cret"}')
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("given", [Flow(), "Flow", None, int])
def test_protobuf_takes_a_class(given: Any) -> None:
    """Anything but a generated class is refused at once."""
    with pytest.raises(kvi.InvalidArgument, match="message class"):
        kvi.ProtobufCodec(given)
    with pytest.raises(kvi.InvalidArgument, match="model class"):
        PydanticCodec(given)


def test_unknown_members_survive() -> None:
    """A record of a newer program loses nothing when an older one writes it back."""
    newer = Meter(id=1, rate_kbps=2, burst_kb=3, flows=4).SerializeToString()
    codec = kvi.ProtobufCodec(Pool)  # knows members 1 and 2 as these numbers, and 3 and 4 not so
    record = codec.decode(newer)
    record.next = 5
    assert Meter.FromString(codec.encode(record)).flows == 4


def test_conflict_pickles_with_its_keys() -> None:
    """It crosses process pools whole."""
    error = pickle.loads(pickle.dumps(kvi.Conflict("changed", keys=("a", "b"), key="a")))
    assert (error.keys, error.key, str(error)) == (("a", "b"), "a", "changed ['a']")
