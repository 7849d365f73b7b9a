"""What entries give to a model."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import kvi
import pytest
from kvi.settings.source import folder, made
from kvi.settings.tree import check_frozen, merged, tree_of
from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr
from typing_extensions import TypedDict


class Level(enum.Enum):
    """An enumeration."""

    LOW = "low"


@dataclass(frozen=True)
class Point:
    """A dataclass."""

    x: int


class Named(TypedDict):
    """A typed dictionary."""

    name: str


class Inner(BaseModel):
    """A model in a model."""

    model_config = ConfigDict(frozen=True)
    host: str = "localhost"
    port: int = 1


class Outer(BaseModel):
    """All kinds of members."""

    model_config = ConfigDict(frozen=True)
    text: str = ""
    number: int | None = None
    flag: bool = False
    wait: timedelta | None = None
    level: Level | None = None
    raw: bytes = b""
    secret: SecretStr = SecretStr("")
    secret_bytes: SecretBytes = SecretBytes(b"")
    names: list[str] = []
    some: Annotated[Sequence[int] | None, Field(max_length=3)] = None
    pair: tuple[int, str] | None = None
    one_of: frozenset[int] = frozenset()
    limits: dict[str, int] = {}
    many: dict[str, list[int]] = {}
    inner: Inner = Inner()
    maybe: Inner | None = None
    servers: dict[str, Inner] = {}
    point: Point | None = None
    named: Named | None = None
    called: str = Field("", alias="other-name")
    anything: Any = None


@pytest.mark.parametrize(
    ("entries", "member", "value"),
    [
        ({"text": "5"}, "text", "5"),
        ({"text": '["a"]'}, "text", '["a"]'),
        ({"number": "5"}, "number", 5),
        ({"flag": "yes"}, "flag", True),
        ({"wait": "PT3S"}, "wait", timedelta(seconds=3)),
        ({"level": "low"}, "level", Level.LOW),
        ({"raw": b"\xff\0"}, "raw", b"\xff\0"),
        ({"names": '["a", "b"]'}, "names", ["a", "b"]),
        ({"some": "[1, 2]"}, "some", [1, 2]),
        ({"pair": '[1, "a"]'}, "pair", (1, "a")),
        ({"one_of": "[1, 1]"}, "one_of", {1}),
        ({"limits": '{"a": 1}'}, "limits", {"a": 1}),
        ({"limits/a": "1", "limits/b": "2"}, "limits", {"a": 1, "b": 2}),
        ({"many/a": "[1]", "many/b": "[2, 3]"}, "many", {"a": [1], "b": [2, 3]}),
        ({"inner/port": "5"}, "inner", Inner(port=5)),
        ({"inner": '{"host": "h", "port": 4}'}, "inner", Inner(host="h", port=4)),
        ({"inner": '{"host": "h", "port": 4}', "inner/port": "5"}, "inner",
         Inner(host="h", port=5)),
        ({"inner": "{}", "inner-x": "", "inner/port": "5"}, "inner", Inner(port=5)),
        ({"maybe/host": "h"}, "maybe", Inner(host="h")),
        ({"servers/a/port": "2", "servers/b": '{"port": 3}'}, "servers",
         {"a": Inner(port=2), "b": Inner(port=3)}),
        ({"point": '{"x": 3}'}, "point", Point(3)),
        ({"point/x": "3"}, "point", Point(3)),
        ({"named": '{"name": "n"}'}, "named", {"name": "n"}),
        ({"other-name": "x"}, "called", "x"),
        ({"anything": "[1]"}, "anything", "[1]"),
        ({"inner/": "", "inner/port": "5"}, "inner", Inner(port=5)),
    ],
)  # fmt: skip
def test_members(entries: dict[str, str | bytes], member: str, value: object) -> None:
    """A value is text, JSON or bytes, as its member is; a path leads into models and mappings."""
    stored = {
        key: text.encode() if isinstance(text, str) else text for key, text in entries.items()
    }
    stored.pop("", None)
    assert getattr(made(Outer, stored), member) == value


def test_secrets() -> None:
    """Members that pydantic hides are read as their kind wants it."""
    found = made(Outer, {"secret": b"a", "secret_bytes": b"\xff"})
    assert found.secret.get_secret_value() == "a"
    assert found.secret_bytes.get_secret_value() == b"\xff"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"number": b"many"}, "number: "),
        ({"inner/port": b"x"}, "inner.port: "),
        ({"names": b"a,b"}, "names: Input should be a valid list"),
        ({"names": b"[" * 100_000}, "names: "),
        ({"text": b"\xff"}, "no text"),
        ({"inner": b"x", "inner/port": b"1"}, "'inner' of this key is an entry as well"),
        ({"limits": b"[]", "limits/a": b"1"}, "'limits' of this key is an entry as well"),
    ],
)
def test_bad_records(entries: dict[str, bytes], words: str) -> None:
    """What makes no model is said with its place, and without what is stored."""
    with pytest.raises(kvi.BadRecord) as raised:
        made(Outer, entries)
    assert words in str(raised.value)
    assert "'many'" not in str(raised.value)


def test_merged() -> None:
    """Members are joined where both are mappings; else the higher rank counts."""
    below = {"a": {"x": 1, "y": {"p": 1}}, "b": 1, "c": {"d": 1}}
    above = {"a": {"y": {"q": 2}}, "b": 2, "c": 5, "e": 6}
    assert merged(below, above) == {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": 2, "c": 5, "e": 6}


def test_folder() -> None:
    """A prefix is a folder, with or without its slash; no prefix is the whole store."""
    assert [folder(text) for text in ("app", "app/", "a/b", "")] == ["app/", "app/", "a/b/", ""]
    with pytest.raises(kvi.InvalidKey):
        folder(5)
    assert tree_of(Inner, {}) == {}


class Open(BaseModel):
    """A model that can be changed."""


class Holding(BaseModel):
    """A frozen one that holds it."""

    model_config = ConfigDict(frozen=True)
    inner: dict[str, list[Open | None]] = {}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Open, "Open has to be immutable: give it model_config = ConfigDict(frozen=True)"),
        (Holding, "Open has to be immutable"),
        (dict, "a model class of pydantic, not <class 'dict'>"),
        (Inner(), "a model class of pydantic, not Inner("),
    ],
)
def test_frozen(model: Any, words: str) -> None:
    """Settings are immutable, with all models in them."""
    with pytest.raises(kvi.InvalidArgument) as raised:
        check_frozen(model)
    assert words in str(raised.value)
    check_frozen(Outer)
