"""From entries to what a model takes; without I/O.

A key is a path: below the prefix, ``database/host`` is the member ``host`` of the member
``database``. What a value is, the model's annotation says:

===========================================  =====================================================
the member is                                its value is
===========================================  =====================================================
bytes                                        the bytes as they are
a list, a mapping, a model and the like      JSON, if it is an array or an object
anything else                                text, which pydantic makes a number, a date, … of
===========================================  =====================================================

A member that is a model or a mapping may be one entry of JSON, entries below its name, or both:
then those below count. A key that ends with a slash and has no value is the mark of a folder, as
other tools store it, and no setting.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, SecretBytes
from pydantic.fields import FieldInfo

from kvi.errors import BadRecord, InvalidArgument, shown

_COLLECTIONS = (Mapping, AbstractSet, list, tuple, frozenset, set, dict)
_BYTES = (bytes, bytearray, SecretBytes)


def tree_of(model: type[BaseModel], entries: Mapping[str, bytes]) -> dict[str, Any]:
    """What entries, by key without the prefix, give to ``model``.

    Raises `BadRecord` with the key of what is neither text nor bytes, or a value and a folder.
    """
    tree: dict[str, Any] = {}
    for key in sorted(entries):
        value = entries[key]
        if key.endswith("/") and not value:
            continue
        *folders, name = key.split("/")
        here, annotation = tree, model
        for folder in folders:
            annotation = _member(annotation, folder)
            here = here.setdefault(folder, {})
            if not isinstance(here, dict):
                raise BadRecord(
                    f"the part {folder!r} of this key is an entry as well, and that is no JSON "
                    "object: delete one of them",
                    key=key,
                )
        here[name] = _value(value, _member(annotation, name), key)
    return tree


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with ``above`` where they differ, member by member."""
    both = dict(below)
    for name, value in above.items():
        under = both.get(name)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            value = merged(under, value)
        both[name] = value
    return both


def check_frozen(model: object) -> None:
    """Raise `InvalidArgument` unless it is a model, and immutable with the models in it."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise InvalidArgument(f"settings are a model class of pydantic, not {shown(model)}")
    left, done = [model], set[type]()
    while left:
        one = left.pop()
        if one in done:
            continue
        done.add(one)
        if not one.model_config.get("frozen"):
            raise InvalidArgument(
                f"settings are shared by everybody who reads them, so {one.__name__} has to be "
                "immutable: give it model_config = ConfigDict(frozen=True)"
            )
        for field in one.model_fields.values():
            left += _models(field.annotation)


def _models(annotation: Any) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    for arm in _arms(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            found.append(arm)
        for inner in get_args(arm):
            found += _models(inner)
    return found


def _value(value: bytes, annotation: Any, key: str) -> Any:
    arms = _arms(annotation)
    if any(arm in _BYTES for arm in arms):
        return value
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise BadRecord("the value of this setting is no text", key=key) from error
    if any(map(_is_structured, arms)):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # pydantic says what it would take
            return text
        if isinstance(found, list | dict):
            return found
    return text


def _arms(annotation: Any) -> list[Any]:
    """What a value may be: the parts of a union, without what is only annotated."""
    annotation = getattr(annotation, "__value__", annotation)  # an alias of Python 3.12
    origin = get_origin(annotation)
    if origin is Annotated:
        return _arms(get_args(annotation)[0])
    if origin is Union or isinstance(annotation, types.UnionType):
        return [inner for arm in get_args(annotation) for inner in _arms(arm)]
    return [annotation]


def _is_structured(arm: Any) -> bool:
    kind = get_origin(arm) or arm
    if not isinstance(kind, type):
        return False
    return (
        issubclass(kind, (BaseModel, *_COLLECTIONS))
        or is_dataclass(kind)
        or (hasattr(kind, "__total__") and hasattr(kind, "__annotations__"))  # a TypedDict
        or (kind.__module__ == "collections.abc" and not issubclass(kind, str | bytes))
    )


def _member(annotation: Any, name: str) -> Any:
    """The annotation of a member; `Any` if there is none of that name."""
    for arm in _arms(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            for field_name, field in arm.model_fields.items():
                if name == field_name or name in _aliases(field):
                    return field.annotation
        inner, kind = get_args(arm), get_origin(arm)
        if isinstance(kind, type) and issubclass(kind, Mapping) and len(inner) == 2:
            return inner[1]
    return Any


def _aliases(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    several = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return [one for one in several if isinstance(one, str)]
