"""Typed values and entities on any store: codecs, typed views, and the cached, locked `Loader`.

=============  ================================================================================
module         holds
=============  ================================================================================
``codecs``     values as bytes and back; ``pydantic`` the same for its models (an extra)
``typed``      `TypedView`: a store that reads and writes values of one type, nothing cached
``loader``     `Loader`: the entities under a path in memory, each behind its own lock
``handle``     `Handle`, through which entities are changed, and `commit` of several at once
``cache``      what a loader knows, without I/O
=============  ================================================================================
"""

from kvi.loader.codecs import BytesCodec, Codec, JsonCodec, ProtobufCodec, TextCodec
from kvi.loader.handle import Handle, Handles, Ref, commit, lock_many
from kvi.loader.loader import Loader
from kvi.loader.typed import Entry, TypedEvent, TypedRange, TypedView, TypedWatch

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
