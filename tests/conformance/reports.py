"""The reports of the four stores, and the page that leads from each rule to its tests.

`python -m tests.conformance.reports` runs the suite, faults included, on all four, on both faces,
and writes `docs/conformance/` and `docs/rules.md`; with names of reports as arguments only those.
It is run through `python -m tests.servers`, as the tests are (`make reports`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kvi import conformance
from kvi.conformance import faults
from kvi.conformance.contract import RULES, SECTIONS, rules_of
from kvi.conformance.report import Outcome
from kvi.conformance.session import run

from tests.servers import find_consul, find_etcd

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "conformance"
PAGE = DOCS / "rules.md"
STORES = ("memory", "sqlite", "etcd", "consul")
AIO = "-aio"
REPORTS = tuple(store + face for store in STORES for face in ("", AIO))

MARKS = {
    Outcome.PASSED: "yes",
    Outcome.DECLARED: "declared",
    Outcome.KNOWN: "known failure",
    Outcome.NOT_RUN: "–",
}
"""How the page tells an outcome; what is not here must not get into the documentation."""

# What is promised beside the interface of one store, and so is tested by kvi's own tests.
BEYOND: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "A program picks its store by URI; only that plugin is imported.",
        (
            "unit/core/test_uri.py::test_scheme_parts",
            "unit/core/test_registry.py::test_only_the_asked_plugin_is_imported",
        ),
    ),
    (
        "An unknown scheme lists the installed ones and the package to install.",
        ("unit/core/test_registry.py::test_unknown_scheme",),
    ),
    (
        "Two claims of one scheme, a failing import, another major version: refused, all named.",
        (
            "unit/core/test_registry.py::test_two_claims",
            "unit/core/test_registry.py::test_import_failure",
            "unit/core/test_registry.py::test_other_major_version",
        ),
    ),
    (
        "Secrets appear in no `repr`, error or log line.",
        (
            "unit/core/test_uri.py::test_errors_do_not_quote_secrets",
            "unit/core/test_uri.py::test_redacted",
            "unit/core/test_options.py::test_secret_values_are_not_quoted",
        ),
    ),
    (
        "Locks exclude `etcdctl lock`, Go's `concurrency.Mutex` (the same keys) and `consul lock`.",
        (
            "faults/test_etcd_locks.py::test_etcdctl_waits_for_ours",
            "faults/test_etcd_locks.py::test_ours_waits_for_etcdctl",
            "faults/test_etcd_locks.py::test_layout",
            "faults/test_consul_watches.py::test_consul_lock_and_ours_exclude_each_other",
        ),
    ),
    (
        "Mutual exclusion among processes that are paused and killed.",
        (
            "programs/test_locks.py::test_holder_that_was_paused",
            "programs/test_locks.py::test_holders_killed_and_paused",
        ),
    ),
    (
        "Ten thousand watches cost a bounded number of threads and connections.",
        (
            "programs/test_scale.py::test_many_watches",
            "programs/test_scale.py::test_consumer_that_never_reads",
        ),
    ),
    (
        "Watches survive expired tokens, other endpoints and a store that was restored.",
        (
            "faults/test_etcd_watches.py::test_token_expiry",
            "faults/test_etcd_watches.py::test_second_endpoint",
            "faults/test_etcd_watches.py::test_store_that_went_back",
            "faults/test_consul_watches.py::test_a_restored_snapshot_is_told",
            "faults/test_consul_watches.py::test_a_token_that_ends_ends_the_watch",
        ),
    ),
    (
        "Where the store cannot compare values, endless contention ends in `Contention`.",
        ("unit/consul/test_plan.py",),
    ),
    (
        "Refused users and rights are `AuthenticationFailed` and `PermissionDenied`.",
        (
            "faults/test_etcd.py::test_login",
            "faults/test_consul.py::test_tokens_and_permissions",
        ),
    ),
)


def tests_by_rule() -> dict[str, list[str]]:
    """The tests of the suite that check each rule, by name, in the order of the source."""
    found: dict[str, list[str]] = {name: [] for name in RULES}
    for group in groups():
        for name, test in inspect.getmembers(group, inspect.isfunction):
            for rule in rules_of(test):
                found[rule].append(f"{group.__name__}.{name}")
    return found


def groups() -> Iterator[type]:
    for module in (conformance, faults):
        for name in module.__all__:
            if name.startswith("Test"):
                yield getattr(module, name)


def page(reports: dict[str, dict[str, Any]]) -> str:
    """`docs/rules.md`, from the reports as JSON has them."""
    outcomes = {
        name: {rule["name"]: Outcome(rule["outcome"]) for rule in report["rules"]}
        for name, report in reports.items()
    }
    tests = tests_by_rule()
    lines = [
        "# Every rule and its tests",
        "",
        "Made by `make reports`, from the suite and a run of it on each store. Whole reports, also",
        "as text and JSON:",
        ", ".join(
            f"[{report['backend'].split()[0]} on {report['store']}](conformance/{name}.html)"
            for name, report in reports.items()
        ),
        "",
        "*declared*: the store's capabilities deny it, and the tests have seen the refusal, or the",
        "behaviour, that is declared. *–*: the store has no server that could fail so. One word is",
        "for both faces; of two, the second is for `kvi.aio`.",
    ]
    for section in SECTIONS:
        lines += ["", f"## {section.title}", ""]
        lines.append(f"| rule | promise | {' | '.join(STORES)} | tests |")
        lines.append(f"|---|---|{'---|' * len(STORES)}---|")
        for rule in section.rules:
            faces = [
                [MARKS[outcomes[store + face][rule.name]] for face in ("", AIO)] for store in STORES
            ]
            cells = [first if first == second else f"{first}, {second}" for first, second in faces]
            shown = "<br>".join(f"`{name}`" for name in tests[rule.name])
            lines.append(f"| {rule.name} | {rule.text} | {' | '.join(cells)} | {shown} |")
    lines += [
        "",
        "## Beside the suite",
        "",
        "What is no matter of one store has tests in `tests/`.",
        "",
    ]
    lines += ["| promise | tests |", "|---|---|"]
    for promise, names in BEYOND:
        lines.append(f"| {promise} | {'<br>'.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines) + "\n"


def read() -> dict[str, dict[str, Any]]:
    """The reports that the documentation has."""
    return {
        name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in REPORTS
    }


def _where(store: str, folder: str) -> tuple[str, str]:
    """The URI of a store, and what the documentation calls it."""
    if store == "memory":
        return "mem:report", "mem:"
    if store == "sqlite":
        return f"sqlite:{folder}/store.db", "a file"
    if store == "etcd":
        return os.environ["KVI_TEST_ETCD"], f"etcd {find_etcd().version}"
    return os.environ["KVI_TEST_CONSUL"], f"Consul {find_consul().version}"


def _write(name: str, folder: str) -> bool:
    print(f"{name} …", file=sys.stderr, flush=True)
    store, aio = name.removesuffix(AIO), name.endswith(AIO)
    uri, shown = _where(store, folder)
    also = [Path(__file__).parent / "faults" / f"test_{store}.py"]
    report = run(uri, erase=True, also=also, aio=aio)
    report = dataclasses.replace(report, store=f"{shown}, by kvi.aio" if aio else shown)
    if not report.passed:
        print(report.text())
        return False
    for kind, content in (("txt", report.text()), ("json", report.json()), ("html", report.html())):
        (FOLDER / f"{name}.{kind}").write_text(content, encoding="utf-8")
    return True


def main(names: list[str]) -> int:
    """Make these reports, or all, and write what was found if nothing failed."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        written = [_write(name, folder) for name in names or REPORTS]
    if not all(written):
        return 1
    PAGE.write_text(page(read()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
