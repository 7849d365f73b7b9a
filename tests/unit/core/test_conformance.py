"""The machinery of the conformance suite: what it makes of tests that pass, fail or end unknown."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import kvi
import pytest
from kvi.conformance import session
from kvi.conformance.contract import RULES, foundations_first
from kvi.conformance.plugin import Finding, Findings
from kvi.conformance.report import Outcome, Report, TestResult
from kvi.conformance.session import run

from tests.conformance.broken.plugin import install

ROOT = Path(__file__).parents[3]

_numbers = itertools.count()

OWN = """
    import pytest
    import kvi
    from kvi.conformance.contract import rule
    from kvi.conformance.rules import Rules
    from kvi.conformance.waiting import side_by_side

    @pytest.fixture
    def kvi_uri():
        return "mem:author"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the scheme ``broken`` is installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def full(tmp_path: Path) -> Iterator[str]:
    """The URI of a store that somebody uses."""
    uri = f"sqlite:{tmp_path}/full.db"
    with kvi.open(uri) as store:
        store.store("precious", b"data")
        yield uri


def author(folder: Path, *sources: str) -> dict[str, Finding]:
    """Run an author's test file; how each of its tests ended."""
    name = f"test_author_{next(_numbers)}"
    file = folder / f"{name}.py"
    file.write_text("\n".join(map(textwrap.dedent, sources)))
    config = folder / "pytest.ini"
    config.write_text("[pytest]\n")
    findings = Findings((), lambda done, total: None)
    quiet = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    with mock.patch.dict(os.environ, quiet):
        pytest.main(
            [
                str(file),
                f"--config-file={config}",
                f"--rootdir={folder}",
                "--import-mode=importlib",
                "-pno:terminal",
                "-pno:cacheprovider",
            ],
            plugins=[findings],
        )
    sys.modules.pop(name, None)
    findings.check()
    return {found.name: found for found in findings.found.values()}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the scheme ``broken`` if it is installed there."""
    path = [str(folder / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_known_failure_is_expected(tmp_path: Path) -> None:
    """A test that is named as a known failure, and fails, is one, for the reason given."""
    found = author(
        tmp_path,
        OWN,
        """
        KNOWN_FAILURES = {
            "TestOwn.test_all": "all of them, see acme#1",
            "TestOwn.test_some[handle-2]": "one of them",
            "TestOwn.test_read[two handles-2]": "this one too",
        }

        class TestOwn(Rules):
            @rule("tas.table")
            def test_all(self, store):
                assert store.get("k")

            @rule("tas.table")
            @pytest.mark.parametrize("number", [1, 2])
            def test_some(self, store, number):
                assert number == 1

            @rule("tas.table")
            @pytest.mark.parametrize("number", [1, 2])
            def test_read(self, store, peer, number):
                assert number == 1
        """,
    )
    for via in ("handle", "two views"):
        one = found.pop(f"TestOwn.test_all[{via}]")
        assert (one.outcome, one.message) == ("known failure", "all of them, see acme#1")
    told = {name: (one.outcome, one.message) for name, one in found.items()}
    assert told == {
        "TestOwn.test_some[handle-1]": ("pass", ""),
        "TestOwn.test_some[handle-2]": ("known failure", "one of them"),
        "TestOwn.test_read[two handles-1]": ("pass", ""),
        "TestOwn.test_read[two handles-2]": ("known failure", "this one too"),
    }


def test_known_failure_that_passes_is_an_error(tmp_path: Path) -> None:
    """What was known to fail and passes must be taken off the list."""
    found = author(
        tmp_path,
        """
        import pytest
        from kvi.conformance import TestTas

        KNOWN_FAILURES = {"TestTas.test_table[two handles-b'1'-b'1'-b'2'-True]": "not any more"}

        @pytest.fixture
        def kvi_uri():
            return "mem:author"
        """,
    )
    failed = {name: one.message for name, one in found.items() if one.outcome != "pass"}
    assert len(found) == 15
    assert list(failed) == ["TestTas.test_table[two handles-b'1'-b'1'-b'2'-True]"]
    assert "not any more" in str(failed)


@pytest.mark.parametrize("name", ["TestOwn.test_gone", "TestGone.test_own", "test_own", ""])
def test_known_failure_that_is_no_test_is_an_error(tmp_path: Path, name: str) -> None:
    """A name in the list that fits no test is told, whatever the tests do."""
    found = author(
        tmp_path,
        OWN,
        f"""
        KNOWN_FAILURES = {{{name!r}: "moved"}}

        class TestOwn(Rules):
            @rule("tas.table")
            def test_own(self, kvi_uri):
                pass
        """,
    )
    assert found["TestOwn.test_own"].outcome == "fail"
    assert f"KNOWN_FAILURES names {name}" in found["TestOwn.test_own"].message


@pytest.mark.slow
def test_known_failures_in_a_class(tmp_path: Path) -> None:
    """A class of the author's own may carry its list, and its fixture."""
    found = author(
        tmp_path,
        """
        import pytest
        from kvi.conformance import TestTas as Tas, TestDelete as Delete

        class TestAcmeTas(Tas):
            KNOWN_FAILURES = {"TestAcmeTas.test_extra": "the server has none"}

            @pytest.fixture
            def kvi_uri(self):
                return "mem:acme"

            def test_extra(self, store):
                assert store.capabilities.shared

        class TestAcmeDelete(Delete):
            @pytest.fixture
            def kvi_uri(self):
                return "mem:acme"
        """,
    )
    groups = {name.partition(".")[0] for name in found}
    assert groups == {"TestAcmeTas", "TestAcmeDelete"}
    assert {one.outcome for name, one in found.items() if "test_extra" in name} == {"known failure"}
    assert {one.outcome for name, one in found.items() if "test_extra" not in name} == {"pass"}
    assert all(one.rules for name, one in found.items() if "test_extra" not in name)


