"""Find the distributions that offer a backend, through their entry points.

``importlib.metadata`` knows how, but costs 20 ms to import, a third of the time that opening a
memory store takes. So a plugin is first looked for where it nearly always is: in the
``entry_points.txt`` of the ``*.dist-info`` and ``*.egg-info`` folders on ``sys.path`` (the layout
of installed distributions, PyPA's "Recording installed projects"). Only if exactly one is found
there is it taken; whatever is unusual (none, several, zipped) is left to ``importlib.metadata``.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

GROUP = "kvi.backends"
_NAME = re.compile(r".*?(?=-|\.(?:dist|egg)-info)")


class Claim(NamedTuple):
    """An installed distribution's claim on a scheme.

    Attributes:
        scheme: the name of the entry point.
        distribution: who makes the claim.
        version: of that distribution; ``""`` if it was not asked for.
        value: where the plugin is: ``package.module``, or ``package.module:attribute``.
    """

    scheme: str
    distribution: str
    version: str
    value: str

    def load(self) -> object:
        """Import the plugin; whatever goes wrong there is raised as it is."""
        module, _, attributes = self.value.partition("[")[0].strip().partition(":")
        loaded: object = importlib.import_module(module.strip())
        names = filter(None, attributes.strip().split("."))
        return reduce(getattr, names, loaded)


def claims_on(scheme: str) -> list[Claim]:
    """The claims on one scheme; more than one distribution is the caller's error to raise."""
    quick: dict[str, Claim] = {}
    for claim in _quick(scheme):
        quick.setdefault(claim.distribution, claim)  # of one installed twice the first is imported
    if len(quick) == 1:
        return list(quick.values())
    return [claim for claim in all_claims() if claim.scheme == scheme]


def all_claims() -> list[Claim]:
    """Every claim on every scheme, one for each distribution, sorted."""
    from importlib.metadata import entry_points

    found = set()
    for entry in entry_points(group=GROUP):
        name, version = entry.value, "unknown"
        if entry.dist is not None:
            name, version = entry.dist.name, entry.dist.version
        found.add(Claim(entry.name, name, version, entry.value))
    return sorted(found)


def _quick(scheme: str) -> Iterator[Claim]:
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or os.curdir)
        except OSError:
            continue  # not there, or a zip file
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                for value in _values(os.path.join(folder, name, "entry_points.txt"), scheme):
                    distribution = _NAME.match(name)[0].replace("_", "-").lower()  # type: ignore[index]
                    yield Claim(scheme, distribution, "", value)


def _values(path: str, scheme: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        return
    if GROUP not in text:
        return
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == GROUP:
            name, _, value = line.partition("=")
            if name.strip() == scheme:
                yield value.strip()
