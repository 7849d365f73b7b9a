"""The capabilities of the four stores as a page: `python -m docs.site.capabilities` writes it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import kvi

PAGE = Path(__file__).parents[1] / "capabilities.md"
STORES = {"mem": "memory", "sqlite": "SQLite", "etcd": "etcd", "consul": "Consul"}
BEGINNING = """\
# Capabilities

Made by `make capabilities`, from what the plugins declare; the tests fail while it is out of date.
Where a store cannot keep a promise of [the contract](contract.md), it says so here.
`store.capabilities` has the same in a program, and [the suite](conformance.md) checks that it is
true. What is denied raises `NotSupported`, or behaves as is told below the table. [The
stores](stores.md) tells the reasons.

"""


def page() -> str:
    """The page, from the installed plugins."""
    having = {backend.scheme: backend.capabilities for backend in kvi.backends()}
    columns = {title: having[scheme] for scheme, title in STORES.items()}
    text = BEGINNING + f"| capability | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
    for field in dataclasses.fields(kvi.Capabilities):
        cells = [shown(getattr(column, field.name)) for column in columns.values()]
        text += f"| [`{field.name}`](#{field.name}) | {' | '.join(cells)} |\n"
    for name, meaning in meanings().items():
        text += f"\n## {name}\n\n{meaning}\n"
    return text


def shown(value: object) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "any"
    if isinstance(value, int | float):
        return f"{value:,g}" if value < 1e6 and value != int(value) else f"{int(value):,}"
    return str(value)


def meanings() -> dict[str, str]:
    """What each means, by the docstring of the class, as one paragraph."""
    docstring = inspect.getdoc(kvi.Capabilities) or ""
    listed = docstring.partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return {name: begun(" ".join(text.split()).replace("``", "`")) for name, text in found}


def begun(text: str) -> str:
    """A sentence, from its first letter on."""
    return text[0].upper() + text[1:]


if __name__ == "__main__":
    PAGE.write_text(page())