def test_failure_shows_its_calls(tmp_path: Path) -> None:
    """A failed test is told with what was called before, on which handle, and what came back."""
    (found,) = author(
        tmp_path,
        OWN,
        """
        class TestOwn(Rules):
            @pytest.fixture(params=["two handles"])
            def via(self, request):
                return request.param

            @rule("get.absent", "tas.table")
            def test_fails(self, store, peer):
                store.store("k", b"1")
                with store.lock("jobs", timeout=1) as lock:
                    assert lock.held
                assert peer.get("k").value == b"2", "as planned"
        """,
    ).values()
    assert found.outcome == "fail"
    assert found.rules == ("get.absent", "tas.table")
    assert "as planned" in found.message
    assert "assert b'1' == b'2'" in found.message
    calls = [line.split(maxsplit=1)[1] for line in found.calls.splitlines()]
    assert any(call.startswith("store.store('k', b'1')  -> ") for call in calls)
    assert "lock1.held  -> True" in calls
    assert calls[-1].startswith("peer.get('k')  -> 'k': b'1' (revision ")


def test_waits_side_by_side(tmp_path: Path) -> None:
    """Tests that wait run at once, each in a namespace of its own, and each reports its own end."""
    found = author(
        tmp_path,
        OWN,
        """
        import threading

        together = threading.Barrier(3)

        class TestOwn(Rules):
            @rule("lease.alive")
            @side_by_side
            def test_passes(self, store, peer):
                together.wait(10)
                store.store("k", b"1")
                assert peer.get("k").value == b"1"
                assert store.count() == 1

            @rule("lease.lost")
            @side_by_side
            def test_fails(self, store):
                together.wait(10)
                store.store("k", b"2")
                assert store.get("k").value == b"3", "as planned"

        class TestOthers(Rules):
            @rule("lock.waits")
            @side_by_side
            def test_passes(self, reopen):
                with reopen(timeout=1) as store:
                    together.wait(10)
                    assert store.count() == 0

            @rule("lock.waits")
            def test_waits_for_nothing(self, kvi_uri):
                assert together.n_waiting == 0
        """,
    )
    assert {name: one.outcome for name, one in found.items()} == {
        "TestOwn.test_passes": "pass",
        "TestOwn.test_fails": "fail",
        "TestOthers.test_passes": "pass",
        "TestOthers.test_waits_for_nothing": "pass",
    }
    failed = found["TestOwn.test_fails"]
    assert "as planned" in failed.message
    assert failed.rules == ("lease.lost",)
    assert "store.store('k', b'2')" in failed.calls
    assert "b'1'" not in failed.calls


