"""The documentation site: it can be built, and its pages say what is so."""

from __future__ import annotations

import os.path
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from kvi import errors
from kvi.conformance.contract import RULES
from kvi.conformance.interrupts.operations import OPERATIONS
from mkdocs.config import load_config

from docs.site import capabilities, hooks
from tests.conformance.broken import BROKEN
from tests.simulation.planted import PLANTED
from tests.simulation.schedule import SCENARIOS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def named(entry: object) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = list(entry.values()) if isinstance(entry, dict) else entry
    assert isinstance(parts, list)
    return [page for part in parts for page in named(part)]


SHELL = re.compile(
    r"^\s*(?:\$ |\.venv/|fresh/bin/|sh -c |python3? -m |pip install |make \w+ \w+=|pytest -"
    r"|(?:kvi|consul|etcdctl) (?:--?[a-z]|.* --?[a-z]))",
    re.MULTILINE,
)
"""The beginning of a line that is typed into a shell."""

KINDS = re.compile(r"(?:^| )language-([\w-]+)")


class Reader(HTMLParser):
    """What a page can be linked by, what it links to by which words, and its text by its kinds."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []  # of each link
        self.prose = ""  # what is neither code nor in a table
        self.blocks: list[tuple[str, str]] = []  # language, or nothing, and text
        self._open: list[str] = []  # links, code and cells
        self._kind = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note its name, its target and its language."""
        if tag in ("a", "code", "pre", "script", "style", "td"):
            self._open.append(tag)
        if tag == "a":
            self.words.append("")
        if tag == "div" and (kind := KINDS.search(dict(attrs).get("class") or "")):
            self._kind = kind[1]
        if tag == "pre":
            self.blocks.append((self._kind, ""))
            self._kind = ""
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name == "href" and value and tag == "a":
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        """Go back to what it stands in."""
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        """Note to what it belongs."""
        if "a" in self._open:
            self.words[-1] += data
        if "pre" in self._open:
            kind, text = self.blocks[-1]
            self.blocks[-1] = (kind, text + data)
        # A line may begin with code, which is no line of a shell then.
        self.prose += "\0" if set(self._open) - {"a"} else data

    @property
    def shell_lines(self) -> list[str]:
        """Where a line for a shell begins that is no code, or code of which it is not said."""
        texts = [self.prose, *(text for kind, text in self.blocks if kind in ("", "text"))]
        return [found[0] for text in texts for found in SHELL.finditer(text)]


def lost_links(site: Path) -> list[tuple[str, str]]:
    """The links within the built site that lead nowhere, with their pages."""
    pages = {
        page: Reader(page.read_text()) for page in site.rglob("*.html") if page.name != "404.html"
    }
    lost = []
    for page, reader in pages.items():
        for link in reader.links:
            path, _, anchor = link.partition("#")
            target = Path(os.path.normpath(page.parent / path)) if path else page
            there = target.exists() and (not anchor or anchor in pages[target].ids)
            if "://" not in link and not there:
                lost.append((page.name, link))
    return lost


def navigation() -> list[str]:
    """The pages that the site's navigation names."""
    return named(load_config(str(ROOT / "mkdocs.yml")).nav)


def test_navigation_has_every_page() -> None:
    """Once each: the files of `docs/`, and what is made of others."""
    files = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    files = [file for file in files if not file.startswith("examples/")]
    made = [f"examples/{folder.name}.md" for folder in hooks.examples()]
    assert sorted(navigation()) == sorted([*files, *made, *hooks.FROM_THE_ROOT.values()])


@pytest.mark.slow
def test_site_is_built(tmp_path: Path) -> None:
    """Without a warning, and without anything that a page would fetch from elsewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    built = {page.relative_to(tmp_path).with_suffix(".md").as_posix() for page in pages}
    assert set(navigation()) <= built
    fetched = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")
    for page in pages:
        assert fetched.findall(page.read_text()) == [], page
    assert (tmp_path / "search" / "search_index.json").stat().st_size > 100_000
    assert lost_links(tmp_path) == []
    for page in pages:
        reader = Reader(page.read_text())
        assert reader.shell_lines == [], page
        assert [words for words in reader.words if words.strip().endswith(".md")] == [], page
    authors = Reader((tmp_path / "reference" / "authors.html").read_text())
    for signature in ("__call__(span: Span, start: int | None,", "RangeResult(", "TxnResult("):
        assert any(text.startswith(signature) for _, text in authors.blocks), signature


def test_shell_lines_are_found() -> None:
    """A line for a shell is seen in a paragraph, and in a block that does not say what it is."""
    line = ".venv/bin/python -m build"
    for page in (f"<p>Build it:</p>\n<p>{line}\n{line}</p>", f"<div><pre>{line}\n</pre></div>"):
        assert Reader(page).shell_lines
    for page in (
        f"<p>It is built by\n<code>{line}</code>.</p>",
        f'<div class="language-sh highlight"><pre><code>{line}\n</code></pre></div>',
        "<p>etcd and\nkvi lock names alike.</p>",
    ):
        assert Reader(page).shell_lines == []


def test_capabilities_are_those_declared() -> None:
    """The page of capabilities is what `make capabilities` would write now."""
    assert capabilities.PAGE.read_text() == capabilities.page()


def test_every_error_has_an_example() -> None:
    """Each has a section on the page of failures, which raises it; that it does, the run tells."""
    page = (DOCS / "failures.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(set(errors.__all__) - {"KviError"})
    for name, text in sections.items():
        assert re.search(rf"(raises\(|except )kvi\.{name}\b", text), name


def test_figures_are_those_of_the_code() -> None:
    """What the page of tests counts is there, and little more than that."""
    page = (DOCS / "tested.md").read_text()
    figures = [int(figure) for figure in re.findall(r"^\| .* \| (\d+) \|$", page, re.MULTILINE)]
    counted = [len(RULES), len(BROKEN), len(PLANTED), len(SCENARIOS), len(OPERATIONS)]
    for figure, count in zip(figures, counted, strict=True):
        assert 0.9 * count <= figure <= count


def test_mistakes_name_rules() -> None:
    """The rules that the page of mistakes names are rules of the contract."""
    page = (DOCS / "mistakes.md").read_text()
    rules = re.findall(r"`([a-z-]+\.[a-z-]+)`", "".join(re.findall(r"\| ([^|]*) \|$", page, re.M)))
    assert len(rules) > 40
    assert set(rules) <= {rule if isinstance(rule, str) else rule.name for rule in RULES}
