"""The plugins that open mutants by URI.

``broken:NAME`` opens one, ``lenient:NAME`` takes more options, ``far:NAME`` goes by a network that
can fail (see `tests.conformance.broken.servers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvi.hookspecs import BackendInfo, hookimpl
from kvi.options import Option
from kvi.sync.kvi import Kvi
from kvi.uri import StoreUri
from kvi_memory.store import CAPABILITIES

from tests.conformance.broken.correct import BROKEN, Correct
from tests.conformance.broken.servers import Far


class Plugin:
    """The hooks of one scheme."""

    def __init__(self, scheme: str, *options: Option) -> None:
        self.scheme = scheme
        self.options = options

    @hookimpl
    def kvi_describe(self) -> BackendInfo:
        """Describe them as the memory store, which they nearly are."""
        return BackendInfo(
            name=self.scheme,
            interface="1.0",
            schemes=(self.scheme,),
            capabilities=CAPABILITIES,
            options=self.options,
            has_passing_faults=False,  # mutants override the methods that a wrapper goes around
        )

    @hookimpl
    def kvi_open(self, uri: StoreUri, options: Mapping[str, Any]) -> Kvi:
        """Open the mutant that the path names; ``correct`` is none."""
        correct = Far if self.scheme == "far" else Correct
        store = correct if uri.path == "correct" else BROKEN[uri.path].store
        return store(uri.redacted, f"broken {uri.path}", timeout=options["timeout"])


strict = Plugin("broken")
lenient = Plugin("lenient", Option(name="nonsense", kind="text", help="which means nothing"))

far = Plugin("far")


def install(folder: Path) -> None:
    """Make a folder for ``sys.path`` in which both schemes are installed as a distribution."""
    info = folder / "kvi_broken-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kvi-broken\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        "[kvi.backends]\n"
        "broken = tests.conformance.broken.plugin:strict\n"
        "lenient = tests.conformance.broken.plugin:lenient\n"
        "far = tests.conformance.broken.plugin:far\n"
    )
