"""An extension of griffe: docstrings, as the source has them, become Markdown.

In the source a paragraph that ends in two colons announces a block, `x` is a name and ``x`` is
code. Markdown knows neither the colons nor the difference.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|exc):`")
ANNOUNCED = re.compile(r"^(\s*)::\s*$|::[ ]*$", re.MULTILINE)
TABLE = re.compile(r"^=+ [= ]+\n.*\n=+ [= ]+\n(?:.*\n)*?=+ [= ]+(?:\n|\Z)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Makes Markdown of each docstring, once."""

    def on_instance(self, *, node: Any, obj: griffe.Object, agent: Any, **kwargs: Any) -> None:
        """Take an object as soon as it is known."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def table(match: re.Match[str]) -> str:
    """A table whose columns stand under lines of `=`, as Markdown has tables."""
    top, *rows = match[0].splitlines()
    starts = [column.start() for column in re.finditer("=+", top)]
    ends = [*starts[1:], None]
    cells = [
        [row[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        for row in rows
        if "===" not in row
    ]
    cells.insert(1, ["---"] * len(starts))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def markdown(text: str) -> str:
    """A docstring as Markdown."""
    text = TABLE.sub(table, ROLE.sub("`", text))
    return ANNOUNCED.sub(lambda match: "" if match[1] is not None else ":", text)
