"""A run of the suite on one store, by its URI: `run` gives a `Report`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest

import kvi
from kvi.capabilities import Capabilities
from kvi.conformance.on_loop import opening_on_loop
from kvi.conformance.plugin import UNKNOWN, Finding, Findings, NotRun
from kvi.conformance.report import Outcome, Report, TestResult
from kvi.registry import backends
from kvi.uri import StoreUri

HANGS = 120
"""Seconds after which a test counts as failed, because it does not end."""


def run(
    uri: str,
    *,
    erase: bool = False,
    select: Sequence[str] = (),
    also: Sequence[Path] = (),
    aio: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    finished: Callable[[str], object] = lambda line: None,
) -> Report:
    """Run the suite on the store of this URI, and delete everything in it.

    Args:
        uri: the store. Nothing else may use it meanwhile.
        erase: go on although there are keys in the store.
        select: rules, by name or by what stands before the dot (`lock`); all if empty.
        also: files of tests with more rules, such as those of `kvi.conformance.faults`.
        aio: check `kvi.aio`, by `kvi.conformance.on_loop`, instead of `kvi`.
        progress: is called with the number of tests done and of all tests.
        finished: is called with a line whenever a group of tests is done, such as ``TestLocks``.

    Raises:
        InvalidArgument: the store is not empty, or a name in `select` is no rule.
        KviError: the store cannot be opened or reached.
        NotRun: the suite could not be run, or not to its end; the message tells why.

    """
    try:
        shown, capabilities = _look(uri, erase)
    except kvi.KviError:
        raise
    except Exception as error:
        raise NotRun(
            f"the backend raised {type(error).__name__} when it was opened, counted and closed: "
            f"{error}"
        ) from error
    findings = Findings(select, progress, finished)
    contract = Path(__file__).with_name("test_contract.py")
    with (
        TemporaryDirectory(prefix="kvi-conformance-") as folder,
        mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_ADDOPTS=""),
        redirect_stdout(io.StringIO()),  # pytest's own words
        opening_on_loop() if aio else nullcontext(),
    ):
        config = Path(folder) / "pytest.ini"
        config.write_text("[pytest]\n")
        status = pytest.main(
            [
                str(contract),
                *(str(file.absolute()) for file in also),
                f"--config-file={config}",
                f"--rootdir={folder}",
                f"--kvi-uri={uri}",
                "-pkvi.conformance.plugin",
                "-ppytest_timeout",
                f"--timeout={HANGS}",
                "-pno:cacheprovider",
                "--capture=no",
                "--tb=line",  # no source to parse, which CPython 3.11 cannot in two threads
                "--import-mode=importlib",
            ],
            plugins=[findings],
        )
    findings.check()
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        done = sum(finding.ended for finding in findings.found.values())
        how = pytest.ExitCode(status).name.lower().replace("_", " ")
        raise NotRun(
            f"it was ended after {done} of {findings.total} tests ({how}). {findings.trouble}"
        )
    with suppress(Exception), kvi.open(uri) as store:
        store.delete_range(prefix="")
    tests = [_result(finding, uri, shown) for finding in findings.found.values()]
    return Report(shown, _backend(uri), capabilities, tuple(tests), tuple(select))


def told_in_lines() -> Callable[[str], object]:
    """What to give as `finished`: lines on standard error, unless a terminal shows a bar there."""
    if sys.stderr.isatty():
        return lambda line: None
    return lambda line: sys.stderr.write(f"{line}\n")


def _look(uri: str, erase: bool) -> tuple[str, Capabilities]:
    """The store's redacted URI and its capabilities; refuses one that is not empty."""
    with kvi.open(uri) as store:
        if store._scope.read_only:
            raise kvi.PermissionDenied(
                "the suite writes, and deletes everything: open the store without read_only",
                operation="conformance",
                uri=store.uri,
            )
        if not erase and (count := store.count()):
            raise kvi.InvalidArgument(
                f"the store holds {count} keys, and the suite deletes everything: "
                "give it a store of its own, or say that it may be erased",
                operation="conformance",
                uri=store.uri,
            )
        return store.uri, store.capabilities


def _backend(uri: str) -> str:
    scheme = StoreUri.parse(uri).scheme
    for backend in backends():
        if scheme in (*backend.schemes, backend.scheme):
            return f"{backend.distribution} {backend.version}"
    return scheme


def _result(finding: Finding, uri: str, shown: str) -> TestResult:
    message = finding.message.replace(uri, shown)
    outcome = Outcome(finding.outcome)
    if outcome is Outcome.FAILED and message.startswith(UNKNOWN):
        outcome = Outcome.UNKNOWN
    return TestResult(finding.name, finding.rules, outcome, message, finding.calls)
