"""Which ways of the suite's tests see which planted backends.

`python -m tests.conformance.broken.ways` runs the rules that each mutant breaks to their end, and
prints for each by which ways (`kvi.conformance.rules`) how many tests saw it broken. It takes a
quarter of an hour. Arguments are names of mutants; ``1/2`` takes every second one.

When every test with a store ran on a handle, through a namespace and with two handles, 246 pairs of
a mutant and a rule were seen

=================================================  =====
by all three alike                                   213
by a handle and two handles, not a namespace           4
by two handles alone (each has locks of its own)       2
by tests that have one way of their own               27
=================================================  =====

So a namespace showed nothing of a store that a handle did not (what is wrong with views, tests of
views see on a handle), and each row of a table was the same three times. Now namespace and two
handles are one way, and a table runs once: 701 cases for a store, of 1517, and all are seen.

`Backend` and the smallest backend run what they have a part in: `tests.conformance.test_wrapped`
and `test_smallest`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kvi.conformance import session
from kvi.conformance.plugin import Findings, NotRun
from kvi.conformance.report import Outcome

from tests.conformance.broken import BROKEN, Mutant
from tests.conformance.broken.correct import forget
from tests.conformance.broken.plugin import install
from tests.conformance.broken.servers import Far
from tests.conformance.broken.test_broken import FAULTS, hurry

LONGEST = 60.0
"""Seconds for one mutant: some make nearly every test wait."""


class Bounded(Findings):
    """Ends the run when the time is up."""

    __hash__ = object.__hash__

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Begin."""
        self.session, self.end = session, time.monotonic() + LONGEST

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a phase of a test ended."""
        super().pytest_runtest_logreport(report)
        if time.monotonic() > self.end:
            self.session.shouldfail = "the time is up"


def ways(mutant: Mutant) -> dict[str, dict[str, int]]:
    """For each rule that it breaks, how many tests of each way saw that."""
    also = [FAULTS] if issubclass(mutant.store, Far) else []
    try:
        report = session.run(mutant.uri, erase=True, select=mutant.rules, also=also)
    except NotRun as error:
        print(mutant.name, error, file=sys.stderr)
        return {}
    finally:
        forget(f"broken {mutant.name}")
    seen: dict[str, dict[str, int]] = {rule: {} for rule in mutant.rules}
    for test in report.tests:
        if test.outcome is Outcome.FAILED:
            found = re.search(r"\[(handle|two views|two handles)\b", test.name)
            via = found[1] if found else "its own"
            for rule in set(test.rules) & seen.keys():
                seen[rule][via] = seen[rule].get(via, 0) + 1
    return seen


def main(arguments: list[str]) -> None:
    """Print a line for each mutant."""
    names = list(BROKEN)
    if arguments and "/" in arguments[0]:
        part, parts = map(int, arguments[0].split("/"))
        names = names[part - 1 :: parts]
    elif arguments:
        names = arguments
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        install(Path(folder))
        patch.syspath_prepend(folder)
        hurry(patch)
        patch.setattr(session, "Findings", Bounded)
        for name in names:
            print(json.dumps({name: ways(BROKEN[name])}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
