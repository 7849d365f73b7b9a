"""The recorded sessions show what the command does today."""

from __future__ import annotations

import html
import re

import pytest
from rich.text import Text

from docs.images.sessions import FOLDER, SESSIONS, record

pytestmark = pytest.mark.slow


def bare(text: str) -> str:
    """Without spaces, which are drawn in many ways; numbers, such as times and ids, are all one."""
    text = re.sub(r"\b(?=[a-f]*\d)[0-9a-f]{12,16}\b", "#", text)  # the id of a lease
    return re.sub(r"[\d.,#]+", "#", re.sub(r"\s", "", text))


@pytest.mark.parametrize("name", SESSIONS)
def test_recorded(name: str) -> None:
    """Each command and each line that it prints stand in the picture, in this order."""
    picture = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    lines = re.findall(r"<text [^>]*line-\d+[^>]*>.*", picture)  # each is one of the terminal's
    shown = "".join(bare(html.unescape(re.sub(r"<.*?>", "", line))) for line in lines)
    at = 0
    for line, printed in record(SESSIONS[name]):
        for text in (*f"$ {line}".splitlines(), *Text.from_ansi(printed).plain.splitlines()):
            found = shown.find(bare(text), at)
            assert found >= 0, f"{text!r} is not there: python -m docs.images.sessions"
            at = found + len(bare(text))


def test_shown() -> None:
    """Each picture is in the documentation."""
    page = (FOLDER.parent / "cli.md").read_text(encoding="utf-8")
    assert [name for name in SESSIONS if f"images/{name}.svg" not in page] == []