def test_unknown_is_told_as_such_and_fails(tmp_path: Path) -> None:
    """A check that came to no end is neither a pass nor a finding against the store."""
    file = tmp_path / f"test_author_{next(_numbers)}.py"
    source = """
        class TestOwn(Rules):
            @rule("error.certain")
            def test_unknown(self, store):
                store.store("k", b"1")
                raise AssertionError("unknown: the search was given up")

            @rule("error.typed")
            def test_asserts(self, store):
                found = "too long"
                assert not found, f"unknown: {found}"

            @rule("error.acknowledged")
            def test_fails(self, store):
                raise AssertionError("it is not unknown: it is wrong")
    """
    file.write_text("\n".join(map(textwrap.dedent, (OWN, source))))
    report = run("mem:author", erase=True, select=["error"], also=[file])
    assert not report.passed
    assert report.rules["error.certain"].outcome is Outcome.UNKNOWN
    assert report.rules["error.typed"].outcome is Outcome.UNKNOWN
    assert report.rules["error.acknowledged"].outcome is Outcome.FAILED
    assert report.rules["error.certain"].reason.startswith("unknown: the search")
    assert "store.store('k', b'1')" in report.rules["error.certain"].reproduction
    assert "? error.certain" in report.text()
    unknown = tuple(test for test in report.tests if test.outcome is Outcome.UNKNOWN)
    assert len(unknown) == 4
    assert not Report(report.store, report.backend, report.capabilities, unknown).passed


def test_store_that_does_not_answer_is_unknown(tmp_path: Path) -> None:
    """A call without an answer says nothing of a rule; where the suite saw to that, it does."""
    file = tmp_path / f"test_author_{next(_numbers)}.py"
    source = """
        @pytest.fixture
        def kvi_server():
            return None

        class TestOwn(Rules):
            @rule("revision.grows")
            @pytest.mark.parametrize("error", [kvi.Timeout, kvi.Unavailable, kvi.OutcomeUnknown])
            def test_call(self, store, error):
                raise error("no answer came", operation="store")

            @rule("lock.fence")
            def test_setup(self, answers):
                pass

            @pytest.fixture
            def answers(self, store):
                raise kvi.Timeout("no answer came", operation="store")

            @rule("watch.next")
            def test_watch(self, store):
                with store.watch("k") as watch:
                    watch.next(0)

            @rule("key.exact")
            def test_refused(self, store):
                error = kvi.Unavailable("not a store of ours", operation="store")
                error.passing = False
                raise error

            @rule("error.recovers")
            def test_fault(self, store, kvi_server):
                raise kvi.Unavailable("no answer came", operation="get")
    """
    file.write_text("\n".join(map(textwrap.dedent, (OWN, source))))
    rules = ["revision.grows", "lock.fence", "watch.next", "key.exact", "error.recovers"]
    report = run("mem:author", erase=True, select=rules, also=[file])
    found = {name: report.rules[name].outcome for name in rules}
    assert [name for name in rules if found[name] is Outcome.UNKNOWN] == rules[:2]
    assert [name for name in rules if found[name] is Outcome.FAILED] == rules[2:]
    assert not report.passed
    told = "unknown: the store did not answer: Timeout: no answer came [store]"
    assert told in report.text(width=200)
    assert "lock.fence could not be decided" in report.text()
    assert "lock.fence is broken" not in report.text()


