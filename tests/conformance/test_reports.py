"""The documentation has a report of each store, and leads from each rule to its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvi.conformance.contract import RULES, rules_of
from kvi.conformance.report import Outcome

from tests.conformance import reports

MEND = "run make reports"


def test_every_rule_has_a_test() -> None:
    """No rule of the contract is without a test, and no test of the suite without a rule."""
    assert [rule for rule, tests in reports.tests_by_rule().items() if not tests] == []
    untold = [
        f"{group.__name__}.{name}"
        for group in reports.groups()
        for name, test in vars(group).items()
        if name.startswith("test_") and not rules_of(test)
    ]
    assert untold == []


def test_every_test_states_its_rule() -> None:
    """Each test of the suite has a docstring."""
    for group in reports.groups():
        for name, test in vars(group).items():
            assert not name.startswith("test_") or test.__doc__, f"{group.__name__}.{name}"


@pytest.mark.parametrize("name", reports.REPORTS)
def test_reports_are_of_this_suite(name: str) -> None:
    """Each report is of the rules and tests that there are, and nothing failed."""
    report = reports.read()[name]
    assert report["passed"]
    assert {rule["name"]: rule["text"] for rule in report["rules"]} == {
        name: rule.text for name, rule in RULES.items()
    }, MEND
    tests = reports.tests_by_rule()
    for rule in report["rules"]:
        ran = {test["name"] for test in rule["tests"]}
        assert ran == set(tests[rule["name"]]), f"{rule['name']}: {MEND}"
        assert Outcome(rule["outcome"]) in reports.MARKS


def test_page_is_up_to_date() -> None:
    """The page of rules is what the reports and the suite say."""
    assert reports.PAGE.read_text(encoding="utf-8") == reports.page(reports.read()), MEND


def test_tests_beside_the_suite_are_there() -> None:
    """Every test that the page names is there."""
    root = Path(reports.__file__).parents[1]
    for promise, names in reports.BEYOND:
        for name in names:
            path, _, test = name.partition("::")
            assert f"def {test}" in (root / path).read_text(), f"{promise} {name}"
