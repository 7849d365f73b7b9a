"""kvi's conformance suite on the directory store: all that an author has to write."""

import urllib.parse
from pathlib import Path

import pytest
from kvi.conformance import *  # noqa: F403


@pytest.fixture
def kvi_uri(tmp_path: Path) -> str:
    """A store that nothing else uses meanwhile."""
    return "directory:" + urllib.parse.quote(str(tmp_path / "store"))
