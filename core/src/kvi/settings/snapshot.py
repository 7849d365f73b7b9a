"""The snapshot: what was last good, in a file, for a start without the store.

It holds the entries, not the model, so that a newer program reads it in its own way. It is JSON,
readable by its owner only, for settings may be secrets. A file is replaced as a whole: it is
written beside, forced to the disk and renamed, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kvi.errors import BadRecord, InvalidArgument, shown

_FORMAT = 1


class Kept(NamedTuple):
    """What a snapshot holds.

    Attributes:
        entries: the values by key, without the prefix.
        saved: when they were the truth, in seconds of the wall clock.

    """

    entries: dict[str, bytes]
    saved: float

    @property
    def age(self) -> float:
        """Seconds since then; 0 if the clock was set back."""
        return max(0.0, time.time() - self.saved)


def check_place(path: object) -> Path:
    """Return where a snapshot is to be. Raises `InvalidArgument` if there is no such folder."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidArgument(f"snapshot= is a path, not {shown(path)}")
    place = Path(os.fsdecode(path))
    if not place.parent.is_dir() or place.is_dir():
        raise InvalidArgument(
            f"snapshot= is the path of a file in a folder that is there, not {shown(str(place))}"
        )
    return place


def save(place: Path, prefix: str, entries: Mapping[str, bytes], saved: float) -> None:
    """Write a snapshot. Raises `OSError`."""
    text = json.dumps(
        {
            "kvi-settings": _FORMAT,
            "saved": saved,
            "prefix": prefix,
            "entries": {key: b64encode(value).decode() for key, value in entries.items()},
        },
        indent=1,
    )
    handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(place)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    _force(place.parent)


def load(place: Path, prefix: str) -> Kept:
    """Read a snapshot. Raises `OSError`, and `BadRecord` for what is none, or of another prefix."""
    data = place.read_bytes()
    try:
        found = json.loads(data)
        version, of = found["kvi-settings"], found["prefix"]
        entries = {key: b64decode(value, validate=True) for key, value in found["entries"].items()}
        saved = float(found["saved"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRecord(f"{place} is no snapshot of settings") from error
    if version != _FORMAT:
        raise BadRecord(f"{place} was written by another version of kvi")
    if of != prefix:
        raise BadRecord(f"{place} is a snapshot of {of!r}, not of {prefix!r}")
    return Kept(entries, saved)


def _force(folder: Path) -> None:
    """Let the renaming last, where folders can be forced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