def test_fixture_that_fails_ends_the_faults(tmp_path: Path) -> None:
    """Once a method of the author's server has raised, what is left says so, and tries nothing."""
    file = tmp_path / f"test_author_{next(_numbers)}.py"
    source = """
        from kvi.conformance.faults import *

        class Sick(Server):
            uri = "mem:author"
            starts = 0

            def stop(self):
                pass

            def start(self):
                Sick.starts += 1
                assert Sick.starts == 1, "started again"
                raise OSError("no such program")

        @pytest.fixture(scope="module")
        def kvi_server():
            return Sick()
    """
    file.write_text("\n".join(map(textwrap.dedent, (OWN, source))))
    report = run("mem:author", erase=True, select=["error"], also=[file])
    failed = [test for test in report.tests if test.outcome is Outcome.FAILED]
    told = "the fixture's start() failed: OSError: no such program"
    assert len(failed) > 5
    assert len([test for test in failed if told not in test.reproduction]) == 1
    assert not [test for test in failed if "again" in test.reproduction]


@pytest.mark.slow
def test_hanging_test_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that does not end is ended, and its report says so, with the calls up to there."""
    monkeypatch.setattr(session, "HANGS", 1)
    file = tmp_path / f"test_author_{next(_numbers)}.py"
    source = """
        import time

        class TestOwn(Rules):
            @pytest.fixture(params=["handle"])
            def via(self, request):
                return request.param

            @rule("error.typed")
            def test_own(self, store):
                store.store("k", b"1")
                time.sleep(30)
    """
    file.write_text("\n".join(map(textwrap.dedent, (OWN, source))))
    report = session.run("mem:author", erase=True, select=["error.typed"], also=[file])
    result = report.rules["error.typed"]
    assert result.outcome is Outcome.FAILED
    assert "store.store('k', b'1')" in result.reproduction
    assert "Timeout" in result.reason


def test_failure_on_no_line(tmp_path: Path) -> None:
    """What fails at an instruction of no line, as what a signal's handler raises may, is told."""
    source = """
        def on_no_line(function):
            code = function.__code__  # 0xff in its table: the next 8 units have no line
            table = b"\\xff" * (len(code.co_code) // 16 + 1)
            function.__code__ = code.replace(co_linetable=table)
            return function

        @on_no_line
        def first():
            raise KeyError("first")

        @on_no_line
        def second():
            try:
                first()
            finally:
                raise ValueError("second")

        class TestOwn(Rules):
            @rule("error.typed")
            def test_one(self, store):
                second()

            @rule("error.typed")
            def test_two(self, store):
                pass
    """
    found = author(tmp_path, OWN, source)
    one, two = found["TestOwn.test_one[handle]"], found["TestOwn.test_two[handle]"]
    assert (one.outcome, one.message) == ("fail", "ValueError: second")
    assert two.outcome == "pass"


