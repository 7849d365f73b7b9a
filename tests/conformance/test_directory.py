"""The example of a third-party backend keeps the contract; found as if it were installed."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from kvi.conformance import *  # noqa: F403

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2] / "docs" / "examples" / "kvi-directory"


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example's sources, and its entry point as an installed distribution has it."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("site")
    info = folder / f"kvi_directory-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    ((scheme, module),) = project["entry-points"]["kvi.backends"].items()
    (info / "entry_points.txt").write_text(f"[kvi.backends]\n{scheme} = {module}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "src"))
        patch.syspath_prepend(str(folder))
        yield
        for name in [name for name in sys.modules if name.partition(".")[0] == "kvi_directory"]:
            del sys.modules[name]


@pytest.fixture
def kvi_uri(tmp_path: Path) -> str:
    """A store of this test alone."""
    return "directory:" + quote(str(tmp_path / "store"))
