"""Hooks of MkDocs: what the pages of `docs/` become on the way to the site.

The pages are plain Markdown that reads well without the site. So the site's own needs are met
here::

    CHANGELOG.md, CONTRIBUTING.md          become pages
    docs/examples/NAME                     becomes a page with its files
    [text](../core/src/kvi/port.py)        keeps its text: what is no page has no link on the site
    <!-- reference: kvi.Kvi kvi.aio.X -->  becomes what mkdocstrings says of both, side by side
    `Kvi.get`, `kvi.aio.open`, `Timeout`   lead to where the reference has them
"""

from __future__ import annotations

import ast
import inspect
import json
import os.path
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
FROM_THE_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LANGUAGES = {".py": "python", ".toml": "toml", ".proto": "protobuf"}

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
INNER = {
    "call",
    "draft",
    "flow",
    "found",
    "handles",
    "pages",
    "records",
    "rows",
    "scope",
    "state",
    "watch",
}
"""Arguments that only kvi's own code has to give."""

MADE_BY_AUTHORS = "kvi.model."
"""How names begin that authors of plugins make objects of."""

GIVEN = {"AsyncLivenessChannel", "AsyncTempKey", "LivenessChannel", "TempKey"}
COROUTINE = {"send", "throw", "close"}
"""What makes an object a coroutine, which is awaited and not called."""

twins: set[str] = set()
"""Names that stand beside another one of the same meaning."""

LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")
NAMED = re.compile(r"<a\b.*?</a>|<h\d.*?</h\d>|<pre.*?</pre>|<code>([\w.]+)</code>", re.DOTALL)
CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
SHORT = 24  # characters that a narrow column can take
ROWS = re.compile(r"^=+ +=+\n((?:`\w+` .*\n)+)=+ +=+$", re.MULTILINE)
ROW = re.compile(r"^(`\w+`) +(.*)$", re.MULTILINE)
COMMAND = re.compile(r"^ {4}(python -m .*)$", re.MULTILINE)
REFERENCE = re.compile(r"^<!-- reference: (.+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in `docs/`."""
    for source, page in FROM_THE_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for folder in examples():
        page = f"examples/{folder.name}.md"
        files.append(File.generated(config, page, content=shown(folder)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give links their place on the site, and references their text."""
    parts = FENCED.split(markdown)
    here = page.file.src_uri
    parts[::2] = [LINK.sub(lambda match: linked(match, here, files), part) for part in parts[::2]]
    return REFERENCE.sub(lambda match: referred(match[1].split()), "".join(parts))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let names lead to the reference, and name twins once in the table of contents."""
    page.toc.items[:] = without_twins(page.toc.items)
    folder = posixpath.dirname(page.file.dest_uri)

    def lead(match: re.Match[str]) -> str:
        name = match[1]
        if name not in (known := places()):
            return match[0]
        target = posixpath.relpath(known[name], folder)
        return f'<a class="name" href="{target}"><code>{name}</code></a>'

    return CELL.sub(measured, NAMED.sub(lead, html))


def measured(cell: re.Match[str]) -> str:
    """A cell of a table, marked if it is text, which wants room."""
    long = len(re.sub(r"<[^>]*>", "", cell[1])) > SHORT
    return f'<td class="long">{cell[1]}</td>' if long else cell[0]


@cache
def places() -> dict[str, str]:
    """Where each name of the public interface stands in the reference, as it may be written."""
    known: dict[str, str] = {}
    for path in sorted((DOCS / "reference").glob("*.md")):
        for line in REFERENCE.findall(path.read_text()):
            for name in line.split():
                inner = members(found(name)) if inspect.isclass(found(name)) else []
                for one in (name, *(f"{name}.{member}" for member in inner)):
                    known[one] = f"reference/{path.stem}.html#{one}"
    # Without the module, too, where it is a class that is meant.
    for module in ("kvi.recipes.", "kvi.aio.", "kvi."):
        short = {name.removeprefix(module): place for name, place in known.items()}
        known |= {name: place for name, place in short.items() if name[0].isupper()}
    return known


def without_twins(entries: list[AnchorLink]) -> list[AnchorLink]:
    """The entries of a table of contents, with those below a twin moved to the one before it."""
    kept: list[AnchorLink] = []
    for entry in entries:
        entry.children = without_twins(entry.children)
        if entry.id in twins and kept:
            kept[-1].children += entry.children
        else:
            kept.append(entry)
    return kept


def examples() -> list[Path]:
    """The folders of whole programs."""
    return sorted(
        folder
        for folder in EXAMPLES.iterdir()
        if (folder / "__init__.py").exists() or (folder / "pyproject.toml").exists()
    )


def shown(folder: Path) -> str:
    """An example as a page: what its README or its docstring says, then its files."""
    readme, module = folder / "README.md", folder / "__init__.py"
    if readme.exists():
        text = readme.read_text()
    else:
        told = ast.get_docstring(ast.parse(module.read_text())) or ""
        told = COMMAND.sub(r"```sh\n\1\n```", told)
        told = ROWS.sub(lambda rows: "| | |\n|---|---|\n" + ROW.sub(r"| \1 | \2 |", rows[1]), told)
        text = f"# {folder.name}\n\n{told}\n"
    for path in sorted(folder.rglob("*")):
        language = LANGUAGES.get(path.suffix)
        code = path.read_text().strip() if language and "_pb2" not in path.name else ""
        if code:
            text += f"\n## `{path.relative_to(folder)}`\n\n```{language}\n{code}\n```\n"
    return text


def linked(match: re.Match[str], here: str, files: Files) -> str:
    """A link as the site has it; the text alone if it leads to what is no page."""
    text, target, anchor = match[1], match[2], match[3] or ""
    path = source_of(here).parent / target
    named = posixpath.normpath(os.path.relpath(path, DOCS))
    if path.parent.resolve() == ROOT:
        named = {"README.md": "index.md", **FROM_THE_ROOT}.get(path.name, named)
    if files.get_file_from_path(f"{named}.md") is not None:
        named = f"{named}.md"
    if files.get_file_from_path(named) is None:
        if not path.exists():
            return match[0]  # MkDocs says that it leads nowhere
        return text
    return f"[{text}]({posixpath.relpath(named, posixpath.dirname(here))}{anchor})"


def source_of(page: str) -> Path:
    """The file of the repository that a page was made of."""
    for source, named in FROM_THE_ROOT.items():
        if page == named:
            return ROOT / source
    if page.startswith("examples/"):
        return EXAMPLES / Path(page).stem / "README.md"
    return DOCS / page


def referred(names: list[str]) -> str:
    """What mkdocstrings says of a name; of two, member by member, side by side."""
    classes = [name for name in names if inspect.isclass(found(name))]
    text = beside([asked(name, name, names, 3) for name in names])
    for member in dict.fromkeys(member for name in classes for member in members(found(name))):
        having = [name for name in classes if member in members(found(name))]
        text += beside([asked(f"{name}.{member}", member, having, 4) for name in having])
    return text


def asked(name: str, heading: str, names: list[str], level: int) -> str:
    """The order to mkdocstrings for one name, without its members."""
    if not name.startswith(names[0]):
        twins.add(name)
    options = {
        "heading": heading,
        "toc_label": heading.rpartition(".")[2],
        "heading_level": level,
        "members": False,
        "inherited_members": False,
        "show_signature": not is_given(name),
        "line_length": 46 if len(names) > 1 else 80,
    }
    lines = (f"      {option}: {json.dumps(value)}\n" for option, value in options.items())
    return f"::: {name}\n    options:\n{''.join(lines)}"


def is_given(name: str) -> bool:
    """Whether a name is a class that kvi makes objects of, so that nobody needs its constructor."""
    if not inspect.isclass(kind := found(name)):
        return False
    if issubclass(kind, Exception):
        return True
    if name.startswith(MADE_BY_AUTHORS):
        return False
    return bool(INNER & inspect.signature(kind).parameters.keys()) or kind.__name__ in GIVEN


def beside(blocks: list[str]) -> str:
    """Blocks in columns, where there is room."""
    if len(blocks) == 1:
        return f"\n{blocks[0]}\n"
    inner = "\n".join(f'<div markdown="1">\n\n{block}\n</div>' for block in blocks)
    return f'\n<div class="beside" markdown="1">\n{inner}\n</div>\n'


def found(name: str) -> Any:
    """What a dotted name of the public interface means."""
    return resolve_name(name)


def members(kind: type) -> list[str]:
    """The public methods and properties of a class, in the order of its bases and its source."""
    if issubclass(kind, Exception) and kind.__base__ is not Exception:
        return []  # those of its base
    left_out = COROUTINE if hasattr(kind, "send") else set()
    return [name for name in dict.fromkeys(_members(kind)) if name not in left_out]


def _members(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base.__module__.split(".")[0] != "kvi":
            continue
        for name, value in vars(base).items():
            described = value.fget if isinstance(value, property) else value
            described = getattr(described, "__func__", described)
            public = not name.startswith("_") or name == "__call__"
            if public and callable(described) and described.__doc__:
                yield name