@pytest.mark.timeout(60)
def test_long_lists_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told by the first that differ, at once, also where all differences are wanted."""
    monkeypatch.setenv("CI", "1")
    source = """
        class TestOwn(Rules):
            @rule("error.typed")
            def test_own(self, store):
                found = [f"{i}" * 3 for i in range(3000)]
                assert [x + "!" if i % 7 == 5 else x for i, x in enumerate(found)] == found

            @rule("error.typed")
            def test_short(self, store):
                assert [1, 2] == [1, 3]
    """
    found = author(tmp_path, OWN, source)
    message = found["TestOwn.test_own[handle]"].message
    assert "3000 and 3000 long, and from index 5:" in message
    assert "['555!', '666', '777'] != ['555', '666', '777']" in message
    assert "At index 1 diff: 2 != 3" in found["TestOwn.test_short[handle]"].message


@pytest.mark.slow
def test_more_tests_beside_a_conftest(tmp_path: Path) -> None:
    """A file of tests that is run too may have a conftest.py with its fixtures."""
    (tmp_path / "conftest.py").write_text("import pytest\n\nanswer = pytest.fixture(lambda: 42)\n")
    file = tmp_path / f"test_author_{next(_numbers)}.py"
    source = """
        class TestOwn(Rules):
            @rule("error.typed")
            def test_own(self, store, answer):
                assert answer == 42
    """
    file.write_text("\n".join(map(textwrap.dedent, (OWN, source))))
    report = run("mem:author", erase=True, select=["error.typed"], also=[file])
    assert report.rules["error.typed"].outcome is Outcome.PASSED


def test_report_of_a_broken_store(site: Path) -> None:
    """It names the rule, the tests that saw it broken, the calls, and what was expected."""
    report = run("broken:empty-is-tested-as-missing", erase=True, select=["tas.table"])
    assert not report.passed
    assert report.backend == "kvi-broken 0.1.0"
    result = report.rules["tas.table"]
    assert result.outcome is Outcome.FAILED
    assert "TestTas.test_table[two handles-b''-None-b'2'-False]" in result.failed_tests
    assert "store.store('k', b'')" in result.reproduction
    assert "store.tas('k', None, b'2')  -> True" in result.reproduction
    assert "assert True is False" in result.reproduction
    for text in (report.text(), report.html()):
        assert "tas.table" in text
        assert RULES["tas.table"].text.split("`")[-1] in text
    assert "by TestTas.test_table[two handles-b''-None-b'2'-False]" in report.text(width=200)
    told = json.loads(report.json())
    assert (told["passed"], told["counts"]["fail"]) == (False, 1)
    (broken,) = [rule for rule in told["rules"] if rule["outcome"] == "fail"]
    assert (broken["name"], broken["section"]) == ("tas.table", "Writing")
    assert broken["reproduction"] == result.reproduction
    assert [test["outcome"] for test in broken["tests"]] == ["fail"]
    assert broken["tests"][0]["ways"] > 1


def test_what_is_refused(full: str) -> None:
    """A store that is not empty, and a rule that is none, are refused before anything is done."""
    with pytest.raises(kvi.InvalidArgument, match="1 keys"):
        run(full, select=["tas.table"])
    for name in ("tas.tabel", "tas.", "", "ta"):
        with pytest.raises(kvi.InvalidArgument, match=r"lock\.fence"):
            run(full, erase=True, select=[name])
    with kvi.open(full) as store:
        assert store.count() == 1
    assert run(full, erase=True, select=["tas.table"]).passed


def test_progress_and_part_of_the_rules() -> None:
    """The first part of a name selects all that begin so; progress is told test by test."""
    told: list[tuple[int, int]] = []
    report = run("mem:part", select=["tas", "cas.revision"], progress=lambda *at: told.append(at))
    ran = {rule for test in report.tests for rule in test.rules}
    assert {"tas.table", "tas.atomic", "cas.revision"} <= ran
    assert set(report.rules) == {"tas.table", "tas.atomic", "cas.revision"}, "what was asked for"
    assert told == [(number, len(report.tests)) for number in range(1, len(report.tests) + 1)]


def test_declared_lack_is_told_as_such(site: Path) -> None:
    """A rule that a store declares not to keep is neither passed nor failed."""
    report = run("broken:history-ignored", select=["watch.compacted", "watch.many"])
    assert report.passed
    assert report.rules["watch.compacted"].outcome is Outcome.DECLARED
    assert "watch_history" in report.rules["watch.compacted"].reason
    assert report.rules["watch.many"].outcome is Outcome.PASSED


@pytest.mark.slow
def test_without_a_file(tmp_path: Path) -> None:
    """The suite runs on a URI of pytest's command line."""
    suite = ("-m", "pytest", "-pkvi.conformance.plugin", "-pno:cacheprovider", "--pyargs")
    done = python(tmp_path, *suite, "kvi.conformance", "--kvi-uri=mem:x", "-kTestTas", "-q")
    assert done.returncode == 0, done.stdout
    assert "15 passed" in done.stdout
    done = python(tmp_path, *suite, "kvi.conformance", "-kTestTas", "-x", "-q")
    assert done.returncode == 1
    assert "--kvi-uri=URI" in done.stdout


