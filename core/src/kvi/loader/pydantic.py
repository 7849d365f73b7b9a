"""A codec for models of pydantic. Needs the extra ``kvi-core[pydantic]``."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from kvi.errors import BadRecord, InvalidArgument, shown

__all__ = ["PydanticCodec"]

M = TypeVar("M", bound=BaseModel)


class PydanticCodec(Generic[M]):
    """Models of one class, as JSON, validated when they are read.

    ``model`` is the class; members are stored by their aliases, if it has any.
    """

    def __init__(self, model: type[M]) -> None:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise InvalidArgument(f"PydanticCodec takes a model class, not {shown(model)}")
        self._model = model

    def encode(self, value: M) -> bytes:
        """The model as JSON. Raises `InvalidArgument` for another class, or what JSON lacks."""
        if not isinstance(value, self._model):
            raise InvalidArgument(f"{self!r} stores no {type(value).__name__}")
        try:
            return value.model_dump_json(by_alias=True).encode()
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            raise InvalidArgument(f"{self!r} cannot store this model: {error}") from error

    def decode(self, data: bytes) -> M:
        """The model. Raises `BadRecord` if the bytes are none that it accepts."""
        try:
            return self._model.model_validate_json(data)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            told = "; ".join(
                ": ".join([".".join(map(str, one["loc"])), one["msg"]]).removeprefix(": ")
                for one in found[:3]
            )
            raise BadRecord(f"this is no {self._model.__name__}: {told}") from error

    def __repr__(self) -> str:
        return f"PydanticCodec({self._model.__name__})"
