"""The conformance suite again and again, for `make soak`: a rule holds every time or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.reports import STORES
from tests.servers import ConsulServer, EtcdServer

ROUNDS = int(os.environ.get("KVI_SOAK_ROUNDS", "20"))
FOLDER = Path(__file__).parents[1] / "conformance"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2 * 3600)]


RUNS = {
    f"{store}{what}": str(FOLDER / part / f"test_{store}.py")
    for store in STORES
    for what, part in (("", "."), (" faults", "faults"))
}


@contextmanager
def served(name: str) -> Iterator[dict[str, str]]:
    """The server that a file needs, as variables; those of faults start their own."""
    match name:
        case "etcd":
            with EtcdServer() as etcd:
                yield {"KVI_TEST_ETCD": etcd.uri}
        case "consul":
            with ConsulServer() as consul:
                yield {"KVI_TEST_CONSUL": consul.uri}
        case _:
            yield {}


def again(name: str, log: Path, over: threading.Event) -> str:
    """Run one file of the suite so many times, on programs that were never tried; what came out."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", RUNS[name]]
    took: list[float] = []
    for number in range(1, ROUNDS + 1):
        began = time.monotonic()
        # Servers of each run's own: a few runs write more than an etcd takes without compaction.
        with served(name) as servers, log.open("wb") as output:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **servers, "KVI_CONFORMANCE_SEED": str(number)},
                check=False,
            )
        end = log.read_text()[-20_000:]
        if done.returncode or over.is_set():
            over.set()
            return f"{name}, run {number} of {ROUNDS}, exit code {done.returncode}\n{end}"
        took.append(time.monotonic() - began)
        print(f"{name} {number}: {end.splitlines()[-1]}", flush=True)
    return f"{name}: {len(took)} runs in {min(took):.0f} to {max(took):.0f} s each"


def test_again_and_again(tmp_path: Path) -> None:
    """Each file of the suite passes so many times in a row, on all four stores side by side."""
    over = threading.Event()
    with ThreadPoolExecutor(len(RUNS)) as pool:
        runs = [pool.submit(again, name, tmp_path / f"{name}.log", over) for name in RUNS]
    told = "\n".join(run.result() for run in runs)
    assert not over.is_set(), told
    print(told)
