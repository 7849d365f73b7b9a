"""Keys and values as the contract defines them: text whose order is the order of its UTF-8 bytes.

UTF-8 keeps the order of code points (RFC 3629, section 1), so that Python's comparison of ``str``
sorts keys exactly as a store sorts their bytes, and a prefix's end can be found on code points.
"""

from __future__ import annotations

from kvi.errors import InvalidArgument, InvalidKey, ValueTooLarge

_LAST = 0x10FFFF
_BEFORE_SURROGATES, _AFTER_SURROGATES = 0xD7FF, 0xE000


def check_key(key: object, max_key: int | None) -> str:
    """Return ``key`` if it is a key of at most ``max_key`` UTF-8 bytes; else raise `InvalidKey`."""
    if not isinstance(key, str):
        raise InvalidKey(f"a key is text, not {type(key).__name__}; write it as a str")
    if not key:
        raise InvalidKey("a key has at least one character; this one is empty")
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(
            f"a key must encode as UTF-8; the lone surrogate at position {error.start} does not"
        ) from None
    if max_key is not None and size > max_key:
        raise InvalidKey(f"this key has {size:,} bytes, the store takes at most {max_key:,}")
    return key if type(key) is str else str.__str__(key)


def check_bound(name: str, bound: object, max_key: int | None = None) -> str:
    """Return a bound or prefix of a range: text that encodes as UTF-8, empty or not.

    It may be one byte longer than a key, which is how "just behind this key" is written.
    """
    if not isinstance(bound, str):
        raise InvalidKey(f"{name}= is text, not {type(bound).__name__}; decode it first")
    try:
        size = len(bound.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(
            f"{name}= must encode as UTF-8; the lone surrogate at position {error.start} does not"
        ) from None
    if max_key is not None and size > max_key + 1:
        raise InvalidKey(f"{name}= has {size:,} bytes, keys of this store at most {max_key:,}")
    return bound


def check_value(value: object, max_value: int | None, name: str = "a value") -> bytes:
    """Return ``value`` as bytes, text encoded as UTF-8, of at most ``max_value`` bytes."""
    if isinstance(value, str):
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"{name} as text must encode as UTF-8; the lone surrogate at position "
                f"{error.start} does not: give bytes"
            ) from None
    elif type(value) is bytes:
        data = value
    elif isinstance(value, (bytes, bytearray, memoryview)):
        try:
            data = memoryview(value).tobytes()
        except ValueError as error:
            raise InvalidArgument(f"{name} cannot be read: {error}") from error
    else:
        raise InvalidArgument(
            f"{name} is bytes or str, not {type(value).__name__}; encode it first, as with str(n)"
        )
    if max_value is not None and len(data) > max_value:
        raise ValueTooLarge(
            f"this value has {len(data):,} bytes, the store takes at most {max_value:,}; "
            "split it over several keys"
        )
    return data


def prefix_end(prefix: str) -> str | None:
    """Return the smallest text above every text that starts with ``prefix``; ``None``: no such end.

    Trailing U+10FFFF are dropped, then the last code point is raised by one, past the surrogates.
    """
    stem = prefix.rstrip(chr(_LAST))
    if not stem:
        return None
    last = ord(stem[-1])
    return stem[:-1] + chr(_AFTER_SURROGATES if last == _BEFORE_SURROGATES else last + 1)
