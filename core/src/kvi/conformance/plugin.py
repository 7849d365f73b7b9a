"""What the suite adds to pytest.

It shows the history and the rules of a failed test, and, when loaded at start by
`-p kvi.conformance.plugin`, gives the fixture `kvi_uri` from the option `--kvi-uri`, so that the
suite needs no file at all::

    pytest -p kvi.conformance.plugin --pyargs kvi.conformance --kvi-uri acme:…

A test class of the suite that runs without it registers it by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import isfunction
from types import TracebackType

import pytest

import kvi
from kvi.conformance import REWRITTEN
from kvi.conformance.contract import RULES, fits, rules_of
from kvi.conformance.trace import TRACE
from kvi.conformance.waiting import no_answer
from kvi.uri import StoreUri

_EXPLAINS = "kvi-conformance"

LONG = 100
"""Items of a sequence of which a failed assertion shows no more than the first that differ."""

UNKNOWN = "unknown:"
"""How the message of a test begins whose check came to no end."""


def ensure(config: pytest.Config) -> None:
    """Let failures of the suite be explained, unless they are already."""
    manager = config.pluginmanager
    if not manager.has_plugin(_EXPLAINS):
        manager.register(_Explains(), _EXPLAINS)


class _Explains:
    """Adds to the report of a test what it checked, and if it failed, its history."""

    def __init__(self) -> None:
        self._checks = False  # is a test of the suite under way?

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        self._checks = isinstance(item, pytest.Function) and bool(rules_of(item.function))
        try:
            return (yield)
        finally:
            self._checks = False

    def pytest_assertrepr_compare(self, op: str, left: object, right: object) -> list[str] | None:
        if not self._checks or op != "==":
            return None
        for kind in (list, tuple, bytes, str):
            if isinstance(left, kind) and isinstance(right, kind):
                return first_difference(left, right)
        return None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.excinfo:
            only_lines(call.excinfo.value)
        report = yield
        if not isinstance(item, pytest.Function) or not (names := rules_of(item.function)):
            return report
        trace = item.stash.get(TRACE, None)
        calls = str(trace) if trace and report.failed else ""
        unanswered = _unanswered(item, call.excinfo.value) if call.excinfo else ""
        # It travels with the report, also from workers.
        vars(report).update(kvi_rules=names, kvi_calls=calls, kvi_unanswered=unanswered)
        if report.failed:
            if calls:
                report.sections.append(("calls, with seconds from the start", calls))
            told = "\n".join(f"{name}: {RULES[name].text}" for name in names)
            report.sections.append(("rules of the contract", told))
        return report


def first_difference(left: Sequence[object], right: Sequence[object]) -> list[str] | None:
    """Where two long sequences differ first; None if both are short.

    All differences are what pytest itself shows where `CI` is set, or with `-v`. It looks for them
    for minutes where there are a thousand, and the test counts as one that hangs.
    """
    if max(len(left), len(right)) <= LONG:
        return None
    pairs = enumerate(zip(left, right, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
    shown = slice(at, at + 3)
    return [
        f"{len(left)} and {len(right)} long, and from index {at}:",
        f"{left[shown]!r} != {right[shown]!r}",
    ]


def only_lines(error: BaseException) -> None:
    """Take out of its traceback, and of those behind it, what is on no line of the source.

    A signal's handler can strike at an instruction that CPython counts to no line, and pytest
    cannot show such an entry: it would end the run where a test hangs.
    """
    behind: list[BaseException | None] = [error]
    seen: set[int] = set()
    while behind:
        if (shown := behind.pop()) is None or id(shown) in seen:
            continue
        seen.add(id(shown))
        behind += [shown.__cause__, shown.__context__]
        kept = shown.__traceback__ = _on_a_line(shown.__traceback__)
        while kept is not None:
            kept.tb_next = _on_a_line(kept.tb_next)
            kept = kept.tb_next


def _on_a_line(entry: TracebackType | None) -> TracebackType | None:
    while entry is not None and entry.tb_lineno is None:
        entry = entry.tb_next
    return entry


def _unanswered(item: pytest.Function, error: BaseException) -> str:
    """Why a failure says nothing of the store: it could not be reached, or not in time.

    Where the suite itself sees to that, it does say something; and a watch that tells nothing is
    no server that does not answer.
    """
    while isinstance(error, BaseExceptionGroup) and all(map(no_answer, _leaves(error))):
        error = error.exceptions[0]
    if not no_answer(error) or "kvi_server" in item.fixturenames:
        return ""
    return f"{UNKNOWN} the store did not answer: {type(error).__name__}: {error}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


class NotRun(Exception):
    """The suite could not be run, or not to its end; the message tells why."""


@dataclass
class Finding:
    """How one test ended; `outcome` is a value of `kvi.conformance.report.Outcome`."""

    name: str
    rules: tuple[str, ...]
    outcome: str = "not run"
    message: str = "it was not finished"
    calls: str = ""
    ended: bool = False


@dataclass(eq=False)  # pytest keeps its plugins in a set
class Findings:
    """A pytest plugin that runs the tests of some rules and collects how each ended.

    Raises:
        InvalidArgument: a name in `select` is no rule.

    """

    select: Sequence[str]
    progress: Callable[[int, int], None]
    finished: Callable[[str], object] = lambda line: None
    found: dict[str, Finding] = field(default_factory=dict)
    total: int = 0
    trouble: str = ""
    groups: dict[str, str] = field(default_factory=dict)  # of each test that is to run

    def __post_init__(self) -> None:
        for name in self.select:
            if not any(fits(name, rule) for rule in RULES):
                raise kvi.InvalidArgument(
                    f"{name} is no rule of the contract, such as lock.fence, nor the first part "
                    f"of some: {', '.join(sorted({rule.partition('.')[0] for rule in RULES}))}"
                )

    def check(self) -> None:
        """Raise `NotRun` if the tests could not be run."""
        if not self.found:
            raise NotRun(f"no test was run. {self.trouble}".strip())

    def pytest_pycollect_makeitem(self, obj: object) -> list[pytest.Item] | None:
        """Make no tests of a function that checks none of the rules selected: they are many."""
        left_out = isfunction(obj) and self.select and not self._selected(rules_of(obj))
        return [] if left_out else None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the tests, in all and by their groups."""
        self.total = len(session.items)
        for item in session.items:
            self.groups[item.nodeid] = _group(item)

    def _selected(self, rules: Sequence[str]) -> bool:
        return any(fits(name, rule) for name in self.select for rule in rules)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note why the tests could not be found."""
        if report.failed:
            self.trouble = f"{self.trouble}\n{report.longreprtext}".strip()

    def pytest_internalerror(self, excrepr: object) -> None:
        """Note what went wrong in pytest itself."""
        self.trouble = f"{self.trouble}\n{excrepr}".strip()

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note what ended it."""
        self.trouble = f"{self.trouble}\n{excinfo.getrepr(style='long')}".strip()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a phase of a test ended: a failure counts, else the first that tells."""
        name = "::".join(report.nodeid.split("::")[1:]).replace("::", ".")
        finding = self.found.setdefault(
            report.nodeid, Finding(name, tuple(getattr(report, "kvi_rules", ())))
        )
        told = _told(report)
        if told is not None and (not finding.ended or told[0] == "fail" != finding.outcome):
            finding.outcome, finding.message = told
            finding.calls, finding.ended = getattr(report, "kvi_calls", ""), True
        if report.when == "teardown":
            self.progress(len(self.found), self.total)
            self._tell_of(self.groups[report.nodeid])

    def _tell_of(self, group: str) -> None:
        """Tell of a group of tests if its last one has ended."""
        tests = [test for test, its in self.groups.items() if its == group]
        if not all(test in self.found for test in tests):
            return
        bad = sum(self.found[test].outcome == "fail" for test in tests)
        told = f", {bad} failed or unknown" if bad else ""
        counted = "1 test" if len(tests) == 1 else f"{len(tests)} tests"
        self.finished(f"{group}: {counted}{told}; {len(self.found)} of {self.total} in all")


def _group(item: pytest.Item) -> str:
    """The class of a test, or the file of one that is in no class."""
    of = item.getparent(pytest.Class)
    return item.path.name if of is None else of.name


def _told(report: pytest.TestReport) -> tuple[str, str] | None:
    if hasattr(report, "wasxfail"):
        return "known failure", report.wasxfail
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        return "not run", reason.removeprefix("Skipped: ")
    if report.failed:
        if unanswered := getattr(report, "kvi_unanswered", ""):
            return "fail", unanswered
        crash = getattr(report.longrepr, "reprcrash", None)
        message: str = crash.message if crash else report.longreprtext
        return "fail", message.removeprefix("AssertionError: ")
    return ("pass", "") if report.when == "call" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of a run without a test file."""
    group = parser.getgroup("kvi", "kvi conformance suite")
    group.addoption(
        "--kvi-uri", metavar="URI", help="the store to test; everything in it is deleted"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Explain failures from the start, and assertions too where `run` has started pytest."""
    pytest.register_assert_rewrite(*(name for name in REWRITTEN if name not in sys.modules))
    ensure(config)


class _Shy(str):
    """A URI that pytest, which shows the arguments of what failed, shows without its secrets."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(StoreUri.parse(str(self)).redacted)


@pytest.fixture
def kvi_uri(request: pytest.FixtureRequest) -> str:
    """The URI of the option `--kvi-uri`."""
    uri = request.config.getoption("--kvi-uri")
    if not uri:
        pytest.fail("which store? give --kvi-uri=URI, or a fixture kvi_uri", pytrace=False)
    return _Shy(uri)
