"""The backend that docs/backends.md prints keeps the contract with a log of its changes, too."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from kvi.backend import undo
from kvi.conformance import *  # noqa: F403

from tests.conformance.test_documented import installed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin with its log in place of what it had at first, and small pages."""
    with installed(tmp_path_factory.mktemp("site"), 3), pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("kvi_acme.plugin")
        patch.setattr(module, "AcmeKvi", module.LoggedKvi)
        patch.setattr(undo, "PAGE", 7)
        yield


@pytest.fixture
def kvi_uri(tmp_path: Path) -> str:
    """A store of this test alone."""
    return "acme:" + quote(str(tmp_path))
