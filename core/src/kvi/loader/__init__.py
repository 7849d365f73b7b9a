"""Typed values and entities on any store: codecs, typed views, and the cached, locked `Loader`.

The names for threads; `kvi.aio` has those for asyncio. What both are made of is in `kvi.entities`,
the faces are in `kvi.sync` and `kvi.aio`; ``pydantic`` is a codec for its models (an extra).
"""

from kvi.entities.codecs import BytesCodec, Codec, JsonCodec, ProtobufCodec, TextCodec
from kvi.entities.typed import Entry, TypedEvent
from kvi.sync.handle import Handle, Handles, Ref, commit, lock_many
from kvi.sync.loader import Loader
from kvi.sync.typed import TypedRange, TypedView, TypedWatch

__all__ = [
    "BytesCodec",
    "Codec",
    "Entry",
    "Handle",
    "Handles",
    "JsonCodec",
    "Loader",
    "ProtobufCodec",
    "Ref",
    "TextCodec",
    "TypedEvent",
    "TypedRange",
    "TypedView",
    "TypedWatch",
    "commit",
    "lock_many",
]