@pytest.mark.slow
def test_failure_in_a_terminal(tmp_path: Path, site: Path) -> None:
    """A failure is shown with its calls and its rules, in a worker as well."""
    suite = ("-m", "pytest", "-pkvi.conformance.plugin", "-pno:cacheprovider", "--pyargs")
    uri = "broken:empty-is-tested-as-missing"
    for workers in ("-n0", "-n1"):
        done = python(
            tmp_path, *suite, "kvi.conformance", f"--kvi-uri={uri}", "-kTestTas", "-x", workers
        )
        assert "1 failed" in done.stdout
        assert "calls, with seconds from the start" in done.stdout
        assert "store.tas('k', None, b'2')  -> True" in done.stdout
        assert "tas.table: `tas` sets only what has the value tested" in done.stdout


@pytest.mark.slow
def test_command_line(tmp_path: Path, site: Path) -> None:
    """The module runs the suite and writes the report; its status says how it came out."""
    command = ("-m", "kvi.conformance")
    done = python(tmp_path, *command, "mem:x", "--rule=tas.table", "--json=r.json", "--html=r.html")
    assert done.returncode == 0, done.stderr
    assert "✓ tas.table" in done.stdout
    assert "1 rule: 1 pass" in done.stdout
    assert re.fullmatch(r"(Test\w+: \d+ tests?; \d+ of \d+ in all\n)+", done.stderr)
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["passed"], told["store"]) == (True, "mem:x")
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "tas.table" in page
    done = python(tmp_path, *command, "broken:empty-is-tested-as-missing", "--rule=tas.table")
    assert done.returncode == 1
    assert "✗ tas.table" in done.stdout
    assert "store.tas('k', None, b'2')  -> True" in done.stdout
    assert "assert True is False" in done.stdout, "the report tells what was expected"


