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
        """The model as JSON. Raises `InvalidArgument` for another class, or what JSON lacks.

        Also for a model that could not be read again, such as one with an infinite number.
        """
        if not isinstance(value, self._model):
            raise InvalidArgument(f"{self!r} stores no {type(value).__name__}")
        try:
            data = value.model_dump_json(by_alias=True).encode()
            self._model.model_validate_json(data)
        except (PydanticSerializationError, UnicodeEncodeError, ValidationError) as error:
            raise InvalidArgument(f"{self!r} cannot store this model: {told(error)}") from error
        return data

    def decode(self, data: bytes) -> M:
        """The model. Raises `BadRecord` if the bytes are none that it accepts."""
        try:
            return self._model.model_validate_json(data)
        except ValidationError as error:
            raise BadRecord(f"this is no {self._model.__name__}: {told(error)}") from error

    def __repr__(self) -> str:
        return f"PydanticCodec({self._model.__name__})"


def told(error: Exception) -> str:
    """What is wrong and where, without what is stored."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False)
    return "; ".join(
        ": ".join([".".join(map(str, one["loc"])), one["msg"]]).removeprefix(": ")
        for one in found[:3]
    )
