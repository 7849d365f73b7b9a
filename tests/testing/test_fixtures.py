"""The fixtures of pytest: what a program's own tests get, run as such."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kvi
import pytest

pytest_plugins = ["pytester"]

STORE = """
    import kvi

    def test_first(kvi_store, kvi_store_uri):
        assert isinstance(kvi_store, kvi.Kvi)
        assert kvi_store.count() == 0
        kvi_store.store("k", "v")
        with kvi.open(kvi_store_uri) as mine:
            assert mine.get("k").text == "v"
            mine.store("left", "behind")
        kvi_store.temp_key("t")

    def test_second(kvi_store):
        assert kvi_store.count() == 0

    def test_closed(kvi_store):
        kvi_store.store("k", "v")
        kvi_store.close()
"""

FAULTS = """
    import kvi
    import pytest

    def program(uri):
        with kvi.open(uri) as store:
            store.store("done", "yes")

    @pytest.mark.parametrize("applied", [True, False])
    def test_program(kvi_store, kvi_store_uri, kvi_faults, applied):
        fault = kvi_faults.unknown("store", key="done", applied=applied)
        with pytest.raises(kvi.OutcomeUnknown):
            program(kvi_store_uri)
        assert fault.hits == 1
        assert (kvi_store.get("done") is not None) is applied

    def test_left_on(kvi_store, kvi_faults):
        kvi_store.store("k", "v")
        kvi_faults.unavailable(times=None)

    def test_left_on_before(kvi_faults, kvi_store_uri):
        kvi_faults.unavailable(times=None)

    def test_gone(kvi_store):
        kvi_store.store("k", "v")
"""

AIO = """
    import asyncio
    import kvi
    import pytest

    def test_run(kvi_aio_store, kvi_faults):
        async def main():
            kvi_faults.unavailable("get")
            with pytest.raises(kvi.Unavailable):
                await kvi_aio_store.get("k")
            await kvi_aio_store.store("k", "v")
            kvi_aio_store.kept = await kvi_aio_store.temp_key("t")
        asyncio.run(main())

    @pytest.fixture
    def loop():
        made = asyncio.new_event_loop()
        yield made
        made.close()

    def test_loop_goes_on(loop, kvi_aio_store, kvi_store):
        loop.run_until_complete(kvi_aio_store.store("k", "v"))
        assert kvi_store.get("k").text == "v"

    def test_never_used(kvi_aio_store):
        pass

    def test_closed(kvi_aio_store):
        async def main():
            async with kvi_aio_store as store:
                await store.store("k", "v")
        asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("program", "passed"), [(STORE, 3), (FAULTS, 5), (AIO, 4)], ids=["store", "faults", "aio"]
)
def test_fixtures(pytester: pytest.Pytester, uri: str, program: str, passed: int) -> None:
    """Each test has a store of its own, with faults on order; nothing is left in a shared one."""
    with kvi.open(uri) as store:
        store.store("mine", "stays")
        pytester.makepyfile(program)
        done = pytester.runpytest("-W", "error", f"--kvi-store={uri}")
        done.assert_outcomes(passed=passed)
        left = [key for key in (entry.key for entry in store.range()) if key != "mine"]
        assert left == []
        assert store.get("mine") is not None


def test_default(pytester: pytest.Pytester) -> None:
    """Without a word about stores, each test has one in memory; the other fixtures fit it."""
    pytester.makepyfile(
        """
        def test_uri(kvi_store, kvi_store_uri):
            assert kvi_store_uri.startswith("mem:pytest-")
            assert kvi_store.uri == kvi_store_uri
        """,
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_configured(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """The store can be named in the configuration, or by a fixture that starts a server."""
    pytester.makeini(f"[pytest]\nkvi_store = sqlite:{tmp_path}/one.db")
    pytester.makepyfile("def test_uri(kvi_store): assert 'one.db' in kvi_store.uri")
    pytester.runpytest().assert_outcomes(passed=1)
    pytester.makeconftest(
        f"""
        import pytest

        @pytest.fixture(scope="session")
        def kvi_server_uri():
            return "sqlite:{tmp_path}/two.db?namespace=app"
        """
    )
    pytester.makepyfile(
        """
        def test_uri(kvi_store, kvi_store_uri):
            assert 'two.db?namespace=app' in kvi_store_uri
            kvi_store.store("k", "v")
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_secrets(pytester: pytest.Pytester) -> None:
    """The URI of a failed test is shown without its secrets."""
    pytester.makepyfile("def test_fails(kvi_store_uri): assert kvi_store_uri == 7")
    pytester.makeconftest(
        """
        import pytest
        import kvi.testing.place

        kvi.testing.place.emptied = lambda uri: None  # there is no server

        @pytest.fixture(scope="session")
        def kvi_server_uri():
            return "consul://s3cret@127.0.0.1:1/app"
        """
    )
    done = pytester.runpytest_subprocess("-l", "--showlocals", "-vv")
    done.assert_outcomes(failed=1)
    assert "s3cret" not in done.stdout.str()
    assert "127.0.0.1:1/app/pytest-" in done.stdout.str()


def test_lean(pytester: pytest.Pytester) -> None:
    """A run that has nothing to do with kvi imports nothing of it, and has no new words."""
    pytester.makepyfile(
        """
        import sys

        def test_lean():
            assert "kvi_pytest" in sys.modules
            assert "kvi" not in sys.modules
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=pytester.path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_left_out(pytester: pytest.Pytester) -> None:
    """It can be left out."""
    pytester.makepyfile("def test_one(kvi_store): pass")
    done = pytester.runpytest_subprocess("-p", "no:kvi")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*fixture 'kvi_store' not found*"])


def test_beside_the_suite(pytester: pytest.Pytester) -> None:
    """The conformance suite's plugin, its option and its fixture stay what they are."""
    pytester.makepyfile(
        """
        def test_both(kvi_uri, kvi_store):
            assert kvi_uri == "mem:of-the-suite"
            assert kvi_store.uri.startswith("mem:pytest-")
        """
    )
    done = pytester.runpytest_subprocess(
        "-p", "kvi.conformance.plugin", "--kvi-uri=mem:of-the-suite"
    )
    done.assert_outcomes(passed=1)
