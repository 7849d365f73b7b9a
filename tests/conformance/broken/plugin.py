"""The plugins that open mutants by URI.

``broken:NAME`` opens one, ``lenient:NAME`` takes more options, ``far:NAME`` goes by a network that
can fail (see `tests.conformance.broken.servers`), ``shared:NAME`` is in a file that processes
share, ``slow:correct`` is not broken, but late (see `tests.conformance.broken.slow`),
``smallest:NAME`` is not broken: it is a store with nine primitives and nothing else, and
those in both forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kvi
from kvi.capabilities import Capabilities
from kvi.hookspecs import BackendInfo, hookimpl
from kvi.options import Option
from kvi.primitives import Primitives
from kvi.uri import StoreUri
from kvi_memory.store import CAPABILITIES
from kvi_sqlite.store import CAPABILITIES as SQLITE

from tests.conformance.broken.correct import BROKEN, Correct
from tests.conformance.broken.processes import Shared
from tests.conformance.broken.servers import Far
from tests.conformance.broken.slow import Slow
from tests.support.backends import Awaited

SMALLEST = replace(CAPABILITIES, atomic_range_delete="no", max_txn_ops=64)


_open = kvi.open  # that of threads, whatever the suite is told to open

CORRECT = {"broken": Correct, "lenient": Correct, "far": Far, "shared": Shared, "slow": Slow}


class Plugin:
    """The hooks of one scheme."""

    def __init__(
        self, scheme: str, *options: Option, capabilities: Capabilities = CAPABILITIES
    ) -> None:
        self.scheme = scheme
        self.options = options
        self.capabilities = capabilities

    @hookimpl
    def kvi_describe(self) -> BackendInfo:
        """Describe them as the memory store, which they nearly are."""
        return BackendInfo(
            name=self.scheme,
            interface="1.0",
            schemes=(self.scheme,),
            capabilities=self.capabilities,
            options=self.options,
            has_passing_faults=False,  # nothing tries again and so hides what a mutant does
        )

    @hookimpl
    def kvi_open(self, uri: StoreUri, options: Mapping[str, Any]) -> Primitives:
        """Open the mutant that the path names; ``correct`` is none."""
        if self.scheme == "smallest":
            smallest = Awaited(_open(f"mem:smallest-{uri.path}"), SMALLEST)
            smallest.uri, smallest.timeout = uri.redacted, options["timeout"]
            return smallest
        correct = CORRECT[self.scheme]
        store: Any = correct if uri.path == "correct" else BROKEN[uri.path].store
        made: Primitives = store(uri.redacted, f"broken {uri.path}", timeout=options["timeout"])
        return made


strict = Plugin("broken")
lenient = Plugin("lenient", Option(name="nonsense", kind="text", help="which means nothing"))

far = Plugin("far")
slow = Plugin("slow")
shared = Plugin("shared", capabilities=SQLITE)
smallest = Plugin("smallest", capabilities=SMALLEST)


def install(folder: Path) -> None:
    """Make a folder for ``sys.path`` in which all these schemes are installed as a distribution."""
    info = folder / "kvi_broken-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kvi-broken\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        "[kvi.backends]\n"
        "broken = tests.conformance.broken.plugin:strict\n"
        "lenient = tests.conformance.broken.plugin:lenient\n"
        "far = tests.conformance.broken.plugin:far\n"
        "slow = tests.conformance.broken.plugin:slow\n"
        "shared = tests.conformance.broken.plugin:shared\n"
        "smallest = tests.conformance.broken.plugin:smallest\n"
    )
