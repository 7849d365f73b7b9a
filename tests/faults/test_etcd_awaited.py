"""`kvi.aio` on etcd over `grpc.aio`: the tests of `tests/awaited`, in a process of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kvi import aio

from tests.support.forking import in_child

ROOT = Path(__file__).parents[2]
CORE = "TestStore or TestRange or TestTransactions or TestLeases or TestLocks or TestAsyncio"

pytestmark = [pytest.mark.slow, pytest.mark.etcd, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("file", "select"),
    [
        ("test_faults.py", ""),
        ("test_conformance.py", CORE),
        pytest.param("test_conformance.py", "", marks=pytest.mark.soak),
    ],
    ids=["faults", "core", "suite"],
)
def test_in_a_process_of_its_own(file: str, select: str) -> None:
    """They pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", select, f"tests/awaited/{file}"],
        cwd=ROOT,
        env={**os.environ, "KVI_TEST_AWAITED": "1", "PYTEST_XDIST_WORKER": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout


def test_children(etcd_uri: str) -> None:
    """A child of a process that uses `kvi.aio` on etcd can use it too, and nothing ends it."""

    async def use() -> None:
        async with aio.open(f"{etcd_uri}/children") as store:
            await store.store("child", "v")
            assert await store.get("child") is not None

    async def beside() -> None:
        async with aio.open(f"{etcd_uri}/children") as store:
            over = False

            async def work() -> None:
                while not over:
                    await store.get("child")

            working = [asyncio.create_task(work()) for _ in range(8)]

            def child() -> None:
                asyncio.events._set_running_loop(None)
                asyncio.run(use())

            for _ in range(10):
                await asyncio.sleep(0.02)
                assert in_child(child) == 0
                assert in_child(lambda: None) == 0
            over = True
            await asyncio.gather(*working)

    asyncio.run(beside())


def test_fork_beside_grpc_is_warned_of(etcd_uri: str) -> None:
    """Who asked for `grpc.aio` and forks is told what is wrong."""
    program = f"""
import asyncio, os, warnings
import kvi

async def main():
    async with kvi.aio.open({etcd_uri!r}, grpc_aio=True) as store:
        await store.ping()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        print([str(one.message) for one in caught])

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "grpc_aio=yes" in done.stdout
