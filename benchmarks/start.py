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
    """``import kvi``, open ``mem:`` and get, and the command, against bare Python."""
    few = Effort(effort.rounds, 0.0)
    with tempfile.TemporaryDirectory(prefix="kvi-benchmark-") as folder:
        floor = _process("-c", "pass", folder=folder)
        compared = compare(few, {FLOOR: floor, KVI: _process("-c", _FIRST_GET, folder=folder)})
        yield Row("a new process", "import, open mem:, get", compared, (within(compared, 0.040),))
        for words in (("--help",), ("put", "key", "value"), ("get", "key")):
            command = _process("-m", "kvi.cli", *words, folder=folder)
            compared = compare(few, {FLOOR: floor, KVI: command})
            goals = () if words[0] == "put" else (within(compared, 0.150),)
            yield Row("a new process", f"kvi {words[0]}, on SQLite", compared, goals)


def _process(*words: str, folder: str) -> Run:
    """Run a new interpreter; modules are compiled, as an installer leaves them."""
    uri = f"sqlite:{folder}/kvi.db"
    env = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "KVI_URI": uri}
    env.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            command = [sys.executable, *words]
            subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return run
