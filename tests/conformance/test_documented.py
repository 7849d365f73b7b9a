"""The backend that docs/backends.md prints keeps the contract, installed as the page says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from kvi.conformance import *  # noqa: F403

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


@contextmanager
def installed(folder: Path, blocks: int) -> Iterator[None]:
    """The page's plugin, of so many blocks, and its entry point, as an installed distribution."""
    text = PAGE.read_text()
    source = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:blocks]
    entry_point = re.search(r"acme = \"(.*?)\"", text)
    assert entry_point is not None
    module = folder.joinpath(*entry_point[1].split(".")).with_suffix(".py")
    module.parent.mkdir(parents=True)
    (module.parent / "__init__.py").touch()
    module.write_text("\n\n".join(source))
    info = folder / "kvi_acme-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kvi-acme\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[kvi.backends]\nacme = {entry_point[1]}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
        for name in [name for name in sys.modules if name.partition(".")[0] == "kvi_acme"]:
            del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plugin as it is at first, without an asyncio form."""
    with installed(tmp_path_factory.mktemp("site"), 1):
        yield


@pytest.fixture
def kvi_uri(tmp_path: Path) -> str:
    """A store of this test alone."""
    return "acme:" + quote(str(tmp_path))
