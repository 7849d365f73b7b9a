"""Values as the commands take them: as they stand, from standard input, or from a file."""

from __future__ import annotations

import sys
from pathlib import Path

from kvi.cli.app import Failed
from kvi.cli.output import given


def value_of(text: str, encoding: str) -> bytes:
    """The value that is meant: ``-`` is standard input, ``@FILE`` what is in a file.

    One that begins with ``@`` is written with ``@@``. Raises `Failed` for what cannot be read, and
    for what is not of the encoding.
    """
    if text == "-":
        return _decoded(sys.stdin.buffer.read(), encoding, "standard input")
    if not text.startswith("@"):
        return given(text, encoding)
    if text.startswith("@@"):
        return given(text[1:], encoding)
    name = text[1:]
    if not name:
        raise Failed("@ names a file, as @FILE; a value that begins with @ is written with @@")
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise Failed(
            f"cannot read the file {name!r}: {error.strerror}; a value that begins with @ is "
            "written with @@"
        ) from None
    return _decoded(data, encoding, f"the file {name!r}")


def _decoded(data: bytes, encoding: str, where: str) -> bytes:
    if encoding == "text":
        return data
    try:
        return given("".join(data.decode("ascii").split()), encoding)
    except UnicodeDecodeError:
        raise Failed(f"{where} is not {encoding}") from None
