"""The tests that docs/testing.md shows pass, as pytest runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_examples import BLOCK

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.mark.parametrize("store", ["mem", "sqlite"])
def test_tests(pytester: pytest.Pytester, store: str) -> None:
    """Its blocks are one module of tests, for any store."""
    blocks = BLOCK.findall(PAGE.read_text())
    pytester.makepyfile("\n".join(blocks))
    options = [] if store == "mem" else [f"--kvi-store=sqlite:{pytester.path}/store.db"]
    done = pytester.runpytest("-W", "error", *options)
    done.assert_outcomes(passed="\n".join(blocks).count("\ndef test_") + 1)  # one has two cases
