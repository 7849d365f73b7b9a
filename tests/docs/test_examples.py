"""The Python blocks of the documentation run as they are printed, on the stores that they name."""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import kvi
import pytest
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("reference/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ALSO = re.compile(r"^<!-- also on: (?P<stores>.*); in place of: (?P<uris>.*) -->$", re.MULTILINE)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

# The page of failures forks, in a process that has threads by then.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def also_on(store: str) -> list[Path]:
    """The pages whose examples run on this store as well."""
    declared = ((page, ALSO.search(page.read_text())) for page in PAGES)
    return [page for page, found in declared if found and store in found["stores"].split(", ")]


def run(text: str, name: str) -> None:
    """Run the blocks of a page in order, as one program."""
    scope: dict[str, object] = {"__name__": "example"}
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        code = compile("\n" * line + match[1], name, "exec", dont_inherit=True)
        exec(code, scope)


def run_on(uri: str, page: Path) -> None:
    """Run a page with other stores in place of those that it names."""
    text = page.read_text()
    declared = ALSO.search(text)
    assert declared is not None
    for number, named in enumerate(declared["uris"].split()):
        assert f'"{named}"' in text
        text = text.replace(f'"{named}"', f'"{uri}{number}"')
    run(text, str(page))


def emptied(uri: str) -> Iterator[str]:
    """The URI of a namespace of its own, whose keys are gone afterwards."""
    uri = f"{uri}/docs-{secrets.token_hex(4)}"
    yield f"{uri}/part"
    with kvi.open(uri) as store:
        store.delete_range(prefix="")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to run in, and what is installed there gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def etcd(etcd_uri: str) -> Iterator[str]:
    """A part of the run's etcd."""
    yield from emptied(etcd_uri)


@pytest.fixture
def consul(consul_uri: str) -> Iterator[str]:
    """A part of the run's Consul."""
    yield from emptied(consul_uri)


def test_pages_are_found() -> None:
    """There are pages with examples, so that the tests below have something to run."""
    assert sum(len(BLOCK.findall(page.read_text())) for page in PAGES) >= 60
    assert len(also_on("etcd")) >= 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path) -> None:
    """The blocks of one page run in order, as one program, in an empty folder."""
    run(page.read_text(), str(page))


def test_first_steps_run_again() -> None:
    """A reader may run the program of the first page again, on what the first run has left."""
    page = DOCS / "start.md"
    for _ in range(2):
        run(page.read_text(), str(page))


@pytest.mark.parametrize("page", also_on("memory"), ids=lambda page: page.name)
def test_examples_run_on_memory(page: Path) -> None:
    """So do those of a page that says so."""
    run_on(f"mem:{secrets.token_hex(4)}", page)


@pytest.mark.parametrize("page", also_on("sqlite"), ids=lambda page: page.name)
def test_examples_run_on_sqlite(page: Path) -> None:
    """So do those of a page that says so."""
    run_on("sqlite:store", page)


@pytest.mark.etcd
@pytest.mark.xdist_group("etcd")
@pytest.mark.parametrize("page", also_on("etcd"), ids=lambda page: page.name)
def test_examples_run_on_etcd(page: Path, etcd: str) -> None:
    """So do those of a page that says so."""
    run_on(etcd, page)


@pytest.mark.consul
@pytest.mark.xdist_group("consul")
@pytest.mark.parametrize("page", also_on("consul"), ids=lambda page: page.name)
def test_examples_run_on_consul(page: Path, consul: str) -> None:
    """So do those of a page that says so."""
    run_on(consul, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that is there, and a heading of that page."""
    slug = slugify(case="lower")
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", FENCED.sub("", page.read_text()))
    for target, anchor in links:
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            headings = HEADING.findall(FENCED.sub("", path.read_text()))
            assert anchor in [slug(heading, "-") for heading in headings], f"{target}#{anchor}"