@pytest.mark.slow
def test_command_line_refuses(tmp_path: Path, full: str) -> None:
    """Nothing is deleted unasked, and what cannot be run is told in a line."""
    command = ("-m", "kvi.conformance")
    for arguments, told in (
        ([full, "--rule=tas.table"], "holds 1 keys"),
        (["mem:x", "--rule=tas.tabel"], "tas.tabel is no rule"),
        (["mem:x", "--rule=handle.open"], "no test was run"),
        (["nothing:x"], "no backend"),
    ):
        done = python(tmp_path, *command, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
    with kvi.open(full) as store:
        assert store.get("precious")
    done = python(tmp_path, *command, full, "--rule=tas.table", "--erase")
    assert done.returncode == 0, done.stderr


def report_of(*tests: TestResult) -> Report:
    """A report of these tests on a memory store."""
    with kvi.open("mem:reported") as store:
        return Report("mem:", "a backend", store.capabilities, tests)


def test_nothing_checked_is_no_pass() -> None:
    """A run in which every test was left out has not passed, nor has an empty one."""
    left_out = TestResult("TestX.test_y", ("lock.fence",), Outcome.NOT_RUN, "no server")
    assert not report_of(left_out).passed
    assert not report_of().passed


def test_what_was_left_out_is_told() -> None:
    """A rule that passed says which of its tests were left out, and why."""
    report = report_of(
        TestResult("TestX.test_y[cut]", ("lock.fence",), Outcome.PASSED),
        TestResult("TestX.test_y[kill]", ("lock.fence",), Outcome.NOT_RUN, "offers no kill"),
    )
    assert report.passed
    assert "1 of its 2 runs left out: offers no kill" in " ".join(report.text().split())
    assert "offers no kill" in report.html()


def test_shortest_history_is_shown_whole() -> None:
    """Of the failures the shortest that has a history is shown, uncut, and safe for terminals."""
    calls = "store.get('k')" + " " * 200 + "-> the end"
    report = report_of(
        TestResult("TestX.test_a", ("get.absent",), Outcome.FAILED, "no calls"),
        TestResult("TestX.test_b", ("get.absent",), Outcome.FAILED, "<b>\x1b[2J", calls),
    )
    assert calls in report.text(width=60)
    assert "by TestX.test_b" in report.text(width=60)
    assert "\x1b" not in report.text(width=60)
    assert "<b>" not in report.html().partition("</style>")[2].replace("<body>", "")


def test_first_rule_explains_the_others() -> None:
    """What others rest on is told first; what is unknown, or broken by views alone, later."""
    failed, unknown = Outcome.FAILED, Outcome.UNKNOWN
    tests = (
        TestResult("TestValues.test_a[handle]", ("revision.grows",), unknown, "unknown: no answer"),
        TestResult("TestLocks.test_b[handle]", ("lock.names",), failed, "b"),
        TestResult("TestTxns.test_c[two views]", ("txn.order",), failed, "c"),
        TestResult("TestWatches.test_d", ("watch.callback", "lock.fair"), failed, "d"),
        TestResult("TestValues.test_e", ("value.exact",), failed, "e"),
        TestResult("TestModel.test_f", ("program.model",), failed, "f"),
    )
    report = report_of(*tests)
    order = "value.exact lock.names lock.fair watch.callback program.model txn.order revision.grows"
    assert [result.rule.name for result in report.broken] == order.split()
    heads = [line.split()[0] for line in report.text().splitlines() if "is broken" in line]
    assert heads == order.split()[:-1]
    assert "as shown at lock.fair" in report.text()
    assert report.html().index("#value.exact") < report.html().index("#lock.names")


def test_every_rule_has_a_place() -> None:
    """The order in which broken rules are told has all of them, each once."""
    assert sorted(foundations_first(RULES)) == sorted(RULES)


@pytest.mark.slow
def test_interrupts_of_no_store(tmp_path: Path) -> None:
    """A URI that nothing can open is told as that, before a process is started for it."""
    ended = python(tmp_path, "-m", "kvi.conformance.interrupts", "nonsense:store")
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr
    assert "Thread" not in ended.stderr + ended.stdout
    source = """
        import pytest
        from kvi.conformance import TestInterrupts

        @pytest.fixture
        def kvi_uri():
            return "nonsense:store"
    """
    found = author(tmp_path, source)
    assert {one.outcome for one in found.values()} == {"fail"}
    assert all("UnknownBackend" in one.message for one in found.values())


def test_failure_of_no_rule_is_shown() -> None:
    """A test that checks no rule and fails is shown, as it makes the run fail."""
    report = report_of(TestResult("TestX.test_mine", (), Outcome.FAILED, "mine"))
    assert not report.passed
    for told in (report.text(), report.html(), report.json()):
        assert "test_mine" in told


@pytest.mark.slow
def test_interrupted(tmp_path: Path) -> None:
    """A run that is interrupted does not pass, and says so."""
    (tmp_path / "test_also.py").write_text(
        "from kvi.conformance.contract import rule\n"
        "@rule('lock.fence')\n"
        "def test_that_is_interrupted():\n"
        "    raise KeyboardInterrupt\n"
    )
    arguments = ("-m", "kvi.conformance", "mem:x", "--rule=lock.fence", "--also=test_also.py")
    done = python(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "ended after" in done.stderr


@pytest.mark.slow
def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """The password of a URI stays out of the report and of what pytest shows."""
    uri = "etcd://user:s3cret@127.0.0.1:1"
    for arguments in (
        ("-m", "kvi.conformance", uri),
        (
            *("-m", "pytest", "-x", "-kTestTas", "-pno:cacheprovider", "-oaddopts="),
            *("-pkvi.conformance.plugin", "--pyargs", "kvi.conformance", "--kvi-uri", uri),
        ),
    ):
        done = python(tmp_path, *arguments)
        assert done.returncode in (1, 2)
        assert "s3cret" not in done.stdout + done.stderr
