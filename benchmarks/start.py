"""What a program pays before its first answer: import, open, first read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.measure import FLOOR, KVI, Effort, Run, compare
from benchmarks.report import Row, within

_FIRST_GET = "import kvi; kvi.open('mem:').get('key')"


def rows(effort: Effort) -> Iterator[Row]:
    """``import kvi``, open ``mem:`` and get, each in a new process, against bare Python."""
    few = Effort(effort.rounds, 0.0)
    with tempfile.TemporaryDirectory(prefix="kvi-benchmark-") as folder:
        compared = compare(
            few, {FLOOR: _process("pass", folder), KVI: _process(_FIRST_GET, folder)}
        )
    yield Row("a new process", "import, open mem:, get", compared, (within(compared, 0.040),))


def _process(code: str, folder: str) -> Run:
    """Run ``code`` in a new interpreter; modules are compiled, as an installer leaves them."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
    env.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            subprocess.run([sys.executable, "-c", code], check=True, env=env)
        return time.perf_counter() - start

    return run
