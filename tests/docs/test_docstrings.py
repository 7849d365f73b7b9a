"""Every public name says what it means, takes and raises, and who may share it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, NamedTuple

import kvi
import kvi.aio
import kvi.aio.recipes
import kvi.health
import kvi.recipes
import kvi.settings
import kvi.settings.aio
import kvi.testing
from kvi import errors

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
EXTRAS = (kvi.settings, kvi.settings.aio, kvi.health, kvi.testing)
MODULES = (kvi, kvi.aio, kvi.recipes, kvi.aio.recipes, *EXTRAS)
SHARING = re.compile(r"\b(threads?|tasks?|event loop)\b", re.IGNORECASE)
UNIT = re.compile(r"\b(seconds?|factor|chance|share|times)\b", re.IGNORECASE)
COROUTINE = ("send", "throw")  # of the protocol of coroutines, whose arguments Python tells
INSIDE = ("kvi.RetryPolicy.decide",)  # for kvi's own middleware


class Public(NamedTuple):
    """A function, method or property of the public interface."""

    name: str
    function: Callable[..., Any]
    owner: type | None


def named() -> Iterator[tuple[str, Any]]:
    """What the public modules export, without modules."""
    for module in MODULES:
        for name in module.__all__:
            if not isinstance(found := getattr(module, name), ModuleType):
                yield f"{module.__name__}.{name}", found


def functions() -> Iterator[Public]:
    """All that can be called or read on them, inherited or not."""
    for name, found in named():
        if inspect.isfunction(found):
            yield Public(name, found, None)
        elif inspect.isclass(found):
            for member in (one for one in dir(found) if not one.startswith("_")):
                value = inspect.getattr_static(found, member)
                value = value.fget if isinstance(value, property) else value
                value = getattr(value, "__func__", value)
                if inspect.isfunction(value) and value.__module__.split(".")[0] == "kvi":
                    yield Public(f"{name}.{member}", value, found)


NAMED = list(named())
CLASSES = [(name, found) for name, found in NAMED if inspect.isclass(found)]
FUNCTIONS = list(functions())


@cache
def twins() -> dict[str, str]:
    """The name beside which a name stands in the reference, whose words hold for both."""
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    return {b: a for a, b in re.findall(r"^<!-- reference: (\S+) (\S+) -->$", pages, re.MULTILINE)}


@cache
def listed(title: str) -> frozenset[str]:
    """The names in the first column of a table of the page about the reference."""
    page = (REFERENCE / "about.md").read_text()
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return frozenset(name for cell in cells for name in re.findall(r"`(\w+)`", cell))


def told(public: Public) -> str:
    """What is said of it: its own words, those of its class, and those of its twin."""
    kinds = inspect.getmro(public.owner) if public.owner else ()
    texts = [public.function.__doc__ or "", *(kind.__doc__ or "" for kind in kinds)]
    owner, _, member = public.name.rpartition(".")
    twin = f"{twins()[owner]}.{member}" if owner in twins() else twins().get(public.name)
    if twin is not None:
        texts += [told(other) for other in FUNCTIONS if other.name == twin]
    if owner in twins():
        kind = resolve_name(twins()[owner])
        texts += [kind.__doc__ or "", inspect.getdoc(getattr(kind, member, None)) or ""]
    return "\n".join(texts)


def test_everything_has_a_docstring() -> None:
    """Each exported class and function has one of its own, and each method and property one."""
    own = {name: found.__dict__.get("__doc__") for name, found in CLASSES}
    own |= {name: found.__doc__ for name, found in NAMED if not inspect.isclass(found)}
    # What a dataclass or a named tuple has without one is its signature.
    assert [n for n, text in own.items() if not text or text.startswith(f"{_last(n)}(")] == []
    assert [public.name for public in FUNCTIONS if not inspect.getdoc(public.function)] == []


def test_arguments_are_told() -> None:
    """Each argument stands in the docstring, its class's or its twin's, or in the common table."""
    common, missing = listed("Arguments that many calls take"), []
    for public in FUNCTIONS:
        if _last(public.name) not in COROUTINE and public.name not in INSIDE:
            words = set(re.findall(r"\w+", told(public))) | common | {"self"}
            missing += [(public.name, name) for name in parameters(public) if name not in words]
    assert missing == []


def test_units_are_told() -> None:
    """Each number that is no count says what it counts: seconds, or a share of something."""
    common = listed("Arguments that many calls take")
    missing = []
    for public in FUNCTIONS:
        text = told(public)
        for name, kind in inspect.get_annotations(public.function).items():
            if "float" in re.findall(r"\w+", str(kind)) and name not in common:
                missing += [(public.name, name)] * (UNIT.search(text) is None)
    assert missing == []


def test_errors_are_told() -> None:
    """Each error that the body of a function raises stands there as well."""
    missing = []
    for public in FUNCTIONS:
        text = told(public)
        missing += [(public.name, error) for error in raised(public) if error not in text]
    assert missing == []


def test_sharing_is_told() -> None:
    """A class says which threads or tasks may share its objects, unless they never change."""
    common, missing = listed("Who may share what"), []
    for name, found in CLASSES:
        kinds = [found, resolve_name(twins()[name])] if name in twins() else [found]
        texts = "\n".join(kind.__doc__ or "" for kind in kinds)
        if not (found.__name__ in common or is_value(found) or SHARING.search(texts)):
            missing.append(name)
    assert missing == []


def test_reference_has_every_name() -> None:
    """Each exported name stands in the reference; one that two modules export, in either's name."""
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    lines = re.findall(r"^<!-- reference: (.+) -->$", pages, re.MULTILINE)
    shown = {id(resolve_name(name)) for line in lines for name in line.split()}
    assert [name for name, found in NAMED if id(found) not in shown] == []


def parameters(public: Public) -> Iterable[str]:
    """The names of its arguments."""
    return inspect.signature(public.function).parameters


def raised(public: Public) -> set[str]:
    """The errors of kvi that its body makes and raises."""
    code = ast.parse(textwrap.dedent(inspect.getsource(public.function)))
    calls = (node.exc for node in ast.walk(code) if isinstance(node, ast.Raise))
    makers = (call.func for call in calls if isinstance(call, ast.Call))
    return {maker.id for maker in makers if isinstance(maker, ast.Name)} & set(errors.__all__)


def is_value(kind: type) -> bool:
    """Whether its objects never change."""
    frozen = getattr(kind, "__dataclass_params__", None)
    return issubclass(kind, tuple | Enum | BaseException) or bool(frozen and frozen.frozen)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
