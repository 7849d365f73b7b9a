"""What a run of the suite found, rule by rule: as text, as JSON, as a page of HTML.

A rule is checked by one test or several, each through several ways to the store. Its outcome is the
worst of theirs, in the order of `Outcome`; of the failures the one with the shortest history is
shown, if it has one. Nothing in a report of what passed depends on when or how fast it was made,
so that two can be compared.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from textwrap import indent

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvi.capabilities import Capabilities
from kvi.conformance.contract import SECTIONS, Rule, fits, foundations_first


class Outcome(enum.StrEnum):
    """How a test or a rule came out, the worst first."""

    FAILED = "fail"
    UNKNOWN = "unknown"
    KNOWN = "known failure"
    NOT_RUN = "not run"
    DECLARED = "refused as declared"
    PASSED = "pass"


_WORST = list(Outcome)
_BAD = {Outcome.FAILED, Outcome.UNKNOWN}
_MARKS = {
    Outcome.FAILED: ("✗", "bold red"),
    Outcome.UNKNOWN: ("?", "bold red"),
    Outcome.KNOWN: ("!", "yellow"),
    Outcome.NOT_RUN: ("·", "dim"),
    Outcome.DECLARED: ("–", "cyan"),
    Outcome.PASSED: ("✓", "green"),
}


@dataclass(frozen=True)
class TestResult:
    """One test through one way: what it checked, how it ended, and if not well, why."""

    __test__ = False  # for pytest, which would collect a class of this name

    name: str
    rules: tuple[str, ...]
    outcome: Outcome
    message: str = ""
    calls: str = ""

    @property
    def reproduction(self) -> str:
        """The calls that broke the rule, and how."""
        return "\n".join(part for part in (self.calls, self.message) if part)


@dataclass(frozen=True)
class RuleResult:
    """How one rule came out, and the tests that say so."""

    rule: Rule
    outcome: Outcome
    tests: tuple[TestResult, ...]

    @property
    def reason(self) -> str:
        """Why it did not pass, in a line; empty if it did."""
        if self.outcome is Outcome.DECLARED:
            return f"the store declares {self.rule.needs} otherwise"
        if self.outcome is Outcome.NOT_RUN:
            return self._worst.message if self.tests else "no test of it was run"
        if self.outcome is Outcome.PASSED:
            left = [test for test in self.tests if test.outcome is Outcome.NOT_RUN]
            told = f"{len(left)} of its {len(self.tests)} runs left out: " if left else ""
            return told + left[0].message if left else ""
        return self._worst.message.partition("\n")[0]

    @property
    def reproduction(self) -> str:
        """The shortest history that broke it; empty if none did."""
        return self._worst.reproduction if self.outcome in _BAD else ""

    @property
    def shown_by(self) -> str:
        """The test that the reproduction is of; empty if there is none."""
        return self._worst.name if self.outcome in _BAD else ""

    @property
    def by_test(self) -> list[tuple[str, Outcome, int]]:
        """Each test with the worst of its outcomes, and in how many ways it was run."""
        found: dict[str, list[Outcome]] = {}
        for test in self.tests:
            found.setdefault(test.name.partition("[")[0], []).append(test.outcome)
        return [
            (name, min(outcomes, key=_WORST.index), len(outcomes))
            for name, outcomes in found.items()
        ]

    @property
    def failed_tests(self) -> list[str]:
        """The tests that failed."""
        return [test.name for test in self.tests if test.outcome is self.outcome]

    @property
    def by_views(self) -> bool:
        """Whether all tests that failed did so through views."""
        return all("[two views" in name for name in self.failed_tests)

    @property
    def _worst(self) -> TestResult:
        found = [test for test in self.tests if test.outcome is self.outcome] or list(self.tests)
        return min(found, key=lambda test: (not test.calls, len(test.reproduction)))


@dataclass(frozen=True)
class Report:
    """What a run found.

    Attributes:
        store: the store's redacted URI.
        backend: the distribution that serves it, with its version.
        capabilities: what the store declares.
        tests: every test that ran.
        select: the rules that were asked for, as `kvi.conformance.session.run` takes them.

    """

    store: str
    backend: str
    capabilities: Capabilities
    tests: tuple[TestResult, ...]
    select: tuple[str, ...] = ()

    @cached_property
    def rules(self) -> dict[str, RuleResult]:
        """Every rule that was asked for with its result, by name, in the contract's order."""
        return {
            rule.name: self._result(rule)
            for section in SECTIONS
            for rule in section.rules
            if not self.select or any(fits(name, rule.name) for name in self.select)
        }

    @property
    def broken(self) -> list[RuleResult]:
        """The rules that failed or stayed unknown; those come first that explain the others.

        What is broken by views alone comes behind all that is broken without them.
        """
        found = {name: result for name, result in self.rules.items() if result.reproduction}
        results = [found[name] for name in foundations_first(found)]
        return sorted(results, key=lambda result: (_WORST.index(result.outcome), result.by_views))

    @property
    def passed(self) -> bool:
        """Whether nothing failed and nothing stayed unknown."""
        outcomes = {test.outcome for test in self.tests}
        return Outcome.PASSED in outcomes and not outcomes & _BAD

    @cached_property
    def sections(self) -> list[tuple[str, list[RuleResult]]]:
        """The results by sections of the contract."""
        found = [
            (section.title, [self.rules[r.name] for r in section.rules if r.name in self.rules])
            for section in SECTIONS
        ]
        return [(title, results) for title, results in found if results]

    @property
    def strays(self) -> list[TestResult]:
        """Tests that failed and say of no rule that they check it."""
        return [test for test in self.tests if not test.rules and test.outcome in _BAD]

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many rules came out how; outcomes that none has are left out."""
        found = [result.outcome for result in self.rules.values()]
        return {outcome: found.count(outcome) for outcome in Outcome if outcome in found}

    def text(self, *, width: int = 100, colour: bool = False) -> str:
        """The report for a terminal: a line per rule, and what broke it."""
        out = io.StringIO()
        console = Console(
            file=out, width=width, force_terminal=colour, no_color=not colour, highlight=False
        )
        console.print(Text(f"{self.backend}: {self.store}", style="bold"))
        for title, results in self.sections:
            console.print(Text(f"\n{title}", style="bold"))
            lines = Table.grid(padding=(0, 1))
            lines.add_column(width=1)
            lines.add_column(min_width=22)
            lines.add_column()
            for result in results:
                mark, style = _MARKS[result.outcome]
                told = Text(result.rule.text.replace("`", ""))
                if result.reason:
                    told.append(f"\n{result.outcome}: {printable(result.reason)}", style=style)
                lines.add_row(Text(mark, style=style), Text(result.rule.name), told)
            console.print(Padding(lines, (0, 0, 0, 2)))
        shown: dict[str, str] = {}
        for result in self.broken:
            name, by = result.rule.name, result.shown_by
            verb = "is broken" if result.outcome is Outcome.FAILED else "could not be decided"
            console.print(Text(f"\n{name} {verb}", style="bold red"))
            console.print(Text(result.rule.text.replace("`", "")))
            console.print(Text(f"by {by}, in {len(result.failed_tests)} runs"))
            if by in shown:
                console.print(Text(f"    as shown at {shown[by]}"))
            else:
                console.out(indent(printable(result.reproduction), "    "), highlight=False)
            shown.setdefault(by, name)
        for test in self.strays:
            console.print(Text(f"\n{test.name}, a test of no rule, failed", style="bold red"))
            console.out(indent(printable(test.reproduction), "    "), highlight=False)
        console.print(Text("\n" + self.summary, style="bold"))
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"

    @property
    def summary(self) -> str:
        """How many rules came out how, in a line."""
        counted = ", ".join(f"{number} {outcome}" for outcome, number in self.counts.items())
        strays = f", {len(self.strays)} other tests failed" if self.strays else ""
        return f"{len(self.rules)} rule{'s' * (len(self.rules) != 1)}: {counted}{strays}"

    def json(self) -> str:
        """The report for programs."""
        return json.dumps(self._plain(), indent=1, ensure_ascii=False) + "\n"

    def html(self) -> str:
        """The report as a page of its own."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("kvi.conformance", "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["code"] = _code
        marks = {outcome: mark for outcome, (mark, _) in _MARKS.items()}
        page = environment.get_template("report.html.jinja")
        return page.render(report=self, marks=marks) + "\n"

    def _result(self, rule: Rule) -> RuleResult:
        tests = tuple(test for test in self.tests if rule.name in test.rules)
        outcomes = {test.outcome for test in tests} or {Outcome.NOT_RUN}
        if len(outcomes) > 1:
            outcomes.discard(Outcome.NOT_RUN)
        worst = min(outcomes, key=_WORST.index)
        if worst is Outcome.PASSED and rule.needs and lacks(self.capabilities, rule.needs):
            worst = Outcome.DECLARED
        return RuleResult(rule, worst, tests)

    def _plain(self) -> Mapping[str, object]:
        return {
            "store": self.store,
            "backend": self.backend,
            "passed": self.passed,
            "capabilities": dataclasses.asdict(self.capabilities),
            "counts": {str(outcome): number for outcome, number in self.counts.items()},
            "rules": [
                {
                    "name": result.rule.name,
                    "section": title,
                    "text": result.rule.text,
                    "outcome": str(result.outcome),
                    "reason": result.reason,
                    "reproduction": result.reproduction,
                    "tests": [
                        {"name": name, "outcome": str(outcome), "ways": ways}
                        for name, outcome, ways in result.by_test
                    ],
                }
                for title, results in self.sections
                for result in results
            ],
            "strays": [{"name": t.name, "reproduction": t.reproduction} for t in self.strays],
        }


def lacks(capabilities: Capabilities, name: str) -> bool:
    """Whether a store declares that it lacks, or has only in part, what a rule needs."""
    return getattr(capabilities, name) in (False, "no", "prefix")


def printable(text: str) -> str:
    """The text without what would steer a terminal: a backend's messages and keys may hold it."""
    return "".join(
        c if c == "\n" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text
    )


def _code(text: str) -> object:
    """The text as HTML, with what stands between backquotes as code."""
    from markupsafe import Markup

    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part
        for number, part in enumerate(parts)
    )
