"""`kvi explain`: every error has its text, which is the documentation's."""

from __future__ import annotations

import sys
from pathlib import Path

import kvi
import pytest
from kvi import errors
from kvi.cli.looking import explanations

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_every_error_has_its_text() -> None:
    """Each has one, with what to do; the page of the documentation is the same."""
    texts = explanations()
    named = [name for name in errors.__all__ if name != "KviError"]
    assert sorted(texts) == sorted(named)
    for name, text in texts.items():
        assert "- Mend: " in text, name
        assert hasattr(kvi, name)
    package = ROOT / "core" / "src" / "kvi" / "cli" / "errors.md"
    assert (ROOT / "docs" / "errors.md").read_text() == package.read_text()


def test_explain(local: Command) -> None:
    """By name, however it is written; a misspelt one is told the right one."""
    assert local("explain", "kvi.errors.LeaseLost") == local("explain", "leaselost")
    assert local("explain", "leaselost").startswith("LeaseLost\n\nThe lease is gone")
    assert local.json("explain", "Timeout")["text"] == explanations()["Timeout"]
    assert [one["error"] for one in local.lines("explain")] == list(explanations())
    local("explain", "OutcomeUnknwn", code=2)
    assert "did you mean OutcomeUnknown?" in local.errors
    local("explain", "Nonsense!", code=2)
    assert "lists them all" in local.errors


def test_errors_name_it_on_a_terminal(local: Command) -> None:
    """A person is told of it; a log is not."""
    local("cas", "k", "0", "v", "--uri", "nothing:", code=2)
    assert "explain" not in local.errors
    words = ["kvi", "get", "k", "--uri", "nothing:"]
    with OnTerminal(local.env, local.folder, *words) as asked:
        assert b"`kvi explain UnknownBackend` tells more" in asked.end()


def test_lines_are_as_wide_as_the_terminal(local: Command) -> None:
    """On a terminal, of 100 columns here, the text is broken for it, and stays the same text."""
    words = (sys.executable, "-m", "kvi.cli", "explain", "OutcomeUnknown")
    with OnTerminal(local.env, local.folder, *words) as narrow:
        shown = narrow.end().decode().replace("\r\n", "\n")
    assert 80 < max(map(len, shown.splitlines())) <= 100
    assert shown.split() == local("explain", "OutcomeUnknown").split()
