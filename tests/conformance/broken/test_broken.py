"""The suite catches each mutant by a test of the rule that it breaks; the correct store by none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kvi.conformance import cancelling, holding, recipes, session, waiting
from kvi.conformance.contract import RULES, SECTIONS
from kvi.conformance.faults import away, calls, history, holders
from kvi.conformance.plugin import Findings
from kvi.conformance.report import Outcome
from kvi.conformance.suite import leases, locks, tasks, watches, work
from kvi.conformance.suite import recipes as suite_recipes
from kvi.flow.watch import Asking, WatchFlow

from tests.conformance.broken import BROKEN, Mutant, slow
from tests.conformance.broken.correct import forget
from tests.conformance.broken.plugin import install
from tests.conformance.broken.servers import Far

pytestmark = pytest.mark.slow

PATIENCE = 2.0
"""Seconds that a test waits for what a mutant never does; a lease of half a second ends in them."""

ENDLESS = 6.0
"""Seconds that a wait without end takes, longer than any test waits for its end."""

FAULTS = Path(__file__).with_name("faults.py")
"""The rules that need a server which can be away."""

RECIPES = tuple(r.name for section in SECTIONS if section.title == "Recipes" for r in section.rules)

CALLED_ASIDE = (
    *("handle.threads", "handle.fork", "update.atomic", "lock.waits", "lock.fair", "lock.owner"),
    *("watch.next", "watch.initial", "asyncio.free-loop", "program.model"),
)

HANGS = 16
"""Seconds after which a test of a mutant counts as failed."""

STORM = 30.0
"""The same for one that cancels calls, which no `HANGS` bounds."""


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The mutants' schemes, as an installed distribution."""
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


class Impatient(Findings):
    """Ends the run as soon as every rule that was selected is broken."""

    __hash__ = object.__hash__

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Begin."""
        self.session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a phase of a test ended."""
        super().pytest_runtest_logreport(report)
        failed = [found.rules for found in self.found.values() if found.outcome == "fail"]
        if set().union(*failed).issuperset(self.select):
            self.session.shouldfail = "every rule is broken"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> Iterator[None]:
    """Waiting in vain is short, no test runs once all is seen, and no data stays."""
    monkeypatch.setattr(session, "Findings", Impatient)
    hurry(monkeypatch)
    for owner, name, wrong in getattr(mutant.store, "plants", ()):
        monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    yield
    forget(f"broken {mutant.name}")


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for long."""
    monkeypatch.setattr(session, "HANGS", HANGS)
    monkeypatch.setattr(watches, "WAIT", PATIENCE)
    for module in (cancelling, leases, locks, recipes, suite_recipes, work):
        monkeypatch.setattr(module, "WITHIN", PATIENCE)
    monkeypatch.setattr(waiting.until, "__kwdefaults__", {"within": PATIENCE})
    monkeypatch.setattr(tasks, "LONGEST", STORM)
    monkeypatch.setattr(holding, "TRIES", 1)  # what holds the loop does so each time
    for module in (away, history):
        monkeypatch.setattr(module, "BACK", PATIENCE)
    for module in (calls, cancelling, holders):
        monkeypatch.setattr(module, "MARGIN", PATIENCE)
    ask = WatchFlow.ask

    def hasty(self: WatchFlow, moment: float, timeout: float | None, *, main: bool) -> Asking:
        wait = ENDLESS if timeout is None else min(timeout, PATIENCE)
        return ask(self, moment, wait, main=main)

    monkeypatch.setattr(WatchFlow, "ask", hasty)


def one_for_each_rule() -> set[str]:
    """Names of mutants that break every rule between them; `make soak` runs all the others.

    Greedily those that break most of what is left (Chvátal, 1979), so that they are few.
    """
    missing, chosen = set(RULES), set()
    while missing:
        name = max(BROKEN, key=lambda name: len(missing & set(BROKEN[name].rules)))
        broken = missing & set(BROKEN[name].rules)
        if not broken:
            break  # a test of its own tells which rule nobody breaks
        missing -= broken
        chosen.add(name)
    return chosen


CHOSEN = one_for_each_rule()


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=name, marks=[] if name in CHOSEN else [pytest.mark.soak])
        for name, mutant in BROKEN.items()
    ],
)
def test_mutant_is_caught(mutant: Mutant, impatient: None) -> None:
    """Every rule that it breaks is reported as broken, with the calls that show it."""
    also = [FAULTS] if issubclass(mutant.store, Far) else []
    report = session.run(mutant.uri, erase=True, select=mutant.rules, also=also)
    assert not report.passed
    for name in mutant.rules:
        result = report.rules[name]
        assert result.outcome is Outcome.FAILED, f"{mutant.store.__doc__} No test of {name} saw it."
        assert result.failed_tests
        assert result.reproduction
        # Nobody writes down the calls of handles that a test opens itself, nor those of recipes and
        # of tasks; a program is its calls.
        if not name.startswith(("handle.", "program.", "asyncio.", *RECIPES)) and not also:
            failed = [test for test in result.tests if test.outcome is Outcome.FAILED]
            assert any(test.calls for test in failed), result.reproduction
        assert f"{name} is broken" in report.text()


def test_correct_store_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole suite finds nothing to say of what mutants derive from, nor of the memory store.

    The latter is shown by the memory store's own run of it, and so are most random programs, and
    the interrupts, which have processes of their own.
    """
    monkeypatch.setenv("KVI_CONFORMANCE_EXAMPLES", "0.1")
    rules = [name for name in RULES if name != "handle.interrupt"]
    report = session.run("broken:correct", erase=True, select=rules)
    assert report.passed, report.text()
    assert not [name for name, rule in report.rules.items() if rule.reason and rule.tests]


def test_correct_store_by_a_network_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the suite of faults find anything to say of what the others derive from."""
    rules = sorted({r for m in BROKEN.values() if issubclass(m.store, Far) for r in m.rules})
    monkeypatch.setattr(Findings, "__hash__", object.__hash__)
    report = session.run("far:correct", erase=True, select=rules, also=[FAULTS])
    assert report.passed, report.text()
    assert {report.rules[name].outcome for name in rules} == {Outcome.PASSED}


def test_slow_store_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer each call in time is not told to break what it could not show.

    Of these rules tests make calls on threads, in tasks, or in processes of their own.
    """
    monkeypatch.setattr(Findings, "__hash__", object.__hash__)
    report = session.run(f"slow:correct?timeout={slow.PATIENCE}", erase=True, select=CALLED_ASIDE)
    accused = [test for test in report.tests if test.outcome is Outcome.FAILED]
    assert not accused, [(test.name, test.message) for test in accused]
    assert Outcome.UNKNOWN in {test.outcome for test in report.tests}


def test_every_rule_has_a_mutant() -> None:
    """Each rule is broken by one or more, which say in words how."""
    broken = {rule for mutant in BROKEN.values() for rule in mutant.rules}
    assert not RULES.keys() - broken
    for mutant in BROKEN.values():
        assert mutant.store.__doc__, mutant.name
