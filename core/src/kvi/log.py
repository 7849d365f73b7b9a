"""The logger of kvi, imported by whoever has something to tell: `logging` costs 4 ms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvi.late import imported

if TYPE_CHECKING:
    from logging import Logger


def log(name: str = "kvi") -> Logger:
    """The logger. Not for the main thread, which imports nothing in the middle of a call."""
    logger: Logger = imported("logging").getLogger(name)
    return logger
